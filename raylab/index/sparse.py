"""Exact sparse retrieval: exhaustive term-at-a-time over flat postings.

Passages are cut into windows of 65,536, in the order they came. Within a window, the postings of a
term are two slices of two flat arrays: positions in the window (uint16) and impacts, so that the
scores of a window (256 KB) stay in cache. All queries of a block pass over a window before the next
is touched, so that a memory-mapped index is read from front to back.

A score is the float32 sum over the query's terms in ascending term order: it depends on the query
and the passage alone, never on how the collection was sharded. Impacts are kept as

- ``float32``: 6 bytes a posting;
- ``float16``: 4 bytes; nothing is lost of embedding shards, which hold float16;
- ``uint8``: 3 bytes, steps of ``largest_impact`` / 255, at least one: what it loses is measured by
  `raylab.index.agreement.agreement`. Indexes of one collection built apart need one
  ``largest_impact``, or their scores do not compare.

Shapes: Q queries, N passages, V terms, W windows, P postings, k hits.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numba import njit

from raylab.index.files import made_files, open_array
from raylab.index.kernels.half import as_float32, stored
from raylab.index.kernels.ids import decode_ranks, rank_ids
from raylab.index.kernels.threads import run_blocks
from raylab.index.kernels.topk import Selection, check_k, offer
from raylab.index.postings import WINDOW, inspect, window_postings
from raylab.index.shards import (
    VALUE_TYPES,
    Source,
    SparseShard,
    opened_sparse,
    sparse_rows,
    value_type,
)

_FORMAT = "raylab.sparse.3"
_QUERY_BLOCK = 256
_ARRAYS = ("ids", "ranks", "offsets", "positions", "impacts")
_FILES = (*(f"{name}.npy" for name in _ARRAYS), "index.json")
_IMPACT_TYPES = {**VALUE_TYPES, "uint8": np.uint8}
_LEVELS = 255
_LINE, _TOUCHED = 16, 128  # postings: of a cache line of float32, before the prefetcher is on

SparseRows: TypeAlias = Any
"""A scipy sparse matrix, rows passages or queries, columns terms (scipy ships no types to name)."""


class SparseIndex:
    """Postings of non-negative impacts, searched exactly; make one with ``build`` or ``load``.

    ``ids``: bytes [N], descending. ``ranks``: int32 [N]; row i, of window ``i // 65536``, is the
    passage ``ids[ranks[i]]``. ``offsets``: int64 [W, V + 1]; the postings of term t in window w are
    ``offsets[w, t]`` to ``offsets[w, t + 1]`` of ``positions`` (uint16, [P]) and ``impacts`` (float32,
    float16 or uint8, [P]), which times ``scale`` are the impacts. An index is immutable; threads
    may search it at the same time (the search releases the GIL).
    """

    def __init__(
        self,
        ids: np.ndarray,
        ranks: np.ndarray,
        offsets: np.ndarray,
        positions: np.ndarray,
        impacts: np.ndarray,
        scale: float = 1.0,
    ):
        self.ids, self.ranks, self.scale = ids, ranks, scale
        self.offsets, self.positions, self.impacts = offsets, positions, impacts
        for array in (ranks, offsets, positions, impacts):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vocabulary_size(self) -> int:
        """V, the number of terms."""
        return self.offsets.shape[1] - 1

    @property
    def n_postings(self) -> int:
        """P, the number of (passage, term) pairs with an impact above 0."""
        return len(self.positions)

    @property
    def size_bytes(self) -> int:
        """Bytes of the postings and their offsets, without the ids."""
        return self.positions.nbytes + self.impacts.nbytes + self.offsets.nbytes

    @classmethod
    def build(
        cls,
        shards: Iterable[Source],
        directory: str | Path | None = None,
        dtype: str | None = None,
        largest_impact: float | None = None,
    ) -> "SparseIndex":
        """Index (ids [n] str, matrix [n, V] scipy sparse) pairs, or folders of embedding shards.

        Empty rows and explicit zeros are allowed. ``directory``: write the index there as it is
        built and return it memory-mapped; then no more than a shard, a window and the ids are in
        memory. ``dtype``: "float32", "float16" or "uint8"; by default float16 if every shard holds
        that, so that nothing is lost, and float32 if not. ``largest_impact``: the top of the scale
        of uint8, the collection's largest if not given.

        Raises ValueError for no passages, ids and rows that do not match, shards of different V, a
        NaN, infinite or negative impact, one above ``largest_impact``, and ids that are duplicate,
        empty or not strings; nothing is left in ``directory`` then.
        """
        folder = None if directory is None else Path(directory)
        if folder is not None:
            with made_files(folder, _FILES), opened_sparse(shards, folder) as opened:
                index = cls._build(opened, folder, dtype, largest_impact)
                unmapped = ("ids", "ranks") if index.n_postings else _ARRAYS
                index._save(folder, unmapped)
            return cls.load(folder)
        with opened_sparse(shards) as opened:
            return cls._build(opened, None, dtype, largest_impact)

    @classmethod
    def _build(
        cls,
        shards: list[SparseShard],
        folder: Path | None,
        dtype: str | None,
        largest_impact: float | None,
    ) -> "SparseIndex":
        ids, ranks = rank_ids([shard.ids for shard in shards])
        inspected = [inspect(shard) for shard in shards]
        kept = _IMPACT_TYPES[value_type(dtype, [s.impacts.dtype for s in shards], _IMPACT_TYPES)]
        scale = 1.0
        if kept is np.uint8:
            scale = _scale(max(largest for _, largest in inspected), largest_impact)
        n_postings, n_terms = sum(count for count, _ in inspected), shards[0].vocabulary_size
        n_windows = -(-len(ids) // WINDOW)

        def make(name: str, shape: tuple[int, ...], of: Any) -> np.ndarray:
            if folder is None or not n_postings:  # an empty file cannot be mapped
                return np.empty(shape, dtype=of)
            return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", of, shape)

        offsets = make("offsets", (n_windows, n_terms + 1), np.int64)
        positions = make("positions", (n_postings,), np.uint16)
        impacts = make("impacts", (n_postings,), kept)
        filled = 0
        for window in range(n_windows):
            start, stop = window * WINDOW, min(len(ids), (window + 1) * WINDOW)
            own_offsets, own_positions, values = window_postings(shards, start, stop, n_terms)
            span = slice(filled, filled + len(values))
            offsets[window] = own_offsets + filled
            positions[span] = own_positions
            impacts[span] = _compact(values, kept, scale)
            filled += len(values)
        return cls(ids, ranks, offsets, positions, impacts, scale)

    def save(self, directory: str | Path) -> None:
        """Write the arrays as .npy files and ``index.json`` into ``directory``, made if need be.

        Existing files are overwritten; committing the directory as a whole is the caller's
        business.
        """
        directory = Path(directory)
        with made_files(directory, _FILES):
            self._save(directory, _ARRAYS)

    def _save(self, directory: Path, names: Iterable[str]) -> None:
        for name in names:
            np.save(directory / f"{name}.npy", getattr(self, name))
        (directory / "index.json").write_text(json.dumps(self._description(), indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "SparseIndex":
        """Open a saved index, memory-mapped; FileNotFoundError or ValueError for a wrong file."""
        directory = Path(directory)
        description = json.loads((directory / "index.json").read_text())
        if description.get("format") != _FORMAT:
            raise ValueError(
                f"{directory / 'index.json'}: format is {description.get('format')!r}; "
                f"a sparse index has {_FORMAT!r}"
            )
        arrays = [open_array(directory / f"{name}.npy") for name in _ARRAYS]
        index = cls(*arrays, scale=description["scale"])
        found = index._description()
        whole = len(index.impacts) == index.n_postings and len(index.ranks) == len(index)
        if found != description or not whole:
            raise ValueError(f"{directory}: the arrays hold {found}; index.json says {description}")
        return index

    def search(
        self, queries: SparseRows, k: int, *, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k passages of each query: (ids [Q, k] str, scores [Q, k] float32).

        ``queries`` [Q, V] holds non-negative weights. A passage that shares no term with the query
        is no hit; order and padding are those of the package. ``threads``: blocks of queries
        searched at a time. Raises ValueError for k < 1, another V than the index's, a NaN, infinite
        or negative weight, or a score that float32 cannot hold.
        """
        k = check_k(k)
        weights = query_rows(queries, self.vocabulary_size)
        depth = min(k, len(self))
        ranks_Qk = np.full((weights.shape[0], k), -1, dtype=np.int64)
        scores_Qk = np.full((weights.shape[0], k), -np.inf, dtype=np.float32)

        def fill(block: slice) -> None:
            ranks_Qk[block, :depth], scores_Qk[block, :depth] = self._search(weights[block], depth)

        run_blocks(fill, weights.shape[0], _QUERY_BLOCK, threads)
        if np.isposinf(scores_Qk).any():
            query = int(np.isposinf(scores_Qk).any(axis=1).argmax())
            raise ValueError(f"query {query}: a score overflows float32; scale the weights down")
        return decode_ranks(self.ids, ranks_Qk), scores_Qk

    def _search(self, weights: SparseRows, depth: int) -> tuple[np.ndarray, np.ndarray]:
        best = Selection(weights.shape[0], depth, above=0.0)
        _search_windows(
            self.offsets,
            self.positions,
            stored(self.impacts),
            self.ranks,
            weights.indptr.astype(np.int64),
            weights.indices.astype(np.int64),
            weights.data * np.float32(self.scale),
            best.keys,
            best.sizes,
            best.floors,
            best.worst,
            depth,
        )
        return best.ranked()

    def _description(self) -> dict[str, str | int | float]:
        return {
            "format": _FORMAT,
            "passages": len(self),
            "vocabulary_size": self.vocabulary_size,
            "postings": self.n_postings,
            "dtype": self.impacts.dtype.name,
            "scale": self.scale,
            "window": WINDOW,
        }


