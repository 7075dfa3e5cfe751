"""Exponents and slopes out of domain against those in domain: planted ones are found, paired, held by intervals.

What a size or a seed does to a run is in part the same in both domains, in part not; queries are not the same.
"""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from raylab.experiment.config import ConfigError
from raylab.scaling import Series, Study, exponent_differences, fit, macro_means, slope_difference
from raylab.scaling.bootstrap import query_shifts, within_strata
from raylab.scaling.claims import slope
from tests.scaling.planted import SIZES

SCALE, FLOOR = 3e4, 0.04


def measured(
    n,
    seeds,
    log_noise_R,
    exponent,
    rng,
    collection="msmarco",
    split="dev",
    slope_of=None,
    queries=60,
):
    """A series of runs at sizes n: (A/N)^a + d, or of a measure that is linear in log10 N."""
    truth = (SCALE / n) ** exponent + FLOOR
    if slope_of is not None:
        truth = 0.9 - slope_of * np.log10(n / 1e4)
    hard = np.exp(0.3 * rng.normal(size=queries) - 0.045)
    values_RQ = (truth * np.exp(log_noise_R))[:, None] * (
        hard + 0.15 * rng.normal(size=(len(n), queries))
    )
    numbers = dict.fromkeys(
        ("tokens", "examples", "spent_flops", "budget_flops"), np.full(len(n), 1e12)
    )
    numbers |= {"parameters": n, "with_head": n, "retrieval_flops": n, "index_bytes": n}
    return Series(
        "sparse", "cl", collection, split, "CE@256",
        systems=tuple(f"sparse-{size:.4g}-cl" for size in n),
        sizes=tuple(f"{size:.4g}" for size in n),
        variants=("",) * len(n),
        seeds=tuple(map(int, seeds)),
        numbers=numbers,
        query_ids=tuple(f"q{q}" for q in range(queries)),
        losses_RQ=values_RQ,
        domain="in domain" if collection == "msmarco" else "out of domain",
    )  # fmt: skip


def both(exponents=(0.53, 0.53), shared=0.02, own=0.01, sizes=SIZES, seeds=3, rng=0, **options):
    """The same runs in domain and out of it; `shared` and `own` are log standard deviations of what a size
    does to both and to each domain, and half of that of what a run does."""
    rng = np.random.default_rng(rng)
    n, seed = np.repeat(sizes, seeds), np.tile(np.arange(seeds), len(sizes))
    at = np.repeat(np.arange(len(sizes)), seeds)

    def noise(sd):
        return sd * rng.normal(size=len(sizes))[at] + sd / 2 * rng.normal(size=len(n))

    common = noise(shared)
    places = (("msmarco", "dev"), ("nfcorpus", "test"))
    return tuple(
        measured(n, seed, common + noise(own), a, rng, *place, **options)
        for a, place in zip(exponents, places, strict=True)
    )


def exponent(inside, outside, draws=400, seed=0):
    fits = (fit(one, "size", draws=draws, seed=seed) for one in (inside, outside))
    (found,) = exponent_differences(*fits, draws=draws, seed=seed)
    return found


def test_a_planted_difference_of_exponents_is_found():
    found = exponent(*both((0.9, 0.4), shared=0.01, own=0.005))
    assert found.difference.low < -0.5 < found.difference.high < 0
    assert (found.verdict, found.quantity, found.law) == ("differs", "a", "size")
    assert (found.against, found.collection, found.domain) == (
        "msmarco dev", "nfcorpus", "out of domain",
    )  # fmt: skip
    assert found.difference.value == pytest.approx(found.outside.value - found.inside.value)
    assert (found.degrees_of_freedom, found.clusters) == (pytest.approx(5, abs=0.3), "8 sizes")


def test_equal_exponents_are_the_same_where_noise_is_small_and_undecided_where_it_is_not():
    assert exponent(*both(shared=0.001, own=0.0005)).verdict == "same"
    assert (
        exponent(*both(shared=0.05, own=0.05, seeds=1, sizes=SIZES[::2], rng=1)).verdict
        == "undecided"
    )


def test_what_both_domains_share_does_not_widen_a_difference():
    """The width is that of the noise of each domain alone, however much they share."""
    widths = []
    for shared in (0.0, 0.08):
        found = [exponent(*both(shared=shared, own=0.01, rng=rng)) for rng in range(6)]
        widths.append(np.mean([one.difference.high - one.difference.low for one in found]))
        separate = np.mean(
            [np.hypot(*(own.high - own.low for own in (one.inside, one.outside))) for one in found]
        )
    assert widths[1] < 2 * widths[0]
    assert widths[1] < separate / 3


def test_a_difference_of_slopes_is_the_slope_of_the_differences_with_students_interval():
    inside, outside = both(shared=0.05, own=0.02, seeds=1, slope_of=0.05, queries=4_000)
    found = slope_difference(inside, outside, draws=4_000)
    x = np.log10(inside.numbers["parameters"])
    expected = stats.linregress(x, outside.losses_R - inside.losses_R)
    assert found.difference.value == pytest.approx(expected.slope)
    half = expected.stderr * stats.t.ppf(0.975, len(SIZES) - 2)
    assert (found.difference.high - found.difference.low) / 2 == pytest.approx(half, rel=0.1)
    assert found.degrees_of_freedom == pytest.approx(len(SIZES) - 2)
    assert found.inside == slope(inside, draws=4_000)[0]


