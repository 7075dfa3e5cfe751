"""Teacher files of others: training groups and teacher scores in the formats they are published in.

JSON lines   {"question", "pos_pid", "neg_pids", "pos_score", "neg_scores"}     groups with scores
             {"question", "pos_pid", "neg_pids"}                                groups without
             {"query", "docids", "scores"}, the positive first                  groups with scores
TREC run     query Q0 passage rank score tag                                    scores
Parquet      the keys of one of the above as columns; training groups as raylab writes them; or
             query_id, passage_id, score[, rank]                                scores
All plain, gzip or zstd. The format is recognised by what a file holds, whatever its name. Groups are read in
one pass, some hundreds at a time; scores by `raylab.data.supervision.scores`. A fault names FILE:LINE, of Parquet the
row; it ends the reading, or `on_fault` is called with it and the record is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.faults import CollectionError, Kind, OnFault, RecordError, refuse, tell
from raylab.data.files import lines, opened
from raylab.data.grammar import FLOAT32_MAX, fields, seems
from raylab.data.supervision.held_out import GroupCounts, HeldOut, normalised
from raylab.data.supervision.teacher import GROUP_SCHEMA
from raylab.data.tokens import find_ids

Form = Literal["groups", "scores"]
FORMATS = (
    'JSON lines {"question", "pos_pid", "neg_pids"[, "pos_score", "neg_scores"]} or '
    '{"query", "docids", "scores"}, a TREC run, or Parquet (query_id, passage_id, score)'
)
SCORED = ("query_id", "passage_id", "score")
_BATCH_GROUPS = 256
# What pyarrow raises for damaged bytes; ValueError: names that are not UTF-8.
_PARQUET_FAULTS = (pa.ArrowException, OSError, ValueError, MemoryError)


def form_of(path: Path) -> Form:
    """Whether a teacher file holds training groups or scores of pairs, from its first record.

    Raises:
        CollectionError: neither.
    """
    if is_parquet(path):
        names = set(schema_of(path).names)
        if {"query_id", "positive", "negatives"} <= names or {"question", "pos_pid"} <= names:
            return "groups"
        if "docids" in names:
            return "groups"
        if set(SCORED) <= names:
            return "scores"
        raise CollectionError(
            f"{path}: not a table of {', '.join(SCORED)}, nor of training groups; "
            f"its columns are {', '.join(sorted(names)) or 'none'}"
        )
    for number, line in text_lines(path):
        if line.lstrip().startswith("{"):
            return "groups"
        if len(fields(line)) == 6:
            return "scores"
        raise CollectionError(
            f"{path}:{number}: no teacher file begins like this; it is {FORMATS}{seems(line)}"
        )
    raise CollectionError(f"{path}: the file is empty; a teacher file is {FORMATS}")


def is_parquet(path: Path) -> bool:
    with opened(path) as file:
        return file.read(4) == b"PAR1"


def schema_of(path: Path) -> pa.Schema:
    try:
        return pq.ParquetFile(path).schema_arrow
    except _PARQUET_FAULTS as error:
        raise CollectionError(f"{path}: the Parquet file is damaged ({error})") from None


def text_lines(path: Path, on_fault: OnFault = refuse) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of the lines that are not blank."""
    return lines(path, on_fault, by_name=False)


# ---------------------------------------------------------------------------------------- groups


_Numbered = tuple[int, Any, dict[str, Any]]  # number of a record, the record, its group


def read_published(path: Path, held_out: HeldOut | None = None) -> Iterator[dict[str, Any]]:
    """The groups (rows of `GROUP_SCHEMA`) of a file of groups, as `read_groups_of` checks them.

    Passages are not looked up.
    """
    for batch in read_groups_of(path, held_out or HeldOut(())):
        yield from batch


def read_groups_of(
    path: Path,
    held_out: HeldOut,
    passage_ids: np.ndarray | None = None,
    tally: GroupCounts | None = None,
    on_fault: OnFault = refuse,
) -> Iterator[list[dict[str, Any]]]:
    """The groups of a file of groups in file order, some hundreds at a time, as rows of `GROUP_SCHEMA`.

    Most formats carry texts only: a training query of the collection gives its id, any other text is its
    own id. Groups of queries that are held out are left out, and counted.

    Args:
        passage_ids: bytes [N], ascending: the passages that may be trained on; None for any.

    Raises:
        CollectionError: FILE:LINE of a record that is in none of the formats, misaligned, or not
            finite, and of one that names an unknown passage; a damaged stream, whatever the policy.
    """
    tally = tally or GroupCounts()
    numbered = _numbered_groups(path, on_fault)
    while batch := list(islice(numbered, _BATCH_GROUPS)):
        if passage_ids is not None:
            batch = list(_known(path, batch, passage_ids, on_fault))
        rows = []
        for _, _, row in batch:
            text = normalised(row["query"])
            if text in held_out.texts:
                tally.held_out += 1
                continue
            if "query_id" not in row:
                row["query_id"] = held_out.training.get(text, row["query"])
            tally.own_queries += text not in held_out.training
            if not row["body_only"] and held_out.near(text) is not None:
                tally.note_near(row["query"])
            rows.append({name: row[name] for name in GROUP_SCHEMA.names})
        tally.groups += len(rows)
        if rows:
            yield rows


