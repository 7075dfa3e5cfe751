"""Intervals hold the planted truth as often as they say: 90 to 99 % of 200 studies, whatever runs share.

Three kinds of noise: of each run alone; of a run with all its branches (a size and a seed, whatever the
budget); of whole sizes. The smoke has fewer studies, so that its bound is what a coverage of 93 %
falls below once in 10,000; where runs count as independent it is 60 to 80 %.
"""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from raylab.scaling import fit, forecast, isoflop
from raylab.scaling.bootstrap import interval
from raylab.scaling.claims import slope
from raylab.scaling.clusters import draw_noise
from tests.scaling.planted import BUDGETS, SIZES, TRUTH, loss, noisy, planted

STUDIES = {
    "size": ({"budgets": [1e12], "seeds": 3, "queries": 0.3, "count": 200}, 0.03),
    "data": ({"sizes": [1e5], "budgets": np.geomspace(2e9, 2e11, 6), "seeds": 3, "queries": 0.4,
              "count": 200}, 0.02),
    "joint": ({"seeds": 1, "queries": 0.4, "count": 200}, 0.01),
    "chinchilla": ({"seeds": 1, "queries": 0.4, "count": 200}, 0.01),
    "retrieval_flops": ({"budgets": [1e12], "seeds": 3, "queries": 0.3, "count": 200}, 0.02),
    "index_bytes": ({"budgets": [1e12], "seeds": 3, "queries": 0.3, "count": 200}, 0.02),
}  # fmt: skip
KINDS = {
    "independent": lambda sd: {"runs": sd},
    "branches": lambda sd: {"runs": sd / 3, "branches": sd},
    "sizes": lambda sd: {"runs": sd / 3, "whole": sd},
}
FAR_N, FAR_D = 1e8, 1e9
SLOPE = 0.02
SLOPES = {
    "isoFLOP": {"sizes": SIZES[:5], "budgets": BUDGETS[:4]},
    "seeds": {"sizes": SIZES[::2], "budgets": [1e12], "seeds": 3},
    "both": {"sizes": SIZES[:5], "budgets": BUDGETS[:3], "seeds": 2},
}
FEW = {"sizes": SIZES[1:7], "budgets": BUDGETS[::2], "seeds": 2}


def held(law, kind, trials, **options):
    """In how many studies the interval of each parameter, of a prediction outside, and of the optimum and
    its exponent, holds the truth."""
    own_options, sd = STUDIES[law]
    hits = dict.fromkeys(TRUTH[law], 0)
    covariates = {"size": "N", "data": "D", "joint": "ND", "chinchilla": "ND"}.get(law, [law])
    numbers = {"N": FAR_N, "D": FAR_D, "retrieval_flops": FAR_N**0.5 / 10, "index_bytes": FAR_N}
    for trial in range(trials):
        rng = [list(TRUTH).index(law), trial]  # the laws' studies share no noise
        one = planted(law, rng=rng, **own_options | KINDS[kind](sd) | options)
        found = fit(one, law, draws=200, seed=trial)
        truths = {name: (found.parameters[name], truth) for name, truth in TRUTH[law].items()}
        far = found.predict(*(numbers[name] for name in covariates))
        truths["predicted"] = far, loss(law, FAR_N, FAR_D)
        if covariates == "ND":
            middle = [o for o in isoflop(one, found) if o.method == "surface" and o.optimal_n][1]
            t = TRUTH[law]
            truths["optimum"] = middle.optimal_n, best_n(law, middle.product)
            truths["exponent"] = middle.exponent, t["b"] / (t["a"] + t["b"])
        for name, (own, truth) in truths.items():
            hits[name] = hits.get(name, 0) + (own.low <= truth <= own.high)
    return hits


