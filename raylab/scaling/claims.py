"""The paper's three claims (2502.15526) as tests on results.

1. `improves with size`: contrastive retrievers (CL) get better with size: the slope of the measure on
   log10 N, within budgets, and its 95 % interval.
2. `flat in size`: distilled ones (KD) do not: a claim of equivalence, so the 90 % interval of the same
   slope must lie inside a margin (two one-sided tests of 5 %, Schuirmann 1987).
3. `sparse beats dense`, at equal size and objective: paired over queries, means over seeds, corrected by Holm for
   all such pairs of one call. It is of these trained models: noise between seeds is not in it.

Legend: R runs, Q queries, B draws.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from raylab.evaluation.significance import compare
from raylab.experiment.config import ConfigError
from raylab.experiment.objectives import CL, KD
from raylab.scaling.bootstrap import Interval, interval
from raylab.scaling.clusters import draw_noise
from raylab.scaling.points import Facts, Series, as_loss, is_entropy, series

MARGIN = 0.02
LEVEL = 0.05
IMPROVES, FLAT, BEATS = "improves with size", "flat in size", "sparse beats dense"
Name = Literal["improves with size", "flat in size", "sparse beats dense"]


@dataclass(frozen=True, kw_only=True)
class Claim(Facts):
    """One test of a claim.

    `estimate`: with the interval of `confidence`, of this test alone; of 1 and 2 the slope of the measure
    per decade of N, of 3 the mean difference sparse - dense, in the measure's own unit and direction.
    `verdict`: `improves`, `worsens` or `undecided`; `flat`, `not flat` or `undecided`; `sparse`, `dense` or
    `undecided`; `untested` where it cannot be tested, with the `reason`. `p`: of 3, by the paired t-test
    corrected by Holm. `family`: tests of the same claim in one call. `size`: of 3. `margin`: of 2.
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
    margin: float
    degrees_of_freedom: int


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
        series_found = [_plain(one) for one in series_found]
    wanted = [one for one in series_found if objective in (None, one.objective)]
    tests = []
    for one in wanted:
        if head in (None, one.head) and one.objective == CL.name:
            tests.append(_slope_test(IMPROVES, one, n, 0.95, margin, draws, seed))
    for one in wanted:
        if head in (None, one.head) and one.objective == KD.name:
            tests.append(_slope_test(FLAT, one, n, 0.90, margin, draws, seed))
    tests += _sparse_tests(wanted, n) if head is None else []
    sizes = {name: sum(t.claim == name for t in tests) for name in (IMPROVES, FLAT, BEATS)}
    return [replace(test, family=sizes[test.claim]) for test in tests]


def _plain(whole: Series) -> Series:
    plain = np.array([variant == "" for variant in whole.variants])
    return whole.keep(plain) if plain.any() else whole


# ---------------------------------------------------------------------------- the slope on size


def slope(
    one: Series, n: str = "parameters", confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[Interval, int]:
    """Slope of the measure on log10 N by least squares, and its degrees of freedom.

    Runs of several budgets share the slope and have a constant each. The interval is of the hierarchical
    bootstrap (`raylab.scaling.bootstrap`).

    Raises:
        ConfigError: fewer than 2 sizes within every budget, or no degree of freedom.
    """
    n_R = one.covariate("N", n)
    known = np.isfinite(n_R) & (n_R > 0)
    one, n_R = one.keep(known, f"no {n}"), n_R[known]
    groups = [(v, b) for _, v, b in one.designs]
    design = np.column_stack(
        [
            np.log10(n_R),
            *(np.array([g == group for g in groups], float) for group in sorted(set(groups))),
        ]
    )
    sizes, freedom = len(set(one.sizes)), _freedom(n_R, groups)
    if freedom < 1:
        raise ConfigError(
            f"{one.name}: a slope over sizes needs 3 of them, joined by budgets that they share; there are "
            f"{sizes} sizes, {len(set(groups))} budgets"
        )
    values_RQ = _values(one)
    values_R = values_RQ.mean(1)
    inverse = np.linalg.pinv(design)
    residuals_R = values_R - design @ (inverse @ values_R)
    deviations_RQ = values_RQ - values_R[:, None]
    noise = draw_noise(deviations_RQ, residuals_R, design, one.clusters, draws, seed)
    estimate = float(inverse[0] @ values_R)
    draws_B = estimate + (noise.queries_BR + noise.runs_BR) @ inverse[0]
    return interval(estimate, draws_B, confidence), freedom


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


def _values(one: Series) -> np.ndarray:
    """The measure itself, in its own direction: of a loss that lacks to 1, 1 - loss."""
    return as_loss(one.measure, one.losses_RQ)


def _slope_test(
    claim: Name, one: Series, n: str, confidence: float, margin: float, draws: int, seed: int
) -> Claim:
    try:
        estimate, freedom = slope(one, n, confidence, draws, seed)
        reason = ""
    except ConfigError as error:
        estimate, freedom, reason = Interval(math.nan, math.nan, math.nan), 0, str(error)
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
        margin=margin if claim == FLAT else math.nan,
        degrees_of_freedom=freedom,
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


def _sparse_tests(series_found: Sequence[Series], n: str) -> list[Claim]:
    pairs: dict[str, tuple[Series, Series]] = {}
    values: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    parts: dict[tuple, dict[str, Series]] = defaultdict(dict)
    for one in series_found:
        for size, variant in dict.fromkeys(zip(one.sizes, one.variants, strict=True)):
            chosen = [d[:2] == (size, variant) for d in one.designs]
            key = (one.objective, one.collection, one.split, size, variant)
            parts[key][one.head] = one.keep(np.array(chosen))
    for key, heads in parts.items():
        if not {"sparse", "dense"} <= heads.keys():
            continue
        where = "/".join(key)
        sparse, dense = pairs[where] = heads["sparse"], heads["dense"]
        values[where, sparse.measure] = {"dense": _by_query(dense), "sparse": _by_query(sparse)}
    if not values:
        return []
    # One draw: the t-test is what counts here, not the randomisation test.
    tests = compare(values, [("dense", "sparse")], 1 - LEVEL, draws=1)
    return [_sparse_claim(test, *pairs[test.where], n) for test in tests]


def _by_query(one: Series) -> dict[str, float]:
    return dict(zip(one.query_ids, _values(one).mean(0).tolist(), strict=True))


def _sparse_claim(test, sparse: Series, dense: Series, n: str) -> Claim:
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
        verdict=better if test.p_t_holm <= LEVEL else "undecided",
        reason="",
        p=test.p_t_holm,
        family=test.family,
        margin=math.nan,
        degrees_of_freedom=test.queries - 1,
    )
