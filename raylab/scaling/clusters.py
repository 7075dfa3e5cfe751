"""Noise of runs that are not independent: of whole sizes, of runs, of branches of a run.

The budgets of an isoFLOP run leave one stable phase, and the seeds of a size start from one adapted
backbone. So what moves a value is a sum of a part of its size, a part of its run (a size and a seed) and
a part of its own. A level's variance is read from sums of residuals over its clusters (Henderson's
third method: what coarser levels and the fit can explain is taken out first):

    t = Z' M e,   E t't = sum over this and finer levels m of variance_m |Z' M Z_m|^2

where Z says which run is in which cluster and M takes out the fit's tangent and the coarser levels. A
draw's variances are not the estimates: t't is drawn as t't v / chi^2_v, where v is Satterthwaite's number of
degrees of freedom of t't, so that few clusters give wide intervals. Where sizes are balanced, a slope
over S sizes has Student's t interval with S - 2 degrees of freedom, however its runs are correlated.

Legend: R runs, Q queries, B draws, P parameters, G clusters of a level.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raylab.scaling.bootstrap import query_shifts

SIZES, RUNS, BRANCHES = "sizes", "runs", "branches"
LARGEST_LOG = 10.0  # of noise in a log loss: a factor of 22,000 is as good as any
_NO_FREEDOM = 1e-6


@dataclass(frozen=True)
class Level:
    """The clusters of a level and what the data say of their variance.

    `indicator_RG`: which run is in which cluster. `total`: t't, without what queries do to it.
    `of_queries`: what they do, on average. `shares`: |Z' M Z_m|^2 of this level and of each finer one.
    `freedom`: Satterthwaite's. `free`: clusters, less what of them the tangent can explain.
    """

    name: str
    indicator_RG: np.ndarray
    total: float
    of_queries: float
    shares: tuple[float, ...]
    freedom: float
    free: float


@dataclass(frozen=True)
class Noise:
    """Draws of what moves the points of a fit.

    `queries_BR`: the shift of each run's mean by the draw's queries; `runs_BR`: the noise of runs with
    what clusters share. `variances_BL`: of `levels`, coarsest first, may be negative.
    """

    queries_BR: np.ndarray
    runs_BR: np.ndarray
    variances_BL: np.ndarray
    levels: tuple[Level, ...]

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the coarsest level."""
        return self.levels[0].freedom

    @property
    def clusters(self) -> str:
        """The clusters of that level, such as `8 sizes`."""
        return f"{self.levels[0].indicator_RG.shape[1]} {self.levels[0].name}"

    def variance_B(self, name: str) -> np.ndarray:
        """The variance of a level in each draw, not below 0; 0 where there is no such level."""
        for level, variance_B in zip(self.levels, self.variances_BL.T, strict=True):
            if level.name == name:
                return np.maximum(variance_B, 0.0)
        return np.zeros(len(self.variances_BL))


def draw_noise(
    deviations_RQ: np.ndarray,
    residuals_R: np.ndarray,
    tangent_RP: np.ndarray,
    clusters: Sequence[tuple[str, Sequence[Hashable]]],
    draws: int,
    seed: int,
    strata: Sequence[int] = (),
) -> Noise:
    """Draws of both kinds of noise, in the unit of the residuals.

    Args:
        deviations_RQ: of each query's value from its run's mean, float64; with strata those of
            `within_strata`.
        residuals_R: of least squares.
        tangent_RP: derivatives of the fitted values by the parameters.
        clusters: names and labels [R] of levels, coarsest first, nested; that of single runs is added.
        seed: the result is a function of the arguments.
        strata: how many consecutive queries are drawn among themselves.
    """
    rng = np.random.default_rng(seed)
    shift_BR = query_shifts(deviations_RQ, draws, rng, strata)
    of_runs = draw_run_noise(deviations_RQ, residuals_R, tangent_RP, clusters, draws, rng)
    return replace(of_runs, queries_BR=shift_BR)


def draw_run_noise(
    deviations_RQ: np.ndarray,
    residuals_R: np.ndarray,
    tangent_RP: np.ndarray,
    clusters: Sequence[tuple[str, Sequence[Hashable]]],
    draws: int,
    rng: np.random.Generator,
) -> Noise:
    """Draws of the noise of runs alone, as in `draw_noise`; what queries do is 0."""
    levels = find_levels(deviations_RQ, residuals_R, tangent_RP, clusters)
    variances_BL = _draw_variances(levels, draws, rng)
    runs_BR = _draw_runs(levels, variances_BL, rng)
    return Noise(np.zeros_like(runs_BR), runs_BR, variances_BL, levels)


