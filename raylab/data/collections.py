"""Test collections on disk: two layouts, read line by line and strictly.

    BEIR layout       corpus.jsonl[.gz], queries.jsonl[.gz], qrels/SPLIT.tsv (header line)
    MS MARCO layout   collection.tsv[.gz], queries.SPLIT.tsv[.gz], qrels.SPLIT.tsv[.gz] (4 columns),
                      optionally train_passages.tsv[.gz]: passages of the training split that must
                      stay out of the evaluation index

Every reader yields the line number of each record; every fault is one `CollectionError` that names
file, line and what would be right. Identifiers are strings.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from raylab.artifacts import sha256_of

EMBEDDED = {"scifact": Path(__file__).parent.parent / "assets" / "scifact"}
TRAIN = "train"
# Validation is carved out of the training queries where a collection has no split of its own for it.
VALIDATION = "valid"
_VALIDATION_ONE_IN = 5


class CollectionError(ValueError):
    """Bad input; the message names file, line and what would be right."""


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


@dataclass(frozen=True)
class Source:
    """Which files make a collection."""

    name: str
    passages: Path
    train_passages: Path | None
    queries: dict[str, Path]  # split -> file; BEIR names the same file for every split
    qrels: dict[str, Path]
    embedded: bool = False
    checksums: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def files(self) -> list[Path]:
        own = [self.passages, *([self.train_passages] if self.train_passages else [])]
        return [*own, *dict.fromkeys(self.queries.values()), *self.qrels.values()]

    def identity(self) -> dict[str, object]:
        """Content, not location: the checksum of every file under the part it plays."""
        roles = {"passages": self.passages, "train_passages": self.train_passages}
        roles |= {f"queries.{s}": p for s, p in self.queries.items()}
        roles |= {f"qrels.{s}": p for s, p in self.qrels.items()}
        sums = {path: sha256_of(path) for path in self.files}
        return {"files": {role: sums[path] for role, path in roles.items() if path}, "layout": 1}


def open_collection(name_or_folder: str) -> Source:
    """Find a collection: an embedded one by name, or a local folder in one of the two layouts.

    Raises:
        CollectionError: no such collection or folder, or files that the layout asks for are missing.
    """
    embedded = name_or_folder in EMBEDDED
    folder = EMBEDDED[name_or_folder] if embedded else Path(name_or_folder)
    if not folder.is_dir():
        raise CollectionError(
            f"no collection {name_or_folder!r}: give {', '.join(EMBEDDED)}, or a folder with "
            "corpus.jsonl[.gz] (BEIR layout) or collection.tsv[.gz] (MS MARCO layout)"
        )
    name = name_or_folder if embedded else folder.resolve().name
    if corpus := _either(folder, "corpus.jsonl"):
        queries = _required(folder, "queries.jsonl")
        qrels = {p.stem: p for p in sorted((folder / "qrels").glob("*.tsv"))}
        if not qrels:
            raise CollectionError(f"{folder}: no qrels; a BEIR folder has qrels/SPLIT.tsv")
        return Source(name, corpus, None, dict.fromkeys(qrels, queries), qrels, embedded)
    if collection := _either(folder, "collection.tsv"):
        qrels = {p.name.split(".")[1]: p for p in sorted(folder.glob("qrels.*.tsv*"))}
        if not qrels:
            raise CollectionError(f"{folder}: no qrels; an MS MARCO folder has qrels.SPLIT.tsv")
        queries = {split: _required(folder, f"queries.{split}.tsv") for split in qrels}
        return Source(
            name, collection, _either(folder, "train_passages.tsv"), queries, qrels, embedded
        )
    raise CollectionError(
        f"{folder}: neither corpus.jsonl[.gz] (BEIR layout) nor collection.tsv[.gz] (MS MARCO layout)"
    )


def _either(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def _required(folder: Path, name: str) -> Path:
    path = _either(folder, name)
    if path is None:
        raise CollectionError(f"{folder}: {name}[.gz] is missing")
    return path


def is_validation(query_id: str) -> bool:
    """Whether a training query belongs to the carved validation part (one in five, by hash)."""
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) % _VALIDATION_ONE_IN == 0


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of a plain or gzipped UTF-8 file; empty lines are skipped."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise CollectionError(
                        f"{path}:{number}: byte {error.start + 1} is not UTF-8; re-encode the file"
                    ) from None
                if text:
                    yield number, text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CollectionError(
            f"{path}:{number + 1}: the gzip stream is damaged ({error})"
        ) from None


def _objects(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CollectionError(
                f"{path}:{number}: not JSON ({error.msg}); one object a line"
            ) from None
        if not isinstance(record, dict):
            raise CollectionError(f"{path}:{number}: not a JSON object; one object a line")
        yield number, record


def _string(path: Path, number: int, record: dict, key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise CollectionError(f"{path}:{number}: {key!r} is {value!r}; it must be a string")
    return value


def _fields(
    path: Path, number: int, line: str, count: int, form: str, separator: str | None = "\t"
) -> list[str]:
    parts = line.split(separator) if separator is None or count != 2 else line.split(separator, 1)
    if len(parts) != count:
        raise CollectionError(
            f"{path}:{number}: {len(parts)} fields, not {count}; a line is {form}"
        )
    return parts


def read_passages(path: Path) -> Iterator[Passage]:
    """Passages in file order. Duplicates are found by ingest, which sees all shards.

    Raises:
        CollectionError: malformed line, empty id, or a passage without any text.
    """
    if ".jsonl" in path.name:
        for number, record in _objects(path):
            passage_id = _string(path, number, record, "_id")
            title = _string(path, number, record, "title", "")
            yield _checked(
                path, Passage(number, passage_id, title, _string(path, number, record, "text"))
            )
    else:
        for number, line in lines(path):
            passage_id, text = _fields(path, number, line, 2, "ID<tab>TEXT")
            yield _checked(path, Passage(number, passage_id, "", text))


def _checked(path: Path, passage: Passage) -> Passage:
    if not passage.passage_id.strip():
        raise CollectionError(f"{path}:{passage.line}: the passage id is empty")
    if not (passage.title.strip() or passage.text.strip()):
        raise CollectionError(f"{path}:{passage.line}: passage {passage.passage_id!r} has no text")
    return passage


def read_queries(path: Path) -> dict[str, Query]:
    """Queries by id.

    Raises:
        CollectionError: malformed line, empty text, duplicate id (both lines are named).
    """
    queries: dict[str, Query] = {}
    if ".jsonl" in path.name:
        records = (
            Query(n, _string(path, n, r, "_id"), _string(path, n, r, "text"))
            for n, r in _objects(path)
        )
    else:
        records = (Query(n, *_fields(path, n, line, 2, "ID<tab>TEXT")) for n, line in lines(path))
    for query in records:
        if not query.query_id.strip() or not query.text.strip():
            raise CollectionError(
                f"{path}:{query.line}: query {query.query_id!r} has an empty id or text"
            )
        if query.query_id in queries:
            first = queries[query.query_id].line
            raise CollectionError(
                f"{path}:{query.line}: duplicate query id {query.query_id!r} (first at line {first})"
            )
        queries[query.query_id] = query
    return queries


def read_judgements(path: Path) -> list[Judgement]:
    """Relevance judgements: BEIR (`query-id corpus-id score`, header) or TREC (`qid 0 pid grade`).

    Raises:
        CollectionError: wrong field count, a grade that is no whole number, a pair judged twice.
    """
    judgements: list[Judgement] = []
    seen: dict[tuple[str, str], int] = {}
    beir = False
    for number, line in lines(path):
        if not judgements and not beir and line.split()[0] in ("query-id", "query_id"):
            beir = True
            continue
        if beir:
            query_id, passage_id, grade = _fields(
                path, number, line, 3, "QUERY<tab>PASSAGE<tab>GRADE"
            )
        else:
            query_id, _, passage_id, grade = _fields(
                path, number, line, 4, "QUERY 0 PASSAGE GRADE", None
            )
        try:
            value = float(grade)
        except ValueError:
            value = math.nan
        if not value.is_integer():
            raise CollectionError(f"{path}:{number}: grade {grade!r}; it must be a whole number")
        if (query_id, passage_id) in seen:
            first = seen[query_id, passage_id]
            raise CollectionError(
                f"{path}:{number}: query {query_id!r}, passage {passage_id!r} judged twice (first at line {first})"
            )
        seen[query_id, passage_id] = number
        judgements.append(Judgement(number, query_id, passage_id, int(value)))
    if not judgements:
        raise CollectionError(f"{path}: no judgement; a line is QUERY 0 PASSAGE GRADE")
    return judgements


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Grades by query and passage id.

    Raises:
        CollectionError: as `read_judgements`.
    """
    qrels: dict[str, dict[str, int]] = {}
    for judgement in read_judgements(path):
        qrels.setdefault(judgement.query_id, {})[judgement.passage_id] = judgement.grade
    return qrels


