"""The laws of a report: what is fitted, forecast and claimed of its held-out splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from raylab.evaluation.entropy import MEASURE as ENTROPY
from raylab.report.rows import TRAINED, Result, benchmarks
from raylab.scaling import Law, Series, Study, claims, laws_of, series

GAIN = "nDCG@10"
TARGETS = (ENTROPY, GAIN)
DRAWS = 1000


def study(
    rows: Sequence[Result], results: pd.DataFrame, per_query: pd.DataFrame, draws: int = DRAWS
) -> Study:
    """Fit what the runs allow: laws of N and D where budgets vary, else of the one that varies.

    Validation splits are left out, and runs of other variants than the plain recipe and budgets.
    """
    fitted = Study(draws)
    if not any(row.kind == TRAINED for row in rows):
        return fitted
    for benchmark in benchmarks(rows):
        where: dict[str, Any] = {"collection": benchmark.collection, "split": benchmark.split}
        if not benchmark.held_out:
            continue
        for one in series(results, per_query, TARGETS, **where):
            for law in _laws(one):
                fitted.add(one, law)
        for measure in TARGETS:
            if measure in benchmark.measures:
                tests = claims(results, per_query, measure, draws=draws, **where)
                # Entropies of two heads have two temperatures: which head is better they do not tell.
                fitted.claims += [one for one in tests if measure != ENTROPY or not one.size]
    return fitted


def _laws(whole: Series) -> tuple[Law, ...]:
    sizes = len(set(whole.sizes))
    budgets = len({design[1:] for design in whole.designs})
    if sizes > 1 and budgets > 1:
        return laws_of("N", "D")
    return laws_of("N") if budgets == 1 else laws_of("D")
