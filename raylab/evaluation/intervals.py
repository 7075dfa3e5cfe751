"""Confidence interval of a mean over queries."""

from collections.abc import Sequence

import numpy as np

_DRAWS_TOGETHER_CELLS = 2**22


def mean_interval(
    values: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(mean, low, high) of per-query values, by the percentile bootstrap over queries.

    ``draws`` resamples of the n queries with replacement; low and high are the quantiles of their
    means that leave (1 - confidence) / 2 on either side (Efron and Tibshirani 1993, chapter 13).
    The result is a function of the arguments. One query, or equal values, give an interval of width
    0: the bootstrap cannot see beyond its sample. Raises ValueError for no values, a value that is
    not finite, a confidence outside (0, 1) or draws < 1.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"values have shape {sample.shape}; a flat list of at least one is needed")
    if not np.isfinite(sample).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(sample)))} is not a finite number")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    if (sample == sample[0]).all():
        constant = float(sample[0])
        return constant, constant, constant
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    together = max(1, _DRAWS_TOGETHER_CELLS // sample.size)
    for start in range(0, draws, together):
        n = min(together, draws - start)
        means[start : start + n] = sample[rng.integers(sample.size, size=(n, sample.size))].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(sample.mean()), float(low), float(high)