@dataclass(frozen=True)
class Topics:
    """One split's judged queries: texts, and grades by query and passage."""

    split: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def read_topics(source: Source) -> dict[str, Topics]:
    """All splits' judged queries; a collection without a split for it gets `valid` from its train split.

    Raises:
        CollectionError: also when a judgement names a query that is not there.
    """
    topics: dict[str, Topics] = {}
    for split, qrels_path in source.qrels.items():
        known = read_queries(source.queries[split])
        queries: dict[str, str] = {}
        qrels: dict[str, dict[str, int]] = {}
        for judgement in read_judgements(qrels_path):
            query = known.get(judgement.query_id)
            if query is None:
                raise CollectionError(
                    f"{qrels_path}:{judgement.line}: unknown query {judgement.query_id!r}; "
                    f"it must be in {source.queries[split].name}"
                )
            queries[judgement.query_id] = query.text
            qrels.setdefault(judgement.query_id, {})[judgement.passage_id] = judgement.grade
        topics[split] = Topics(split, queries, qrels)
    if TRAIN in topics and not {"dev", VALIDATION} & set(topics):
        train = topics[TRAIN]
        for split, keep in ((TRAIN, False), (VALIDATION, True)):
            ids = [q for q in train.queries if is_validation(q) == keep]
            if ids:
                topics[split] = Topics(
                    split, {q: train.queries[q] for q in ids}, {q: train.qrels[q] for q in ids}
                )
    return topics
