"""Exact sparse retrieval: exhaustive term-at-a-time over flat postings.

Passages are cut into windows of 65,536. Within a window, the postings of a term are two slices of
two flat arrays: positions in the window (uint16) and impacts (float32), so that a posting takes 6
bytes and the accumulator (256 KB) stays in cache. All queries of a block pass over a window before
the next is touched, so that a memory-mapped index is read from front to back.

A score is the float32 sum over the query's terms in ascending term order: it depends on the query
and the passage alone, never on how the collection was sharded.

Shapes: Q queries, N passages, V terms, W windows, P postings, k hits.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numba import njit

from raylab.index.ids import decode_rows, locate_rows, sort_ids
from raylab.index.topk import Selection, check_k, offer

_FORMAT = "raylab.sparse.1"
_WINDOW = 65_536
_QUERY_BLOCK = 256
_ARRAYS = ("ids", "offsets", "positions", "impacts")

SparseRows: TypeAlias = Any
"""A scipy sparse matrix, rows passages or queries, columns terms (scipy ships no types to name)."""


class SparseIndex:
    """Postings of non-negative impacts, searched exactly; make one with ``build`` or ``load``.

    ``ids``: bytes [N], ascending; passage i lies in window ``i // 65536`` at position ``i %
    65536``. ``offsets``: int64 [W, V + 1]; the postings of term t in window w are ``offsets[w, t]``
    to ``offsets[w, t + 1]`` of ``positions`` (uint16, [P]) and ``impacts`` (float32, [P]). An index
    is immutable; threads may search it at the same time (the search releases the GIL).
    """

    def __init__(
        self, ids: np.ndarray, offsets: np.ndarray, positions: np.ndarray, impacts: np.ndarray
    ):
        self.ids = ids
        self.offsets, self.positions, self.impacts = offsets, positions, impacts
        for array in (offsets, positions, impacts):
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

    @classmethod
    def build(cls, shards: Iterable[tuple[Sequence[str], SparseRows]]) -> "SparseIndex":
        """Index (ids, matrix) shards: ids [n] str, matrix [n, V] sparse, impacts kept as float32.

        Empty rows and explicit zeros are allowed. Needs 6 bytes a posting beyond the shards. Raises
        ValueError for no passages, ids and rows that do not match, shards of different V, a NaN,
        infinite or negative impact, and ids that are duplicate, empty or not strings.
        """
        shards = list(shards)
        matrices = [_check_shard(number, *shard) for number, shard in enumerate(shards)]
        if not any(matrix.shape[0] for matrix in matrices):
            raise ValueError("no passages to index")
        widths = sorted({matrix.shape[1] for matrix in matrices})
        if len(widths) > 1:
            raise ValueError(f"shards have vocabularies of different sizes: {widths}")
        ids, order = sort_ids([shard_ids for shard_ids, _ in shards])
        starts = range(0, len(ids), _WINDOW)
        n_postings = sum(int(np.count_nonzero(matrix.data)) for matrix in matrices)
        offsets = np.empty((len(starts), widths[0] + 1), dtype=np.int64)
        positions = np.empty(n_postings, dtype=np.uint16)
        impacts = np.empty(n_postings, dtype=np.float32)
        filled = 0
        for window, start in enumerate(starts):
            columns = _gather(matrices, order[start : start + _WINDOW]).tocsc()
            columns.eliminate_zeros()
            postings = slice(filled, filled + columns.nnz)
            offsets[window] = columns.indptr.astype(np.int64) + filled
            positions[postings], impacts[postings] = columns.indices, columns.data
            filled += columns.nnz
        return cls(ids, offsets, positions, impacts)

    def save(self, directory: str | Path) -> None:
        """Write the arrays as .npy files and ``index.json`` into ``directory``, made if need be.

        Existing files are overwritten; committing the directory as a whole is the caller's
        business.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
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
        arrays = [np.asarray(np.load(directory / f"{n}.npy", mmap_mode="r")) for n in _ARRAYS]
        index = cls(*arrays)
        found = index._description()
        if found != description or len(index.impacts) != index.n_postings:
            raise ValueError(f"{directory}: the arrays hold {found}; index.json says {description}")
        return index

    def search(self, queries: SparseRows, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k passages of each query: (ids [Q, k] str, scores [Q, k] float32).

        ``queries`` [Q, V] holds non-negative weights. A passage that shares no term with the query
        is no hit; order and padding are those of the package. Raises ValueError for k < 1, another
        V than the index's, a NaN, infinite or negative weight, or a score that float32 cannot hold.
        """
        k = check_k(k)
        weights = _check_values("queries", queries)
        if weights.shape[1] != self.vocabulary_size:
            raise ValueError(
                f"queries have {weights.shape[1]} terms; this index has {self.vocabulary_size}"
            )
        depth = min(k, len(self))
        rows_Qk = np.full((weights.shape[0], k), -1, dtype=np.int64)
        scores_Qk = np.full((weights.shape[0], k), -np.inf, dtype=np.float32)
        for start in range(0, weights.shape[0], _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            rows_Qk[block, :depth], scores_Qk[block, :depth] = self._search(weights[block], depth)
        if np.isposinf(scores_Qk).any():
            query = int(np.isposinf(scores_Qk).any(axis=1).argmax())
            raise ValueError(f"query {query}: a score overflows float32; scale the weights down")
        return decode_rows(self.ids, rows_Qk), scores_Qk

    def _search(self, weights: SparseRows, depth: int) -> tuple[np.ndarray, np.ndarray]:
        best = Selection(weights.shape[0], depth, floor=0.0)
        _search_windows(
            self.offsets,
            self.positions,
            self.impacts,
            len(self),
            weights.indptr.astype(np.int64),
            weights.indices.astype(np.int64),
            weights.data,
            best.scores,
            best.rows,
            best.sizes,
            best.floors,
            depth,
        )
        return best.ranked()

    def _description(self) -> dict[str, str | int]:
        return {
            "format": _FORMAT,
            "passages": len(self),
            "vocabulary_size": self.vocabulary_size,
            "postings": self.n_postings,
            "window": _WINDOW,
        }


def _check_shard(number: int, ids: Sequence[str], matrix: SparseRows) -> SparseRows:
    rows = _check_values(f"shard {number}", matrix)
    if len(ids) != rows.shape[0]:
        raise ValueError(
            f"shard {number}: {len(ids)} ids for {rows.shape[0]} rows; one row an id is needed"
        )
    return rows


def _check_values(what: str, matrix: SparseRows) -> SparseRows:
    """As float32 CSR, rows sorted by term, no term twice; the caller's matrix is left as it is."""
    if not sp.issparse(matrix) or matrix.ndim != 2:
        raise ValueError(f"{what}: a {type(matrix).__name__}; a 2-d scipy sparse matrix is needed")
    rows = sp.csr_array(matrix, dtype=np.float32)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    wrong = ~(np.isfinite(rows.data) & (rows.data >= 0))
    if wrong.any():
        place = int(wrong.argmax())
        row = int(np.searchsorted(rows.indptr, place, side="right")) - 1
        raise ValueError(
            f"{what}, row {row}, term {rows.indices[place]}: value {rows.data[place]}; "
            "impacts are finite and not negative"
        )
    return rows


def _gather(matrices: Sequence[SparseRows], rows: np.ndarray) -> SparseRows:
    """The given rows of the matrices laid end to end, in the given order."""
    sizes = [matrix.shape[0] for matrix in matrices]
    located = list(locate_rows(rows, sizes))
    stacked: SparseRows = sp.vstack(
        [matrices[shard][own] for shard, _, own in located], format="csr"
    )
    if len(located) == 1:
        return stacked
    return stacked[np.argsort(np.concatenate([positions for _, positions, _ in located]))]


@njit(cache=True, nogil=True)
def _search_windows(
    offsets,
    positions,
    impacts,
    n_passages,
    query_starts,
    query_terms,
    query_weights,
    best_scores,
    best_rows,
    sizes,
    floors,
    k,
):
    scores = np.zeros(min(_WINDOW, n_passages), dtype=np.float32)
    for window in range(offsets.shape[0]):
        first_row = window * _WINDOW
        width = min(_WINDOW, n_passages - first_row)
        for q in range(len(sizes)):
            touched = False
            for i in range(query_starts[q], query_starts[q + 1]):
                term = query_terms[i]
                weight = query_weights[i]
                for p in range(offsets[window, term], offsets[window, term + 1]):
                    scores[positions[p]] += weight * impacts[p]
                    touched = True
            if touched:
                sizes[q], floors[q] = offer(
                    scores[:width],
                    first_row,
                    best_scores[q],
                    best_rows[q],
                    sizes[q],
                    floors[q],
                    k,
                )
                scores[:width] = 0.0
