"""Efficiency: against naive loops over texts and terms."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.evaluation.efficiency import TermCounts, retrieval_flops, term_counts


def texts(seed, n, terms=30, density=0.2):
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, terms)) < density, rng.random((n, terms)), 0)


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 20), st.integers(0, 20))
def test_flops_are_the_mean_overlap_of_all_pairs_and_postings_the_mean_length(seed, q, n, cut):
    queries, passages = texts(seed, q), texts(seed + 1, n, density=0.6)
    overlaps = [
        sum(1 for a, b in zip(query, passage, strict=True) if a and b)
        for query in queries
        for passage in passages
    ]
    shards = [sp.csr_matrix(passages[:cut]), sp.csr_matrix(passages[cut:])]
    ours, theirs = term_counts([sp.csr_matrix(queries)]), term_counts(shards)
    assert retrieval_flops(ours, theirs) == pytest.approx(sum(overlaps) / len(overlaps))
    assert theirs.postings == pytest.approx(sum(1 for p in passages for t in p if t) / n)
    assert (theirs.texts, ours.texts) == (n, q)


def test_zeros_and_doubled_terms_are_no_postings():
    doubled = sp.csr_matrix(([1.0, 2.0, 0.0], [1, 1, 2], [0, 3, 3]), shape=(2, 4))
    counts = TermCounts.of(doubled)
    assert counts.counts.tolist() == [0, 1, 0, 0]
    assert counts.postings == 0.5
    assert doubled.nnz == 3  # left as it was


def test_no_text_costs_nothing():
    empty = TermCounts.of(sp.csr_matrix((0, 5)))
    assert empty.postings == 0
    assert retrieval_flops(empty, empty) == 0


def test_counts_beyond_int32_do_not_overflow():
    many = TermCounts(np.full(3, 2**40), 2**40)
    assert retrieval_flops(many, many) == pytest.approx(3.0)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="a ndarray; a scipy sparse matrix"):
        TermCounts.of(np.ones((2, 2)))
    with pytest.raises(ValueError, match="no shard"):
        term_counts([])
    three, four = (TermCounts.of(sp.csr_matrix((1, n))) for n in (3, 4))
    with pytest.raises(ValueError, match="vocabularies of 3 and 4 terms"):
        three + four
    with pytest.raises(ValueError, match="queries have 3 terms, passages 4"):
        retrieval_flops(three, four)
