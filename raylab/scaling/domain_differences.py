"""Is the exponent, or the slope on size, the same out of domain? Differences over the same runs.

The runs that are measured out of domain are those measured in domain, so a difference is paired: what a
size or a seed does to both cancels. A slope's difference is the slope of the difference, with that
one's residuals. A law is fitted twice; its two residuals, each over its own root mean square, have as sum
and difference two uncorrelated numbers, and the noise of runs is drawn of these (`raylab.scaling.clusters`)
and put together again, so that noise which both share is shared by both in every draw. Queries of the two
collections are not the same, and are drawn apart.

Legend: R runs, Q queries, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylab.evaluation.domains import IN_DOMAIN, OUT_OF_DOMAIN
from raylab.experiment.config import ConfigError
from raylab.scaling.bootstrap import Interval, interval, query_shifts, within_strata
from raylab.scaling.claims import MARGIN, plain_recipe, size_design, slope
from raylab.scaling.clusters import Noise, draw_noise, draw_run_noise
from raylab.scaling.fit import Fit, log_shift
from raylab.scaling.macro import runs_of
from raylab.scaling.points import Facts, Series, as_loss

EXPONENT_MARGIN = 0.1
SLOPE = "slope per decade"
_CONFIDENCE, _EQUIVALENCE = 0.95, 0.90


@dataclass(frozen=True, kw_only=True)
class DomainDifference(Facts):
    """An exponent or a slope out of domain less the same in domain.

    The facts are of the runs out of domain. `against`: collection and split in domain. `law`: empty for a
    slope on log10 N. `inside`, `outside`: the two, each with its own 95 % interval; `difference`: with that
    of the paired bootstrap. `verdict`: `same`, where the 90 % interval of the difference lies within the
    `margin` (two one-sided tests of 5 %); else `differs`, where the 95 % interval excludes 0; else
    `undecided`. `degrees_of_freedom`: of the difference, of its coarsest `clusters`.
    """

    against: str
    law: str
    n: str
    d: str
    quantity: str
    inside: Interval
    outside: Interval
    difference: Interval
    confidence: float
    margin: float
    verdict: str
    degrees_of_freedom: float
    clusters: str


Pair = tuple[Series, Series]
"""In domain, and out of it."""


def domain_pairs(series_found: Sequence[Series]) -> list[Pair]:
    """What is compared with what, by head, objective and measure.

    The first series in domain with each one out of domain, and the others in domain with the mean over
    collections, or with the one collection there is.
    """
    by_key: dict[tuple, list[Series]] = {}
    for one in series_found:
        by_key.setdefault((one.head, one.objective, one.measure), []).append(one)
    pairs: list[Pair] = []
    for every in by_key.values():
        inside = [one for one in every if one.domain == IN_DOMAIN]
        outside = [one for one in every if one.domain == OUT_OF_DOMAIN]
        whole = [one for one in outside if one.strata] or outside[:1]
        for place, one in enumerate(inside):
            pairs += [(one, other) for other in (whole if place else _whole_first(outside))]
    return pairs


def _whole_first(outside: Iterable[Series]) -> list[Series]:
    return sorted(outside, key=lambda one: not one.strata)


def slope_difference(
    inside: Series,
    outside: Series,
    n: str = "parameters",
    draws: int = 1000,
    seed: int = 0,
    margin: float = MARGIN,
    known: dict[tuple, Interval] | None = None,
) -> DomainDifference:
    """The slope of the measure on log10 N out of domain, less that in domain, over the runs of both.

    Args:
        known: slopes that were found with the same n, draws and seed; those found here are added.

    Raises:
        ConfigError: as `slope`; no runs that both have.
    """
    inside, outside = _same_runs(plain_recipe(inside), plain_recipe(outside))
    (inside, design), (outside, _) = size_design(inside, n), size_design(outside, n)
    values = [as_loss(one.measure, one.losses_RQ) for one in (inside, outside)]
    means_R = [own_RQ.mean(1) for own_RQ in values]
    inverse_PR = np.linalg.pinv(design)
    difference_R = means_R[1] - means_R[0]
    residuals_R = difference_R - design @ (inverse_PR @ difference_R)
    deviations = [own - mean_R[:, None] for own, mean_R in zip(values, means_R, strict=True)]
    strata = _strata(inside) + _strata(outside)
    stacked_RQ = within_strata(_stacked(deviations, (-1.0, 1.0)), strata)
    noise = draw_noise(stacked_RQ, residuals_R, design, inside.clusters, draws, seed, strata)
    value = float(inverse_PR[0] @ difference_R)
    draws_B = value + (noise.queries_BR + noise.runs_BR) @ inverse_PR[0]
    known = {} if known is None else known
    for one in (inside, outside):
        if _identity(one) not in known:
            known[_identity(one)] = slope(one, n, _CONFIDENCE, draws, seed)[0]
    own = [known[_identity(one)] for one in (inside, outside)]
    return _difference(
        outside.facts(n), inside, noise, own, value, draws_B, margin, n=n, quantity=SLOPE
    )


def _identity(one: Series) -> tuple:
    """What tells a series from the others of one table, by its runs too."""
    return one.name, one.domain, *runs_of(one)


def exponent_differences(
    inside: Fit, outside: Fit, draws: int = 1000, seed: int = 0, margin: float = EXPONENT_MARGIN
) -> list[DomainDifference]:
    """Each exponent of a law out of domain, less that in domain; both are fitted to the same runs.

    Raises:
        ConfigError: they are of other runs, laws or covariates.
    """
    law = inside.definition
    alike = all(getattr(inside, name) == getattr(outside, name) for name in ("law", "n", "d"))
    if not alike or runs_of(inside.series) != runs_of(outside.series):
        raise ConfigError(
            f"{outside.series.name}: {outside.law} is of other runs than in domain, on {inside.collection} "
            f"{inside.split}; a difference is over the same ones"
        )
    noise_BR, noise = _paired_noise(inside, outside, draws, seed)
    fits = (inside, outside)
    moved = [fit.exponents_of_moved(own) for fit, own in zip(fits, noise_BR, strict=True)]
    found = []
    for name, place in law.exponents.items():
        own = [fit.parameters[name] for fit in fits]
        value = float(outside.theta_P[place] - inside.theta_P[place])
        facts = outside.series.facts(outside.n, outside.d) | {"points": outside.points}
        found.append(
            _difference(
                facts, inside.series, noise, own, value, moved[1][name] - moved[0][name], margin,
                n=inside.n, d=inside.d, law=inside.law, quantity=name,
            )
        )  # fmt: skip
    return found


def _paired_noise(
    inside: Fit, outside: Fit, draws: int, seed: int
) -> tuple[list[np.ndarray], Noise]:
    """Log noise of the runs' losses in domain and out of it, [B, R] each; and that of their difference."""
    fits = (inside, outside)
    scales = [math.sqrt(float(np.mean(fit.squares_R**2))) for fit in fits]
    over = [1 / scale if scale else 0.0 for scale in scales]
    strata = _strata(inside.series) + _strata(outside.series)
    deviations = [fit.deviations_RQ for fit in fits]
    tangent_RP = (inside.tangent_RP + outside.tangent_RP) / 2
    clusters = inside.series.clusters
    rng = np.random.default_rng([seed, 2])
    drawn = []
    for signs in ((0.5, 0.5), (-1.0, 1.0)):
        weights = [sign * own for sign, own in zip(signs, over, strict=True)]
        residuals_R = weights[0] * inside.squares_R + weights[1] * outside.squares_R
        stacked_RQ = within_strata(_stacked(deviations, weights), strata)
        drawn.append(draw_run_noise(stacked_RQ, residuals_R, tangent_RP, clusters, draws, rng))
    both, apart = drawn
    noise_BR = []
    for fit, scale, half in zip(fits, scales, (-0.5, 0.5), strict=True):
        own_RQ = within_strata(fit.deviations_RQ, fit.series.strata)
        shift_BR = log_shift(query_shifts(own_RQ, draws, rng, fit.series.strata))
        noise_BR.append(shift_BR + scale * (both.runs_BR + half * apart.runs_BR))
    return noise_BR, apart


