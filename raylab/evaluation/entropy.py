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
from dataclasses import dataclass
from functools import cached_property
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
    pairs = Pairs.of(positives, negatives)
    _check_temperature(temperature)
    scores_M, first = np.empty(len(pairs.rows_M)), 0
    for shard in passages:
        places, scores = pairs.scores(queries, shard, first)
        scores_M[places] = scores
        first += shard.shape[0]
    pairs.check_rows(first)
    return pairs.entropies(scores_M, temperature)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature is {temperature}; it must be positive")


@dataclass(frozen=True)
class Pairs:
    """The (query, passage) pairs whose scores contrastive entropy is made of, query after query.

    ``sizes_Q2``: how many of a query's pairs, which lie side by side, are positive, and how many
    negative; ``query_M``, ``rows_M``: rows of the queries and of the collection, int64.
    """

    sizes_Q2: np.ndarray
    query_M: np.ndarray
    rows_M: np.ndarray

    @classmethod
    def of(
        cls,
        positives: Sequence[Sequence[int] | np.ndarray],
        negatives: Sequence[Sequence[int] | np.ndarray],
    ) -> Pairs:
        """Of lists as `contrastive_entropy` takes them."""
        lists = [rows for pair in zip(positives, negatives, strict=True) for rows in pair]
        sizes_Q2 = np.array([len(rows) for rows in lists], dtype=np.int64).reshape(-1, 2)
        rows_M = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in [*lists, []]])
        return cls(sizes_Q2, np.repeat(np.arange(len(sizes_Q2)), sizes_Q2.sum(1)), rows_M)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.rows_M, kind="stable")

    def scores(self, queries: Matrix, shard: Matrix, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Inner products of the pairs whose passages a shard holds: (places among all, float64 scores).

        ``first``: the shard's first row in the collection. Raises ValueError for columns that are not
        the queries', and a score that is not finite.
        """
        if shard.shape[1] != queries.shape[1]:
            raise ValueError(
                f"passages have {shard.shape[1]} columns, queries {queries.shape[1]}; "
                "they must be of one retriever"
            )
        begin, end = np.searchsorted(
            self.rows_M, [first, first + shard.shape[0]], sorter=self._order
        )
        places = self._order[begin:end]
        scores = np.empty(len(places))
        together = _pairs_together(shard)
        for start in range(0, len(places), together):
            part = places[start : start + together]
            scores[start : start + together] = _products(
                queries[self.query_M[part]], shard[self.rows_M[part] - first]
            )
        if not np.isfinite(scores).all():
            query = self.query_M[places[~np.isfinite(scores)].min()]
            raise ValueError(f"query {query}: a score is not finite")
        return places, scores

    def check_rows(self, n_passages: int) -> None:
        """ValueError for a row that a collection of so many passages does not have."""
        rows = self.rows_M
        if len(rows) and not 0 <= rows.min() <= rows.max() < n_passages:
            raise ValueError(
                f"rows {rows.min()} to {rows.max()} are asked for; the collection has {n_passages}"
            )

    def entropies(self, scores_M: np.ndarray, temperature: float) -> np.ndarray:
        """Contrastive entropy of each query from the scores of all pairs, as `contrastive_entropy`."""
        _check_temperature(temperature)
        scaled_M = scores_M / temperature
        values = np.full(len(self.sizes_Q2), np.nan)
        start = 0
        for query, (middle, end) in enumerate(np.cumsum(self.sizes_Q2).reshape(-1, 2)):
            if middle > start:
                values[query] = _entropies(scaled_M[start:middle], scaled_M[middle:end]).mean()
            start = end
        return values


def _entropies(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """-log softmax of each positive score against the negative ones, without overflow."""
    if not len(negative):
        return np.zeros(len(positive))
    top = negative.max()
    rest = top + np.log(np.exp(negative - top).sum())
    return np.logaddexp(0.0, rest - positive)


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
