"""The passage store: tokens of every passage in memory-mapped files, any passage in O(1).

tokens.bin    all tokens, u16 or u32, passages in id order
offsets.npy   int64 [N + 1]
titles.npy    u16 [N]: how many of a passage's tokens are its title
ids.npy       bytes [N], sorted
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from raylab.data.faults import CollectionError

_NONE = np.empty(0, np.uint16)


def write_store(
    folder: Path,
    shards: Iterable[tuple[Sequence[str], Sequence[np.ndarray], Sequence[int]]],
    dtype: type,
) -> int:
    """Write a store from shards of (ids, token arrays, title token counts) in ascending id order.

    Returns the number of passages.

    Raises:
        CollectionError: as `write_flat_store`.
    """
    flat = (
        (shard_ids, np.concatenate(tokens), np.array([len(t) for t in tokens]), title_lengths)
        for shard_ids, tokens, title_lengths in shards
    )
    return write_flat_store(folder, flat, dtype)


def write_flat_store(
    folder: Path,
    shards: Iterable[tuple[Sequence[str], np.ndarray, np.ndarray, Sequence[int] | np.ndarray]],
    dtype: type,
) -> int:
    """Write a store from shards of (ids [N], all tokens in a row, token counts [N], title token counts [N]).

    Streams: memory is bounded by a shard and by what is kept of every passage, its id and two
    numbers. Ids ascend. Returns the number of passages.

    Raises:
        CollectionError: ids that are not in strictly ascending order (a duplicate), or none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    titles: list[np.ndarray] = []
    last: str | None = None
    with open(folder / "tokens.bin", "wb") as file:
        for shard_ids, tokens, token_counts, title_lengths in shards:
            for passage_id in shard_ids:
                if last is not None and passage_id <= last:
                    raise CollectionError(
                        f"duplicate or unsorted passage id {passage_id!r} after {last!r}"
                    )
                last = passage_id
            tokens.astype(dtype, copy=False).tofile(file)
            lengths.append(np.asarray(token_counts, dtype=np.int64))
            titles.append(np.asarray(title_lengths, dtype=np.uint16))
            ids.append(np.array([i.encode() for i in shard_ids], dtype=np.bytes_))
    if not ids:
        raise CollectionError("the collection holds no passage")
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "titles.npy", np.concatenate(titles))
    np.save(folder / "ids.npy", np.concatenate(ids))
    np.save(folder / "dtype.npy", np.zeros(0, dtype=dtype))
    return len(offsets) - 1


def find_ids(ids: np.ndarray, wanted: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where passages stand among all: (rows int64 [W], known bool [W]; the rows of unknown ones mean nothing).

    Args:
        ids: bytes [N], ascending, without duplicates.
    """
    if not len(wanted):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    encoded = np.array([one.encode() for one in wanted], dtype=np.bytes_)
    rows = np.minimum(np.searchsorted(ids, encoded), len(ids) - 1)
    known = ids[rows] == encoded
    if any("\0" in one for one in wanted):  # bytes arrays drop trailing NULs
        known &= np.array(["\0" not in one for one in wanted])
    return rows, known


class PassageStore:
    """Read side of the store; holds no corpus in memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        # Plain views of the maps: slicing a memmap costs ten times as much.
        self.ids, self.offsets, self.titles = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in ("ids", "offsets", "titles")
        )
        dtype = np.load(folder / "dtype.npy").dtype
        self.flat = np.asarray(np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"))

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, passage_ids: Sequence[str]) -> np.ndarray:
        """int64 rows of `passage_ids`.

        Raises:
            CollectionError: an id that is not in the store.
        """
        rows, known = find_ids(self.ids, passage_ids)
        if not known.all():
            raise CollectionError(
                f"unknown passage {passage_ids[int(known.argmin())]!r}: it is not in the collection"
            )
        return rows

    def passage_ids(self, rows: slice | np.ndarray) -> list[str]:
        return [i.decode() for i in self.ids[rows]]

    def lengths(
        self, rows: np.ndarray, limit: int, body_only: np.ndarray | bool = False
    ) -> np.ndarray:
        """Token counts [len(rows)] after cutting to `limit`, at least 1."""
        starts, ends = self.spans(rows, body_only)
        return np.clip(ends - starts, 1, limit)

    def spans(
        self, rows: np.ndarray, body_only: np.ndarray | bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where passages begin and end in `flat`, int64 of the shape of `rows`.

        `body_only` leaves titles out. A passage whose body is empty gives its title: no
        representation is ever empty.
        """
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        bodies = starts + self.titles[rows]
        return np.where(body_only & (bodies < ends), bodies, starts), ends

    def tokens(self, row: int, limit: int, body_only: bool = False) -> np.ndarray:
        """Tokens of one passage, cut to `limit`; `body_only` as in `spans`."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        title = int(self.titles[row])
        if body_only and start + title < end:
            start += title
        return self.flat[start : min(end, start + limit)]

    def blocks(self, length: int, before: np.ndarray = _NONE, after: np.ndarray = _NONE) -> int:
        """How many full blocks of `length` tokens the concatenated passages give.

        `before` and `after` are tokens that stand around every passage.
        """
        return (len(self.flat) + len(self) * (len(before) + len(after))) // length

    def block(
        self, index: int, length: int, before: np.ndarray = _NONE, after: np.ndarray = _NONE
    ) -> np.ndarray:
        """A block of `length` tokens."""
        start, stop = index * length, (index + 1) * length
        around = len(before) + len(after)
        if not around:
            return self.flat[start:stop]

        def begin(row: int) -> int:
            """Where a passage begins, with what stands around those before it."""
            return int(self.offsets[row]) + row * around

        rows = range(len(self))
        row = first = bisect.bisect_right(rows, start, key=begin) - 1
        parts: list[np.ndarray] = []
        while begin(row) < stop:
            parts += [before, self.flat[self.offsets[row] : self.offsets[row + 1]], after]
            row += 1
            if row == len(self):
                break
        skipped = start - begin(first)
        return np.concatenate(parts)[skipped : skipped + length]
