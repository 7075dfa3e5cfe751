"""Forecasts and isoFLOP optima: exact on exact laws, against a numeric minimum, marked and refused."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from raylab.experiment.config import ConfigError
from raylab.scaling import fit, forecast, isoflop
from tests.scaling.planted import BUDGETS, SIZES, TRUTH, loss, planted


@pytest.mark.parametrize("law", ["chinchilla", "joint"])
@pytest.mark.parametrize("hold_out", ["size", "budget"])
def test_an_exact_law_is_forecast_exactly(law, hold_out):
    one = planted(law)
    found = forecast(one, law, hold_out, draws=5)
    assert len(found.predictions) == (5 if hold_out == "size" else 8)
    assert (found.n_runs, found.clusters) == {"size": (35, "7 sizes"), "budget": (32, "8 sizes")}[
        hold_out
    ]
    assert found.degrees_of_freedom == pytest.approx(int(found.clusters[0]) - 3, abs=0.1)
    for own in found.predictions:
        truth = loss(law, own.covariates["N"], own.covariates["D"])
        assert own.measured == pytest.approx(truth)
        assert own.predicted.value == pytest.approx(truth, rel=1e-6)
        assert abs(own.relative_error) < 1e-6
    largest = {own.size for own in found.predictions} == {"1e+07"}
    assert largest == (hold_out == "size")


def test_a_forecast_sees_nothing_of_what_is_held_out():
    one = planted("chinchilla", runs=0.01, queries=0.3)
    losses = one.losses_RQ.copy()
    losses[one.numbers["parameters"] == SIZES[-1]] *= 2
    other = type(one)(**{**vars(one), "losses_RQ": losses})
    first, second = (forecast(s, "chinchilla", draws=50) for s in (one, other))
    assert first.fit.draws_BP.tobytes() == second.fit.draws_BP.tobytes()
    for a, b in zip(first.predictions, second.predictions, strict=True):
        assert b.measured == pytest.approx(2 * a.measured)
        assert a.predicted.value == b.predicted.value
        assert not b.held
        assert b.relative_error == pytest.approx((1 + a.relative_error) / 2 - 1)


def test_what_makes_all_queries_hard_does_not_widen_a_forecast():
    """It is in what was fitted and in what was held out alike."""
    widths = {}
    for queries in (0.0, 1.0):
        one = planted("chinchilla", runs=0.01, count=60)
        hard = 1 + queries * np.linspace(-0.9, 0.9, 60)
        one = type(one)(**{**vars(one), "losses_RQ": one.losses_R[:, None] * hard})
        predicted = forecast(one, "chinchilla", draws=400).predictions[-1].predicted
        widths[queries] = (predicted.high - predicted.low) / predicted.value
    assert widths[1.0] == pytest.approx(widths[0.0], rel=0.15)
    own = fit(one, "chinchilla", draws=400).predict(SIZES[-1], 1e8)
    assert (own.high - own.low) / own.value > 2 * widths[1.0]


@pytest.mark.parametrize(
    ("options", "hold_out", "message"),
    [
        ({"sizes": SIZES[:3]}, "size", "needs 3 levels of N or more; there are 2"),
        ({"budgets": [1e12]}, "budget", "no two budgets"),
        ({}, "seed", "hold_out = 'seed'"),
    ],
)
def test_a_forecast_from_too_little_is_refused(options, hold_out, message):
    with pytest.raises(ConfigError, match=message):
        forecast(planted("chinchilla", **options), "chinchilla", hold_out)


@pytest.mark.parametrize("law", ["chinchilla", "joint"])
def test_the_optimum_is_that_of_a_numeric_search_along_the_budget(law):
    one = planted(law, k=7.0)
    optima = [o for o in isoflop(one, fit(one, law, draws=2)) if o.method == "surface"]
    assert [o.budget_flops for o in optima] == pytest.approx(BUDGETS)
    known = [own for own in optima if own.optimal_n]
    assert len(known) >= 3
    for own in known:
        c = own.budget_flops / 7
        best = minimize_scalar(
            lambda log_n, c=c: loss(law, np.exp(log_n), c / np.exp(log_n)),
            bounds=(np.log(10), np.log(1e10)), method="bounded", options={"xatol": 1e-9},
        )  # fmt: skip
        assert own.optimal_n.value == pytest.approx(np.exp(best.x), rel=1e-3)
        assert own.optimal_n.value * own.optimal_d.value == pytest.approx(c)
        assert own.loss.value == pytest.approx(best.fun, rel=1e-6)
        t = TRUTH[law]
        assert own.exponent.value == pytest.approx(t["b"] / (t["a"] + t["b"]), rel=1e-6)
        assert (own.k, own.k_range) == (pytest.approx(7), pytest.approx((7, 7)))


def test_the_place_of_an_optimum_is_that_of_its_interval():
    """With little noise the sizes hold it, with much they do not, though the point estimate lies within."""
    places = {}
    for noise in (0.0005, 0.2):
        one = planted("chinchilla", sizes=SIZES[:6], runs=noise, rng=1)
        optima = isoflop(one, fit(one, "chinchilla", draws=200))
        assert [o.method for o in optima] == ["surface"] * 5 + ["parabola"] * 5
        for own in optima[:5]:
            low, high = own.tried
            assert (low, high) == pytest.approx((SIZES[0], SIZES[5]))
            assert (own.budget_runs, own.n_runs, own.points, own.clusters) == (6, 30, 30, "6 sizes")
            assert own.product == pytest.approx(own.budget_flops / own.k)
            if own.place in ("below", "above"):
                assert own.optimal_n is own.optimal_d is own.loss is own.exponent is None
                continue
            found = own.optimal_n
            assert found.low <= found.value <= found.high
            assert (own.place == "interior") == (low <= found.low and found.high <= high)
            assert (own.place == "open") == (found.low < low or found.high > high)
            told = own.tried_n
            for end, shown in zip(vars(found).values(), vars(told).values(), strict=True):
                assert shown == end if low <= end <= high else np.isnan(shown)
            assert np.isnan(own.tried_d.low) == np.isnan(told.high)
        places[noise] = [own.place for own in optima[:5]]
    assert places[0.0005] == ["interior"] * 4 + ["above"]
    last = optima[4]
    assert last.place == "open"
    assert low < last.optimal_n.value < high < last.optimal_n.high


def test_a_parabola_is_numpys_and_has_no_interval():
    """It is biased even without noise: its exponent's interval held the truth in 28 of 100 studies."""
    one = planted("chinchilla", runs=0.002, rng=2)
    optima = [o for o in isoflop(one, fit(one, "chinchilla", draws=50)) if o.method == "parabola"]
    vertices = []
    for own in optima:
        mask = one.numbers["budget_flops"] == own.budget_flops
        log_n, losses = np.log(one.numbers["parameters"][mask]), one.losses_R[mask]
        curve = np.polynomial.Polynomial.fit(log_n, losses, 2)
        (vertex,) = curve.deriv().roots()
        if log_n.min() < vertex < log_n.max() and curve.deriv(2)(0) > 0:
            assert own.place == "vertex"
            assert own.optimal_n.value == pytest.approx(np.exp(vertex), rel=1e-6)
            assert own.loss.value == pytest.approx(curve(vertex))
            assert np.isnan([own.optimal_n.low, own.optimal_n.high, own.exponent.low]).all()
            vertices.append((np.log(own.budget_flops), vertex))
        else:
            assert own.place == ("below" if losses[0] < losses[-1] else "above")
            assert own.optimal_n is own.exponent is None
    slope = np.polyfit(*np.transpose(vertices), 1)[0]
    exponents = [o.exponent.value for o in optima if o.exponent]
    assert exponents == pytest.approx([slope] * len(vertices))


def test_an_optimum_needs_a_surface_and_a_budget():
    one = planted("size", budgets=[1e12])
    with pytest.raises(ConfigError, match="an optimum needs one of N and D"):
        isoflop(one, fit(one, "size", draws=2))
    one = planted("chinchilla")
    numbers = one.numbers | {"budget_flops": np.zeros(40)}
    epochs = type(one)(**{**vars(one), "numbers": numbers})
    with pytest.raises(ConfigError, match="no run has FLOPs spent and a budget"):
        isoflop(epochs, fit(epochs, "chinchilla", draws=2))
