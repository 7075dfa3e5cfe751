"""What mining and teaching read of a collection artifact: its passages by row, their ids and hashes.

A row is a passage's place in id order, the same in the Parquet shards and in every passage store.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.ingested import load_passages
from raylab.data.tokens import find_ids

_COLUMNS = ("passage_id", "title", "text")


@dataclass(frozen=True)
class Texts:
    """The training passages of a collection: ids, texts under the protocol (title, space, body), bodies."""

    ids: list[str]
    texts: list[str]
    titles: list[str]
    bodies: list[str]

    @classmethod
    def read(cls, folder: Path, part: str, rows: range) -> Texts:
        """Those of some rows; memory is that of the row groups they are in."""
        return cls.of(table.to_pydict() for table in _slices(folder, part, rows))

    @classmethod
    def of(cls, batches: Iterable[dict[str, list]]) -> Texts:
        """Of batches of columns."""
        ids, titles, bodies = [], [], []
        for batch in batches:
            ids += batch["passage_id"]
            titles += batch["title"]
            bodies += batch["text"]
        texts = [f"{t} {b}".strip() for t, b in zip(titles, bodies, strict=True)]
        return cls(ids, texts, titles, bodies)


def _slices(folder: Path, part: str, rows: range) -> Iterator[pa.Table]:
    first = 0  # row of the row group
    for path in sorted((folder / part).glob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            start, stop = max(rows.start, first) - first, min(rows.stop, first + count) - first
            if start < stop:
                table = file.read_row_group(group, columns=list(_COLUMNS))
                yield table.slice(start, stop - start)
            first += count


def bm25_input(folder: Path, part: str) -> tuple[list[str], Iterator[str]]:
    """What `BM25Index.build` takes of all of them: ids, and texts of which some thousands are in memory."""
    ids = [one.decode() for one in passage_ids(folder, part).tolist()]
    return ids, (text for batch in load_passages(folder, part) for text in Texts.of([batch]).texts)


def passage_ids(folder: Path, part: str) -> np.ndarray:
    """bytes [N], ascending: row i is `ids[i]`. Empty when there is no such part."""
    arrays = [np.zeros(0, "S1")]
    for path in sorted((folder / part).glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["passage_id"]):
            ids = batch.column(0).to_pylist()
            arrays.append(np.array([one.encode() for one in ids], np.bytes_))
    return np.concatenate(arrays)


class TextHashes:
    """Hashes of the passages' bodies: equal ones are the same passage under two ids."""

    def __init__(self, ids: np.ndarray, hashes: np.ndarray):
        self.ids, self.hashes = ids, hashes

    @classmethod
    def of(cls, folder: Path, part: str) -> TextHashes:
        ids = passage_ids(folder, part)
        hashes = np.empty(len(ids), np.int64)
        row = 0
        for batch in load_passages(folder, part):
            for text in batch["text"]:
                hashes[row] = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
                row += 1
        return cls(ids, hashes)

    def of_passages(self, passage_ids: Sequence[str]) -> dict[str, int]:
        """Passage id -> hash, of those that are there."""
        rows, known = find_ids(self.ids, passage_ids)
        hashes = self.hashes[rows[known]].tolist()
        return dict(zip(itertools.compress(passage_ids, known), hashes, strict=True))
