"""What is in a collection's files: passages, queries and judgements, read record by record and strictly.

Every reader yields the line number of each record. Every fault names file, line and what would be
right; by default the first one is raised as `CollectionError`, else `on_fault` is called with each and
the record is left out. Identifiers are strings without white space, since run files are separated
by it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from raylab.data import irds
from raylab.data.faults import CollectionError, Kind, OnFault, RecordError, refuse, tell
from raylab.data.files import lines, name_of, rows
from raylab.data.sources import Source

TRAIN = "train"
# Validation is carved out of the training queries where a collection has no split of its own for it.
VALIDATION = "valid"
_VALIDATION_ONE_IN = 5
_GRADE = re.compile(r"[+-]?[0-9]{1,5}(\.0+)?", re.ASCII)
_LARGEST_GRADE = 32_767
_HEADERS = ("query-id", "query_id")

_PASSAGE_COLUMNS = {"_id": ("_id", "passage_id", "docid"), "title": ("title",), "text": ("text",)}
_QUERY_COLUMNS = {"_id": ("_id", "query_id"), "text": ("text",)}
_JUDGEMENT_COLUMNS = {
    "query-id": ("query-id", "query_id"),
    "corpus-id": ("corpus-id", "passage_id"),
    "score": ("score", "grade"),
}


class Passage(NamedTuple):
    line: int
    passage_id: str
    title: str
    text: str


class Query(NamedTuple):
    line: int
    query_id: str
    text: str


class Judgement(NamedTuple):
    line: int
    query_id: str
    passage_id: str
    grade: int


def is_validation(query_id: str) -> bool:
    """Whether a training query belongs to the carved validation part (one in five, by hash)."""
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) % _VALIDATION_ONE_IN == 0


# ---------------------------------------------------------------------------------- records


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(Kind.FORMAT, f"not JSON ({error.msg}); one object a line") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets by the thousand
        raise RecordError(Kind.FORMAT, "not JSON that can be read; one object a line") from None
    if not isinstance(record, dict):
        raise RecordError(Kind.FORMAT, "not a JSON object; one object a line")
    return record


def _string(record: dict[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:80] + "..."
        raise RecordError(Kind.FORMAT, f"{key!r} is {shown}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            Kind.ENCODING, f"{key!r} holds half a surrogate pair at character {error.start + 1}"
        ) from None
    return value


def _fields(line: str, count: int, form: str, separator: str | None = "\t") -> list[str]:
    parts = line.split(separator) if separator is None or count != 2 else line.split(separator, 1)
    if len(parts) != count:
        raise RecordError(Kind.FIELDS, f"{len(parts)} fields, not {count}; a line is {form}")
    return parts


def _check_id(kind: str, value: str) -> None:
    if not value.strip():
        raise RecordError(Kind.ID, f"the {kind} id is empty")
    if "\0" in value or value.split() != [value]:
        raise RecordError(
            Kind.ID, f"{kind} id {value!r} holds white space or NUL; run files cannot"
        )


def _records(
    address: str | Path, columns: dict[str, tuple[str, ...]], on_fault: OnFault
) -> Iterator[tuple[int, Any]]:
    """(line, what a line holds): values of a Parquet row, else the text of a line."""
    if name_of(address).endswith(".parquet"):
        yield from rows(address, columns, on_fault)
    else:
        yield from lines(address, on_fault)


# ------------------------------------------------------------------------- passages, queries


def read_passages(
    addresses: str | Path | Sequence[str | Path], on_fault: OnFault = refuse
) -> Iterator[Passage]:
    """Passages in file order, of one file or several. Duplicates are found by ingest, which sorts.

    Raises:
        CollectionError: malformed line, an id that is empty or holds white space, or a passage
            without any text.
    """
    several = [addresses] if isinstance(addresses, str | Path) else addresses
    for address in several:
        if irds.is_irds(address):
            records = ((d[0], d) for d in irds.documents(str(address)))
        else:
            records = _records(address, _PASSAGE_COLUMNS, on_fault)
        jsonl = ".jsonl" in name_of(address)
        for number, record in records:
            try:
                passage = _passage(number, record, jsonl)
            except RecordError as wrong:
                tell(on_fault, address, number, wrong, record)
                continue
            yield passage


def _passage(number: int, record: Any, jsonl: bool) -> Passage:
    if isinstance(record, tuple):
        record = dict(zip(("_id", "title", "text"), record[1:], strict=True))
    if jsonl:
        record = _object(record)
    if isinstance(record, dict):
        title = "" if record.get("title") is None else _string(record, "title")
        passage = Passage(number, _string(record, "_id"), title, _string(record, "text"))
    else:
        passage_id, text = _fields(record, 2, "ID<tab>TEXT")
        passage = Passage(number, passage_id, "", text)
    _check_id("passage", passage.passage_id)
    if not (passage.title.strip() or passage.text.strip()):
        raise RecordError(Kind.EMPTY, f"passage {passage.passage_id!r} has no text")
    return passage


def read_queries(address: str | Path, on_fault: OnFault = refuse) -> dict[str, Query]:
    """Queries by id; of two with one id the first is kept.

    Raises:
        CollectionError: malformed line, empty text, duplicate id (both lines are named); and
            whatever the policy, a file without any query.
    """
    queries: dict[str, Query] = {}
    jsonl = ".jsonl" in name_of(address)
    if irds.is_irds(address):
        records = ((n, {"_id": i, "text": t}) for n, i, t in irds.queries(str(address)))
    else:
        records = _records(address, _QUERY_COLUMNS, on_fault)
    for number, record in records:
        try:
            query = _query(number, record, jsonl)
            if query.query_id in queries:
                first = queries[query.query_id].line
                raise RecordError(
                    Kind.DUPLICATE,
                    f"duplicate query id {query.query_id!r} (first at line {first})",
                )
        except RecordError as wrong:
            tell(on_fault, address, number, wrong, record)
            continue
        queries[query.query_id] = query
    if not queries:
        raise CollectionError(f"{address}: no query is there")
    return queries


def _query(number: int, record: Any, jsonl: bool) -> Query:
    if jsonl:
        record = _object(record)
    if isinstance(record, dict):
        query = Query(number, _string(record, "_id"), _string(record, "text"))
    else:
        query = Query(number, *_fields(record, 2, "ID<tab>TEXT"))
    if not query.query_id.strip() or not query.text.strip():
        raise RecordError(Kind.EMPTY, f"query {query.query_id!r} has an empty id or text")
    _check_id("query", query.query_id)
    return query


# -------------------------------------------------------------------------------- judgements


def read_judgements(address: str | Path, on_fault: OnFault = refuse) -> list[Judgement]:
    """Relevance judgements: BEIR (`query-id corpus-id score`, header), TREC (`qid 0 pid grade`), Parquet.

    Raises:
        CollectionError: wrong field count, a grade that is no whole number, a pair judged twice; and
            whatever the policy, a file without any judgement.
    """
    judgements: list[Judgement] = []
    seen: dict[tuple[str, str], int] = {}
    beir = begun = False
    if irds.is_irds(address):
        records = ((n, tuple(fields)) for n, *fields in irds.judgements(str(address)))
    else:
        records = _records(address, _JUDGEMENT_COLUMNS, on_fault)
    for number, record in records:
        if isinstance(record, str) and not record.strip():
            continue
        if not begun and isinstance(record, str) and record.split()[0] in _HEADERS:
            beir = begun = True
            continue
        begun = True
        try:
            judgement = _judgement(number, record, beir)
            pair = judgement.query_id, judgement.passage_id
            if pair in seen:
                raise RecordError(
                    Kind.DUPLICATE,
                    f"query {pair[0]!r}, passage {pair[1]!r} judged twice (first at line {seen[pair]})",
                )
        except RecordError as wrong:
            tell(on_fault, address, number, wrong, record)
            continue
        seen[pair] = number
        judgements.append(judgement)
    if not judgements:
        raise CollectionError(f"{address}: no judgement; a line is QUERY 0 PASSAGE GRADE")
    return judgements


def _judgement(number: int, record: Any, beir: bool) -> Judgement:
    if isinstance(record, dict):
        query_id, passage_id = _string(record, "query-id"), _string(record, "corpus-id")
        grade = str(record.get("score"))
    elif isinstance(record, tuple):
        query_id, passage_id, grade = record
    elif beir:
        query_id, passage_id, grade = _fields(record, 3, "QUERY<tab>PASSAGE<tab>GRADE")
    else:
        query_id, _, passage_id, grade = _fields(record, 4, "QUERY 0 PASSAGE GRADE", None)
    value = int(float(grade)) if _GRADE.fullmatch(grade) else None
    if value is None or abs(value) > _LARGEST_GRADE:
        shown = grade if len(grade) <= 80 else grade[:80] + "..."
        raise RecordError(
            Kind.GRADE,
            f"grade {shown!r}; it must be a whole number between -{_LARGEST_GRADE} and {_LARGEST_GRADE}",
        )
    _check_id("query", query_id)
    _check_id("passage", passage_id)
    return Judgement(number, query_id, passage_id, value)


def read_qrels(address: str | Path) -> dict[str, dict[str, int]]:
    """Grades by query and passage id.

    Raises:
        CollectionError: as `read_judgements`.
    """
    return _grades(read_judgements(address))


def _grades(judgements: Sequence[Judgement]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for judgement in judgements:
        qrels.setdefault(judgement.query_id, {})[judgement.passage_id] = judgement.grade
    return qrels


# ------------------------------------------------------------------------------------ topics


@dataclass(frozen=True)
class Topics:
    """One split's judged queries: texts, and grades by query and passage."""

    split: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Judged:
    """One split as read: all its queries' texts, and the judgements that name one of them."""

    queries: dict[str, str]
    judgements: list[Judgement]


