"""Rows of terms into windows of postings: checks, counts, and one counting sort a window.

Shapes: n passages of a piece, P postings, V terms.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numba import njit

from raylab.index.kernels.half import as_float32, stored
from raylab.index.shards import SparseShard

WINDOW = 65_536
"""Passages of a window: a position in it is an uint16, and its scores stay in cache."""
_LARGEST_HALF = 65_504.0
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


def inspect(shard: SparseShard) -> tuple[int, float]:
    """(number of impacts above 0, the largest) of a shard.

    Raises ValueError for an impact that is NaN, infinite or negative, a term outside the
    vocabulary, and terms of a row that do not ascend.
    """
    half = shard.impacts.dtype == np.float16
    place, count, largest = _inspect(
        shard.indptr,
        shard.terms,
        stored(shard.impacts),
        shard.vocabulary_size,
        _LARGEST_HALF if half else _LARGEST_FLOAT,
    )
    if place >= 0:
        row = int(np.searchsorted(shard.indptr, place, side="right")) - 1
        where = f"{shard.name}, row {row}, term {shard.terms[place]}"
        value = shard.impacts[place]
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{where}: value {value}; impacts are finite and not negative")
        raise ValueError(
            f"{where}: terms of a row must ascend and lie below {shard.vocabulary_size}"
        )
    return int(count), float(largest)


def pieces(
    shards: Sequence[SparseShard], start: int, stop: int
) -> Iterator[tuple[SparseShard, int, int]]:
    """(shard, first row, last row + 1) of the shards laid end to end, for rows start to stop."""
    before = 0
    for shard in shards:
        n = len(shard.ids)
        first, last = max(start - before, 0), min(stop - before, n)
        if first < last:
            yield shard, first, last
        before += n


def window_postings(
    shards: Sequence[SparseShard], start: int, stop: int, vocabulary_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Postings of rows start to stop, by term, then by row.

    Returns offsets (int64 [V + 1]), positions from ``start`` (uint16 [P]), impacts (float32 [P]).
    """
    offsets = np.zeros(vocabulary_size + 1, dtype=np.int64)
    for shard, first, last in pieces(shards, start, stop):
        _count(shard.indptr, shard.terms, stored(shard.impacts), first, last, offsets[1:])
    np.cumsum(offsets, out=offsets)
    positions = np.empty(offsets[-1], dtype=np.uint16)
    impacts = np.empty(offsets[-1], dtype=np.float32)
    free = offsets[:-1].copy()
    position = 0
    for shard, first, last in pieces(shards, start, stop):
        _fill(
            shard.indptr,
            shard.terms,
            stored(shard.impacts),
            first,
            last,
            position,
            free,
            positions,
            impacts,
        )
        position += last - first
    return offsets, positions, impacts


@njit(cache=True, nogil=True)
def _inspect(indptr, terms, impacts, vocabulary_size, limit):
    count = 0
    largest = np.float32(0.0)
    for row in range(len(indptr) - 1):
        before = -1
        for p in range(indptr[row], indptr[row + 1]):
            term = np.int64(terms[p])
            value = as_float32(impacts[p])
            if not (0.0 <= value <= limit and before < term < vocabulary_size):
                return p, count, largest
            before = term
            if value > 0:
                count += 1
                largest = max(largest, value)
    return -1, count, largest


@njit(cache=True, nogil=True)
def _count(indptr, terms, impacts, first, last, counts):
    for p in range(indptr[first], indptr[last]):
        if as_float32(impacts[p]) > 0:
            counts[terms[p]] += 1


@njit(cache=True, nogil=True)
def _fill(indptr, terms, impacts, first, last, position, free, positions, values):
    for row in range(first, last):
        for p in range(indptr[row], indptr[row + 1]):
            value = as_float32(impacts[p])
            if value > 0:
                place = free[terms[p]]
                positions[place] = position + row - first
                values[place] = value
                free[terms[p]] = place + 1
