"""Paired comparisons of systems over the same queries: tests, corrections, effect sizes.

Systems are compared on each measure of each collection by themselves, never on a mean over
collections. All comparisons of one call are one family, whose size is stated with every result and
for which p-values are corrected (Bonferroni, as the paper does; Holm, which is never weaker).

Shapes: N queries, F comparisons of one collection, M comparisons of the family.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from raylab.data.faults import CollectionError
from raylab.experiment.config import ConfigError

DRAWS = 100_000
_CELLS_TOGETHER = 2**22
# Sums of the same numbers in another order differ by rounding: below this share they are equal.
_EQUAL = 1e-12
# A measure is a sum of up to 1,000 terms and a mean over seeds, in float64: below this share of the values
# a difference between differences is rounding. trec_eval prints 1e-4.
_ROUNDING = 1e-9
_FAR = (
    1e3  # a t from which the limit of the noncentral t distribution is as good as its series: 3e-4
)
_MOST_EXACT = 20  # queries with a difference: 8 MiB of sums

PerQuery = Mapping[str, Mapping[str, float]]
"""System -> query id -> value."""


@dataclass(frozen=True)
class Comparison:
    """System ``b`` against ``a`` on one measure of one collection, over the same queries.

    ``difference``: mean of b - a, with its t interval ``low`` to ``high``. ``effect``: Cohen's d of
    paired samples, mean over standard deviation of the differences, with the interval that the
    noncentral t distribution gives it (infinite when all differences are equal and not 0). Both
    intervals are of this comparison alone, not corrected for the family. ``p_t``: two-sided paired
    t-test. ``p_random``: two-sided paired randomisation test of the mean, ``exact`` over all signs
    or by Monte Carlo. ``*_bonferroni`` and ``*_holm``: corrected for ``family`` comparisons.
    """

    where: str
    measure: str
    a: str
    b: str
    queries: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    effect: float
    effect_low: float
    effect_high: float
    p_t: float
    p_random: float
    exact: bool
    family: int = 1
    p_t_bonferroni: float = math.nan
    p_t_holm: float = math.nan
    p_random_bonferroni: float = math.nan
    p_random_holm: float = math.nan


def compare(
    values: Mapping[tuple[str, str], PerQuery],
    pairs: Sequence[tuple[str, str]] | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Comparison]:
    """Every pair of systems on every (collection, measure), as one family.

    Args:
        values: (collection and split, measure) -> system -> query id -> value.
        pairs: (a, b) of systems; default all pairs, in the order of the systems.
        draws: of signs for the randomisation test, where going through all signs takes more.
        seed: of the draws; the result is a function of the arguments.

    Raises:
        ConfigError: nothing to compare, or a system that is not there.
        CollectionError: systems with other queries than each other, fewer than 2 queries, or a value that
            is not finite.
        ValueError: a confidence outside (0, 1), or draws below 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    comparisons: list[Comparison] = []
    for (where, measure), systems in values.items():
        compared = list(itertools.combinations(systems, 2)) if pairs is None else list(pairs)
        if not compared:
            continue
        table = _table(f"{where} {measure}", systems, compared)
        differences_NF = np.stack([differences(table[a], table[b]) for a, b in compared], axis=1)
        p_random, exact = randomisation(differences_NF, draws, seed)
        for place, (a, b) in enumerate(compared):
            p_t, interval, effect = paired_t(differences_NF[:, place], confidence)
            means = float(table[a].mean()), float(table[b].mean())
            facts = (where, measure, a, b, len(differences_NF), *means)
            p = float(p_random[place])
            comparisons.append(Comparison(*facts, *interval, *effect, p_t, p, bool(exact[place])))
    if not comparisons:
        raise ConfigError("nothing to compare: at least two systems are needed")
    return corrected(comparisons)