def read_judged(source: Source, on_fault: OnFault = refuse) -> dict[str, Judged]:
    """Every split's queries and judgements.

    Raises:
        CollectionError: also when a judgement names a query that is not there.
    """
    files: dict[str, dict[str, str]] = {}  # BEIR has one file of queries for all splits
    judged = {}
    for split, address in source.qrels.items():
        own = source.queries[split]
        if own not in files:
            files[own] = {q.query_id: q.text for q in read_queries(own, on_fault).values()}
        queries = files[own]
        kept = []
        for judgement in read_judgements(address, on_fault):
            if judgement.query_id in queries:
                kept.append(judgement)
                continue
            reason = f"unknown query {judgement.query_id!r}; it must be in {name_of(own)}"
            tell(on_fault, address, judgement.line, RecordError(Kind.UNKNOWN, reason), judgement)
        judged[split] = Judged(queries, kept)
    return judged


def without_unknown_passages(
    source: Source, split: str, judged: Judged, known: set[str], on_fault: OnFault = refuse
) -> Judged:
    """The split without the judgements that name a passage which is not in `known`.

    Raises:
        CollectionError: there is one.
    """
    kept = []
    for judgement in judged.judgements:
        if judgement.passage_id in known:
            kept.append(judgement)
            continue
        names = " or ".join(name_of(address) for address in source.passages)
        reason = f"unknown passage {judgement.passage_id!r}; it must be in {names}"
        wrong = RecordError(Kind.UNKNOWN, reason)
        tell(on_fault, source.qrels[split], judgement.line, wrong, judgement)
    return Judged(judged.queries, kept)


def topics_of(judged: dict[str, Judged]) -> dict[str, Topics]:
    """Judged queries by split; a collection without a split for it gets `valid` from its train split.

    Raises:
        CollectionError: a split whose every judgement was left out.
    """
    topics = {}
    for split, judgements in judged.items():
        if not judgements.judgements:
            raise CollectionError(f"split {split!r}: no judgement is left")
        qrels = _grades(judgements.judgements)
        topics[split] = Topics(split, {q: judgements.queries[q] for q in qrels}, qrels)
    if TRAIN in topics and not {"dev", VALIDATION} & set(topics):
        train = topics[TRAIN]
        for split, keep in ((TRAIN, False), (VALIDATION, True)):
            ids = [q for q in train.queries if is_validation(q) == keep]
            if ids:
                topics[split] = Topics(
                    split, {q: train.queries[q] for q in ids}, {q: train.qrels[q] for q in ids}
                )
    return topics


def read_topics(source: Source, on_fault: OnFault = refuse) -> dict[str, Topics]:
    """All splits' judged queries, by split.

    Raises:
        CollectionError: as the readers and `topics_of`.
    """
    return topics_of(read_judged(source, on_fault))
