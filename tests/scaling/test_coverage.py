"""Intervals hold the planted truth as often as they say: 90 to 99 % of 200 studies, for every law.

The smoke has fewer studies, so that its bound is what a coverage of 93 % falls below once in 10,000.
"""

import numpy as np
import pytest
from scipy import stats

from raylab.scaling import fit, forecast
from raylab.scaling.bootstrap import draw_noise, interval
from tests.scaling.planted import BUDGETS, SIZES, TRUTH, loss, planted

STUDIES = {
    "size": {"budgets": [1e12], "seeds": 3, "runs": 0.03, "queries": 0.3, "count": 200},
    "data": {"sizes": [1e5], "budgets": np.geomspace(2e9, 2e11, 6), "seeds": 3, "runs": 0.02,
             "queries": 0.4, "count": 200},
    "joint": {"seeds": 1, "runs": 0.01, "queries": 0.4, "count": 200},
    "chinchilla": {"seeds": 1, "runs": 0.01, "queries": 0.4, "count": 200},
    "retrieval_flops": {"budgets": [1e12], "seeds": 3, "runs": 0.02, "queries": 0.3, "count": 200},
    "index_bytes": {"budgets": [1e12], "seeds": 3, "runs": 0.02, "queries": 0.3, "count": 200},
}  # fmt: skip
FAR_N, FAR_D = 1e8, 1e9


def held(law, options, trials):
    """In how many studies the interval of each parameter, and of a prediction outside, holds the truth."""
    hits = dict.fromkeys([*TRUTH[law], "predicted"], 0)
    for trial in range(trials):
        rng = [list(TRUTH).index(law), trial]  # the laws' studies share no noise
        found = fit(planted(law, rng=rng, **options), law, draws=200, seed=trial)
        for name, truth in TRUTH[law].items():
            own = found.parameters[name]
            hits[name] += own.low <= truth <= own.high
        numbers = {"N": FAR_N, "D": FAR_D, "retrieval_flops": FAR_N**0.5 / 10, "index_bytes": FAR_N}
        covariates = {"size": "N", "data": "D", "joint": "ND", "chinchilla": "ND"}.get(law, [law])
        own = found.predict(*(numbers[name] for name in covariates))
        hits["predicted"] += own.low <= loss(law, FAR_N, FAR_D) <= own.high
    return hits


@pytest.mark.parametrize("law", TRUTH)
def test_intervals_hold_the_truth_in_a_few_studies(law):
    trials = 30
    fewest = stats.binom.ppf(1e-4, trials, 0.93)
    for name, hits in held(law, STUDIES[law], trials).items():
        assert hits >= fewest, (name, hits)


@pytest.mark.slow
@pytest.mark.parametrize("law", TRUTH)
def test_intervals_hold_the_truth_in_90_to_99_percent_of_200_studies(law):
    hits = held(law, STUDIES[law], 200)
    print(law, {name: f"{own / 2:.1f} %" for name, own in hits.items()})
    assert all(180 <= own <= 198 for own in hits.values()), hits


@pytest.mark.slow
@pytest.mark.parametrize("law", ["joint", "chinchilla"])
def test_they_do_with_few_runs_too(law):
    """12 designs of a law of 5 parameters, 3 seeds each."""
    few = {"sizes": SIZES[::2], "budgets": BUDGETS[::2], "seeds": 3, "runs": 0.03}
    hits = held(law, STUDIES[law] | few, 200)
    print(law, {name: f"{own / 2:.1f} %" for name, own in hits.items()})
    assert all(180 <= own <= 198 for own in hits.values()), hits


def forecasts_held(trials):
    total = 0
    for trial in range(trials):
        one = planted("chinchilla", rng=trial, **STUDIES["chinchilla"] | {"budgets": BUDGETS[::2]})
        found = forecast(one, "chinchilla", "size", draws=200, seed=trial)
        total += found.predictions[-1].held
    return total


def test_forecasts_hold_what_was_measured_in_a_few_studies():
    assert forecasts_held(30) >= stats.binom.ppf(1e-4, 30, 0.93)


@pytest.mark.slow
def test_forecasts_hold_what_was_measured_in_90_to_99_percent_of_200_studies():
    assert 180 <= forecasts_held(200) <= 198


@pytest.mark.parametrize("runs", [5, 20])
def test_for_a_line_and_normal_noise_the_interval_is_students(runs):
    """Widths on average over residuals; both levels of noise in turn."""
    rng = np.random.default_rng(runs)
    design = np.column_stack([np.ones(runs), np.linspace(-1, 1, runs)])
    hat = np.linalg.pinv(design)
    widths, expected = [], []
    for trial in range(40):
        y = rng.normal(size=runs)
        residuals = y - design @ (hat @ y)
        noise = draw_noise(np.zeros((runs, 2)), residuals, design, runs - 2, 2_000, trial)
        own = interval(0.0, noise.runs_BR @ hat[1])
        widths.append(own.high - own.low)
        error = np.sqrt(residuals @ residuals / (runs - 2) * (hat[1] @ hat[1]))
        expected.append(2 * stats.t.ppf(0.975, runs - 2) * error)
    assert np.mean(np.array(widths) / expected) == pytest.approx(1, abs=0.03)


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
        noise = draw_noise(values - mean[:, None], residuals, design, runs - 2, 300, trial)
        total.append(((noise.queries_BR + noise.runs_BR) @ hat[1]).var())
    alone = (hat[1] @ hat[1]) / queries
    # Variance is not negative, so what is taken away is on average a little less than what is there.
    assert alone * 0.9 < np.mean(total) < alone * 1.6