def _known(
    path: Path, batch: Sequence[_Numbered], passage_ids: np.ndarray, on_fault: OnFault
) -> Iterator[_Numbered]:
    """The groups of which every passage is known."""
    named = [[row["positive"], *row["negatives"]] for _, _, row in batch]
    _, known = find_ids(passage_ids, [passage for group in named for passage in group])
    ends = np.cumsum([len(group) for group in named])
    for (number, record, row), group, is_known in zip(
        batch, named, np.split(known, ends[:-1]), strict=True
    ):
        if is_known.all():
            yield number, record, row
            continue
        unknown = group[int(is_known.argmin())]
        reason = f"unknown passage {unknown!r}; it is not among the training passages"
        tell(on_fault, path, number, RecordError(Kind.UNKNOWN, reason), record)


def _numbered_groups(path: Path, on_fault: OnFault) -> Iterator[_Numbered]:
    for number, record in _records(path, on_fault):
        try:
            row = _group(json.loads(record) if isinstance(record, str) else record)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            kind = error.kind if isinstance(error, RecordError) else Kind.FORMAT
            why = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            reason = (
                f"{why}; a line is one of the published teacher formats "
                '{"question", "pos_pid", "neg_pids"[, "pos_score", "neg_scores"]} or '
                '{"query", "docids", "scores"}'
            )
            tell(on_fault, path, number, RecordError(kind, reason), record)
            continue
        yield number, record, row


def _records(path: Path, on_fault: OnFault) -> Iterator[tuple[int, Any]]:
    if not is_parquet(path):
        yield from text_lines(path, on_fault)
        return
    number = 0
    for batch in parquet_batches(path, _BATCH_GROUPS, None):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def parquet_batches(
    path: Path, size: int, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(size, columns=columns):
            batch.validate(full=True)
            yield batch
    except _PARQUET_FAULTS as error:
        raise CollectionError(f"{path}: the Parquet file is damaged ({error})") from None


def _group(record: Any) -> dict[str, Any]:
    """A group from a record of one of the formats; ValueError, KeyError or TypeError if it is in none."""
    if not isinstance(record, dict):
        raise ValueError("not an object")
    row: dict[str, Any] = {"body_only": False}
    if "positive" in record and "negatives" in record:
        text, positive, negatives = record["query"], record["positive"], _list(record, "negatives")
        positive_score, scores = record.get("positive_score"), _scores(record, "negative_scores")
        row["query_id"] = _text(record["query_id"], "the query id")
        row["body_only"] = record.get("body_only") is True
    elif "docids" in record:
        if "pos_pid" in record or "neg_pids" in record:
            raise ValueError("it is in two formats at once")
        text, (positive, *negatives) = record["query"], _list(record, "docids")
        positive_score, *scores = _list(record, "scores")
    else:
        text, positive, negatives = (
            record["question"],
            record["pos_pid"],
            _list(record, "neg_pids"),
        )
        positive_score, scores = record.get("pos_score"), _scores(record, "neg_scores")
    if (positive_score is None) != (scores is None):
        raise ValueError("the positive is scored and the negatives are not, or vice versa")
    if scores is not None and len(scores) != len(negatives):
        raise RecordError(Kind.FIELDS, f"{len(scores)} scores for {len(negatives)} negatives")
    passages = [_passage(p) for p in (positive, *negatives)]
    _check_passages(passages)
    mined = record.get("mined", len(negatives))
    if type(mined) is not int or not 0 <= mined <= len(negatives):
        raise ValueError(f"{mined} of {len(negatives)} negatives are said to be mined")
    return row | {
        "query": _text(text, "the query"),
        "positive": passages[0],
        "negatives": passages[1:],
        "mined": mined,
        "positive_score": None if scores is None else _score(positive_score),
        "negative_scores": None if scores is None else [_score(s) for s in scores],
    }


def _check_passages(passages: Sequence[str]) -> None:
    """Raise unless there are a positive and negatives, each once."""
    if len(passages) < 2:
        raise ValueError("it has no negative passage")
    if len(set(passages)) < len(passages):
        twice = next(p for i, p in enumerate(passages) if p in passages[:i])
        if twice == passages[0]:
            raise RecordError(Kind.DUPLICATE, f"the positive {twice!r} is among the negatives")
        raise RecordError(Kind.DUPLICATE, f"passage {twice!r} is listed twice")


def _list(record: dict, key: str) -> list:
    if not isinstance(record[key], list):
        raise ValueError(f"{key!r} is not a list")
    if not record[key]:
        raise ValueError(f"{key!r} is empty")
    return record[key]


def _scores(record: dict, key: str) -> list | None:
    if record.get(key) is not None and not isinstance(record[key], list):
        raise ValueError(f"{key!r} is not a list")
    return record.get(key)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecordError(Kind.EMPTY, f"{field} is not a string with text")
    value.encode()  # half a surrogate pair, which JSON can spell, is no text
    return value


def _passage(value: Any) -> str:
    if type(value) not in (str, int):
        raise RecordError(Kind.ID, "a passage id is neither a string nor a whole number")
    return _text(str(value), "a passage id")


def _score(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= FLOAT32_MAX:
        raise RecordError(Kind.SCORE, "a score is not a finite float32 number")
    return float(value)
