"""The best k of many: a running selection for one index, and the merge of several.

Shapes: Q queries, M hits of all parts together, k hits wanted, C capacity of a running selection.
Order everywhere: score descending, then passage id descending; missing hits (``""``, -inf) last.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from raylab.index.kernels.ids import MISSING_ID

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
    by_id = np.lexsort((ids_QM[positions // max(n_hits, 1), columns], -run))[::-1]
    order.ravel()[positions] = columns[by_id]
    return order[:, :k]


class Selection:
    """The running best k of Q queries, as sort keys: what orders hits is one unsigned integer.

    A key is the score's bits, turned so that better scores are smaller, above the passage's rank
    among the ids: ascending keys are descending scores, ties by id. State, for kernels: ``keys``
    (uint64, [Q, C]), ``sizes`` (int64, [Q]), ``floors`` (float32, [Q]: scores below it are no
    hits), ``worst`` (uint64, [Q]: keys of hits are below it). Scores must be finite.
    """

    def __init__(self, n_queries: int, k: int, above: float = -np.inf):
        """Only scores greater than ``above`` count."""
        self.k = k
        self.keys = np.empty((n_queries, 2 * k), dtype=np.uint64)
        self.sizes = np.zeros(n_queries, dtype=np.int64)
        self.floors = np.full(n_queries, above, dtype=np.float32)
        self.worst = np.full(n_queries, sort_key(np.float32(above), 0), dtype=np.uint64)

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """(ranks [Q, k] int64, scores [Q, k] float32) in order; missing: rank -1, score -inf."""
        filled = np.arange(self.keys.shape[1]) < self.sizes[:, None]
        keys = np.sort(np.where(filled, self.keys, _NO_HIT), axis=1)
        return unpack_keys(keys[:, : self.k])


_NO_HIT = np.uint64(2**64 - 1)


def unpack_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ranks int64, scores float32) of sort keys; the largest key, no hit, gives -1 and -inf."""
    turned = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(turned >> np.uint32(31), turned ^ np.uint32(2**31), ~turned)
    missing = keys == _NO_HIT
    ranks = np.where(missing, -1, (keys & np.uint64(2**32 - 1)).astype(np.int64))
    return ranks, np.where(missing, np.float32(-np.inf), bits.view(np.float32))


@njit(cache=True, nogil=True)
def sort_key(score, rank):
    """The sort key of a float32 score and a rank: smaller is better."""
    bits = np.float32(score + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0: they tie
    turned = ~bits if bits >> np.uint32(31) else bits | np.uint32(0x80000000)
    return (np.uint64(~np.uint32(turned)) << np.uint64(32)) | np.uint64(rank)


@njit(cache=True, nogil=True)
def offer(scores_N, ranks_N, keys_C, size, floor, worst, k):
    """Add to one query's selection the passages whose key is better than ``worst``.

    Returns the new (size, floor, worst). The buffer takes up to C >= 2k keys and is then cut to k,
    which sets ``worst`` to the k-th: a linear selection once in k insertions, no heap. Stretches of
    scores below ``floor``, most of them soon, are skipped by vector comparisons.
    """
    n = scores_N.shape[0]
    for start in range(0, n, STRETCH):
        if none_reaches(scores_N[start : start + STRETCH], floor):
            continue
        for j in range(start, min(start + STRETCH, n)):
            if scores_N[j] >= floor:
                key = sort_key(scores_N[j], ranks_N[j])
                if key >= worst:
                    continue
                if size == keys_C.shape[0]:
                    worst = _cut(keys_C, size, k)
                    size = k
                    floor = _score_of(worst)
                    if key >= worst:
                        continue
                keys_C[size] = key
                size += 1
    return size, floor, worst


STRETCH = 64
"""Scores compared at a time."""


@njit(cache=True, nogil=True)
def none_reaches(scores, floor):
    """Whether all of a stretch, or of what is left of one, is below ``floor``."""
    if len(scores) < STRETCH:
        return False
    reached = np.int32(0)
    for j in range(STRETCH):  # of a known length, or it is not vectorised
        reached += np.int32(scores[j] >= floor)
    return reached == 0


@njit(cache=True, nogil=True)
def _cut(keys_C, size, k):
    """Keep the k best of ``size`` > k keys, in place; returns the k-th."""
    kth = np.partition(keys_C[:size], k - 1)[k - 1]
    kept = 0
    for i in range(size):
        if keys_C[i] <= kth:
            keys_C[kept] = keys_C[i]
            kept += 1
    return kth


@njit(cache=True, nogil=True)
def _score_of(key):
    turned = np.uint32(~np.uint32(key >> np.uint64(32)))
    bits = turned ^ np.uint32(0x80000000) if turned >> np.uint32(31) else ~turned
    return np.uint32(bits).view(np.float32)