def held(kind, trials):
    hits = 0
    for trial in range(trials):
        if kind == "slope":
            inside, outside = both(rng=trial, slope_of=0.02, shared=0.03, own=0.02)
            found, truth = slope_difference(inside, outside, draws=300, seed=trial), 0.0
        else:
            sd = {"shared": (0.03, 0.01), "apart": (0.0, 0.03)}[kind]
            inside, outside = both((0.53, 0.45), *sd, rng=trial)
            found, truth = exponent(inside, outside, 200, trial), 0.45 - 0.53
        hits += found.difference.low <= truth <= found.difference.high
    return hits


@pytest.mark.parametrize(("kind", "trials"), [("slope", 100), ("shared", 20)])
def test_intervals_of_differences_hold_the_truth_in_a_few_studies(kind, trials):
    assert held(kind, trials) >= stats.binom.ppf(1e-4, trials, 0.93)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["slope", "shared", "apart"])
def test_intervals_of_differences_hold_the_truth_in_90_to_99_percent_of_200_studies(kind):
    hits = held(kind, 200)
    print("difference", kind, f"{hits / 2:.1f} %")
    assert 180 <= hits <= 198


# -------------------------------------------------------------------------------- means over collections


def three(rng=0, **options):
    """Three collections out of domain, of 40, 200 and 10 queries."""
    rng = np.random.default_rng(rng)
    n, seeds = np.asarray(SIZES), np.zeros(len(SIZES))
    return [
        measured(n, seeds, 0.01 * rng.normal(size=len(n)), 0.5, rng, name, "test", queries=count)
        for name, count in (("a", 40), ("b", 200), ("c", 10))
    ]


def test_a_mean_over_collections_gives_each_one_weight():
    parts = three()
    (mean,) = macro_means(parts)
    expected = np.mean([one.losses_R for one in parts], axis=0)
    np.testing.assert_allclose(mean.losses_R, expected)
    assert (mean.collection, mean.split, mean.strata) == (
        "3 collections",
        "out of domain",
        (40, 200, 10),
    )
    # A second split of a collection shares its weight.
    second = dataclasses.replace(parts[0], split="other", losses_RQ=2 * parts[0].losses_RQ)
    (mean,) = macro_means([*parts, second])
    np.testing.assert_allclose(mean.losses_R, expected + parts[0].losses_R / 6)
    assert macro_means(parts[:1]) == []
    inside = [dataclasses.replace(one, domain="in domain") for one in parts]
    assert macro_means(inside) == []


def test_a_run_that_a_collection_lacks_is_left_out_of_the_mean_with_the_reason():
    first, *rest = three()
    (mean,) = macro_means([first.keep(np.arange(len(SIZES)) > 0), *rest])
    assert len(mean.systems) == len(SIZES) - 1
    assert mean.excluded == (f"{first.systems[0]}-seed0: not measured on all 3 collections",)


def test_queries_of_a_mean_are_drawn_within_their_collections():
    """The variance of the draws is the sum of the collections' own, and not what they differ by."""
    parts = three()
    shifted = [dataclasses.replace(one, losses_RQ=one.losses_RQ + add)
               for one, add in zip(parts, (0.0, 5.0, 50.0), strict=True)]  # fmt: skip
    expected = sum(one.losses_RQ.var(1, ddof=1) / len(one.query_ids) for one in parts) / 9
    for own in (parts, shifted):
        (mean,) = macro_means(own)
        deviations = mean.losses_RQ - mean.losses_R[:, None]
        drawn = query_shifts(
            within_strata(deviations, mean.strata), 20_000, np.random.default_rng(0), mean.strata
        )
        np.testing.assert_allclose(drawn.var(0), expected, rtol=0.06)
        np.testing.assert_allclose(drawn.mean(0), 0, atol=4 * np.sqrt(expected.max() / 20_000))


def test_a_study_compares_what_it_can_and_says_why_not():
    inside, outside = both()
    parts = [dataclasses.replace(outside, collection=name) for name in ("a", "b")]
    every = [inside, *parts, *macro_means(parts)]
    made = Study(draws=20)
    for one in every:
        made.add(one, "size")
    made.compare_domains(every)
    told = [(one.collection, one.quantity) for one in made.domains]
    assert told == [
        (name, quantity)
        for name in ("2 collections", "a", "b")
        for quantity in ("slope per decade", "a")
    ]
    assert not made.refused
    few = Study(draws=20)
    two = [one.keep(np.isin(one.sizes, sorted(set(one.sizes))[:2])) for one in every]
    few.compare_domains(two)
    assert not few.domains
    assert {one.what for one in few.refused} == {"difference"}
    assert all("there are 2 sizes" in one.reason for one in few.refused)
    other = dataclasses.replace(outside, systems=tuple(f"x-{name}" for name in outside.systems))
    with pytest.raises(ConfigError, match="none of its runs is measured in domain"):
        slope_difference(inside, other)
    with pytest.raises(ConfigError, match="of other runs than in domain"):
        exponent_differences(*(fit(one, "size", draws=10) for one in (inside, other)))
