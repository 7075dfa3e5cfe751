"""Forecast: fit a law without the largest size or budget, predict what was held out, compare.

Legend: R runs, B draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylab.experiment.config import ConfigError
from raylab.scaling.bootstrap import Interval, interval, query_shifts, within_strata
from raylab.scaling.clusters import BRANCHES, LARGEST_LOG, RUNS, SIZES
from raylab.scaling.fit import Fit, fit, log_shift
from raylab.scaling.laws import HoldOut, Law, find_law
from raylab.scaling.points import Facts, Series


@dataclass(frozen=True)
class Predicted:
    """One design that was held out: its mean loss over seeds, and what the law said.

    `covariates`: of the law, geometric means over the seeds. `predicted`: the loss with its
    prediction interval, which is for the mean of as many runs on the same queries: it holds the noise of
    the fit and of the runs held out. `relative_error`: (predicted - measured) / measured.
    """

    size: str
    variant: str
    budget_flops: float
    covariates: dict[str, float]
    seeds: tuple[int, ...]
    measured: float
    predicted: Interval
    relative_error: float
    held: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast(Facts):
    """What a fit without the largest says of it; the facts are those of the runs fitted."""

    law: str
    n: str
    d: str
    hold_out: HoldOut
    predictions: tuple[Predicted, ...]
    degrees_of_freedom: float
    clusters: str
    confidence: float
    fit: Fit


def forecast(
    series: Series,
    law: str | Law,
    hold_out: HoldOut = "size",
    n: str = "parameters",
    d: str = "tokens",
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Forecast:
    """Fit without the runs of most parameters, or of the largest budget, and predict each of their designs.

    The queries are those of the fit: what makes them easy or hard is in both, and cancels.

    Raises:
        ConfigError: as `fit` of what is left; no runs; or no two budgets to hold one of out.
    """
    if hold_out not in ("size", "budget"):
        raise ConfigError(f"hold_out = {hold_out!r}: it must be 'size' or 'budget'")
    rule = find_law(law)
    levels_R = np.nan_to_num(
        series.numbers["parameters" if hold_out == "size" else "budget_flops"], nan=0.0
    )
    if len(np.unique(levels_R)) < 2:
        raise ConfigError(f"{series.name}: there are no two {hold_out}s, so none can be held out")
    out_R = levels_R == levels_R.max()
    fitted = fit(series.keep(~out_R), rule, n, d, draws, seed, confidence)
    held_out = series.keep(out_R)
    usable = np.all([held_out.covariate(c, n, d) > 0 for c in rule.covariates], axis=0)
    held_out = held_out.keep(usable, "held out, without the covariates of the law")
    rng = np.random.default_rng([seed, 1])
    deviations = held_out.losses_RQ / held_out.losses_RQ.mean(1, keepdims=True) - 1
    deviations = within_strata(deviations, held_out.strata)
    # The same seed as the fit's, and the first thing it draws: the same queries.
    shift_BR = query_shifts(deviations, draws, np.random.default_rng(seed), held_out.strata)
    predictions = tuple(
        _predict(fitted, held_out, np.flatnonzero(own_R), shift_BR, n, d, rng)
        for own_R in (
            np.array([design == held_design for held_design in held_out.designs])
            for design in dict.fromkeys(held_out.designs)
        )
    )
    if not predictions:
        raise ConfigError(f"{series.name}: no run held out has {', '.join(rule.covariates)}")
    facts: dict[str, Any] = fitted.series.facts(n, d) | {"points": fitted.points}
    return Forecast(
        **facts,
        law=rule.name,
        n=n,
        d=d,
        hold_out=hold_out,
        predictions=predictions,
        degrees_of_freedom=fitted.degrees_of_freedom,
        clusters=fitted.clusters,
        confidence=confidence,
        fit=fitted,
    )


def _predict(
    fitted: Fit,
    held_out: Series,
    chosen: np.ndarray,
    shift_BR: np.ndarray,
    n: str,
    d: str,
    rng: np.random.Generator,
) -> Predicted:
    covariates = {
        name: float(np.exp(np.log(held_out.covariate(name, n, d)[chosen]).mean()))
        for name in fitted.definition.covariates
    }
    value, draws = fitted.predicted_draws(*covariates.values())
    measured = float(held_out.losses_R[chosen].mean())
    shift_B = log_shift(shift_BR[:, chosen].mean(1))
    noise_B = _new_noise(fitted, [held_out.clusters[1][1][r] for r in chosen], rng)
    factor_B = np.exp(np.minimum(noise_B - shift_B, 600.0))
    predicted = interval(float(value), draws * factor_B, fitted.confidence)
    size, variant, budget = held_out.designs[chosen[0]]
    return Predicted(
        size=size,
        variant=variant,
        budget_flops=budget,
        covariates=covariates,
        seeds=tuple(held_out.seeds[r] for r in chosen),
        measured=measured,
        predicted=predicted,
        relative_error=float(value) / measured - 1,
        held=predicted.low <= measured <= predicted.high,
    )


def _new_noise(fitted: Fit, runs: Sequence[Hashable], rng: np.random.Generator) -> np.ndarray:
    """Noise of the mean over new branches of runs (size, seed) of one size, float64 [B].

    Of runs that were fitted it has the part that their branches share, as each draw has it.
    """
    noise = fitted.noise
    of_size_B, of_run_B, alone_B = map(noise.variance_B, (SIZES, RUNS, BRANCHES))
    shared_B = of_size_B + of_run_B / len(runs)
    normal = rng.normal(size=(2, len(shared_B)))
    known = np.array([run in runs for run in fitted.series.clusters[1][1]])
    seen_B = np.zeros(len(shared_B))
    share_B = np.zeros(len(shared_B))
    if known.any():
        seen_B = noise.runs_BR[:, known].mean(1)
        total_B = shared_B + alone_B / known.sum()
        share_B = np.divide(shared_B, total_B, where=total_B > 0, out=share_B)
    part_B = share_B * seen_B + np.sqrt(shared_B * (1 - share_B)) * normal[0]
    return np.clip(part_B + np.sqrt(alone_B / len(runs)) * normal[1], -LARGEST_LOG, LARGEST_LOG)
