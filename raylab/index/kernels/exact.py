"""The kernels of exact dense search: nominate by matrix product, decide by a fixed dot product.

A matrix product rounds differently with the shape of its blocks, the library and the processor, so
it only nominates. Whatever its order of summation, a product is within a bound of the true score
(`Vectors.bounds`); hence no passage whose product lies below the k-th best product by more than
twice that can belong to the top k. All others, ties included, are nominated. Their scores are
computed in float64 in one fixed order and rounded once to float32: a hit's score is a function of
its two vectors alone.

Products are those of float32, or, where the processor multiplies bfloat16 faster, of vectors
rounded to it: then what rounding took of the longest vectors is part of the bound, and a few more
passages are nominated. A query with too many nominees is tried in float32; one with too many still
(a collection of nearly equal vectors) is scored against every passage: slower, and as exact.

Shapes: Q queries, N passages, B passages of a block, D dimensions, C nominees a query, k hits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit

from raylab.index.kernels.half import as_float32, stored
from raylab.index.kernels.topk import STRETCH, none_reaches, sort_key, unpack_keys

PASSAGE_BLOCK = 1024
_DEVICE_BLOCK = 16_384
_FLOAT32_ROUNDING = 2.0**-24
_BFLOAT16_ROUNDING = 2.0**-8
_TINY = float(np.finfo(np.float32).tiny)
_NO_HIT = np.uint64(2**64 - 1)
_LANES = 128
_CACHED_BYTES = 2**20
# Below, what rounding to bfloat16 saves is less than what more nominees cost.
_LEAST_DIMENSION = 256
_LEAST_PASSAGES_A_HIT = 16


@dataclass(frozen=True)
class Vectors:
    """What is searched: ``matrix`` [N, D] (float16 or float32), ``ranks`` int32 [N].

    ``max_norm``: the length of the longest vector; ``max_residual``: of the longest difference
    between a vector and itself in bfloat16.
    """

    matrix: np.ndarray
    ranks: np.ndarray
    max_norm: float
    max_residual: float

    def bounds(self, queries_QD: np.ndarray, bfloat16: bool) -> np.ndarray:
        """Bound on |product - score| [Q], the roundings of the score and in the sum included.

        Sums: the classical n*u/(1 - n*u) * sum |q_i d_i| for any order (Higham 2002, 3.1), with
        sum |q_i d_i| <= |q| |d|; a few more roundings and 1 % stand for what is left, one smallest
        normal number a rounding for underflow. Operands, of which the product sees q' and d':
        |q'd' - qd| <= |q' - q| |d'| + |q| |d' - d|.
        """
        norms_Q = norms(queries_QD)
        n_roundings = self.matrix.shape[1] + 8
        relative = n_roundings * _FLOAT32_ROUNDING
        relative *= 1.01 / (1 - relative)
        underflow_Q = n_roundings * _TINY * (1 + norms_Q + self.max_norm)
        if not bfloat16:
            return relative * norms_Q * self.max_norm + underflow_Q
        longest = self.max_norm + self.max_residual
        residuals_Q = norms(queries_QD - rounded_to_bfloat16(queries_QD))
        operands_Q = residuals_Q * longest + norms_Q * self.max_residual
        return 1.01 * operands_Q + relative * (norms_Q + residuals_Q) * longest + underflow_Q


def norms(vectors_ND: np.ndarray) -> np.ndarray:
    """Lengths of the rows, float64 [N]."""
    return np.linalg.norm(vectors_ND.astype(np.float64), axis=1)


def rounded_to_bfloat16(vectors_ND: np.ndarray) -> np.ndarray:
    """The rows as bfloat16 would hold them, float32."""
    bits_ND = np.empty(vectors_ND.shape, dtype=np.uint16)
    _to_bfloat16(stored(vectors_ND), bits_ND)
    return (bits_ND.astype(np.uint32) << np.uint32(16)).view(np.float32)


@cache
def bfloat16_is_fast() -> bool:
    """Whether this processor has instructions for products of bfloat16."""
    import torch

    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def search_block(
    vectors: Vectors,
    queries_QD: np.ndarray,
    k: int,
    device: str | None = None,
    bfloat16: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The best k <= N of each query: (ranks [Q, k] int64, scores [Q, k] float32), in order.

    ``device``: None for this processor, or a torch device, which then does the nominating.
    ``bfloat16``: nominate by products in it; None: where that is faster.
    """
    stored_ND, ranks_N = stored(vectors.matrix), vectors.ranks
    n_passages, dimension = vectors.matrix.shape
    if bfloat16 is None:
        pays = dimension >= _LEAST_DIMENSION and n_passages >= _LEAST_PASSAGES_A_HIT * k
        bfloat16 = bool(device is None and pays and bfloat16_is_fast())
    slack_Q = 2 * vectors.bounds(queries_QD, bfloat16)
    if not np.isfinite(slack_Q).all():  # a value that bfloat16 rounds to infinity
        bfloat16 = False
        slack_Q = 2 * vectors.bounds(queries_QD, bfloat16)
    if device is None:
        rows_QC, sizes_Q = _nominate(queries_QD, stored_ND, slack_Q, k, bfloat16)
    else:
        rows_QC, sizes_Q = _nominate_on(device, queries_QD, vectors.matrix, slack_Q, k)
    wide_QD = queries_QD.astype(np.float64)
    keys_QC = np.full((len(queries_QD), max(k, int(sizes_Q.max(initial=0)))), _NO_HIT)
    block_rows = max(1, _CACHED_BYTES // (stored_ND.itemsize * dimension))
    _decide(stored_ND, wide_QD, ranks_N, rows_QC, sizes_Q, keys_QC, block_rows)
    best_ranks_Qk, best_scores_Qk = unpack_keys(np.sort(keys_QC, axis=1)[:, :k])
    left = np.flatnonzero(sizes_Q < 0)
    if left.size and bfloat16:
        again = search_block(vectors, queries_QD[left], k, device, bfloat16=False)
        best_ranks_Qk[left], best_scores_Qk[left] = again
        return best_ranks_Qk, best_scores_Qk
    for q in left:
        keys_N = np.empty(n_passages, dtype=np.uint64)
        _score_rows(stored_ND, np.arange(n_passages), wide_QD[q], ranks_N, keys_N)
        best_k = np.sort(np.partition(keys_N, k - 1)[:k])
        best_ranks_Qk[q], best_scores_Qk[q] = unpack_keys(best_k)
    return best_ranks_Qk, best_scores_Qk


def _nominate(
    queries_QD: np.ndarray, stored_ND: np.ndarray, slack_Q: np.ndarray, k: int, bfloat16: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [Q, C] int32, sizes [Q]) of the nominees, ascending rows; size -1: too many."""
    n_queries, n_passages = len(queries_QD), len(stored_ND)
    capacity = min(n_passages, max(4 * k, k + 1024))
    values_QC = np.empty((n_queries, capacity), dtype=np.float32)
    rows_QC = np.empty((n_queries, capacity), dtype=np.int32)
    sizes_Q = np.zeros(n_queries, dtype=np.int64)
    floors_Q = np.full(n_queries, -np.inf, dtype=np.float32)
    rounding = _BFLOAT16_ROUNDING if bfloat16 else 0.0
    blocks = _bfloat16_products if bfloat16 else _float32_products
    for start, products_QB in blocks(queries_QD, stored_ND):
        _select(products_QB, start, values_QC, rows_QC, sizes_Q, floors_Q, slack_Q, rounding, k)
    _finish(values_QC, rows_QC, sizes_Q, slack_Q, rounding, k)
    return rows_QC, sizes_Q


def _float32_products(
    queries_QD: np.ndarray, stored_ND: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, products [Q, B] float32) of each block; the array is used again."""
    block_rows = min(PASSAGE_BLOCK, len(stored_ND))
    products_QB = np.empty((len(queries_QD), block_rows), dtype=np.float32)
    wide_BD = np.empty((block_rows, stored_ND.shape[1]), dtype=np.float32)
    for start in range(0, len(stored_ND), block_rows):
        block_BD = stored_ND[start : start + block_rows]
        if block_BD.dtype != np.float32:
            narrow_BD, block_BD = block_BD, wide_BD[: len(block_BD)]
            _to_float32(narrow_BD, block_BD)
        if len(block_BD) < block_rows:
            products_QB = np.empty((len(queries_QD), len(block_BD)), dtype=np.float32)
        np.dot(queries_QD, block_BD.T, out=products_QB)
        yield start, products_QB


def _bfloat16_products(
    queries_QD: np.ndarray, stored_ND: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """As `_float32_products`, of operands rounded to bfloat16; sums in float32, then rounded too."""
    import torch

    block_rows = min(PASSAGE_BLOCK, len(stored_ND))
    bits_QD = np.empty(queries_QD.shape, dtype=np.uint16)
    _to_bfloat16(queries_QD, bits_QD)
    bits_BD = np.empty((block_rows, stored_ND.shape[1]), dtype=np.uint16)
    products_QB = np.empty((len(queries_QD), block_rows), dtype=np.float32)
    with torch.inference_mode():
        queries = torch.from_numpy(bits_QD).view(torch.bfloat16)
        for start in range(0, len(stored_ND), block_rows):
            block_BD = stored_ND[start : start + block_rows]
            own_BD = bits_BD[: len(block_BD)]
            _to_bfloat16(block_BD, own_BD)
            products = queries @ torch.from_numpy(own_BD).view(torch.bfloat16).T
            if len(block_BD) < block_rows:
                products_QB = np.empty((len(queries_QD), len(block_BD)), dtype=np.float32)
            torch.from_numpy(products_QB).copy_(products)
            yield start, products_QB


def _nominate_on(
    device: str, queries_QD: np.ndarray, vectors_ND: np.ndarray, slack_Q: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `_nominate`, on a torch device: the running best k and a margin, one top-k a block.

    The margin tells whether a passage within the slack of the k-th product may have been dropped.
    """
    import torch

    n_passages = len(vectors_ND)
    capacity = min(n_passages, k + max(64, k // 8))
    with _full_float32(), torch.inference_mode():
        queries = torch.tensor(queries_QD, device=device)
        best = torch.empty((len(queries_QD), 0), device=device)
        rows = torch.empty((len(queries_QD), 0), dtype=torch.int64, device=device)
        for start in range(0, n_passages, _DEVICE_BLOCK):
            block = torch.tensor(np.array(vectors_ND[start : start + _DEVICE_BLOCK]), device=device)
            products = queries @ block.to(torch.float32).T
            top = products.topk(min(capacity, products.shape[1]), dim=1)
            best = torch.cat([best, top.values], dim=1)
            rows = torch.cat([rows, top.indices + start], dim=1)
            kept = best.topk(min(capacity, best.shape[1]), dim=1)
            best, rows = kept.values, rows.gather(1, kept.indices)
    values_QC, rows_QC = best.cpu().numpy(), rows.cpu().numpy().astype(np.int32)
    sizes_Q = np.full(len(queries_QD), capacity)
    if capacity < n_passages:
        lost = values_QC[:, -1] >= values_QC[:, k - 1] - slack_Q
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
def _select(products_QB, first_row, values_QC, rows_QC, sizes_Q, floors_Q, slack_Q, rounding, k):
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
        floor = floors_Q[q]
        for start in range(0, width, STRETCH):
            if size < 0 or none_reaches(products_B[start : start + STRETCH], floor):
                continue
            for j in range(start, min(start + STRETCH, width)):
                if size >= 0 and products_B[j] >= floor:
                    if size == capacity:
                        size, floor = _cut(values_C, rows_C, size, slack_Q[q], rounding, k)
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
def _finish(values_QC, rows_QC, sizes_Q, slack_Q, rounding, k):
    for q in range(len(sizes_Q)):
        if sizes_Q[q] > k:
            sizes_Q[q], _ = _cut(values_QC[q], rows_QC[q], sizes_Q[q], slack_Q[q], rounding, k)


@njit(cache=True, nogil=True)
def _cut(values_C, rows_C, size, slack, rounding, k):
    """Keep what is not below the k-th best less the slack, in order; the floor rounded down.

    ``rounding``: relative, of the products after they were summed, to nearest and so monotone. The
    k-th sum is at least ``kth (1 - rounding)``; a passage whose sum is within the slack of that has
    a product at least this sum, rounded.
    """
    kth = np.float64(np.partition(values_C[:size], size - k)[size - k])
    least = kth - rounding * abs(kth) - slack
    least -= 1.01 * rounding * abs(least)
    floor = np.nextafter(np.float32(least), np.float32(-np.inf))
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
def _to_float32(stored_BD, wide_BD):
    for b in range(stored_BD.shape[0]):
        for i in range(stored_BD.shape[1]):
            wide_BD[b, i] = as_float32(stored_BD[b, i])


@njit(cache=True, nogil=True)
def _to_bfloat16(stored_BD, bits_BD):
    """bfloat16 is the upper half of a float32: rounded to nearest, ties to even."""
    for b in range(stored_BD.shape[0]):
        for i in range(stored_BD.shape[1]):
            bits = np.float32(as_float32(stored_BD[b, i])).view(np.uint32)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            bits_BD[b, i] = np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
