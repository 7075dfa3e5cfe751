"""Contrastive entropy: against a float64 loop, for any cut into shards; negatives that are fixed."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raylab.evaluation.entropy import contrastive_entropy, sample_negatives


def by_loop(queries, passages, positives, negatives, temperature):
    """The definition, term by term, in float64."""
    q, p = (
        np.asarray(x.todense() if sp.issparse(x) else x, np.float64) for x in (queries, passages)
    )
    values = []
    for query, own, others in zip(q, positives, negatives, strict=True):
        terms = []
        for row in own:
            high = math.exp(float(sum(query * p[row])) / temperature)
            low = sum(math.exp(float(sum(query * p[other])) / temperature) for other in others)
            terms.append(-math.log(high / (high + low)))
        values.append(sum(terms) / len(terms) if terms else math.nan)
    return np.array(values)


def problem(head, seed=0, q=7, n=60, d=12, dtype=np.float32):
    rng = np.random.default_rng(seed)
    queries, passages = (rng.normal(size=(rows, d)).astype(dtype) / 4 for rows in (q, n))
    if head == "sparse":
        queries, passages = (sp.csr_matrix(np.maximum(x, 0)) for x in (queries, passages))
    positives = [rng.choice(n, rng.integers(0, 4), replace=False) for _ in range(q)]
    positives[0] = np.array([3])
    negatives = [sample_negatives(f"q{i}", n, set(own), 20) for i, own in enumerate(positives)]
    return queries, passages, positives, negatives


@pytest.mark.parametrize("head", ["dense", "sparse"])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_it_is_the_definition(head, temperature):
    arguments = problem(head)
    expected = by_loop(*arguments, temperature)
    queries, passages, *rows = arguments
    found = contrastive_entropy(queries, [passages], *rows, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert not np.isnan(found[0])
    assert np.isnan(found).tolist() == [len(own) == 0 for own in rows[0]]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["dense", "sparse"]),
    st.lists(st.integers(0, 60), max_size=5),
    st.integers(0, 9),
)
def test_it_does_not_depend_on_how_the_passages_are_cut_into_shards(head, cuts, seed):
    queries, passages, *rows = problem(head, seed)
    ends = [0, *sorted(cuts), 60]
    shards = [passages[a:b] for a, b in itertools.pairwise(ends)]
    whole = contrastive_entropy(queries, [passages], *rows, 0.1)
    np.testing.assert_array_equal(contrastive_entropy(queries, iter(shards), *rows, 0.1), whole)


def test_pairs_are_taken_in_blocks_from_memory_mapped_half_precision(tmp_path, monkeypatch):
    """As shards stand in storage; the sum is in float64 all the same."""
    queries, passages, *rows = problem("dense", dtype=np.float16)
    np.save(tmp_path / "dense.npy", passages)
    mapped = np.load(tmp_path / "dense.npy", mmap_mode="r")
    expected = by_loop(queries, passages, *rows, 0.01)
    for cells in (1, 100, 2**22):
        monkeypatch.setattr("raylab.evaluation.entropy._PAIR_CELLS", cells)
        found = contrastive_entropy(queries, [mapped], *rows, 0.01)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_scores_beyond_the_exponents_range_are_exact():
    queries, passages = np.array([[1.0], [1.0]]), np.array([[-900.0], [900.0], [899.0]])
    found = contrastive_entropy(queries, [passages], [[0], [1]], [[1, 2], [0, 2]], 0.5)
    assert found[0] == pytest.approx(3600 + math.log1p(math.exp(-2)))
    assert found[1] == pytest.approx(math.log1p(math.exp(-2)), rel=1e-9)


def test_a_retriever_that_tells_nothing_apart_has_the_log_of_257():
    rows = [sample_negatives("q", 1_000, {5})]
    for one in (np.ones((1, 4)), sp.csr_matrix((1, 4))):
        passages = np.ones((1_000, 4)) if isinstance(one, np.ndarray) else sp.csr_matrix((1_000, 4))
        found = contrastive_entropy(one, [passages], [[5]], rows, 0.01)
        assert found == pytest.approx([math.log(257)])


def test_better_scores_of_the_positives_lower_it_smoothly():
    queries, passages, positives, negatives = problem("dense")
    positives = [np.array([i]) for i in range(7)]
    negatives = [sample_negatives(f"q{i}", 60, {i}, 20) for i in range(7)]
    last = np.inf
    for lift in np.linspace(0, 2, 9):
        better = passages.copy()
        better[:7] += lift * queries
        now = contrastive_entropy(queries, [better], positives, negatives, 1.0).mean()
        assert now < last
        last = now


# ------------------------------------------------------------------------------------ negatives


@settings(deadline=None)
@given(st.integers(1, 400), st.sets(st.integers(-5, 450), max_size=20), st.integers(1, 256))
def test_negatives_are_different_rows_and_never_the_excluded(n, excluded, count):
    drawn = sample_negatives("q", n, excluded, count)
    assert drawn.dtype == np.int64
    assert (np.diff(drawn) > 0).all()
    others = set(range(n)) - excluded
    assert set(drawn.tolist()) <= others
    assert len(drawn) == min(count, len(others))


def test_negatives_are_fixed_by_seed_query_and_size_and_nothing_else():
    """Worked out here from the hash, so that a change of the draws cannot go unseen."""
    stream = []
    for place in range(3):
        block = hashlib.sha512(b"7\0q1\0" + place.to_bytes(8, "little")).digest()
        stream += [
            int.from_bytes(block[i : i + 8], "little") * 1_000 >> 64 for i in range(0, 64, 8)
        ]
    expected = list(dict.fromkeys(row for row in stream if row != stream[2]))[:12]
    drawn = sample_negatives("q1", 1_000, {stream[2]}, 12, seed=7)
    assert drawn.tolist() == sorted(expected)
    assert sample_negatives("q2", 1_000, set(), 12, seed=7).tolist() != drawn.tolist()
    assert sample_negatives("q1", 1_000, set(), 12, seed=8).tolist() != drawn.tolist()
    # Excluding a passage that was not drawn changes nothing: a new positive moves no other.
    without = sample_negatives("q1", 1_000, {stream[2], 999}, 12, seed=7)
    assert 999 not in expected
    assert without.tolist() == drawn.tolist()


def test_negatives_are_uniform_over_the_collection():
    counts = np.zeros(500)
    for query in range(400):
        counts[sample_negatives(f"q{query}", 500, {0}, 64)] += 1
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 0.01
    assert len(sample_negatives("q", 8_841_823, {3})) == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"positives": [[0]]}, "7 queries, 1 lists of positives and 7 of negatives"),
        ({"negatives": [[60]] * 7}, "the collection has 60"),
        ({"negatives": [[-1]] * 7}, "rows -1 to"),
        ({"passages": [np.zeros((60, 3))]}, "passages have 3 columns, queries 12"),
        ({"passages": [sp.csr_matrix((60, 12))]}, "must both be dense or both sparse"),
        ({"passages": [np.full((60, 12), np.nan)]}, "query 0: a score is not finite"),
    ],
)
def test_bad_arguments_are_named(change, message):
    names = ("queries", "passages", "positives", "negatives", "temperature")
    queries, passages, *rows = problem("dense")
    arguments = dict(zip(names, (queries, [passages], *rows, 1.0), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        contrastive_entropy(**arguments)
