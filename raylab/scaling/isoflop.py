"""The compute-optimal size at each budget: from the fitted surface, and from parabolas.

Legend: R runs, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raylab.experiment.config import ConfigError
from raylab.scaling.bootstrap import Interval, interval
from raylab.scaling.fit import Fit
from raylab.scaling.laws import laws_of
from raylab.scaling.points import Facts, Series

_WIDEST = 600.0  # of log N
_COVARIATES = ("N", "D")
_FEWEST_SIZES = 3


Place = Literal["interior", "open", "below", "above", "vertex"]


@dataclass(frozen=True, kw_only=True)
class Optimum(Facts):
    """The compute-optimal N and D at a budget C; the facts are those of the fit.

    `method`: `surface`, the minimum of the fitted law along C = k N D, or `parabola`, the minimum of a
    quadratic in log N through the runs of the budget: an illustration that is biased even without noise
    (2603.22339), so that it has no interval (nan).

    `place`, of a surface, is judged by the interval of N: `interior` within the smallest and the largest size
    `tried` at the budget, `below` or `above` them all, `open` where it reaches beyond them. Of a parabola
    it is `vertex`, or the better end, `below` or `above`. Where an optimum is `below` or `above`, nothing else
    is said of it: its `optimal_n`, `optimal_d`, `loss` and `exponent` are None.

    `exponent`: of N in C, b / (a + b) of the surface, the slope over vertices of parabolas (None with
    fewer than 2). `loss`: at the optimum. `k`: median of C / (N D) over the runs, with their `k_range`;
    `product`: N D = C / k at this budget.
    """

    law: str
    n: str
    d: str
    budget_flops: float
    method: Literal["surface", "parabola"]
    optimal_n: Interval | None
    optimal_d: Interval | None
    loss: Interval | None
    place: Place
    exponent: Interval | None
    k: float
    k_range: tuple[float, float]
    product: float
    tried: tuple[float, float]
    budget_runs: int
    degrees_of_freedom: float
    clusters: str
    confidence: float

    @property
    def tried_n(self) -> Interval | None:
        """The optimal N; nan where the estimate or an end of its interval lies beyond the sizes tried."""
        return _within(self.optimal_n, *self.tried)

    @property
    def tried_d(self) -> Interval | None:
        """The optimal D, nan where its N lies beyond the sizes tried."""
        smallest, largest = self.tried
        return _within(self.optimal_d, self.product / largest, self.product / smallest)


def _within(one: Interval | None, smallest: float, largest: float) -> Interval | None:
    if one is None:
        return None
    slack = 1e-9
    ends = (one.value, one.low, one.high)
    return Interval(
        *(x if smallest * (1 - slack) <= x <= largest * (1 + slack) else math.nan for x in ends)
    )


def isoflop(series: Series, fit: Fit) -> list[Optimum]:
    """Optima at every budget of the runs that were fitted, of the surface first, then of the parabolas.

    `Law.optimum` is that of a surface. C is what the runs of a budget spent, their median. Budgets in
    epochs have no optimum.

    Raises:
        ConfigError: a fit of another series or of a law without both N and D; no run with C and a budget.
    """
    if fit.definition.covariates != _COVARIATES:
        known = " or ".join(law.name for law in laws_of(*_COVARIATES))
        raise ConfigError(f"law = {fit.law!r}: an optimum needs one of N and D, such as {known}")
    runs = fit.series
    if (runs.head, runs.objective, runs.collection, runs.split, runs.measure) != (
        series.head, series.objective, series.collection, series.split, series.measure,
    ):  # fmt: skip
        raise ConfigError(f"the fit is of {runs.name}, not of {series.name}")
    n_R, d_R = (runs.covariate(name, fit.n, fit.d) for name in "ND")
    spent_R = runs.covariate("C")
    ratios_R = spent_R / (n_R * d_R)
    budgets_R = np.array(runs.budgets)
    usable_R = np.isfinite(ratios_R) & (ratios_R > 0) & (budgets_R > 0)
    if not usable_R.any():
        raise ConfigError(f"{runs.name}: no run has FLOPs spent and a budget in FLOPs")
    ratios_R = ratios_R[usable_R]
    k = float(np.median(ratios_R))
    common = {
        **{name: getattr(fit, name) for name in Facts.__dataclass_fields__},
        "law": fit.law,
        "n": fit.n,
        "d": fit.d,
        "k": k,
        "k_range": (float(ratios_R.min()), float(ratios_R.max())),
        "degrees_of_freedom": fit.degrees_of_freedom,
        "clusters": fit.clusters,
        "confidence": fit.confidence,
    }
    surface, parabolas = [], []
    for budget in sorted(set(budgets_R[usable_R].tolist())):
        chosen = np.flatnonzero(usable_R & (budgets_R == budget))
        facts = common | {
            "budget_flops": budget,
            "tried": (float(n_R[chosen].min()), float(n_R[chosen].max())),
            "budget_runs": len(chosen),
            "product": float(np.median(spent_R[chosen])) / k,
        }
        surface.append(_surface(fit, facts))
        if len(set(n_R[chosen])) >= _FEWEST_SIZES:
            parabolas.append((facts, *_parabola(np.log(n_R[chosen]), runs.losses_R[chosen])))
    return surface + _with_exponent(parabolas)


def _surface(fit: Fit, facts: dict[str, Any]) -> Optimum:
    own_P = np.array([one.value for one in fit.parameters.values()])
    log_c = float(np.log(facts["product"]))
    optimum, exponent = fit.definition.optimum(own_P, log_c)
    log_n_B, exponent_B = fit.definition.optimum(fit.draws_BP, log_c)
    log_n, log_n_B = float(optimum), np.clip(log_n_B, -_WIDEST, _WIDEST)
    confidence, (smallest, largest) = fit.confidence, facts["tried"]
    optimal_n = interval(float(np.exp(log_n)), np.exp(log_n_B), confidence)
    if optimal_n.high < smallest or optimal_n.low > largest:
        return _outside(facts, "surface", "below" if optimal_n.high < smallest else "above")
    held = smallest <= optimal_n.low and optimal_n.high <= largest
    return Optimum(
        **facts,
        method="surface",
        optimal_n=optimal_n,
        optimal_d=interval(float(np.exp(log_c - log_n)), np.exp(log_c - log_n_B), confidence),
        loss=fit.predict_at_draws(
            np.exp([log_n, log_c - log_n]), np.exp([log_n_B, log_c - log_n_B])
        ),
        place="interior" if held else "open",
        exponent=interval(float(exponent), exponent_B, confidence),
    )


def _outside(
    facts: dict[str, Any],
    method: Literal["surface", "parabola"],
    place: Literal["below", "above"],
) -> Optimum:
    nothing = dict.fromkeys(("optimal_n", "optimal_d", "loss", "exponent"))
    return Optimum(**facts, **nothing, method=method, place=place)


def _parabola(x_R: np.ndarray, losses_R: np.ndarray) -> tuple[Place, float, float]:
    """Where the least value within the sizes tried is, its log N and the value."""
    centre = x_R.mean()
    square, linear, constant = np.polyfit(x_R - centre, losses_R, 2)
    low, high = x_R.min() - centre, x_R.max() - centre
    vertex = -linear / (2 * square) if square > 0 else np.inf
    if low < vertex < high:
        return "vertex", vertex + centre, constant - linear**2 / (4 * square)
    at_low, at_high = (square * end**2 + linear * end for end in (low, high))
    return "below" if at_low <= at_high else "above", np.nan, np.nan


def _with_exponent(parabolas: Sequence[tuple]) -> list[Optimum]:
    vertices = [
        (facts["product"], log_n) for facts, place, log_n, _ in parabolas if place == "vertex"
    ]
    exponent = None
    if len(vertices) >= 2:
        products, log_n_C = np.transpose(vertices)
        exponent = _alone(np.polyfit(np.log(products), log_n_C, 1)[0])
    return [
        Optimum(
            **facts,
            method="parabola",
            optimal_n=_alone(np.exp(log_n)),
            optimal_d=_alone(facts["product"] / np.exp(log_n)),
            loss=_alone(loss),
            place=place,
            exponent=exponent,
        )
        if place == "vertex"
        else _outside(facts, "parabola", place)
        for facts, place, log_n, loss in parabolas
    ]


def _alone(value: float) -> Interval:
    """An estimate without an interval."""
    return Interval(float(value), math.nan, math.nan)
