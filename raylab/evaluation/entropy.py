"""Contrastive entropy: the smooth measure that scaling laws are fitted to (2403.18684, section 3.2).

Ranking measures move in steps and saturate; this one is the loss of telling a query's positive from
256 passages drawn at random, on queries that were not trained on:

    CE(q) = mean over positives p+ of  -log( exp s(q,p+) / (exp s(q,p+) + sum_j exp s(q,p-_j)) )

with s = <q, p> / temperature. The temperature is that of the cell's own training loss (the paper's
dense head 0.01, its sparse head 1): a softmax of raw scores would judge dense vectors, whose scores
lie between -1 and 1, on a scale on which they were never trained, and could not end below
log(1 + 256 e^-2) = 3.57. Each cell is so judged on its own scale; a law is fitted within one head
and objective. Lower is better; a retriever that says the same of all passages has log 257 = 5.55.

The negatives of a query depend on the seed, the query's id and the number of passages alone: they
are the same for every system, size and head, on any machine, and in any version of the libraries.

Legend: Q queries, N passages, D columns, M (query, passage) pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

NEGATIVES = 256
MEASURE = "CE@256"
"""Its name in the results: contrastive entropy against 256 negatives, in nats."""

_PAIR_CELLS = 2**22

Matrix: TypeAlias = Any
"""A float array, or a scipy sparse matrix, of one row a text."""


def sample_negatives(
    query_id: str,
    n_passages: int,
    excluded: Collection[int],
    count: int = NEGATIVES,
    seed: int = 0,
) -> np.ndarray:
    """Rows of `count` different passages drawn uniformly, int64 ascending, none of them `excluded`.

    A collection without so many others gives all it has.

    Args:
        n_passages: in the collection; rows are counted in ascending order of passage id.
        excluded: rows of the query's positives, and of its own document.
    """
    barred = {row for row in excluded if 0 <= row < n_passages}
    if n_passages - len(barred) <= count:
        return np.array([row for row in range(n_passages) if row not in barred], dtype=np.int64)
    # A hash of (seed, query, place), so that no library's stream can change the draws; 64 bits
    # spread over the rows by multiplication leave a bias of N / 2^64.
    key = f"{seed}\0{query_id}\0".encode()
    drawn: set[int] = set()
    place = 0
    while len(drawn) < count:
        block = hashlib.sha512(key + place.to_bytes(8, "little")).digest()
        for start in range(0, len(block), 8):
            row = int.from_bytes(block[start : start + 8], "little") * n_passages >> 64
            if row not in barred and len(drawn) < count:
                drawn.add(row)
        place += 1
    return np.array(sorted(drawn), dtype=np.int64)


def contrastive_entropy(
    queries: Matrix,
    passages: Iterable[Matrix],
    positives: Sequence[Sequence[int] | np.ndarray],
    negatives: Sequence[Sequence[int] | np.ndarray],
    temperature: float,
) -> np.ndarray:
    """Contrastive entropy of each query in nats, float64 [Q]; NaN for a query without positives.

    Args:
        queries: [Q, D], dense or sparse.
        passages: shards [n, D], dense (memory-mapped, too) or sparse, whose rows laid end to end are
            the collection's; each is looked at once, so that they may be read one by one.
        positives: of each query, rows of the collection.
        negatives: of each query, rows of the collection (`sample_negatives`).
        temperature: that divides the scores.

    Raises:
        ValueError: lists that are not one a query, a row that is not in the collection, columns that
            are not the queries', a temperature that is not positive, a score that is not finite.
    """
    n_queries = queries.shape[0]
    if not len(positives) == len(negatives) == n_queries:
        raise ValueError(
            f"{n_queries} queries, {len(positives)} lists of positives and {len(negatives)} of "
            "negatives; one a query is needed"
        )
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    lists = [rows for pair in zip(positives, negatives, strict=True) for rows in pair]
    sizes = np.array([len(rows) for rows in lists], dtype=np.int64)
    rows_M = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in [*lists, []]])
    query_M = np.repeat(np.arange(n_queries), sizes.reshape(-1, 2).sum(1))
    scores_M = _scores(queries, passages, query_M, rows_M) / temperature
    values = np.full(n_queries, np.nan)
    start = 0
    for query, (middle, end) in enumerate(np.cumsum(sizes).reshape(-1, 2)):
        if middle > start:
            values[query] = _entropies(scores_M[start:middle], scores_M[middle:end]).mean()
        start = end
    return values


def _entropies(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """-log softmax of each positive score against the negative ones, without overflow."""
    if not len(negative):
        return np.zeros(len(positive))
    top = negative.max()
    rest = top + np.log(np.exp(negative - top).sum())
    return np.logaddexp(0.0, rest - positive)


def _scores(
    queries: Matrix, passages: Iterable[Matrix], query_M: np.ndarray, rows_M: np.ndarray
) -> np.ndarray:
    """Inner products of pairs (row of queries, row of the passages laid end to end), float64 [M]."""
    order = np.argsort(rows_M, kind="stable")
    ascending = rows_M[order]
    scores_M = np.empty(len(rows_M))
    first = 0
    for shard in passages:
        if shard.shape[1] != queries.shape[1]:
            raise ValueError(
                f"passages have {shard.shape[1]} columns, queries {queries.shape[1]}; "
                "they must be of one retriever"
            )
        begin, end = np.searchsorted(ascending, [first, first + shard.shape[0]])
        own = order[begin:end]
        for pairs in np.array_split(own, -(-len(own) // _pairs_together(shard)) or 1):
            scores_M[pairs] = _products(queries[query_M[pairs]], shard[rows_M[pairs] - first])
        first += shard.shape[0]
    if len(rows_M) and not 0 <= ascending[0] <= ascending[-1] < first:
        raise ValueError(
            f"rows {ascending[0]} to {ascending[-1]} are asked for; the collection has {first}"
        )
    if not np.isfinite(scores_M).all():
        raise ValueError(
            f"query {query_M[np.argmin(np.isfinite(scores_M))]}: a score is not finite"
        )
    return scores_M


def _pairs_together(shard: Matrix) -> int:
    cells = shard.nnz / max(shard.shape[0], 1) if sp.issparse(shard) else shard.shape[1]
    return max(1, int(_PAIR_CELLS / max(cells, 1)))


def _products(left: Matrix, right: Matrix) -> np.ndarray:
    """Row by row inner products, in float64."""
    if sp.issparse(left) != sp.issparse(right):
        raise ValueError("queries and passages must both be dense or both sparse")
    if sp.issparse(left):
        product = left.astype(np.float64).multiply(right.astype(np.float64))
        return np.asarray(product.sum(axis=1), dtype=np.float64).ravel()
    return np.einsum("md,md->m", np.asarray(left, np.float64), np.asarray(right, np.float64))
