"""What a sparse retriever costs, beside its quality: postings, expected overlap, bytes, time.

Legend: Q queries, N passages, V terms. A posting is a (text, term) pair with a weight that is not 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

SparseRows: TypeAlias = Any
"""A scipy sparse matrix, a row a text (scipy ships no types to name)."""


@dataclass(frozen=True)
class TermCounts:
    """How many texts hold each term: int64 [V], over ``texts`` texts; those of shards add up."""

    counts: np.ndarray
    texts: int

    @classmethod
    def of(cls, rows: SparseRows) -> TermCounts:
        """Of the rows of a matrix [n, V]; explicit zeros and doubled terms do not count.

        Raises ValueError for a matrix that is not sparse.
        """
        if not sp.issparse(rows):
            raise ValueError(f"a {type(rows).__name__}; a scipy sparse matrix is needed")
        matrix: SparseRows = sp.csr_array(rows)
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        terms = matrix.indices[matrix.data != 0]
        return cls(np.bincount(terms, minlength=matrix.shape[1]), matrix.shape[0])

    def __add__(self, other: TermCounts) -> TermCounts:
        if len(self.counts) != len(other.counts):
            raise ValueError(f"vocabularies of {len(self.counts)} and {len(other.counts)} terms")
        return TermCounts(self.counts + other.counts, self.texts + other.texts)

    @property
    def postings(self) -> float:
        """Mean postings a text (0 without texts)."""
        return float(self.counts.sum()) / max(self.texts, 1)


def term_counts(shards: Iterable[SparseRows]) -> TermCounts:
    """Term counts over all shards, each looked at once. ValueError for none."""
    total: TermCounts | None = None
    for shard in shards:
        counts = TermCounts.of(shard)
        total = counts if total is None else total + counts
    if total is None:
        raise ValueError("no shard to count the terms of")
    return total


def retrieval_flops(queries: TermCounts, passages: TermCounts) -> float:
    """FLOPS of SPLADE (2107.05720, section 4): sum_j p_j(query) p_j(passage).

    p_j is the share of texts that hold term j, so that this is the mean number of terms that a query
    and a passage have in common: the multiply-adds of one score by an inverted index. Raises
    ValueError for vocabularies of different sizes.
    """
    if len(queries.counts) != len(passages.counts):
        raise ValueError(
            f"queries have {len(queries.counts)} terms, passages {len(passages.counts)}"
        )
    overlap = queries.counts.astype(np.float64) @ passages.counts.astype(np.float64)
    return float(overlap) / max(queries.texts, 1) / max(passages.texts, 1)
