"""Fit a law to a series of runs, with intervals on every parameter and every prediction.

Legend: R runs, K covariates, P parameters, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raylab.experiment.config import ConfigError
from raylab.scaling.bootstrap import Interval, interval, within_strata
from raylab.scaling.clusters import SIZES, Noise, draw_noise
from raylab.scaling.laws import Law, find_law
from raylab.scaling.points import Facts, Series
from raylab.scaling.solver import SQUARES, refine, solve, solve_draws

# Levels of a covariate nearer than this are one: seeds of a size see a few tokens more or less.
_SAME = 0.01
_FEWEST_LEVELS = 3
_LEAST_SHIFT = -0.9
_LEAST_FREE = 0.5  # of one degree of freedom


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit(Facts):
    """A law fitted to a series.

    `parameters` by name, in the law's order, and their draws, float64 [B, P]. `points` are distinct
    levels of the law's covariates. `degrees_of_freedom`: of the coarsest `clusters` that tell of noise, sizes
    where there are several (`raylab.scaling.clusters`). `r_squared`: of the losses. `residual`: standard
    deviation of the log residuals, of runs less parameters. `at_bounds`: parameters that the data do not
    hold within bounds (a floor of 0, an exponent of 0.01 or 10). `series`: the runs fitted. `definition`:
    the law itself. `noise`: what each draw added to each run's log loss, but for its queries. `squares_R`,
    `tangent_RP`: log residuals of least squares and the law's derivatives there. `starts_SP`: of the solver.
    """

    law: str
    formula: str
    definition: Law = field(repr=False)
    n: str
    d: str
    parameters: dict[str, Interval]
    degrees_of_freedom: float
    clusters: str
    r_squared: float
    residual: float
    confidence: float
    at_bounds: tuple[str, ...]
    draws_BP: np.ndarray = field(repr=False)
    noise: Noise = field(repr=False)
    series: Series = field(repr=False)
    theta_P: np.ndarray = field(repr=False)
    theta_BP: np.ndarray = field(repr=False)
    centre_K: np.ndarray = field(repr=False)
    unit: float = field(repr=False)
    squares_R: np.ndarray = field(repr=False)
    tangent_RP: np.ndarray = field(repr=False)
    starts_SP: np.ndarray = field(repr=False)

    @property
    def deviations_RQ(self) -> np.ndarray:
        """Of each query's loss from its run's, as a share of it, float64."""
        return self.series.losses_RQ / self.series.losses_R[:, None] - 1

    def exponents_of_moved(self, log_noise_BR: np.ndarray) -> dict[str, np.ndarray]:
        """The law's exponents, by name, of losses that are the fit's own times the noise, float64 [B] each."""
        law = self.definition
        covariates = [self.series.covariate(name, self.n, self.d) for name in law.covariates]
        x_RK = np.log(np.stack(covariates, -1)) - self.centre_K
        log_fitted_R = np.log(law.value(self.theta_P, x_RK))
        theta_BP = solve_draws(law, x_RK, log_fitted_R + log_noise_BR, self.theta_P, self.starts_SP)
        return {name: theta_BP[:, place] for name, place in law.exponents.items()}

    def predict(self, *covariates: np.ndarray | float) -> Interval:
        """The law's loss and its interval, where a run of infinitely many seeds and queries would lie.

        Args:
            covariates: those of the law in its order, such as N, D, of shapes that broadcast.

        Returns:
            An interval of their shape.

        Raises:
            ConfigError: other than as many covariates as the law has, or one that is not positive.
        """
        value, draws = self.predicted_draws(*covariates)
        return interval(value if value.ndim else float(value), draws, self.confidence)

    def predicted_draws(self, *covariates: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """The law's loss of the fit, of the covariates' shape, and of its draws, [B, *shape]."""
        law = self.definition
        if len(covariates) != len(law.covariates):
            raise ConfigError(f"{self.law} is a law of {', '.join(law.covariates)}: it needs each")
        arrays = np.broadcast_arrays(*(np.asarray(c, dtype=np.float64) for c in covariates))
        flat = np.stack([array.ravel() for array in arrays], -1)
        if not (np.isfinite(flat) & (flat > 0)).all():
            raise ConfigError(f"{self.law}: covariates must be positive numbers")
        x = np.log(flat) - self.centre_K
        shape = arrays[0].shape
        value = self.unit * law.value(self.theta_P, x).reshape(shape)
        return value, self.unit * law.value(self.theta_BP, x).reshape(-1, *shape)

    def predict_at_draws(self, covariates_K: np.ndarray, covariates_KB: np.ndarray) -> Interval:
        """The law's loss at covariates, and its interval where each draw has its own."""
        law = self.definition
        x = np.log(covariates_K)[None] - self.centre_K
        x_B1K = (np.log(covariates_KB).T - self.centre_K)[:, None]
        value = self.unit * law.value(self.theta_P, x)[0]
        draws = self.unit * np.array(
            [
                law.value(parameters, at)[0]
                for parameters, at in zip(self.theta_BP, x_B1K, strict=True)
            ]
        )
        return interval(float(value), draws, self.confidence)


