"""Significance: against scipy and definitions, error rates under the null by simulation, edge cases."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raylab.evaluation.significance import bonferroni, compare, holm, paired_t, randomisation

RNG = np.random.default_rng


def per_query(column):
    return {f"q{n:05d}": float(value) for n, value in enumerate(column)}


def values_of(*columns, where="dl19", measure="nDCG@10"):
    return {(where, measure): {f"s{n}": per_query(c) for n, c in enumerate(columns)}}


@pytest.mark.parametrize("n", [2, 5, 43, 6980])
def test_the_t_test_and_its_interval_are_scipys(n):
    rng = RNG(n)
    a, b = rng.beta(0.4, 0.5, (2, n))
    (found,) = compare(values_of(a, b), draws=10)
    reference = stats.ttest_rel(b, a)
    low, high = reference.confidence_interval(0.95)
    assert found.p_t == pytest.approx(reference.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    assert (found.mean_a, found.mean_b) == pytest.approx((a.mean(), b.mean()))
    assert found.difference == pytest.approx(b.mean() - a.mean())
    assert (found.queries, found.family) == (n, 1)


@pytest.mark.parametrize("n", [2, 9, 43, 300, 6980])
@pytest.mark.parametrize("shift", [0.0, 0.3, -1.5])
def test_the_effects_interval_is_where_the_noncentral_t_has_its_tails(n, shift):
    differences = RNG(n).normal(shift, 1.0, n)
    _, _, (d, low, high) = paired_t(differences, 0.9)
    t = stats.ttest_1samp(differences, 0).statistic
    assert d == pytest.approx(t / math.sqrt(n))
    assert low < d < high
    for bound, tail in ((low, 0.95), (high, 0.05)):
        below = stats.nct.cdf(t, n - 1, bound * math.sqrt(n))
        if not math.isnan(below):  # scipy's own series gives up on some
            assert below == pytest.approx(tail, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 60), st.integers(0, 10_000), st.floats(-1, 1))
def test_all_intervals_hold_zero_exactly_when_the_t_test_does_not_reject(n, seed, shift):
    p, (_, low, high), (_, d_low, d_high) = paired_t(RNG(seed).normal(shift, 1, n), 0.95)
    assert (low < 0 < high) == (p > 0.05) == (d_low < 0 < d_high)


def test_the_effects_interval_covers_the_true_effect_as_often_as_it_says():
    rng, true, hits = RNG(0), 0.4, 0
    for _ in range(1_000):
        _, _, (_, low, high) = paired_t(rng.normal(true, 1, 25), 0.9)
        hits += low <= true <= high
    assert abs(hits / 1_000 - 0.9) < 3 * math.sqrt(0.9 * 0.1 / 1_000)


# Steps of a tenth, as measures have them: many sums are equal but for rounding.
TENTHS = st.lists(st.integers(-10, 10).map(lambda n: n / 10), min_size=2, max_size=10)


@settings(deadline=None)
@given(TENTHS)
def test_the_exact_randomisation_test_counts_all_signs(differences):
    """In whole tenths, so that the reference has no rounding."""
    tenths = [round(10 * d) for d in differences]
    observed = abs(sum(tenths))
    signs = list(itertools.product((1, -1), repeat=len(tenths)))
    as_far = sum(
        abs(sum(s * t for s, t in zip(sign, tenths, strict=True))) >= observed for sign in signs
    )
    p, exact = randomisation(np.array(differences)[:, None], draws=2**10)
    assert exact.all()
    assert p[0] == pytest.approx(as_far / len(signs), abs=1e-15)


def test_the_exact_randomisation_test_is_scipys():
    differences = RNG(3).normal(0.3, 1, (13, 4))
    p, exact = randomisation(differences)
    assert exact.all()
    for column, mine in zip(differences.T, p, strict=True):
        reference = stats.permutation_test(
            (column,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert mine == pytest.approx(reference.pvalue, abs=1e-12)


def test_the_sampled_randomisation_test_comes_near_the_exact_one_and_repeats():
    differences = RNG(5).normal(0.35, 1, (16, 6))
    expected, _ = randomisation(differences, draws=2**16)
    p, exact = randomisation(differences, draws=2**16 - 1, seed=1)
    assert not exact.any()
    assert np.all(np.abs(p - expected) < 4 * np.sqrt(expected * (1 - expected) / 2**16) + 2**-16)
    again, _ = randomisation(differences, draws=2**16 - 1, seed=1)
    np.testing.assert_array_equal(again, p)
    other, _ = randomisation(differences, draws=2**16 - 1, seed=2)
    assert (other != p).any()


def test_the_sampled_test_draws_in_blocks_and_is_never_zero():
    """So many queries that several blocks are drawn, and a difference that no sign reaches."""
    differences = np.abs(RNG(0).normal(1, 0.1, (6_980, 2)))
    differences[:, 1] *= np.where(np.arange(6_980) % 2, 1, -1)
    p, _ = randomisation(differences, draws=2_000)
    assert p[0] == 1 / 2_001
    reference = stats.permutation_test(
        (differences[:, 1],), np.mean, permutation_type="samples", n_resamples=2_000, rng=0
    ).pvalue
    assert p[1] == pytest.approx(reference, abs=0.05)


def test_queries_without_a_difference_do_not_change_the_randomisation_test():
    differences = RNG(4).normal(0.4, 1, (12, 1))
    padded = np.concatenate([differences, np.zeros((500, 1))])
    assert randomisation(padded)[0] == randomisation(differences)[0]
    assert randomisation(padded)[1].all()


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=7)


@given(P_VALUES)
def test_holm_is_the_closure_of_bonferroni(p):
    """A hypothesis falls when Bonferroni rejects every set that holds it: the adjusted p is the worst."""
    places = range(len(p))
    subsets = [s for size in places for s in itertools.combinations(places, size + 1)]
    expected = [
        max(min(1.0, len(s) * min(p[i] for i in s)) for s in subsets if place in s)
        for place in places
    ]
    np.testing.assert_allclose(holm(p), expected, rtol=1e-12)
    np.testing.assert_allclose(bonferroni(p), [min(1.0, len(p) * one) for one in p])
    assert (holm(p) <= bonferroni(p)).all()


@pytest.mark.long
def test_under_the_null_each_test_errs_as_often_as_its_level_and_a_family_not_more():
    """400 experiments of 4 equal systems: 6 pairs on 2 measures, skewed values with many zeros."""
    rng, trials, level = RNG(0), 400, 0.05
    single = np.zeros(2)
    family = np.zeros(4)
    for _ in range(trials):
        easy = rng.random(40)  # how easy a query is: it is common to all systems
        columns = [np.where(rng.random(40) < easy, rng.beta(2, 1, 40), 0.0) for _ in range(8)]
        values = values_of(*columns[:4]) | values_of(*columns[4:], measure="RR@10")
        found = compare(values, draws=400)
        assert len(found) == found[0].family == 12
        single += np.mean([(c.p_t <= level, c.p_random <= level) for c in found], axis=0)
        family += np.any(
            [
                [
                    p <= level
                    for p in (
                        c.p_t_bonferroni, c.p_t_holm, c.p_random_bonferroni, c.p_random_holm,
                    )
                ]
                for c in found
            ],
            axis=0,
        )  # fmt: skip
    # Pairs of one experiment share systems: 2 measures are independent, so at least 2 draws each.
    error = 3 * math.sqrt(level * (1 - level) / (2 * trials))
    assert np.all(np.abs(single / trials - level) < error), single / trials
    assert np.all(family / trials < level + 3 * math.sqrt(level * (1 - level) / trials)), family
    assert np.all(family > 0)  # it is no test that never rejects


def test_a_true_difference_is_found():
    rng = RNG(1)
    base = rng.random(200)
    better = base + rng.normal(0.05, 0.1, 200)
    (found,) = compare(values_of(base, better))
    assert found.p_t < 1e-6
    assert found.p_random < 2e-5
    assert found.low > 0
    assert 0.3 < found.effect_low < found.effect < found.effect_high < 0.8


def test_a_family_is_all_pairs_on_all_measures_of_all_collections_but_no_mean():
    rng = RNG(2)
    values = {}
    for where in ("scifact test", "nfcorpus test"):
        for measure in ("nDCG@10", "RR@10"):
            values |= values_of(*rng.random((3, 20)), where=where, measure=measure)
    found = compare(values, draws=200)
    assert [c.family for c in found] == [12] * 12
    assert {(c.a, c.b) for c in found} == {("s0", "s1"), ("s0", "s2"), ("s1", "s2")}
    assert {(c.where, c.measure) for c in found} == set(values)
    np.testing.assert_allclose([c.p_t_holm for c in found], holm([c.p_t for c in found]))
    chosen = compare(values, pairs=[("s0", "s2")], draws=200)
    assert [c.family for c in chosen] == [4] * 4
    assert {c.p_t for c in chosen} < {c.p_t for c in found}


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_equal_differences_have_no_width(shift):
    base = np.arange(8) / 8
    (found,) = compare(values_of(base, base + shift))
    assert (found.difference, found.low, found.high) == (shift, shift, shift)
    assert found.effect == found.effect_low == found.effect_high == (math.inf if shift else 0)
    assert found.p_t == (0 if shift else 1)
    assert found.p_random == (2 / 2**8 if shift else 1)
    assert found.exact


@pytest.mark.parametrize(
    "pairs",
    [
        [((1, 2), (1, 3)), ((1, 3), (1, 6))] * 3,  # reciprocal ranks: 1/6 each
        [((n, 7), (n + 3, 7)) for n in range(5)],
        [((1, 1000), (1001, 1000)), ((1, 3), (4, 3)), ((2, 7), (9, 7))],
    ],
)
def test_differences_that_are_equal_in_fractions_have_no_variance(pairs):
    """In float64 they differ in the last bit, which made an effect of 1e15 and a p of 1e-48."""
    exact = [Fraction(*b) - Fraction(*a) for a, b in pairs]
    assert len(set(exact)) == 1
    a, b = (np.array([n / d for n, d in column]) for column in zip(*pairs, strict=True))
    assert np.ptp(b - a) > 0
    (found,) = compare(values_of(a, b))
    assert found.low == found.difference == found.high == pytest.approx(float(exact[0]))
    assert found.effect == found.effect_low == found.effect_high
    assert found.effect == math.copysign(math.inf, exact[0])
    assert found.p_t == 0
    assert found.p_random == 2 / 2 ** len(pairs)


def test_values_that_only_rounding_tells_apart_have_no_difference():
    thirds = np.array([1 / 3, 2 / 3, 0.1 + 0.2, 0.6, 0.25, 0.75])
    other = np.array([1 - 2 / 3, 1 - 1 / 3, 0.3, 0.1 * 6, 0.25, 0.75])
    assert (thirds != other).any()
    (found,) = compare(values_of(thirds, other))
    assert (found.difference, found.effect, found.p_t, found.p_random) == (0, 0, 1, 1)
    # One true difference, a step of trec_eval's printed precision: only it counts.
    other[-1] += 1e-4
    (found,) = compare(values_of(thirds, other))
    assert found.difference == pytest.approx(1e-4 / 6)
    assert found.p_t == pytest.approx(stats.ttest_1samp([0] * 5 + [1e-4], 0).pvalue)
    assert found.p_random == 1


@pytest.mark.parametrize("n", [3, 100])
def test_a_very_large_effect_has_an_interval_all_the_same(n):
    """On either side of where the noncentral t distribution is given up for its limit."""
    noise = RNG(0).normal(0, 1, n)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    ratios = []
    for t in (0.999e3, 1.001e3, 1e9, -1e9):
        _, _, (d, low, high) = paired_t(noise + t / math.sqrt(n))
        assert low < d < high
        ratios.append(sorted((low / d, high / d)))
    for ratio in ratios[1:]:
        assert ratio == pytest.approx(ratios[0], rel=4e-4)


@pytest.mark.parametrize(
    ("values", "more", "message"),
    [
        ({}, {}, "nothing to compare"),
        (values_of([1, 0]), {}, "nothing to compare"),
        (values_of([1, 0], [1, 0, 1]), {}, "dl19 nDCG@10: query 'q00002' has a value of only one"),
        (values_of([1], [0]), {}, "1 queries; a comparison needs at least 2"),
        (values_of([1, 0], [1, np.nan]), {}, "query 'q00001' of 's1' has no finite value"),
        (values_of([1, 0], [1, 1]), {"pairs": [("s0", "s7")]}, "no system 's7'; there are s0, s1"),
        (values_of([1, 0], [1, 1]), {"confidence": 1.0}, "confidence is 1.0"),
        (values_of([1, 0], [1, 1]), {"draws": 0}, "draws is 0"),
    ],
)
def test_what_cannot_be_compared_is_named(values, more, message):
    with pytest.raises(ValueError, match=message):
        compare(values, **more)
