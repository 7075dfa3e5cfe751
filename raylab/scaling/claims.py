"""The paper's three claims (2502.15526) as tests on results.

1. `improves with size`: contrastive retrievers (CL) get better with size: the slope of the measure on
   log10 N, within budgets, and its 95 % interval.
2. `flat in size`: distilled ones (KD) do not: a claim of equivalence, so the 90 % interval of the same
   slope must lie inside a margin (two one-sided tests of 5 %, Schuirmann 1987).
3. `sparse beats dense`, at equal size and objective: paired over queries, means over seeds, corrected by Holm for
   all pairs that ask the same question (`raylab.scaling.twins`). It is of these trained models: noise between
   seeds is not in it. It is never of a mean over collections.

1 and 2 are about sizes, so sizes are what is counted: a slope over 5 of them has 3 degrees of freedom,
however many budgets and seeds each has.

Legend: R runs, Q queries, B draws.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from raylab.experiment.config import ConfigError
from raylab.experiment.heads import DENSE, SPARSE
from raylab.experiment.objectives import CL, KD, Objective
from raylab.scaling.bootstrap import Interval, interval, within_strata
from raylab.scaling.clusters import Noise, draw_noise
from raylab.scaling.points import Facts, Series, as_loss, is_entropy, series
from raylab.scaling.twins import LEVEL, Twins, twins

MARGIN = 0.02
IMPROVES, FLAT, BEATS = "improves with size", "flat in size", "sparse beats dense"
Name = Literal["improves with size", "flat in size", "sparse beats dense"]


@dataclass(frozen=True, kw_only=True)
class Claim(Facts):
    """One test of a claim.

    `estimate`: with the interval of `confidence`, of this test alone; of 1 and 2 the slope of the measure
    per decade of N, of 3 the mean difference sparse - dense, in the measure's own unit and direction.
    `verdict`: `improves`, `worsens` or `undecided`; `flat`, `not flat` or `undecided`; `sparse`, `dense` or
    `undecided`; `untested` where it cannot be tested, with the `reason`. `p`: of 3, by the paired t-test
    corrected by Holm for the `family` of pairs that ask the same `question`. `size`: of 3. `margin`: of 2.
    `degrees_of_freedom`: of the `clusters`, sizes (1 and 2) or queries (3).
    """

    claim: Name
    n: str
    size: str
    estimate: Interval
    confidence: float
    verdict: str
    reason: str
    p: float
    family: int
    question: str
    margin: float
    degrees_of_freedom: float
    clusters: str


def claims(
    results: pd.DataFrame,
    per_query: pd.DataFrame,
    measure: str = "nDCG@10",
    *,
    margin: float = MARGIN,
    n: str = "parameters",
    draws: int = 1000,
    seed: int = 0,
    head: str | None = None,
    objective: str | None = None,
    collection: str | None = None,
    split: str | None = None,
    variant: str | None = None,
) -> list[Claim]:
    """Every test of the three claims that the results allow, claim by claim.

    Args:
        margin: of the slope per decade of N within which it counts as flat, in the measure's unit.
        variant: a glob; None takes the plain recipe, or where a series has no such runs those of its budgets.

    Raises:
        ConfigError: as `raylab.scaling.series`; a margin that is not positive.
    """
    if not margin > 0:
        raise ConfigError(f"margin = {margin}: it must be positive, in {measure} per decade of N")
    series_found = series(
        results, per_query, (measure,), collection=collection, split=split, variant=variant
    )
    if variant is None:
        series_found = [plain_recipe(one) for one in series_found]
    wanted = [one for one in series_found if objective in (None, one.objective)]
    of_head = [one for one in wanted if head in (None, one.head)]
    tests = slope_claims(of_head, margin=margin, n=n, draws=draws, seed=seed)
    if head is None:
        # One draw: the t-test is what counts here, not the randomisation test.
        tests += sparse_claims(wanted, twins(results, per_query, measure, draws=1), n)
    return tests


def slope_claims(
    series_found: Sequence[Series],
    *,
    margin: float = MARGIN,
    n: str = "parameters",
    draws: int = 1000,
    seed: int = 0,
) -> list[Claim]:
    """The claims about size: those of CL, then those of KD."""
    tests: list[Claim] = []
    kinds: tuple[tuple[Name, Objective, float], ...] = ((IMPROVES, CL, 0.95), (FLAT, KD, 0.90))
    for claim, objective, confidence in kinds:
        for one in series_found:
            if one.objective == objective.name:
                tests.append(_slope_test(claim, one, n, confidence, margin, draws, seed))
    return tests


def plain_recipe(whole: Series) -> Series:
    """The runs of the plain recipe, or where a series has none those of its budgets."""
    plain = np.array([variant == "" for variant in whole.variants])
    return whole.keep(plain) if plain.any() else whole


# ---------------------------------------------------------------------------- the slope on size


def slope(
    one: Series, n: str = "parameters", confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[Interval, Noise]:
    """Slope of the measure on log10 N by least squares, and the noise behind its interval.

    Runs of several budgets share the slope and have a constant each. The interval is of the hierarchical
    bootstrap (`raylab.scaling.bootstrap`).

    Raises:
        ConfigError: fewer than 3 sizes, or than 2 more than the sets of them that budgets join.
    """
    one, design = size_design(one, n)
    values_RQ = as_loss(one.measure, one.losses_RQ)  # the measure itself, in its own direction
    values_R = values_RQ.mean(1)
    inverse = np.linalg.pinv(design)
    residuals_R = values_R - design @ (inverse @ values_R)
    deviations_RQ = within_strata(values_RQ - values_R[:, None], one.strata)
    noise = draw_noise(deviations_RQ, residuals_R, design, one.clusters, draws, seed, one.strata)
    estimate = float(inverse[0] @ values_R)
    draws_B = estimate + (noise.queries_BR + noise.runs_BR) @ inverse[0]
    return interval(estimate, draws_B, confidence), noise


def size_design(one: Series, n: str = "parameters") -> tuple[Series, np.ndarray]:
    """The runs whose N is known, and log10 N beside a constant for each budget, float64 [R, 1 + budgets].

    Raises:
        ConfigError: as `slope`.
    """
    n_R = one.covariate("N", n)
    known = np.isfinite(n_R) & (n_R > 0)
    one, n_R = one.keep(known, f"no {n}"), n_R[known]
    groups = [(v, b) for _, v, b in one.designs]
    if _freedom(n_R, groups) < 1:
        sizes = len(set(one.sizes))
        raise ConfigError(
            f"{one.name}: a slope over sizes needs 3 of them, joined by budgets that they share; there are "
            f"{sizes} sizes, {len(set(groups))} budgets"
        )
    constants = [np.array([g == group for g in groups], float) for group in sorted(set(groups))]
    return one, np.column_stack([np.log10(n_R), *constants])


def _freedom(n_R: np.ndarray, groups: Sequence[tuple[str, float]]) -> int:
    """Sizes less the slope and a constant for each set of sizes that budgets join."""
    sizes = np.unique(n_R)
    joined = {size: {size} for size in sizes.tolist()}
    for group in set(groups):
        together = {n for n, own in zip(n_R.tolist(), groups, strict=True) if own == group}
        union = set().union(*(joined[n] for n in together))
        for n in union:
            joined[n] = union
    parts = len({id(part) for part in joined.values()})
    return len(sizes) - 1 - parts


def _slope_test(
    claim: Name, one: Series, n: str, confidence: float, margin: float, draws: int, seed: int
) -> Claim:
    try:
        estimate, noise = slope(one, n, confidence, draws, seed)
        freedom, clusters, reason = noise.freedom, noise.clusters, ""
    except ConfigError as error:
        estimate, reason = Interval(math.nan, math.nan, math.nan), str(error)
        freedom, clusters = 0, f"{len(set(one.sizes))} sizes"
    if reason:
        verdict = "untested"
    elif claim == IMPROVES:
        verdict = _direction(estimate, one.measure)
    else:
        verdict = _flatness(estimate, margin)
    return Claim(
        **one.facts(n),
        claim=claim,
        n=n,
        size="",
        estimate=estimate,
        confidence=confidence,
        verdict=verdict,
        reason=reason,
        p=math.nan,
        family=1,
        question="",
        margin=margin if claim == FLAT else math.nan,
        degrees_of_freedom=freedom,
        clusters=clusters,
    )


def _direction(estimate: Interval, measure: str) -> str:
    low, high = estimate.low, estimate.high
    if is_entropy(measure):
        low, high = -high, -low
    return "improves" if low > 0 else "worsens" if high < 0 else "undecided"


def _flatness(estimate: Interval, margin: float) -> str:
    if -margin < estimate.low and estimate.high < margin:
        return "flat"
    return "not flat" if estimate.low > margin or estimate.high < -margin else "undecided"


# ------------------------------------------------------------------------------- sparse or dense


def sparse_claims(
    series_found: Sequence[Series], pairs: Sequence[Twins], n: str = "parameters"
) -> list[Claim]:
    """The claim about heads, of every pair whose runs are in the series."""
    parts: dict[tuple, dict[str, Series]] = defaultdict(dict)
    for one in series_found:
        for size, variant in dict.fromkeys(zip(one.sizes, one.variants, strict=True)):
            chosen = [d[:2] == (size, variant) for d in one.designs]
            key = (one.collection, one.split, size, one.objective, variant)
            parts[key][one.head] = one.keep(np.array(chosen))
    by_key = {(p.collection, p.split, p.size, p.objective, p.variant): p for p in pairs}
    return [
        _sparse_claim(by_key[key], heads[SPARSE.name], heads[DENSE.name], n)
        for key, heads in parts.items()
        if {SPARSE.name, DENSE.name} <= heads.keys() and key in by_key
    ]


def _sparse_claim(pair: Twins, sparse: Series, dense: Series, n: str) -> Claim:
    test = pair.comparison
    sign = -1 if is_entropy(sparse.measure) else 1
    better = "sparse" if sign * test.difference > 0 else "dense"
    seeds = tuple(sorted(set(sparse.seeds) & set(dense.seeds)))
    facts = sparse.facts(n) | {
        "head": "sparse - dense",
        "where": sparse.variants[0],
        "n_runs": len(sparse.seeds) + len(dense.seeds),
        "seeds": seeds,
        "excluded": sparse.excluded + dense.excluded,
    }
    return Claim(
        **facts,
        claim=BEATS,
        n=n,
        size=sparse.sizes[0],
        estimate=Interval(test.difference, test.low, test.high),
        confidence=1 - LEVEL,
        verdict=better if pair.differ else "undecided",
        reason="",
        p=test.p_t_holm,
        family=test.family,
        question=pair.question,
        margin=math.nan,
        degrees_of_freedom=test.queries - 1,
        clusters=f"{test.queries} queries",
    )
