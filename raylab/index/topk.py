"""The best k of many: a running selection for one index, and the merge of several.

Shapes: Q queries, M hits of all parts together, k hits wanted, C capacity of a running selection.
Order everywhere: score descending, then passage id ascending; missing hits (``""``, -inf) last.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from raylab.index.ids import MISSING_ID

_MERGE_BLOCK = 256


def merge_topk(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the hits of disjoint shards into the hits of their union.

    ``parts`` holds one (ids [Q, k_i] str, scores [Q, k_i] float32) pair a shard, in any order
    within a row. Each must hold its shard's best min(k, shard size) hits under the order above;
    then the result, (ids [Q, k] str, scores [Q, k] float32), does not depend on the number or order
    of the parts. Raises ValueError for no parts, k < 1, unequal shapes, a NaN or +inf score, or an
    id and a score that disagree about whether the hit is missing.
    """
    k = check_k(k)
    if not parts:
        raise ValueError("nothing to merge: parts is empty")
    checked = [_check_part(number, *part) for number, part in enumerate(parts)]
    n_queries = len(checked[0][0])
    for number, (ids, _) in enumerate(checked):
        if len(ids) != n_queries:
            raise ValueError(f"part {number} has {len(ids)} queries, part 0 has {n_queries}")
    width = max(ids.dtype.itemsize for ids, _ in checked) // 4
    merged_ids = np.full((n_queries, k), MISSING_ID, dtype=f"U{max(width, 1)}")
    merged_scores = np.full((n_queries, k), -np.inf, dtype=np.float32)
    for start in range(0, n_queries, _MERGE_BLOCK):
        block = slice(start, start + _MERGE_BLOCK)
        ids_QM = np.concatenate([ids[block] for ids, _ in checked], axis=1)
        scores_QM = np.concatenate([scores[block] for _, scores in checked], axis=1)
        order_Qk = _best_order(ids_QM, scores_QM, k)
        taken = order_Qk.shape[1]
        merged_ids[block, :taken] = np.take_along_axis(ids_QM, order_Qk, axis=1)
        merged_scores[block, :taken] = np.take_along_axis(scores_QM, order_Qk, axis=1)
    return merged_ids, merged_scores


def check_k(k: int) -> int:
    """``k`` as an int; ValueError unless it is an integer of at least 1."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k is {k!r}; it must be an integer of at least 1")
    return int(k)


def _check_part(number: int, ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ids = np.asarray(ids, dtype=np.str_)
    scores = np.asarray(scores, dtype=np.float32)
    if ids.ndim != 2 or ids.shape != scores.shape:
        raise ValueError(
            f"part {number}: ids have shape {ids.shape}, scores {scores.shape}; both must be [Q, k]"
        )
    wrong = np.isnan(scores) | np.isposinf(scores) | ((ids == MISSING_ID) != np.isneginf(scores))
    if wrong.any():
        query, rank = np.argwhere(wrong)[0]
        raise ValueError(
            f"part {number}, query {query}, rank {rank}: id {str(ids[query, rank])!r} with score "
            f"{scores[query, rank]}; scores are finite, and -inf exactly where the id is ''"
        )
    return ids, scores


def _best_order(ids_QM: np.ndarray, scores_QM: np.ndarray, k: int) -> np.ndarray:
    """Columns of the best min(k, M) hits of each row, in order. Only ties compare strings."""
    n_hits = scores_QM.shape[1]
    order = np.argsort(-scores_QM, axis=1, kind="stable")
    ranked = np.take_along_axis(scores_QM, order, axis=1)
    starts_run = np.ones(ranked.shape, dtype=bool)
    starts_run[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    tied = ~starts_run
    tied[:, :-1] |= ~starts_run[:, 1:]
    tied &= np.isfinite(ranked)
    if n_hits:
        tied &= ranked >= ranked[:, min(k, n_hits) - 1, None]
    positions = np.flatnonzero(tied)
    run = np.cumsum(starts_run)[positions]
    columns = order.ravel()[positions]
    by_id = np.lexsort((ids_QM[positions // max(n_hits, 1), columns], run))
    order.ravel()[positions] = columns[by_id]
    return order[:, :k]


class Selection:
    """The running best k of Q queries, fed by ``offer`` with scores in ascending row order.

    Rows are offered in ascending order, so of two equal scores the one seen first wins. Scores must
    be finite; only those above ``floor`` count. State, for kernels: ``scores`` (float32,
    [Q, C]), ``rows`` (int64, [Q, C]), ``sizes`` (int64, [Q]), ``floors`` (float32, [Q]).
    """

    def __init__(self, n_queries: int, k: int, floor: float = -np.inf):
        capacity = 2 * k
        self.k = k
        self.scores = np.empty((n_queries, capacity), dtype=np.float32)
        self.rows = np.empty((n_queries, capacity), dtype=np.int64)
        self.sizes = np.zeros(n_queries, dtype=np.int64)
        self.floors = np.full(n_queries, floor, dtype=np.float32)

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows [Q, k] int64, scores [Q, k] float32) in order; missing: row -1, score -inf."""
        filled = np.arange(self.scores.shape[1]) < self.sizes[:, None]
        scores = np.where(filled, self.scores, np.float32(-np.inf))
        rows = np.where(filled, self.rows, -1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


@njit(cache=True, nogil=True)
def offer(scores_N, first_row, best_scores_C, best_rows_C, size, floor, k):
    """Add to one query's selection the rows whose score is above ``floor``.

    Returns the new (size, floor). The buffer takes up to C >= 2k entries and is then cut to k,
    which raises the floor to the k-th score: a linear selection once in k insertions, no heap.
    """
    capacity = best_scores_C.shape[0]
    for j in range(scores_N.shape[0]):
        score = scores_N[j]
        if score > floor:
            if size == capacity:
                size, floor = _cut(best_scores_C, best_rows_C, size, k)
                if score <= floor:
                    continue
            best_scores_C[size] = score
            best_rows_C[size] = first_row + j
            size += 1
    return size, floor


@njit(cache=True, nogil=True)
def _cut(best_scores_C, best_rows_C, size, k):
    """Keep the k best of ``size`` > k entries, in place and in row order; of equals, the first."""
    kth = np.partition(best_scores_C[:size], size - k)[size - k]
    room_for_equal = k
    for i in range(size):
        if best_scores_C[i] > kth:
            room_for_equal -= 1
    kept = 0
    for i in range(size):
        score = best_scores_C[i]
        if score < kth or (score == kth and room_for_equal == 0):
            continue
        if score == kth:
            room_for_equal -= 1
        best_scores_C[kept] = score
        best_rows_C[kept] = best_rows_C[i]
        kept += 1
    return kept, kth
