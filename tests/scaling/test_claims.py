"""The three claims on planted slopes and differences; error rates where there is nothing to find."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raylab.experiment.config import ConfigError
from raylab.scaling import claims, series
from raylab.scaling.claims import slope
from tests.scaling.planted import tables

SIZES = {"s1": 10**4, "s2": 10**5, "s3": 10**6, "s4": 10**7}


def grid(slopes, seeds=3, noise=0.004, rng=0, measure="nDCG@10", gap=0.0):
    """(head, objective) -> slope per decade; sparse is `gap` above dense."""
    rng = np.random.default_rng(rng)
    return {
        (size, n, head, objective, measure): (
            0.4
            + own * np.log10(n / 1e4)
            + gap * (head == "sparse")
            + noise * rng.normal(size=seeds)
        )
        for (head, objective), own in slopes.items()
        for size, n in SIZES.items()
    }


def by_claim(found):
    return {(c.claim, c.head, c.objective, c.size): c for c in found}


def test_planted_slopes_and_differences_are_found():
    slopes = {
        ("sparse", "cl"): 0.06, ("dense", "cl"): -0.05, ("sparse", "kd"): 0.002, ("dense", "kd"): 0.05,
    }  # fmt: skip
    found = by_claim(claims(*tables(grid(slopes, gap=0.1))))
    rising = found["improves with size", "sparse", "cl", ""]
    assert (rising.verdict, rising.n_runs, rising.seeds) == ("improves", 12, (0, 1, 2))
    assert (rising.degrees_of_freedom, rising.clusters) == (pytest.approx(4 - 2), "4 sizes")
    assert rising.estimate.low < 0.06 < rising.estimate.high
    assert found["improves with size", "dense", "cl", ""].verdict == "worsens"
    flat = found["flat in size", "sparse", "kd", ""]
    assert (flat.verdict, flat.confidence, flat.margin) == ("flat", 0.9, 0.02)
    assert found["flat in size", "dense", "kd", ""].verdict == "not flat"
    beats = found["sparse beats dense", "sparse - dense", "cl", "s1"]
    assert (beats.verdict, beats.family, beats.n_queries) == ("sparse", 8, 40)
    assert beats.estimate.value == pytest.approx(0.1, abs=0.02)
    # By s4 the dense distilled one has gained 0.15 on it.
    assert found["sparse beats dense", "sparse - dense", "kd", "s4"].verdict == "dense"
    assert len(found) == 2 + 2 + 8


def test_what_the_data_cannot_tell_is_undecided():
    slopes = {("sparse", "cl"): 0.01, ("dense", "cl"): 0.01, ("sparse", "kd"): 0.018}
    found = by_claim(claims(*tables(grid(slopes, noise=0.05, seeds=2, rng=2))))
    assert found["improves with size", "sparse", "cl", ""].verdict == "undecided"
    assert found["flat in size", "sparse", "kd", ""].verdict == "undecided"
    wide = by_claim(claims(*tables(grid(slopes, noise=0.05, seeds=2, rng=2)), margin=1.0))
    assert wide["flat in size", "sparse", "kd", ""].verdict == "flat"


def test_entropy_improves_when_it_falls_and_sparse_beats_dense_by_less_of_it():
    slopes = {("sparse", "cl"): -0.05, ("dense", "cl"): 0.05}
    values = grid(slopes, measure="CE@256", gap=-0.2)
    found = by_claim(claims(*tables(values), measure="CE@256"))
    assert found["improves with size", "sparse", "cl", ""].verdict == "improves"
    assert found["improves with size", "sparse", "cl", ""].estimate.value < 0
    assert found["improves with size", "dense", "cl", ""].verdict == "worsens"
    assert found["sparse beats dense", "sparse - dense", "cl", "s1"].verdict == "sparse"


def test_the_slope_is_that_of_least_squares_with_a_constant_a_budget():
    results, per_query = tables(grid({("sparse", "cl"): 0.03}, noise=0.02))
    (one,) = series(results, per_query, ("nDCG@10",))
    estimate, noise = slope(one)
    x = np.log10(one.numbers["parameters"])
    expected = stats.linregress(x, 1 - one.losses_R)
    assert estimate.value == pytest.approx(expected.slope)
    assert (noise.freedom, noise.clusters) == (pytest.approx(2), "4 sizes")
    more = results.assign(
        variant="2e12", budget_flops=2e12, system=results["system"] + "-2e12",
    )  # fmt: skip
    values = per_query.assign(value=per_query["value"] + 0.2, system=per_query["system"] + "-2e12")
    (one,) = series(pd.concat([results, more]), pd.concat([per_query, values]), ("nDCG@10",))
    estimate, noise = slope(one)
    assert estimate.value == pytest.approx(
        expected.slope
    )  # the second budget is the first, shifted
    assert noise.freedom == pytest.approx(2)  # of 24 runs: a second budget is no new size


@pytest.mark.parametrize("sizes", [1, 2])
def test_too_few_sizes_are_untested_and_say_why(sizes):
    values = grid({("sparse", "cl"): 0.03})
    few = {key: own for key, own in values.items() if key[0] in list(SIZES)[:sizes]}
    (found,) = claims(*tables(few))
    assert found.verdict == "untested"
    assert f"there are {sizes} sizes" in found.reason
    with pytest.raises(ConfigError, match="margin = 0"):
        claims(*tables(values), margin=0)


@pytest.mark.parametrize("seeds", [1, 3])
def test_slopes_intervals_hold_the_truth_as_often_as_they_say(seeds):
    """Few runs: 4 sizes of one seed leave 2 degrees of freedom."""
    trials, hits = 300, 0
    values = grid({("sparse", "cl"): 0.0}, seeds=seeds, noise=0.0)
    (flat,) = series(*tables(values, queries=20, noise=0.0), ("nDCG@10",))
    decades = np.log10(flat.numbers["parameters"])
    for trial in range(trials):
        noise = 0.02 * np.random.default_rng(trial).normal(size=len(decades))
        losses = flat.losses_RQ - (0.02 * decades + noise)[:, None]
        own, _ = slope(dataclasses.replace(flat, losses_RQ=losses), draws=300, seed=trial)
        hits += own.low <= 0.02 <= own.high
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], trials, 0.95)
    assert low <= hits <= high


@pytest.mark.long
def test_a_slope_at_the_margin_is_called_flat_no_more_than_once_in_twenty():
    trials, flat = 100, 0
    for trial in range(trials):
        values = grid({("sparse", "kd"): 0.02}, noise=0.01, rng=trial)
        (found,) = claims(*tables(values, queries=20, noise=0.0), draws=300, seed=trial)
        flat += found.verdict == "flat"
    assert 0 < flat <= stats.binom.ppf(1 - 1e-4, trials, 0.05)