def find_levels(
    deviations_RQ: np.ndarray,
    residuals_R: np.ndarray,
    tangent_RP: np.ndarray,
    clusters: Sequence[tuple[str, Sequence[Hashable]]],
) -> tuple[Level, ...]:
    """The levels that differ from each other and of which something is known."""
    runs, queries = deviations_RQ.shape
    named = [(name, _indicator(labels)) for name, labels in clusters]
    named.append((BRANCHES, np.eye(runs)))
    coarser: list[np.ndarray] = []
    kept: list[tuple[str, np.ndarray, np.ndarray]] = []
    known = 1
    for name, indicator_RG in named:
        if indicator_RG.shape[1] == known:  # one cluster, or those of a coarser level
            continue
        known = indicator_RG.shape[1]
        sums_GR = indicator_RG.T @ _outside(np.hstack([tangent_RP, *coarser]))
        coarser.append(indicator_RG)
        if (sums_GR @ indicator_RG).trace() > _NO_FREEDOM * runs:
            kept.append((name, indicator_RG, sums_GR))
    levels = []
    for place, (name, indicator_RG, sums_GR) in enumerate(kept):
        total_G = sums_GR @ residuals_R
        of_queries = 0.0
        if queries > 1:
            of_queries = float(((sums_GR @ deviations_RQ) ** 2).sum()) / ((queries - 1) * queries)
        shares = [float(((sums_GR @ z) ** 2).sum()) for _, z, _ in kept[place:]]
        own_GG = sums_GR @ indicator_RG
        spectrum_G = np.linalg.eigvalsh(own_GG @ own_GG.T)
        freedom = float(spectrum_G.sum() ** 2 / (spectrum_G**2).sum())
        free = float(own_GG.trace()) * own_GG.shape[0] / runs
        total = float(total_G @ total_G)
        levels.append(Level(name, indicator_RG, total, of_queries, tuple(shares), freedom, free))
    return tuple(levels)


def _indicator(labels: Sequence[Hashable]) -> np.ndarray:
    distinct = list(dict.fromkeys(labels))
    return np.array([[label == one for one in distinct] for label in labels], dtype=np.float64)


def _outside(columns_RC: np.ndarray) -> np.ndarray:
    """The projection onto what columns do not span, float64 [R, R]."""
    base, size, _ = np.linalg.svd(columns_RC, full_matrices=False)
    base = base[:, size > 1e-10 * size[0]]
    return np.eye(len(columns_RC)) - base @ base.T


def _draw_variances(levels: Sequence[Level], draws: int, rng: np.random.Generator) -> np.ndarray:
    """The variance of each level in each draw, float64 [B, L], solved for from the finest on."""
    variances_BL = np.zeros((draws, len(levels)))
    for place in reversed(range(len(levels))):
        level = levels[place]
        total_B = level.total * level.freedom / rng.chisquare(level.freedom, draws)
        finer_B = variances_BL[:, place + 1 :] @ np.array(level.shares[1:])
        variances_BL[:, place] = (total_B - level.of_queries - finer_B) / level.shares[0]
    if len(levels):
        variances_BL[:, -1] = np.maximum(variances_BL[:, -1], 0.0)
    return variances_BL


def _draw_runs(
    levels: Sequence[Level], variances_BL: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Noise of runs: the mean of each cluster of a level, about the mean of the coarser cluster it is in.

    Means are drawn with the variance that they have by all levels, so that a variance that comes out
    negative, as an unbiased estimate of 0 does half of the time, narrows them instead of being lost.
    """
    runs = len(levels[-1].indicator_RG)
    noise_BR = np.zeros((len(variances_BL), runs))
    for place, level in enumerate(levels):
        of_level_RG = level.indicator_RG
        count_G = of_level_RG.sum(0)
        variance_BG = np.zeros((len(variances_BL), len(count_G)))
        for finer, variance_B in zip(levels[place:], variances_BL.T[place:], strict=True):
            together_GF = of_level_RG.T @ finer.indicator_RG
            variance_BG += variance_B[:, None] * ((together_GF / count_G[:, None]) ** 2).sum(1)
        scale_BG = np.sqrt(np.maximum(0.0, variance_BG))
        mean_BR = (scale_BG * rng.normal(size=scale_BG.shape)) @ of_level_RG.T
        if place:
            coarser_RG = levels[place - 1].indicator_RG
            mean_BR -= (mean_BR @ coarser_RG / coarser_RG.sum(0)) @ coarser_RG.T
        noise_BR += mean_BR
    return np.clip(noise_BR, -LARGEST_LOG, LARGEST_LOG)
