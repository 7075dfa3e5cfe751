"""The kernels of exact dense search: nominate by matrix product, decide by a fixed dot product.

A float32 matrix product rounds differently with the shape of its blocks, the library and the
processor, so it only nominates. Whatever its order of summation, a product is within a bound e of
the true score (`error_bound`); hence no passage whose product lies below the k-th best product by
more than 2 e can belong to the top k. All others, ties included, are nominated. Their scores are
computed in float64 in one fixed order and rounded once to float32: a hit's score is a function of
its two vectors alone.

A query with too many nominees (a collection of nearly equal vectors) is scored against every
passage instead: slower, and as exact.

Shapes: Q queries, N passages, B passages of a block, D dimensions, C nominees a query, k hits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numba import njit

from raylab.index.half import as_float32, stored
from raylab.index.topk import STRETCH, none_reaches, sort_key, unpack_keys

PASSAGE_BLOCK = 4096
_FLOAT32_ROUNDING = 2.0**-24
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)
_NO_HIT = np.uint64(2**64 - 1)
_LANES = 128
_CACHED_BYTES = 2**20


def error_bound(query_norms_Q: np.ndarray, max_norm: float, dimension: int) -> np.ndarray:
    """Bound on |float32 product - score| [Q], rounding of the score included.

    The classical n*u/(1 - n*u) * sum |q_i d_i| for any order of summation (Higham 2002, 3.1), with
    sum |q_i d_i| <= |q| |d|; a few more roundings and 1 % stand for what is left, and one smallest
    normal number a rounding for underflow.
    """
    n_roundings = dimension + 8
    relative = n_roundings * _FLOAT32_ROUNDING
    bound_Q = 1.01 * relative / (1 - relative) * query_norms_Q * max_norm
    return bound_Q + n_roundings * _FLOAT32_TINY


def search_block(
    queries_QD: np.ndarray,
    vectors_ND: np.ndarray,
    ranks_N: np.ndarray,
    bound_Q: np.ndarray,
    k: int,
    device: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The best k <= N of each query: (ranks [Q, k] int64, scores [Q, k] float32), in order.

    ``device``: None for this processor, or a torch device, which then does the nominating.
    """
    stored_ND = stored(vectors_ND)
    if device is None:
        rows_QC, sizes_Q = _nominate(queries_QD, vectors_ND, stored_ND, bound_Q, k)
    else:
        rows_QC, sizes_Q = _nominate_on(device, queries_QD, vectors_ND, bound_Q, k)
    keys_QC = np.full((len(queries_QD), max(k, int(sizes_Q.max(initial=0)))), _NO_HIT, np.uint64)
    wide_QD = queries_QD.astype(np.float64)
    block_rows = max(1, _CACHED_BYTES // (stored_ND.itemsize * stored_ND.shape[1]))
    _decide(stored_ND, wide_QD, ranks_N, rows_QC, sizes_Q, keys_QC, block_rows)
    best_Qk = np.sort(keys_QC, axis=1)[:, :k]
    for q in np.flatnonzero(sizes_Q < 0):
        keys_N = np.empty(len(ranks_N), dtype=np.uint64)
        _score_rows(stored_ND, np.arange(len(ranks_N)), wide_QD[q], ranks_N, keys_N)
        best_Qk[q] = np.sort(np.partition(keys_N, k - 1)[:k])
    return unpack_keys(best_Qk)


def _nominate(
    queries_QD: np.ndarray,
    vectors_ND: np.ndarray,
    stored_ND: np.ndarray,
    bound_Q: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [Q, C] int32, sizes [Q]) of the nominees, ascending rows; size -1: too many."""
    n_queries, n_passages = len(queries_QD), len(vectors_ND)
    capacity = min(n_passages, max(4 * k, k + 1024))
    values_QC = np.empty((n_queries, capacity), dtype=np.float32)
    rows_QC = np.empty((n_queries, capacity), dtype=np.int32)
    sizes_Q = np.zeros(n_queries, dtype=np.int64)
    floors_Q = np.full(n_queries, -np.inf)
    block_rows = min(PASSAGE_BLOCK, n_passages)
    products_QB = np.empty((n_queries, block_rows), dtype=np.float32)
    half = vectors_ND.dtype == np.float16
    wide_BD = np.empty((block_rows, vectors_ND.shape[1]), dtype=np.float32) if half else None
    for start in range(0, n_passages, block_rows):
        block_BD = vectors_ND[start : start + block_rows]
        if wide_BD is not None:
            block_BD = wide_BD[: len(block_BD)]
            _widen(stored_ND[start : start + block_rows], block_BD)
        if len(block_BD) < block_rows:
            products_QB = np.empty((n_queries, len(block_BD)), dtype=np.float32)
        np.dot(queries_QD, block_BD.T, out=products_QB)
        _select(products_QB, start, values_QC, rows_QC, sizes_Q, floors_Q, 2 * bound_Q, k)
    _finish(values_QC, rows_QC, sizes_Q, 2 * bound_Q, k)
    return rows_QC, sizes_Q


def _nominate_on(
    device: str, queries_QD: np.ndarray, vectors_ND: np.ndarray, bound_Q: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `_nominate`, on a torch device: the running best k and a margin, one top-k a block.

    The margin tells whether a passage within 2 e of the k-th product may have been dropped.
    """
    import torch

    n_passages = len(vectors_ND)
    capacity = min(n_passages, k + max(64, k // 8))
    with _full_float32(), torch.inference_mode():
        queries = torch.tensor(queries_QD, device=device)
        best = torch.empty((len(queries_QD), 0), device=device)
        rows = torch.empty((len(queries_QD), 0), dtype=torch.int64, device=device)
        for start in range(0, n_passages, 4 * PASSAGE_BLOCK):
            block = torch.tensor(
                np.array(vectors_ND[start : start + 4 * PASSAGE_BLOCK]), device=device
            )
            products = queries @ block.to(torch.float32).T
            top = products.topk(min(capacity, products.shape[1]), dim=1)
            best = torch.cat([best, top.values], dim=1)
            rows = torch.cat([rows, top.indices + start], dim=1)
            kept = best.topk(min(capacity, best.shape[1]), dim=1)
            best, rows = kept.values, rows.gather(1, kept.indices)
    values_QC, rows_QC = best.cpu().numpy(), rows.cpu().numpy().astype(np.int32)
    sizes_Q = np.full(len(queries_QD), capacity)
    if capacity < n_passages:
        lost = values_QC[:, -1] >= values_QC[:, k - 1] - 2.0 * bound_Q
        sizes_Q[lost] = -1
    return np.sort(rows_QC, axis=1), sizes_Q


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 and no bfloat16 in float32 products, whatever the process has chosen."""
    import torch

    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


@njit(cache=True, nogil=True)
def _select(products_QB, first_row, values_QC, rows_QC, sizes_Q, floors_Q, slack_Q, k):
    """Nominate from one block: products not below the k-th best so far less the slack."""
    capacity = values_QC.shape[1]
    width = products_QB.shape[1]
    for q in range(products_QB.shape[0]):
        size = sizes_Q[q]
        if size < 0:
            continue
        products_B = products_QB[q]
        values_C = values_QC[q]
        rows_C = rows_QC[q]
        floor = np.float32(floors_Q[q])
        for start in range(0, width, STRETCH):
            if size < 0 or none_reaches(products_B[start : start + STRETCH], floor):
                continue
            for j in range(start, min(start + STRETCH, width)):
                if size >= 0 and products_B[j] >= floor:
                    if size == capacity:
                        size, floor = _cut(values_C, rows_C, size, slack_Q[q], k)
                        if size > (k + capacity) // 2:
                            size = -1
                            continue
                        if products_B[j] < floor:
                            continue
                    values_C[size] = products_B[j]
                    rows_C[size] = first_row + j
                    size += 1
        sizes_Q[q] = size
        floors_Q[q] = floor


@njit(cache=True, nogil=True)
def _finish(values_QC, rows_QC, sizes_Q, slack_Q, k):
    for q in range(len(sizes_Q)):
        if sizes_Q[q] > k:
            sizes_Q[q], _ = _cut(values_QC[q], rows_QC[q], sizes_Q[q], slack_Q[q], k)


@njit(cache=True, nogil=True)
def _cut(values_C, rows_C, size, slack, k):
    """Keep what is not below the k-th best less the slack, in order; the floor rounded down."""
    kth = np.partition(values_C[:size], size - k)[size - k]
    floor = np.nextafter(np.float32(np.float64(kth) - slack), np.float32(-np.inf))
    kept = 0
    for i in range(size):
        if values_C[i] >= floor:
            values_C[kept] = values_C[i]
            rows_C[kept] = rows_C[i]
            kept += 1
    return kept, floor


@njit(cache=True, nogil=True)
def _decide(vectors_ND, queries_QD, ranks_N, rows_QC, sizes_Q, keys_QC, block_rows):
    """Score the nominees, block after block of passages, so that queries share what is in cache."""
    done_Q = np.zeros(len(sizes_Q), dtype=np.int64)
    for block_end in range(block_rows, vectors_ND.shape[0] + block_rows, block_rows):
        for q in range(len(sizes_Q)):
            first = last = done_Q[q]
            while last < sizes_Q[q] and rows_QC[q, last] < block_end:
                last += 1
            if last > first:
                rows_C, keys_C = rows_QC[q, first:last], keys_QC[q, first:last]
                _score_rows(vectors_ND, rows_C, queries_QD[q], ranks_N, keys_C)
                done_Q[q] = last


@njit(cache=True, nogil=True)
def _score_rows(vectors_ND, rows_C, query_D, ranks_N, keys_C):
    """Sort keys of the rows: inner products in float64, summed in one fixed order, rounded once.

    Products of float32 values are exact in float64. Sums run in 128 lanes, added up as a tree.
    """
    dimension = len(query_D)
    whole = dimension - dimension % _LANES
    lanes = np.empty(_LANES, dtype=np.float64)
    for c in range(len(rows_C)):
        vector_D = vectors_ND[rows_C[c]]
        for j in range(_LANES):
            lanes[j] = 0.0
        for i in range(0, whole, _LANES):
            part = vector_D[i : i + _LANES]
            query_part = query_D[i : i + _LANES]
            for j in range(_LANES):
                lanes[j] += np.float64(as_float32(part[j])) * query_part[j]
        for i in range(whole, dimension):
            lanes[i - whole] += np.float64(as_float32(vector_D[i])) * query_D[i]
        half = _LANES // 2
        while half:
            for j in range(half):
                lanes[j] += lanes[j + half]
            half //= 2
        keys_C[c] = sort_key(np.float32(lanes[0]), ranks_N[rows_C[c]])


@njit(cache=True, nogil=True)
def _widen(stored_BD, wide_BD):
    for b in range(stored_BD.shape[0]):
        for i in range(stored_BD.shape[1]):
            wide_BD[b, i] = as_float32(stored_BD[b, i])
