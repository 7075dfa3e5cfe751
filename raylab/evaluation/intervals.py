"""Confidence interval of a mean over queries."""

from collections.abc import Sequence

import numpy as np

_DRAWS_TOGETHER_CELLS = 2**20


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
    return mean_intervals([values], confidence, draws, seed)[0]


def mean_intervals(
    samples: Sequence[Sequence[float] | np.ndarray],
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> list[tuple[float, float, float]]:
    """`mean_interval` of each sample; those of one size share the draws that they have alone."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    checked = [_checked(values) for values in samples]
    by_size: dict[int, list[int]] = {}
    for place, sample in enumerate(checked):
        if not (sample == sample[0]).all():
            by_size.setdefault(sample.size, []).append(place)
    intervals = [(float(one[0]), float(one[0]), float(one[0])) for one in checked]
    tail = (1 - confidence) / 2
    for places in by_size.values():
        own = [checked[place] for place in places]
        for place, sample, means in zip(places, own, _drawn_means(own, draws, seed), strict=True):
            low, high = np.quantile(means, [tail, 1 - tail])
            intervals[place] = float(sample.mean()), float(low), float(high)
    return intervals


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"values have shape {sample.shape}; a flat list of at least one is needed")
    if not np.isfinite(sample).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(sample)))} is not a finite number")
    return sample


def _drawn_means(samples: Sequence[np.ndarray], draws: int, seed: int) -> np.ndarray:
    """Means of resamples of samples of one size, float64 [samples, draws]."""
    size = samples[0].size
    rng = np.random.default_rng(seed)
    means = np.empty((len(samples), draws))
    together = max(1, _DRAWS_TOGETHER_CELLS // size)
    for start in range(0, draws, together):
        drawn = rng.integers(size, size=(min(together, draws - start), size))
        for place, sample in enumerate(samples):
            means[place, start : start + len(drawn)] = np.take(sample, drawn).mean(1)
    return means
