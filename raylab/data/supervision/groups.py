"""Training groups as a train worker holds them: memory-mapped arrays, of which a step reads its share.

    groups.json           {"groups": G, "scored": whether every group has teacher scores}
    query_ids.*.npy, queries.*.npy      UTF-8 bytes [*] and offsets int64 [G + 1]
    body_only.npy         bool [G]       positives.npy         int32 [G], rows of the passage store
    mined.npy             int32 [G]      positive_scores.npy   float32 [G]
    negatives.*.npy       int32 [*] and offsets int64 [G + 1]
    negative_scores.npy   float32 [*], aligned with the negatives

532,751 groups of 200 negatives are 0.9 GB here, in the page cache of a node once for all its workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raylab.data.faults import CollectionError
from raylab.data.supervision.teacher import GROUP_SCHEMA

_BATCH_GROUPS = 1_024
_SHARD_GROUPS = 16 * _BATCH_GROUPS
_CHECK_SCORES = 2**22  # looked at once
RowsOf = Callable[[Sequence[str]], np.ndarray]


class Ragged(Sequence[np.ndarray]):
    """Rows of different lengths in one flat array: row i is `flat[offsets[i] : offsets[i + 1]]`."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray):
        self.flat, self.offsets = flat, offsets

    @classmethod
    def of(cls, rows: Iterable[Any], dtype: Any) -> Ragged:
        """From 1-d arrays or lists, copied."""
        arrays = [np.asarray(row, dtype) for row in rows]
        flat = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        return cls(flat, np.cumsum([0, *map(len, arrays)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> list[np.ndarray]: ...
    def __getitem__(self, row: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows]."""
        return np.diff(self.offsets)


class Strings(Sequence[str]):
    """Strings as UTF-8 bytes in one flat array; each is decoded when it is read."""

    def __init__(self, encoded: Ragged):
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        found = self.encoded[row]
        if isinstance(found, list):
            return [one.tobytes().decode() for one in found]
        return found.tobytes().decode()


@dataclass(frozen=True)
class Groups:
    """Training groups: columns, with passages as rows of the passage store."""

    query_ids: list[str] | Strings
    queries: list[str] | Strings
    body_only: np.ndarray  # bool [G]
    positives: np.ndarray  # int [G]
    negatives: Ragged  # int
    mined: np.ndarray  # int [G]: so many of the first negatives are mined, the rest random
    positive_scores: np.ndarray | None  # float32 [G]
    negative_scores: Ragged | None  # float32
    source: str = "training groups"  # where they were read, for error messages

    def __len__(self) -> int:
        return len(self.query_ids)

    def check_scores(self) -> None:
        """Raise `CollectionError` unless every passage of every group has a finite teacher score."""
        if self.positive_scores is None or self.negative_scores is None:
            return
        fault = misfit(self.negatives.lengths, self.positive_scores, self.negative_scores)
        if fault is not None:
            place, why = fault
            raise CollectionError(f"{self.source}: query {self.query_ids[place]!r}: {why}")


def misfit(
    negatives: np.ndarray, positive_scores: np.ndarray, negative_scores: Ragged
) -> tuple[int, str] | None:
    """(place, why) of the first group whose teacher scores are not one finite number a passage.

    Args:
        negatives: how many negatives each group has.
    """
    groups = len(negatives)
    if not len(positive_scores) == len(negative_scores) == groups:
        scored = min(len(positive_scores), len(negative_scores))
        return min(scored, groups - 1), f"teacher scores of {scored} groups for {groups} groups"
    wrong = np.flatnonzero(negative_scores.lengths != negatives)
    if len(wrong):
        place = int(wrong[0])
        scored = negative_scores.lengths[place]
        return place, f"{scored} teacher scores for {negatives[place]} negatives"
    faults = []
    if len(bad := np.flatnonzero(~np.isfinite(positive_scores))):
        faults.append((int(bad[0]), positive_scores[bad[0]]))
    for start in range(0, len(negative_scores.flat), _CHECK_SCORES):
        part = negative_scores.flat[start : start + _CHECK_SCORES]
        if len(bad := np.flatnonzero(~np.isfinite(part))):
            owner = np.searchsorted(negative_scores.offsets, start + bad[0], side="right") - 1
            faults.append((int(owner), part[bad[0]]))
            break
    if faults:
        place, value = min(faults, key=lambda fault: fault[0])
        return place, f"a teacher score is {value}"
    return None


# ---------------------------------------------------------------------------------------- files


def write_shards(batches: Iterable[list[dict[str, Any]]], folder: Path) -> tuple[int, int]:
    """Write rows of `GROUP_SCHEMA` as Parquet shards: (groups, pseudo-queries among them)."""
    count, pseudo = 0, 0
    writer: pq.ParquetWriter | None = None
    try:
        for rows in _of_size(batches, _BATCH_GROUPS):
            if count % _SHARD_GROUPS == 0:
                if writer is not None:
                    writer.close()
                path = folder / f"groups-{count // _SHARD_GROUPS:05d}.parquet"
                writer = pq.ParquetWriter(path, GROUP_SCHEMA)
            assert writer is not None
            writer.write_table(pa.Table.from_pylist(rows, schema=GROUP_SCHEMA))
            count += len(rows)
            pseudo += sum(row["body_only"] for row in rows)
    finally:
        if writer is not None:
            writer.close()
    return count, pseudo


def _of_size(batches: Iterable[list[Any]], size: int) -> Iterator[list[Any]]:
    """The same items in batches of `size`, the last one smaller."""
    held: list[Any] = []
    for batch in batches:
        held += batch
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held:
        yield held


class _Columns:
    """Arrays that grow on disk: raw files while they are written, `.npy` files at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, Any] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.ends: dict[str, int] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        if name not in self.files:
            self.files[name] = open(self.folder / f"{name}.raw", "wb")  # noqa: SIM115
            self.dtypes[name] = values.dtype
        values.astype(self.dtypes[name], copy=False).tofile(self.files[name])

    def append_ragged(self, name: str, flat: np.ndarray, lengths: np.ndarray) -> None:
        if name not in self.ends:
            self.ends[name] = 0
            self.append(f"{name}.offsets", np.zeros(1, np.int64))
        self.append(f"{name}.values", flat)
        ends = self.ends[name] + np.cumsum(lengths, dtype=np.int64)
        self.append(f"{name}.offsets", ends)
        self.ends[name] = int(ends[-1]) if len(ends) else self.ends[name]

    def finish(self, left_out: Sequence[str] = ()) -> None:
        for name, file in self.files.items():
            file.close()
            raw = self.folder / f"{name}.raw"
            dtype = self.dtypes[name]
            count = raw.stat().st_size // dtype.itemsize
            if name not in left_out:
                array: np.ndarray = np.memmap(raw, dtype, mode="r") if count else np.zeros(0, dtype)
                np.save(self.folder / f"{name}.npy", array)
            raw.unlink()

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def write_arrays(shards: Sequence[Path], rows_of: RowsOf, folder: Path) -> int:
    """Turn Parquet files of groups into the arrays above; returns the number of groups.

    Streams: memory is that of a thousand groups.

    Args:
        rows_of: passage ids -> rows of the passage store; raises for unknown ones.

    Raises:
        CollectionError: a group whose teacher scores are not one finite number a passage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns, count, scored = _Columns(folder), 0, True
    try:
        for table, has_scores in _shard_batches(shards):
            for name, column in (("query_ids", "query_id"), ("queries", "query")):
                columns.append_ragged(name, *_encoded(table[column]))
            negatives = table["negatives"].combine_chunks()
            rows = rows_of(negatives.flatten().to_pylist())
            columns.append_ragged(
                "negatives", rows.astype(np.int32), _numpy(negatives.value_lengths())
            )
            columns.append("positives", rows_of(table["positive"].to_pylist()).astype(np.int32))
            columns.append("mined", table["mined"].to_numpy().astype(np.int32))
            columns.append("body_only", table["body_only"].to_numpy(zero_copy_only=False))
            scored = scored and has_scores
            if scored:
                flat = table["negative_scores"].combine_chunks().flatten()
                columns.append("positive_scores", table["positive_score"].to_numpy())
                columns.append("negative_scores", _numpy(flat))
            count += len(table)
        scored = scored and count > 0
        columns.finish(() if scored else ("positive_scores", "negative_scores"))
    finally:
        columns.close()
    _write_facts(folder, count, scored)
    return count


def _write_facts(folder: Path, groups: int, scored: bool) -> None:
    (folder / "groups.json").write_text(json.dumps({"groups": groups, "scored": scored}))


def join_arrays(parts: Sequence[Path], folder: Path) -> int:
    """Append folders of arrays to each other in a new one; returns the number of groups.

    Scores are kept where every part has them. Memory is that of one column of one part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns, count = _Columns(folder), 0
    facts = [json.loads((part / "groups.json").read_text()) for part in parts]
    scored = all(fact["scored"] for fact in facts)
    try:
        for part, fact in zip(parts, facts, strict=True):
            if not fact["groups"]:
                continue
            groups = open_groups(part)
            for name, strings in (("query_ids", groups.query_ids), ("queries", groups.queries)):
                assert isinstance(strings, Strings)
                columns.append_ragged(name, strings.encoded.flat, strings.encoded.lengths)
            columns.append_ragged("negatives", groups.negatives.flat, groups.negatives.lengths)
            for name in ("positives", "mined", "body_only"):
                columns.append(name, getattr(groups, name))
            if scored and groups.positive_scores is not None and groups.negative_scores is not None:
                columns.append("positive_scores", groups.positive_scores)
                columns.append("negative_scores", groups.negative_scores.flat)
            count += fact["groups"]
        columns.finish()
    finally:
        columns.close()
    _write_facts(folder, count, scored and count > 0)
    return count


def open_groups(folder: Path, source: str = "training groups") -> Groups:
    """The groups that `write_arrays` wrote; nothing is read before it is needed.

    Args:
        source: what error messages call them.
    """
    facts = json.loads((folder / "groups.json").read_text())
    if not facts["groups"]:
        nothing, none = np.zeros(0, np.int32), Ragged.of([], np.int32)
        return Groups([], [], nothing.astype(bool), nothing, none, nothing, None, None, source)

    def mapped(name: str) -> np.ndarray:
        # A plain view: slicing a memmap costs ten times as much.
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

    def ragged(name: str) -> Ragged:
        return Ragged(mapped(f"{name}.values"), mapped(f"{name}.offsets"))

    negatives = ragged("negatives")
    scored = facts["scored"]
    return Groups(
        query_ids=Strings(ragged("query_ids")),
        queries=Strings(ragged("queries")),
        body_only=mapped("body_only"),
        positives=mapped("positives"),
        negatives=negatives,
        mined=mapped("mined"),
        positive_scores=mapped("positive_scores") if scored else None,
        negative_scores=Ragged(mapped("negative_scores"), negatives.offsets) if scored else None,
        source=source,
    )


def _shard_batches(shards: Sequence[Path]) -> Iterator[tuple[pa.Table, bool]]:
    """Groups of all shards, a thousand at a time, and whether all of these have scores.

    Raises:
        CollectionError: FILE and query id of a group with scores that are not one finite number a
            passage.
    """
    for path in shards:
        for batch in pq.ParquetFile(path).iter_batches(_BATCH_GROUPS, columns=GROUP_SCHEMA.names):
            table = pa.Table.from_batches([batch]).cast(GROUP_SCHEMA).combine_chunks()
            yield table, _check_batch(path, table)


def _check_batch(path: Path, table: pa.Table) -> bool:
    positive = table["positive_score"].combine_chunks()
    lists = table["negative_scores"].combine_chunks()
    halves = _numpy(pc.xor(positive.is_null(), lists.is_null()))  # type: ignore[attr-defined]
    if halves.any():
        query = table["query_id"][int(halves.argmax())].as_py()
        raise CollectionError(
            f"{path}: query {query!r}: teacher scores of the positive or of the negatives are missing"
        )
    given = positive.is_valid()
    having, lists = table.filter(given), lists.filter(given)
    sizes = _numpy(lists.value_lengths())
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    fault = misfit(
        _numpy(having["negatives"].combine_chunks().value_lengths()),
        having["positive_score"].to_numpy(),
        Ragged(_numpy(lists.flatten()).astype(np.float32), offsets),
    )
    if fault is not None:
        raise CollectionError(f"{path}: query {having['query_id'][fault[0]].as_py()!r}: {fault[1]}")
    return len(having) == len(table)


def _encoded(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(UTF-8 bytes, lengths) of a string column."""
    texts = [text.encode() for text in column.to_pylist()]
    return np.frombuffer(b"".join(texts), np.uint8), np.array([len(t) for t in texts], np.int64)


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)
