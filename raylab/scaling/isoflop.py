"""The compute-optimal size at each budget: from the fitted surface, and from parabolas.

Legend: R runs, B draws.
"""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class Optimum(Facts):
    """The compute-optimal N and D at a budget C, with intervals; the facts are those of the fit.

    `method`: `surface`, the minimum of the fitted law along C = k N D, or `parabola`, the minimum of a
    quadratic in log N through the runs of the budget, an illustration that is biased even without noise
    (2603.22339). `place`: `interior`, or `edge` where N is at or beyond the smallest or largest of the
    sizes tried at the budget (a parabola without a minimum is at the better end). `exponent`: of N in C,
    b / (a + b) of the surface, the slope over interior budgets of parabolas (None with fewer than 2).
    `loss`: at the optimum. `k`: median of C / (N D) over the runs, with their `k_range`.
    """

    law: str
    n: str
    d: str
    budget_flops: float
    method: Literal["surface", "parabola"]
    optimal_n: Interval
    optimal_d: Interval
    loss: Interval
    place: Literal["interior", "edge"]
    exponent: Interval | None
    k: float
    k_range: tuple[float, float]
    tried: tuple[float, float]
    budget_runs: int
    degrees_of_freedom: int
    confidence: float


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
        "confidence": fit.confidence,
    }
    surface, parabolas = [], []
    for budget in sorted(set(budgets_R[usable_R].tolist())):
        chosen = np.flatnonzero(usable_R & (budgets_R == budget))
        spent = float(np.median(spent_R[chosen]))
        facts = common | {
            "budget_flops": budget,
            "tried": (float(n_R[chosen].min()), float(n_R[chosen].max())),
            "budget_runs": len(chosen),
        }
        surface.append(_surface(fit, spent, k, facts))
        if len(set(n_R[chosen])) >= _FEWEST_SIZES:
            parabolas.append((spent, facts, *_parabola(fit, chosen, n_R[chosen])))
    return surface + _with_exponent(parabolas, k, fit.confidence)


def _surface(fit: Fit, spent: float, k: float, facts: dict[str, Any]) -> Optimum:
    own_P = np.array([one.value for one in fit.parameters.values()])
    log_c = float(np.log(spent / k))
    optimum, exponent = fit.definition.optimum(own_P, log_c)
    log_n_B, exponent_B = fit.definition.optimum(fit.draws_BP, log_c)
    log_n, log_n_B = float(optimum), np.clip(log_n_B, -_WIDEST, _WIDEST)
    low, high = facts["tried"]
    return Optimum(
        **facts,
        method="surface",
        **_intervals(log_n, log_n_B, log_c, fit.confidence),
        loss=fit.predict_at_draws(
            np.exp([log_n, log_c - log_n]), np.exp([log_n_B, log_c - log_n_B])
        ),
        place="interior" if low < np.exp(log_n) < high else "edge",
        exponent=interval(float(exponent), exponent_B, fit.confidence),
    )


def _intervals(
    log_n: float, log_n_B: np.ndarray, log_c: float, confidence: float
) -> dict[str, Any]:
    return {
        "optimal_n": interval(float(np.exp(log_n)), np.exp(log_n_B), confidence),
        "optimal_d": interval(float(np.exp(log_c - log_n)), np.exp(log_c - log_n_B), confidence),
    }


def _parabola(
    fit: Fit, chosen: np.ndarray, n_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log N of the least value within the sizes tried, of the runs and of the draws, [1 + B]; then the
    values there, [1 + B], and whether they are inside, bool [1 + B]."""
    x_R = np.log(n_R)
    centre = x_R.mean()
    design = np.vander(x_R - centre, 3)
    losses = fit.series.losses_R[chosen]
    every = np.vstack([losses, losses * np.exp(fit.noise_BR[:, chosen])])
    square, linear, constant = np.linalg.lstsq(design, every.T, rcond=None)[0]
    low, high = x_R.min() - centre, x_R.max() - centre
    ends = np.array([low, high])
    at_ends = square * ends[:, None] ** 2 + linear * ends[:, None] + constant
    better = ends[at_ends.argmin(0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -linear / (2 * square)
    inside = (square > 0) & (vertex > low) & (vertex < high)
    best = np.where(inside, vertex, better)
    return best + centre, square * best**2 + linear * best + constant, inside


def _with_exponent(parabolas: list[tuple], k: float, confidence: float) -> list[Optimum]:
    interior = [(spent, log_n) for spent, _, log_n, _, inside in parabolas if inside[0]]
    exponent = None
    if len(interior) >= 2:
        log_c = np.log([spent for spent, _ in interior])
        log_c -= log_c.mean()
        slopes = log_c @ np.stack([log_n for _, log_n in interior]) / (log_c @ log_c)
        exponent = interval(float(slopes[0]), slopes[1:], confidence)
    return [
        Optimum(
            **facts,
            method="parabola",
            **_intervals(float(log_n[0]), log_n[1:], float(np.log(spent / k)), confidence),
            loss=interval(float(loss[0]), loss[1:], confidence),
            place="interior" if inside[0] else "edge",
            exponent=exponent,
        )
        for spent, facts, log_n, loss, inside in parabolas
    ]