def _scale(largest: float, wanted: float | None) -> float:
    """The step of uint8 impacts."""
    if wanted is None:
        return largest / _LEVELS if largest else 1.0
    if not np.isfinite(wanted) or wanted <= 0 or largest > wanted:
        raise ValueError(
            f"largest_impact is {wanted}; it must be finite and at least the largest, {largest:g}"
        )
    return wanted / _LEVELS


def _compact(impacts: np.ndarray, kept: Any, scale: float) -> np.ndarray:
    if kept is np.uint8:
        return np.clip(np.rint(impacts / np.float32(scale)), 1, _LEVELS).astype(np.uint8)
    with np.errstate(over="ignore"):
        values = impacts.astype(kept)
    if not np.isfinite(values).all():
        raise ValueError(f"an impact of {impacts.max():g} does not fit {np.dtype(kept).name}")
    return values


def query_rows(queries: SparseRows, vocabulary_size: int) -> SparseRows:
    """Queries as float32 CSR [Q, V], rows sorted by term.

    Raises ValueError for another V, and for a NaN, infinite or negative weight.
    """
    rows = sparse_rows("queries", queries)
    wrong = ~(np.isfinite(rows.data) & (rows.data >= 0))
    if wrong.any():
        place = int(wrong.argmax())
        row = int(np.searchsorted(rows.indptr, place, side="right")) - 1
        raise ValueError(
            f"queries, row {row}, term {rows.indices[place]}: value {rows.data[place]}; "
            "weights are finite and not negative"
        )
    if rows.shape[1] != vocabulary_size:
        raise ValueError(f"queries have {rows.shape[1]} terms; this index has {vocabulary_size}")
    return rows


