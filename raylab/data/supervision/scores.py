"""Teacher scores of (query, passage) pairs: a TREC run or a Parquet file, read query by query.

A file's pairs may stand in any order and be tens of millions: they are first parted on disk into ranges
of queries, each of which fits in memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from raylab.data.faults import CollectionError, Kind, OnFault, RecordError, refuse, tell
from raylab.data.grammar import run_line
from raylab.data.supervision.published import (
    SCORED,
    is_parquet,
    parquet_batches,
    schema_of,
    text_lines,
)
from raylab.data.tokens import find_ids

_BATCH_SCORES = 2**18
_PART_BYTES = 2**24  # of the file, for each range of queries; packed scores grow tenfold in memory
_PARTS = 256  # at most: so many files are open at once
Scores = Mapping[str, tuple[float, int | None]]  # passage id -> (score, rank), of one query

SCORES = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("score", pa.float32()),
        ("rank", pa.int32()),  # of a mined negative from 0; null for others, and in files without
        ("place", pa.int64()),  # line of a run, row of a Parquet file
    ]
)


def is_run(path: Path) -> bool:
    """Whether a file of scores is a TREC run."""
    return not is_parquet(path)


def read_scores(path: Path, on_fault: OnFault = refuse) -> Iterator[pa.Table]:
    """The scores of a TREC run or of a Parquet file in file order, as tables of `SCORES`.

    Raises:
        CollectionError: FILE:LINE of a wrong number of columns, an empty id, or a score that is no
            finite float32 number; whatever the policy, a damaged stream or a table of other columns.
    """
    yield from (_parquet_scores if is_parquet(path) else _run_scores)(path, on_fault)


def _run_scores(path: Path, on_fault: OnFault) -> Iterator[pa.Table]:
    numbered = text_lines(path, on_fault)
    while batch := list(islice(numbered, _BATCH_SCORES)):
        queries, passages, scores, places = [], [], [], []
        for number, line in batch:
            try:
                query, passage, score = run_line(line)
            except RecordError as wrong:
                tell(on_fault, path, number, wrong, line)
                continue
            queries.append(query)
            passages.append(passage)
            scores.append(score)
            places.append(number)
        columns = [
            queries,
            passages,
            pa.array(scores, pa.float32()),
            pa.nulls(len(scores), pa.int32()),
            pa.array(places, pa.int64()),
        ]
        yield pa.table(columns, schema=SCORES)


def _parquet_scores(path: Path, on_fault: OnFault) -> Iterator[pa.Table]:
    schema = schema_of(path)
    columns = [*SCORED, *(["rank"] if "rank" in schema.names else [])]
    start = 1
    for batch in parquet_batches(path, _BATCH_SCORES, columns):
        table = pa.Table.from_batches([batch])
        if "rank" not in table.column_names:
            table = table.append_column("rank", pa.nulls(len(table), pa.int32()))
        places = pa.array(np.arange(start, start + len(table)))
        table = table.append_column("place", places)
        try:
            table = table.select(SCORES.names).cast(SCORES)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise CollectionError(f"{path}: not a table of {', '.join(SCORED)} ({error})") from None
        start += len(table)
        yield _whole_rows(path, table, on_fault)


def _whole_rows(path: Path, table: pa.Table, on_fault: OnFault) -> pa.Table:
    """The rows that have ids and a finite score."""
    kept = np.isfinite(table["score"].to_numpy())  # a null reads as NaN
    for name in ("query_id", "passage_id"):
        kept &= table[name].is_valid().to_numpy()
    if kept.all():
        return table
    for row in table.filter(pa.array(~kept)).to_pylist():
        null = next((name for name in SCORED if row[name] is None), None)
        wrong = RecordError(
            Kind.SCORE if null in (None, "score") else Kind.ID,
            f"{null} is null"
            if null
            else f"teacher score of query {row['query_id']!r}, passage {row['passage_id']!r} is {row['score']}",
        )
        tell(on_fault, path, row["place"], wrong, row)
    return table.filter(pa.array(kept))


@dataclass
class LeftOut:
    """Scores that were read and not used."""

    other_queries: int = 0  # of queries that are not training queries here
    other_passages: int = 0  # of passages that are kept for evaluation


def scores_by_query(
    path: Path,
    query_ids: list[str],
    passage_ids: np.ndarray,
    evaluation_ids: np.ndarray | None = None,
    left: LeftOut | None = None,
    on_fault: OnFault = refuse,
) -> Iterator[tuple[str, Scores]]:
    """The scores of each query of `query_ids` that has some, in that order.

    Args:
        query_ids: ascending.
        passage_ids: bytes [N], ascending: the passages that may be trained on.
        evaluation_ids: likewise: passages whose scores are left out; any other is unknown.

    Raises:
        CollectionError: as `read_scores`; FILE:LINE of an unknown passage, and of a passage that a
            query has twice (of which `on_fault` permitting the first score is kept).
    """
    left = left or LeftOut()
    count = min(
        max(1, math.ceil(path.stat().st_size / _PART_BYTES)), _PARTS, max(len(query_ids), 1)
    )
    known = np.array([one.encode() for one in query_ids], np.bytes_)
    if not len(known):
        return
    with tempfile.TemporaryDirectory(prefix="raylab-scores-") as scratch:
        parts = [Path(scratch, f"{number:03d}.arrow") for number in range(count)]
        _part(path, known, passage_ids, evaluation_ids, left, parts, on_fault)
        for part in parts:
            with pa.memory_map(str(part)) as file:
                table = pa.ipc.open_stream(file).read_all()
            yield from _queries_of(path, table, query_ids, on_fault)


_PARTED = pa.schema([("query", pa.int32()), *(SCORES.field(n) for n in SCORES.names[1:])])


def _part(
    path: Path,
    query_ids: np.ndarray,
    passage_ids: np.ndarray,
    evaluation_ids: np.ndarray | None,
    left: LeftOut,
    parts: Sequence[Path],
    on_fault: OnFault,
) -> None:
    """Write the scores of the queries into one file for each range of them."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    writers = [pa.ipc.new_stream(str(part), _PARTED, options=options) for part in parts]
    try:
        for table in read_scores(path, on_fault):
            numbers, asked = find_ids(query_ids, table["query_id"].to_pylist())
            wanted = asked & _usable(
                path, table, asked, passage_ids, evaluation_ids, left, on_fault
            )
            left.other_queries += int((~asked).sum())
            numbers, table = numbers[wanted].astype(np.int32), table.filter(pa.array(wanted))
            columns = [pa.array(numbers), *(table[name] for name in SCORES.names[1:])]
            table = pa.table(columns, schema=_PARTED)
            owners = numbers.astype(np.int64) * len(parts) // len(query_ids)
            order = np.argsort(owners, kind="stable")
            bounds = np.searchsorted(owners[order], np.arange(len(parts) + 1))
            table = table.take(pa.array(order))
            for writer, start, end in zip(writers, bounds[:-1], bounds[1:], strict=True):
                if end > start:
                    writer.write_table(table.slice(start, end - start))
    finally:
        for writer in writers:
            writer.close()