def best_n(law, product):
    """Where the planted law is least along N D = product, by a numeric search."""
    found = minimize_scalar(
        lambda log_n: loss(law, np.exp(log_n), product / np.exp(log_n)),
        bounds=(np.log(1e2), np.log(1e10)), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    return float(np.exp(found.x))


def forecasts_held(hold_out, kind, trials):
    """In how many studies the last design held out lies in its prediction interval."""
    options, sd = STUDIES["chinchilla"]
    total = 0
    for trial in range(trials):
        design = options | KINDS[kind](sd) | {"budgets": BUDGETS[::2]}
        one = planted("chinchilla", rng=trial, **design)
        found = forecast(one, "chinchilla", hold_out, draws=200, seed=trial)
        total += found.predictions[-1].held
    return total


def slopes_held(design, kind, trials):
    """In how many studies the interval of a slope, over budgets of other means, holds the truth."""
    total = 0
    for trial in range(trials):
        options = SLOPES[design] | KINDS[kind](0.02)
        one = planted("chinchilla", rng=trial, queries=0.05, **options)
        decades = np.log10(one.numbers["parameters"])
        level = SLOPE * decades + 0.1 * np.log10(one.numbers["budget_flops"])
        moved = dataclasses.replace(one, losses_RQ=noisy(one, "chinchilla") - 1 + level[:, None])
        own, _ = slope(moved, draws=400, seed=trial)
        total += own.low <= SLOPE <= own.high
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_hold_the_truth_in_a_few_studies(kind):
    assert slopes_held("isoFLOP", kind, 100) >= stats.binom.ppf(1e-4, 100, 0.93)


def test_intervals_hold_the_truth_in_a_few_studies():
    for name, hits in held("size", "sizes", 50).items():
        assert hits >= stats.binom.ppf(1e-4, 50, 0.93), (name, hits)


def test_forecasts_hold_what_was_measured_in_a_few_studies():
    assert forecasts_held("size", "sizes", 30) >= stats.binom.ppf(1e-4, 30, 0.93)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("law", TRUTH)
def test_intervals_hold_the_truth_in_90_to_99_percent_of_200_studies(law, kind):
    hits = held(law, kind, 200)
    print(law, kind, {name: f"{own / 2:.1f} %" for name, own in hits.items()})
    assert all(180 <= own <= 198 for own in hits.values()), hits


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_they_do_with_few_runs_too(kind):
    hits = held("chinchilla", kind, 200, **FEW)
    print("few", kind, {name: f"{own / 2:.1f} %" for name, own in hits.items()})
    assert all(180 <= own <= 198 for own in hits.values()), hits


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hold_out", ["size", "budget"])
def test_forecasts_hold_what_was_measured_in_90_to_99_percent_of_200_studies(hold_out, kind):
    hits = forecasts_held(hold_out, kind, 200)
    print("forecast", hold_out, kind, f"{hits / 2:.1f} %")
    assert 180 <= hits <= 198


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("design", SLOPES)
def test_slopes_hold_the_truth_in_90_to_99_percent_of_200_studies(design, kind):
    hits = slopes_held(design, kind, 200)
    print("slope", design, kind, f"{hits / 2:.1f} %")
    assert 180 <= hits <= 198


@pytest.mark.parametrize(("sizes", "branches"), [(5, 1), (5, 4), (12, 3)])
def test_for_a_line_over_sizes_the_interval_is_students(sizes, branches):
    """Of the means of sizes, with sizes - 2 degrees of freedom; widths on average over residuals."""
    rng = np.random.default_rng(sizes)
    labels = np.repeat(np.arange(sizes), branches)
    x = np.linspace(-1, 1, sizes)
    design = np.column_stack([np.ones(len(labels)), x[labels]])
    hat = np.linalg.pinv(design)
    ratios = []
    for trial in range(60):
        y = rng.normal(size=sizes)[labels] + 0.3 * rng.normal(size=len(labels))
        residuals = y - design @ (hat @ y)
        noise = draw_noise(
            np.zeros((len(y), 2)), residuals, design, [("sizes", labels.tolist())], 2_000, trial
        )
        own = interval(0.0, noise.runs_BR @ hat[1])
        means = y.reshape(sizes, branches).mean(1)
        expected = stats.linregress(x, means).stderr * stats.t.ppf(0.975, sizes - 2)
        ratios.append((own.high - own.low) / (2 * expected))
        assert (noise.freedom, noise.clusters) == (pytest.approx(sizes - 2), f"{sizes} sizes")
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)


def test_variances_are_those_of_a_balanced_analysis_of_variance():
    """Sizes, runs within them and branches within those: the mean squares of the textbook, on average."""
    rng = np.random.default_rng(0)
    sizes, runs, branches = 6, 3, 4
    of_size, of_run, _ = np.indices((sizes, runs, branches)).reshape(3, -1)
    y = (
        2.0 * rng.normal(size=sizes)[of_size]
        + 1.0 * rng.normal(size=(sizes, runs))[of_size, of_run]
        + 0.5 * rng.normal(size=len(of_size))
    )
    design = np.ones((len(y), 1))
    clusters = [
        ("sizes", of_size.tolist()),
        ("runs", list(zip(of_size.tolist(), of_run.tolist(), strict=True))),
    ]
    residuals = y - y.mean()
    noise = draw_noise(np.zeros((len(y), 1)), residuals, design, clusters, 10, 0)
    cube = y.reshape(sizes, runs, branches)
    by_run, by_size = cube.mean(2), cube.mean((1, 2))
    squares = (
        runs * branches * ((by_size - cube.mean()) ** 2).sum(),
        branches * ((by_run - by_size[:, None]) ** 2).sum(),
        ((cube - by_run[..., None]) ** 2).sum(),
    )
    freedoms = (sizes - 1, sizes * (runs - 1), sizes * runs * (branches - 1))
    assert [level.freedom for level in noise.levels] == pytest.approx(freedoms)
    # t't is the sum of squares times the runs of a cluster.
    totals = [level.total / n for level, n in zip(noise.levels, (12, 4, 1), strict=True)]
    assert totals == pytest.approx(squares)
    shares = [tuple(s / n for s in level.shares) for level, n in
              zip(noise.levels, (12, 4, 1), strict=True)]  # fmt: skip
    for own, freedom, factors in zip(shares, freedoms, ((12, 4, 1), (4, 1), (1,)), strict=True):
        assert own == pytest.approx([freedom * factor for factor in factors])


def test_what_queries_do_to_a_run_alone_is_counted_once():
    """Noise of queries alone, each run's its own: the run level has next to nothing left to add."""
    rng = np.random.default_rng(0)
    runs, queries = 12, 400
    design = np.column_stack([np.ones(runs), np.linspace(-1, 1, runs)])
    hat = np.linalg.pinv(design)
    total = []
    for trial in range(60):
        values = rng.normal(size=(runs, queries))
        mean = values.mean(1)
        residuals = mean - design @ (hat @ mean)
        noise = draw_noise(values - mean[:, None], residuals, design, [], 300, trial)
        total.append(((noise.queries_BR + noise.runs_BR) @ hat[1]).var())
    alone = (hat[1] @ hat[1]) / queries
    # Variance is not negative, so what is taken away is on average a little less than what is there.
    assert alone * 0.9 < np.mean(total) < alone * 1.6
