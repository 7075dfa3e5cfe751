"""What is in a collection's files: passages, queries and judgements, read record by record and strictly.

Every reader yields the line number of each record. Every fault names file, line and what would be
right; by default the first one is raised as `CollectionError`, else `on_fault` is called with each and
the record is left out. Identifiers are strings without white space, since run files are separated
by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylab.data import irds
from raylab.data.faults import (
    CollectionError,
    Kind,
    OnFault,
    RecordError,
    left_out,
    refuse,
    tell,
)
from raylab.data.files import lines, name_of, rows
from raylab.data.grammar import BEIR_HEADER, JUDGEMENT_COLUMNS, is_beir_header, is_header
from raylab.data.records import Judgement, Passage, Query, judgement_of, passage_of, query_of
from raylab.data.sources import Source

TRAIN = "train"
# Validation is carved out of the training queries where a collection has no split of its own for it.
VALIDATION = "valid"
_VALIDATION_ONE_IN = 5

_PASSAGE_COLUMNS = {"_id": ("_id", "passage_id", "docid"), "title": ("title",), "text": ("text",)}
_QUERY_COLUMNS = {"_id": ("_id", "query_id"), "text": ("text",)}


def is_validation(query_id: str) -> bool:
    """Whether a training query belongs to the carved validation part (one in five, by hash)."""
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) % _VALIDATION_ONE_IN == 0


def _records(
    address: str | Path, columns: dict[str, tuple[str, ...]], on_fault: OnFault
) -> Iterator[tuple[int, Any]]:
    """(line, what a line holds): values of a Parquet row, else the text of a line."""
    if name_of(address).endswith(".parquet"):
        yield from rows(address, columns, on_fault)
        return
    begun = ".jsonl" in name_of(address)
    for number, line in lines(address, on_fault):
        if begun or not _names_columns(line, columns):
            yield number, line
        begun = True


def _names_columns(line: str, columns: Mapping[str, Sequence[str]]) -> bool:
    """Whether a first line is a header, which the reader of judgements looks at itself."""
    return "text" in columns and is_header(line, columns)


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
                passage = passage_of(number, record, jsonl)
            except RecordError as wrong:
                tell(on_fault, address, number, wrong, record)
                continue
            yield passage


def read_queries(address: str | Path, on_fault: OnFault = refuse) -> dict[str, Query]:
    """Queries by id; of two with one id the first is kept.

    Raises:
        CollectionError: malformed line, empty text, duplicate id (both lines are named); and
            whatever the policy, a file without any query.
    """
    queries: dict[str, Query] = {}
    for query, record in _queries(address, on_fault):
        if query.query_id in queries:
            first = queries[query.query_id].line
            reason = f"duplicate query id {query.query_id!r} (first at line {first})"
            tell(on_fault, address, query.line, RecordError(Kind.DUPLICATE, reason), record)
            continue
        queries[query.query_id] = query
    if not queries:
        raise CollectionError(f"{address}: no query is there{left_out(on_fault)}")
    return queries


def _queries(address: str | Path, on_fault: OnFault) -> Iterator[tuple[Query, Any]]:
    """Sound queries, each with its record."""
    jsonl = ".jsonl" in name_of(address)
    if irds.is_irds(address):
        records = ((n, {"_id": i, "text": t}) for n, i, t in irds.queries(str(address)))
    else:
        records = _records(address, _QUERY_COLUMNS, on_fault)
    for number, record in records:
        try:
            query = query_of(number, record, jsonl)
        except RecordError as wrong:
            tell(on_fault, address, number, wrong, record)
            continue
        yield query, record


# -------------------------------------------------------------------------------- judgements


def read_judgements(address: str | Path, on_fault: OnFault = refuse) -> list[Judgement]:
    """Relevance judgements: BEIR (`query-id corpus-id score`, header), TREC (`qid 0 pid grade`), Parquet.

    Raises:
        CollectionError: wrong field count, a grade that is no whole number, a pair judged twice; and
            whatever the policy, a file without any judgement.
    """
    judgements: list[Judgement] = []
    seen: dict[tuple[str, str], int] = {}
    for judgement, record in _judgements(address, on_fault):
        pair = judgement.query_id, judgement.passage_id
        if pair in seen:
            reason = (
                f"query {pair[0]!r}, passage {pair[1]!r} judged twice (first at line {seen[pair]})"
            )
            tell(on_fault, address, judgement.line, RecordError(Kind.DUPLICATE, reason), record)
            continue
        seen[pair] = judgement.line
        judgements.append(judgement)
    if not judgements:
        raise CollectionError(
            f"{address}: no judgement; a line is QUERY 0 PASSAGE GRADE{left_out(on_fault)}"
        )
    return judgements


def _judgements(address: str | Path, on_fault: OnFault) -> Iterator[tuple[Judgement, Any]]:
    """Sound judgements, each with its record."""
    if irds.is_irds(address):
        records = ((n, tuple(columns)) for n, *columns in irds.judgements(str(address)))
    else:
        records = _records(address, JUDGEMENT_COLUMNS, on_fault)
    beir = begun = False
    for number, record in records:
        if not begun and isinstance(record, str) and is_beir_header(record):
            beir = begun = True
            continue
        first, begun = not begun, True
        try:
            judgement = judgement_of(number, record, beir)
        except RecordError as wrong:
            if first and wrong.kind is Kind.GRADE and isinstance(record, str):
                reason = f"{wrong}; as a header line, only BEIR's is known, {BEIR_HEADER}"
                wrong = RecordError(Kind.GRADE, reason)
            tell(on_fault, address, number, wrong, record)
            continue
        yield judgement, record


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
        reason = f"unknown passage {judgement.passage_id!r}; it must be in {_corpus(source)}"
        wrong = RecordError(Kind.UNKNOWN, reason)
        tell(on_fault, source.qrels[split], judgement.line, wrong, judgement)
    return Judged(judged.queries, kept)


def count_misses(source: Source, split: str, judged: Judged, known: set[str]) -> int:
    """How many relevant passages of a split for evaluation are not in `known`.

    They stay judged, and no system can find them: as in `trec_eval -c` their queries count, and the ideal
    ranking holds them.

    Raises:
        CollectionError: not one judged passage is known: the judgements are of another collection.
    """
    unknown = [j for j in judged.judgements if j.passage_id not in known]
    if unknown and len(unknown) == len(judged.judgements):
        first = unknown[0]
        raise CollectionError(
            f"{source.qrels[split]}:{first.line}: unknown passage {first.passage_id!r}, and so is every "
            f"other that split {split!r} judges; they must be in {_corpus(source)}"
        )
    return sum(judgement.grade > 0 for judgement in unknown)


def _corpus(source: Source) -> str:
    return " or ".join(name_of(address) for address in source.passages)


def topics_of(judged: dict[str, Judged], on_fault: OnFault = refuse) -> dict[str, Topics]:
    """Judged queries by split; a collection without a split for it gets `valid` from its train split.

    Raises:
        CollectionError: a split whose every judgement was left out.
    """
    topics = {}
    for split, judgements in judged.items():
        if not judgements.judgements:
            raise CollectionError(f"split {split!r}: no judgement is left{left_out(on_fault)}")
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


def check_beginning(source: Source, on_fault: OnFault, of_passages: OnFault) -> None:
    """Read the first record of every file.

    Args:
        of_passages: the policy for passages.

    Raises:
        CollectionError: a file that cannot be read, or whose first record is faulty.
    """
    for address in (*source.passages, *source.train_passages):
        next(read_passages(address, of_passages), None)
    for address in dict.fromkeys(source.queries.values()):
        next(_queries(address, on_fault), None)
    for address in source.qrels.values():
        next(_judgements(address, on_fault), None)


def read_topics(source: Source, on_fault: OnFault = refuse) -> dict[str, Topics]:
    """All splits' judged queries, by split.

    Raises:
        CollectionError: as the readers and `topics_of`.
    """
    return topics_of(read_judged(source, on_fault), on_fault)
