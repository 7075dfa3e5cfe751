"""The hierarchical bootstrap behind every interval: runs and seeds first, then queries.

A scaling study has few runs, at sizes and budgets that were chosen. Drawing runs with replacement
leaves out sizes (a fit without the smallest is another fit) and, with s seeds a point, makes noise
(s - 1) / s as large as it is; percentile intervals of 8 to 40 runs then hold the truth too
seldom. So the design stays and noise is drawn, at two levels that do not count anything twice:

* **Runs** (a run is a size, a budget and a seed): residuals of the fit are drawn with replacement,
  smoothed by a normal kernel and shrunk to their variance (Silverman and Young 1987), because a
  robust fit has residuals of exactly 0, whose repetition would make draws too much alike. Their
  variance is not taken as known: a draw's is s^2 v / chi^2_v, where s^2 = sum of squares / v and
  v = runs - parameters, so that for a linear fit of normal noise percentiles are Student's t interval.
* **Queries** are drawn with replacement, the same for all runs of a draw, since all runs answer the
  same queries: what makes a query hard for every run moves all points together.

A run's residual already holds what its queries happen to do to it alone. That part, estimated from the
queries' own values outside the tangent space of the fit, is taken from the runs' variance, as
drawing queries brings it back.

Legend: R runs, Q queries, B draws, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CELLS_TOGETHER = 2**21


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; floats, or arrays of one shape."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Noise:
    """Draws of what moves the points of a fit.

    `queries_BR`: the shift of each run's mean by the draw's queries; `runs_BR`: the noise of the
    runs themselves; `scale_B`: its standard deviation in each draw.
    """

    queries_BR: np.ndarray
    runs_BR: np.ndarray
    scale_B: np.ndarray


def draw_noise(
    deviations_RQ: np.ndarray,
    residuals_R: np.ndarray,
    tangent_RP: np.ndarray,
    freedom: int,
    draws: int,
    seed: int,
) -> Noise:
    """Draws of both levels of noise, in the unit of the residuals.

    Args:
        deviations_RQ: of each query's value from its run's mean, float64.
        tangent_RP: derivatives of the fitted values by the parameters.
        freedom: runs - parameters, at least 1.
        seed: the result is a function of the arguments.
    """
    rng = np.random.default_rng(seed)
    runs = len(residuals_R)
    shift_BR = query_shifts(deviations_RQ, draws, rng)
    variance = float(residuals_R @ residuals_R) / freedom
    variance_B = variance * freedom / rng.chisquare(freedom, draws)
    scale_B = np.sqrt(np.maximum(0.0, variance_B - _own_variance(deviations_RQ, tangent_RP)))
    picked_BR = residuals_R[rng.integers(runs, size=(draws, runs))]
    root = np.sqrt(np.mean(residuals_R**2))
    standard_BR = picked_BR / root if root > 0 else np.zeros_like(picked_BR)
    width = 1.06 * runs**-0.2
    smooth_BR = (standard_BR + width * rng.normal(size=(draws, runs))) / np.hypot(1.0, width)
    return Noise(shift_BR, scale_B[:, None] * smooth_BR, scale_B)


def query_shifts(deviations_RQ: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means of the deviations over queries drawn with replacement, float64 [B, R]."""
    runs, queries = deviations_RQ.shape
    if queries < 2:
        return np.zeros((draws, runs))
    shift_BR = np.empty((draws, runs))
    together = max(1, _CELLS_TOGETHER // queries)
    for start in range(0, draws, together):
        count = min(together, draws - start)
        picked = rng.integers(queries, size=(count, queries))
        picked += queries * np.arange(count)[:, None]
        counts = np.bincount(picked.ravel(), minlength=count * queries).reshape(count, queries)
        shift_BR[start : start + count] = counts.astype(np.float64) @ deviations_RQ.T
    return shift_BR / np.sqrt(queries * (queries - 1.0))


def _own_variance(deviations_RQ: np.ndarray, tangent_RP: np.ndarray) -> float:
    """Variance of a run's mean by what its queries do to it alone."""
    runs, queries = deviations_RQ.shape
    base, size, _ = np.linalg.svd(tangent_RP, full_matrices=False)
    base = base[:, size > 1e-10 * size[0]]
    if queries < 2 or base.shape[1] >= runs:
        return 0.0
    outside = deviations_RQ - base @ (base.T @ deviations_RQ)
    return float((outside**2).sum()) / ((queries - 1) * (runs - base.shape[1]) * queries)


_LARGEST = 1e300


def interval(value: np.ndarray | float, draws: np.ndarray, confidence: float = 0.95) -> Interval:
    """The percentile interval of draws along their first axis, about a value of the other axes.

    Percentiles are at i / (B + 1): a value as likely to lie anywhere among few draws as they are is then
    inside as often as it should be.
    """
    tail = (1 - confidence) / 2
    finite = np.clip(draws, -_LARGEST, _LARGEST)  # between two infinities there is no quantile
    low, high = np.quantile(finite, [tail, 1 - tail], axis=0, method="weibull")
    if np.ndim(value) == 0:
        return Interval(float(value), float(low), float(high))
    return Interval(value, low, high)  # pyright: ignore[reportArgumentType]