def _usable(
    path: Path,
    table: pa.Table,
    asked: np.ndarray,
    passage_ids: np.ndarray,
    evaluation_ids: np.ndarray | None,
    left: LeftOut,
    on_fault: OnFault,
) -> np.ndarray:
    """Which pairs have a passage that may be trained on."""
    passages = table["passage_id"].to_pylist()
    _, known = find_ids(passage_ids, passages)
    others = np.flatnonzero(asked & ~known)
    if len(others):
        names = [passages[i] for i in others]
        _, apart = (
            find_ids(evaluation_ids, names) if evaluation_ids is not None else (None, known[others])
        )
        for row in table.take(pa.array(others[~apart])).to_pylist():
            reason = f"unknown passage {row['passage_id']!r}; it is not in the collection"
            tell(on_fault, path, row["place"], RecordError(Kind.UNKNOWN, reason), row)
        left.other_passages += int(apart.sum())
    return known


def _queries_of(
    path: Path, table: pa.Table, query_ids: list[str], on_fault: OnFault
) -> Iterator[tuple[str, Scores]]:
    numbers = table["query"].to_numpy()
    order = np.argsort(numbers, kind="stable")
    numbers, table = numbers[order], table.take(pa.array(order))
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    ends = np.append(starts, len(numbers))[1:]
    for start, end in zip(starts, ends, strict=True):
        rows = table.slice(start, end - start)
        query_id = query_ids[int(numbers[start])]
        passages = rows["passage_id"].to_pylist()
        values = zip(rows["score"].to_pylist(), rows["rank"].to_pylist(), strict=True)
        scores: dict[str, tuple[float, int | None]] = {}
        for place, (passage, value) in enumerate(zip(passages, values, strict=True)):
            if passage in scores:
                row = rows.slice(place, 1).to_pylist()[0]
                reason = f"passage {passage!r} again for query {query_id!r}; a pair has one score"
                tell(on_fault, path, row["place"], RecordError(Kind.DUPLICATE, reason), row)
                continue
            scores[passage] = value
        yield query_id, scores