def _table(
    where: str, systems: PerQuery, pairs: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Values of the systems of the pairs, float64 [N], over the same queries in the same order."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    missing = [name for name in names if name not in systems]
    if missing:
        raise ConfigError(f"{where}: no system {missing[0]!r}; there are {', '.join(systems)}")
    queries = sorted(systems[names[0]])
    for name in names[1:]:
        odd = sorted(systems[name].keys() ^ set(queries))
        if odd:
            raise CollectionError(
                f"{where}: query {odd[0]!r} has a value of only one of {names[0]!r} and {name!r}; "
                "a paired comparison is over the same queries"
            )
    if len(queries) < 2:
        raise CollectionError(f"{where}: {len(queries)} queries; a comparison needs at least 2")
    table = {n: np.array([systems[n][q] for q in queries], dtype=np.float64) for n in names}
    for name, column in table.items():
        if not np.isfinite(column).all():
            query_id = queries[int(np.argmin(np.isfinite(column)))]
            raise CollectionError(f"{where}: query {query_id!r} of {name!r} has no finite value")
    return table


def differences(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """b - a, float64 [N], without what rounding puts there.

    Values that only rounding tells apart have no difference, and differences that only rounding tells
    apart are all their median: 1/3 - 1/2 and 1/6 - 1/3 are one number, whose variance is 0.
    """
    differences_N = b_N - a_N
    rounding = _ROUNDING * max(float(np.abs(a_N).max()), float(np.abs(b_N).max()))
    differences_N[np.abs(differences_N) <= rounding] = 0.0
    if np.ptp(differences_N) <= rounding:
        differences_N[:] = np.median(differences_N)
    return differences_N


def paired_t(
    differences: np.ndarray, confidence: float = 0.95
) -> tuple[float, tuple[float, float, float], tuple[float, float, float]]:
    """Two-sided paired t-test of differences, float64 [N], N >= 2.

    Returns (p, (mean, low, high), (d, low, high)): the mean's t interval, and Cohen's d (mean over
    standard deviation, N - 1) with the interval of the noncentrality that gives the observed t the
    tails of the confidence (Cumming and Finch 2001). No difference at all has p = 1 and no width.
    """
    n = len(differences)
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if (differences == differences[0]).all():
        d = math.copysign(math.inf, mean) if mean else 0.0
        return float(mean == 0), (mean, mean, mean), (d, d, d)
    t = mean / deviation * math.sqrt(n)
    tail = (1 - confidence) / 2
    half = float(stats.t.ppf(1 - tail, n - 1)) * deviation / math.sqrt(n)
    low, high = (_noncentrality(t, n - 1, p) / math.sqrt(n) for p in (1 - tail, tail))
    p = float(2 * stats.t.sf(abs(t), n - 1))
    return p, (mean, mean - half, mean + half), (mean / deviation, low, high)


def _noncentrality(t: float, freedom: int, p: float) -> float:
    """The noncentrality with which the noncentral t distribution has P(T <= t) = p."""
    if t < 0:
        return -_noncentrality(-t, freedom, 1 - p)
    if t < _FAR:
        return float(special.nctdtrinc(freedom, p, t))
    # So far out, T is the noncentrality over a chi alone.
    return t * math.sqrt(float(stats.chi2.ppf(1 - p, freedom)) / freedom)


def randomisation(
    differences_NF: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided paired randomisation tests (Fisher; Smucker et al. 2007): (p [F], exact bool [F]).

    Under the null hypothesis the sign of each query's difference is arbitrary: p is the share of
    sign assignments whose mean is at least as far from 0 as the observed one. Queries without a
    difference do not matter. Exact where all assignments are at most ``draws`` (and 2^20); else by Monte Carlo
    with p = (1 + hits) / (1 + draws), which is never 0 and keeps the level (Phipson and Smyth 2010).
    The comparisons share their draws.

    Args:
        differences_NF: float64, a column a comparison.
    """
    p = np.ones(differences_NF.shape[1])
    nonzero = np.count_nonzero(differences_NF, axis=0)
    exact = nonzero <= min(math.log2(draws), _MOST_EXACT)
    for place in np.flatnonzero(exact):
        p[place] = _exact(differences_NF[differences_NF[:, place] != 0, place])
    if not exact.all():
        p[~exact] = _monte_carlo(differences_NF[:, ~exact], draws, seed)
    return p, exact


def _exact(differences: np.ndarray) -> float:
    if not len(differences):
        return 1.0
    # All sums, built up query by query; the first sign is fixed, since the test is two-sided.
    sums = differences[:1]
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    return float(np.mean(np.abs(sums) >= _at_least(differences[:, None])[0]))


def _monte_carlo(differences_NF: np.ndarray, draws: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = len(differences_NF)
    bound_F, total_F = _at_least(differences_NF), differences_NF.sum(0)
    hits_F = np.zeros(differences_NF.shape[1], dtype=np.int64)
    together = max(1, _CELLS_TOGETHER // n)
    for start in range(0, draws, together):
        rows = min(together, draws - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes((rows * n + 7) // 8), dtype=np.uint8))
        kept = bits[: rows * n].reshape(rows, n).astype(np.float64)
        sums_DF = 2 * (kept @ differences_NF) - total_F
        hits_F += np.count_nonzero(np.abs(sums_DF) >= bound_F, axis=0)
    return (1 + hits_F) / (1 + draws)


def _at_least(differences_NF: np.ndarray) -> np.ndarray:
    """The observed |sum| of each comparison, less what rounding may take from an equal one."""
    return np.abs(differences_NF.sum(0)) - _EQUAL * np.abs(differences_NF).sum(0)


def bonferroni(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values [M] of a family, each times M, at most 1."""
    values = np.asarray(p, dtype=np.float64)
    return np.minimum(1.0, values * len(values))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values [M] of a family by Holm's step-down procedure (1979), in the order given.

    The smallest is multiplied by M, the next by M - 1, and so on; none ends below one before it.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons as one family, whatever they were corrected for before, in the order given."""
    p_t, p_random = [c.p_t for c in comparisons], [c.p_random for c in comparisons]
    columns = (bonferroni(p_t), holm(p_t), bonferroni(p_random), holm(p_random))
    return [
        replace(
            one,
            family=len(comparisons),
            p_t_bonferroni=float(adjusted[0]),
            p_t_holm=float(adjusted[1]),
            p_random_bonferroni=float(adjusted[2]),
            p_random_holm=float(adjusted[3]),
        )
        for one, adjusted in zip(comparisons, zip(*columns, strict=True), strict=True)
    ]
