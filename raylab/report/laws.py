"""The laws of a report: what is fitted, forecast and claimed of its held-out splits, in domain and out of it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from raylab.evaluation.entropy import MEASURE as ENTROPY
from raylab.report.published import same_benchmark
from raylab.report.rows import TRAINED, Benchmark, Result, benchmarks
from raylab.scaling import Law, Series, Study, laws_of, macro_means, series
from raylab.scaling.claims import plain_recipe, slope_claims, sparse_claims
from raylab.scaling.twins import twins

GAIN = "nDCG@10"
TARGETS = (ENTROPY, GAIN)
DRAWS = 1000


def study(
    rows: Sequence[Result], results: pd.DataFrame, per_query: pd.DataFrame, draws: int = DRAWS
) -> Study:
    """Fit what the runs allow: laws of N and D where budgets vary, else of the one that varies.

    Validation splits are left out, but for MS MARCO dev, which is published; so are runs of other variants than
    the plain recipe and budgets. Where cells are measured on several collections out of domain, laws and slopes
    are also of the mean over them; which head is better is tested on each alone.
    """
    fitted = Study(draws)
    if not any(row.kind == TRAINED for row in rows):
        return fitted
    place = _places(rows)
    every = shown_series(rows, results, per_query)
    means = macro_means(every)
    for one in (*every, *means):
        for law in _laws(one):
            fitted.add(one, law)
    # Entropies of two heads have two temperatures: which head is better they do not tell. One draw: the
    # t-test is what counts here, not the randomisation test.
    pairs = twins(results, per_query, GAIN, draws=1)
    for where in place:
        for measure in TARGETS:
            own = _plain(every, where, measure)
            fitted.claims += slope_claims(own, draws=draws)
            fitted.claims += sparse_claims(own, pairs if measure == GAIN else [])
    fitted.claims += slope_claims([plain_recipe(one) for one in means], draws=draws)
    fitted.compare_domains([*every, *means])
    return fitted


def shown_series(
    rows: Sequence[Result], results: pd.DataFrame, per_query: pd.DataFrame
) -> list[Series]:
    """What laws are fitted to, in the order of the benchmarks; none where nothing is trained."""
    if not any(row.kind == TRAINED for row in rows):
        return []
    place = _places(rows)
    every = [
        one for one in series(results, per_query, TARGETS) if (one.collection, one.split) in place
    ]
    return sorted(every, key=lambda one: place[one.collection, one.split])


def _places(rows: Sequence[Result]) -> dict[tuple[str, str], int]:
    shown = [one for one in benchmarks(rows) if one.held_out or _is_published(one)]
    return {(one.collection, one.split): number for number, one in enumerate(shown)}


def _is_published(benchmark: Benchmark) -> bool:
    return same_benchmark(benchmark.collection, benchmark.split) is not None


def _plain(every: Sequence[Series], where: tuple[str, str], measure: str) -> list[Series]:
    return [
        plain_recipe(one)
        for one in every
        if (one.collection, one.split) == where and one.measure == measure
    ]


def _laws(whole: Series) -> tuple[Law, ...]:
    sizes = len(set(whole.sizes))
    budgets = len({design[1:] for design in whole.designs})
    if sizes > 1 and budgets > 1:
        return laws_of("N", "D")
    return laws_of("N") if budgets == 1 else laws_of("D")