def _stacked(deviations: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Deviations side by side, float64 [R, Q], whose mean is the weighted sum of their own means."""
    queries = sum(own.shape[1] for own in deviations)
    return np.hstack(
        [
            weight * queries / own.shape[1] * own
            for own, weight in zip(deviations, weights, strict=True)
        ]
    )


def _strata(one: Series) -> tuple[int, ...]:
    return one.strata or (len(one.query_ids),)


def _same_runs(inside: Series, outside: Series) -> Pair:
    common = set(runs_of(inside)) & set(runs_of(outside))
    if not common:
        raise ConfigError(f"{outside.name}: none of its runs is measured in domain")
    inside, outside = (
        one.keep(
            np.array([run in common for run in runs_of(one)], bool), "not measured in both domains"
        )
        for one in (inside, outside)
    )
    return inside, outside


def _difference(
    facts: dict[str, Any],
    inside: Series,
    noise: Noise,
    own: Sequence[Interval],
    value: float,
    draws_B: np.ndarray,
    margin: float,
    *,
    quantity: str,
    n: str,
    d: str = "",
    law: str = "",
) -> DomainDifference:
    whole, narrow = (interval(value, draws_B, level) for level in (_CONFIDENCE, _EQUIVALENCE))
    if -margin < narrow.low and narrow.high < margin:
        verdict = "same"
    else:
        verdict = "differs" if whole.low > 0 or whole.high < 0 else "undecided"
    return DomainDifference(
        **facts,
        against=f"{inside.collection} {inside.split}",
        law=law,
        n=n,
        d=d,
        quantity=quantity,
        inside=own[0],
        outside=own[1],
        difference=whole,
        confidence=_CONFIDENCE,
        margin=margin,
        verdict=verdict,
        degrees_of_freedom=noise.freedom,
        clusters=noise.clusters,
    )
