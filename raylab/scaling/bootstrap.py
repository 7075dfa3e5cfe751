"""The hierarchical bootstrap behind every interval: noise of runs, then of queries.

A scaling study has few runs, at sizes and budgets that were chosen. Drawing runs with replacement
leaves out sizes (a fit without the smallest is another fit) and, with s seeds a point, makes noise
(s - 1) / s as large as it is; percentile intervals of 8 to 40 runs then hold the truth too
seldom. So the design stays and noise is drawn, at levels that count nothing twice:

* **Sizes, runs, branches** (`raylab.scaling.clusters`): normal noise, whose variances are drawn with as
  many degrees of freedom as there are clusters that tell of them.
* **Queries** are drawn with replacement, the same for all runs of a draw, since all runs answer the
  same queries: what makes a query hard for every run moves all points together. Of a mean over collections
  the queries of each are drawn among themselves.

A run's residual already holds what its queries happen to do to it alone. That part, estimated from the
queries' own values outside the tangent space of the fit, is taken from the runs' variance, as
drawing queries brings it back.

Legend: R runs, Q queries, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CELLS_TOGETHER = 2**21


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; floats, or arrays of one shape."""

    value: float
    low: float
    high: float


def query_shifts(
    deviations_RQ: np.ndarray, draws: int, rng: np.random.Generator, strata: Sequence[int] = ()
) -> np.ndarray:
    """Means of the deviations over queries drawn with replacement, float64 [B, R].

    Args:
        strata: how many consecutive queries are drawn among themselves; the deviations are then those of
            `within_strata`.
    """
    runs, queries = deviations_RQ.shape
    if queries < 2:
        return np.zeros((draws, runs))
    shift_BR = np.empty((draws, runs))
    together = max(1, _CELLS_TOGETHER // queries)
    for start in range(0, draws, together):
        count = min(together, draws - start)
        counts = [_times_drawn(size, count, rng) for size in strata or (queries,)]
        counts_BQ = counts[0] if len(counts) == 1 else np.hstack(counts)
        shift_BR[start : start + count] = counts_BQ.astype(np.float64) @ deviations_RQ.T
    return shift_BR / np.sqrt(queries * (queries - 1.0))


def _times_drawn(queries: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each query is drawn in each of the draws, int [B, Q]."""
    picked = rng.integers(queries, size=(draws, queries))
    picked += queries * np.arange(draws)[:, None]
    return np.bincount(picked.ravel(), minlength=draws * queries).reshape(draws, queries)


def within_strata(deviations_RQ: np.ndarray, strata: Sequence[int]) -> np.ndarray:
    """Deviations from the mean of each query's own stratum, float64 [R, Q].

    Each is scaled by the degrees of freedom of its stratum over those of all queries together, so that
    what holds for the mean over one set of queries, its variance and its bootstrap, holds for the sum
    over strata. A stratum of one query tells of no variance. Without strata they stay as they are.
    """
    if not strata:
        return deviations_RQ
    queries = deviations_RQ.shape[1]
    own_RQ = np.empty_like(deviations_RQ)
    start = 0
    for size in strata:
        part_RQ = deviations_RQ[:, start : start + size]
        scale = np.sqrt(size / (size - 1) * (queries - 1) / queries) if size > 1 else 0.0
        own_RQ[:, start : start + size] = (part_RQ - part_RQ.mean(1, keepdims=True)) * scale
        start += size
    return own_RQ


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