@njit(cache=True, nogil=True)
def _search_windows(
    offsets,
    positions,
    impacts,
    ranks,
    query_starts,
    query_terms,
    query_weights,
    best_keys,
    sizes,
    floors,
    worst,
    k,
):
    scores = np.zeros(min(WINDOW, len(ranks)), dtype=np.float32)
    for window in range(offsets.shape[0]):
        first_row = window * WINDOW
        width = min(WINDOW, len(ranks) - first_row)
        own_ranks = ranks[first_row : first_row + width]
        for q in range(len(sizes)):
            touched = _touch(
                offsets[window],
                positions,
                impacts,
                query_terms[query_starts[q] : query_starts[q + 1]],
            )
            for i in range(query_starts[q], query_starts[q + 1]):
                weight = query_weights[i]
                start = offsets[window, query_terms[i]]
                stop = offsets[window, query_terms[i] + 1]
                term_positions, term_impacts = positions[start:stop], impacts[start:stop]
                for p in range(stop - start):
                    scores[term_positions[p]] += weight * as_float32(term_impacts[p])
            if touched:
                sizes[q], floors[q], worst[q] = offer(
                    scores[:width], own_ranks, best_keys[q], sizes[q], floors[q], worst[q], k
                )
                scores[:width] = 0.0


@njit(cache=True, nogil=True)
def _touch(offsets, positions, impacts, terms):
    """Whether any term has postings; reads the beginning of all their lists.

    The reads do not depend on each other, so the processor waits for memory once, not once a list.
    """
    seen = 0
    for term in terms:
        start = offsets[term]
        for p in range(start, min(offsets[term + 1], start + _TOUCHED), _LINE):
            seen |= np.int64(positions[p]) + 1 + np.int64(impacts[p] > 0)
    return seen > 0