def fit(
    series: Series,
    law: str | Law,
    n: str = "parameters",
    d: str = "tokens",
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Fit:
    """Fit a law by Huber's loss of log residuals, with intervals by the hierarchical bootstrap.

    Runs without the law's covariates are excluded. Runs of a size share noise, and branches of a run do; that
    sizes share a seed is not modelled. `raylab.scaling.bootstrap` says how draws are made.

    Args:
        law: a law, or the name of one in `LAWS`.
        n: `parameters` (non-embedding) or `with_head` (and the vocabulary head).
        d: `tokens` (real tokens trained on) or `examples` (training queries).
        seed: of the draws; the fit is a function of the arguments.

    Raises:
        ConfigError: an unknown law, n or d; draws < 2 or a confidence outside (0, 1); no degree of
            freedom (design points less parameters below 1, or of several sizes none that tells of noise
            between them), or a covariate with fewer than 3 levels.
    """
    rule = find_law(law)
    if draws < 2 or not 0 < confidence < 1:
        raise ConfigError(
            f"draws = {draws}, confidence = {confidence}: 2 or more, and between 0 and 1"
        )
    kept, levels = _usable(series, rule, n, d)
    logs_RK = np.log(np.stack([kept.covariate(name, n, d) for name in rule.covariates], -1))
    centre_K = logs_RK.mean(0)
    x_RK = logs_RK - centre_K
    losses_R = kept.losses_R
    unit = float(np.exp(np.log(losses_R).mean()))
    theta_P, starts = solve(rule, x_RK, losses_R / unit)
    log_fitted_R = np.log(rule.value(theta_P, x_RK))
    residuals_R = np.log(losses_R / unit) - log_fitted_R
    deviations_RQ = within_strata(kept.losses_RQ / losses_R[:, None] - 1, kept.strata)
    squares_R, tangent_RP = _squares(rule, theta_P, x_RK, losses_R / unit)
    noise = draw_noise(
        deviations_RQ, squares_R, tangent_RP, kept.clusters, draws, seed, kept.strata
    )
    _check_sizes(kept, rule, noise)
    noise_BR = log_shift(noise.queries_BR) + noise.runs_BR
    theta_BP = solve_draws(rule, x_RK, log_fitted_R + noise_BR, theta_P, starts)
    own_P = rule.reported(theta_P, centre_K, unit)
    own_BP = rule.reported(theta_BP, centre_K, unit)
    misses = losses_R - unit * np.exp(log_fitted_R)
    spread = float(((losses_R - losses_R.mean()) ** 2).sum())
    facts: dict[str, Any] = kept.facts(n, d) | {"points": levels}
    return Fit(
        **facts,
        law=rule.name,
        formula=rule.formula,
        definition=rule,
        n=n,
        d=d,
        parameters={
            name: interval(float(own_P[p]), own_BP[:, p], confidence)
            for p, name in enumerate(rule.parameters)
        },
        degrees_of_freedom=noise.freedom,
        clusters=noise.clusters,
        r_squared=1 - float((misses**2).sum()) / spread if spread else float("nan"),
        residual=float(np.sqrt(residuals_R @ residuals_R / (len(losses_R) - len(rule.parameters)))),
        confidence=confidence,
        at_bounds=rule.at_bounds(theta_P),
        draws_BP=own_BP,
        noise=noise,
        series=kept,
        theta_P=theta_P,
        theta_BP=theta_BP,
        centre_K=centre_K,
        unit=unit,
        squares_R=squares_R,
        tangent_RP=tangent_RP,
        starts_SP=starts,
    )


def _check_sizes(series: Series, law: Law, noise: Noise) -> None:
    sizes = len(set(series.sizes))
    if sizes > 1 and not (noise.levels[0].name == SIZES and noise.levels[0].free > _LEAST_FREE):
        raise ConfigError(
            f"{series.name}: {law.name} explains all that {sizes} sizes differ in, so that nothing tells how "
            f"much a size deviates from it; it needs more sizes"
        )


def _squares(
    law: Law, theta_P: np.ndarray, x_RK: np.ndarray, y_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log residuals of the law fitted by least squares, float64 [R], and its tangent there, [R, P].

    Their squares are chi-squared; those of a robust fit, which passes through some of the runs, are not.
    """
    theta_SP, _ = refine(law, theta_P[None], x_RK, np.log(y_R), delta=SQUARES)
    log_value_R, tangent_RP = law.log_jacobian(theta_SP[0], x_RK)
    return np.log(y_R) - log_value_R, tangent_RP


def log_shift(relative: np.ndarray) -> np.ndarray:
    """What relative shifts of losses, by a draw's queries, add to their logs."""
    return np.log1p(np.maximum(relative, _LEAST_SHIFT))


def _usable(series: Series, law: Law, n: str, d: str) -> tuple[Series, int]:
    """The runs that have the covariates, and how many design points they are."""
    kept = series
    for name in law.covariates:
        values = kept.covariate(name, n, d)
        named = {"N": n, "D": d}.get(name, name)
        kept = kept.keep(np.isfinite(values) & (values > 0), f"no {named}")
    groups = [_levels(kept.covariate(name, n, d)) for name in law.covariates]
    points = min(len(set(zip(*groups, strict=True))), len(set(kept.designs)))
    wanted = len(law.parameters) + 1
    if points < wanted:
        raise ConfigError(
            f"{series.name}: {law.name} has {len(law.parameters)} parameters and needs {wanted} design "
            f"points or more to leave a degree of freedom; there are {points} ({_has(series, kept)})"
        )
    for name, group in zip(law.covariates, groups, strict=True):
        if len(set(group)) < _FEWEST_LEVELS:
            raise ConfigError(
                f"{series.name}: {law.name} needs {_FEWEST_LEVELS} levels of {name} or more; "
                f"there are {len(set(group))} ({_has(series, kept)})"
            )
    return kept, points


def _has(series: Series, kept: Series) -> str:
    """What there is to fit, in words."""
    sizes = ", ".join(dict.fromkeys(series.sizes)) or "none"
    budgets = ", ".join(f"{b:.3g}" if b else "epochs" for b in sorted(set(series.budgets)))
    has = f"sizes {sizes}; budgets {budgets or 'none'}; {len(series.systems)} runs"
    left_out = kept.excluded[len(series.excluded) :]
    reasons = dict.fromkeys(line.rpartition(": ")[2] for line in left_out)
    return has + (f", {len(left_out)} with {' or '.join(reasons)}" if left_out else "")


def _levels(values_R: np.ndarray) -> list[int]:
    """The level of each run: values of one level lie less than `_SAME` from the next."""
    logs = np.log(values_R)
    order = np.argsort(logs, kind="stable")
    level = np.empty(len(logs), dtype=int)
    level[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > _SAME)])[: len(logs)]
    return level.tolist()
