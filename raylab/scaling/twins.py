"""Sparse against dense at equal size, objective and variant: one family of tests a question.

The question is which heads differ on one split by one measure; its family is every pair of trained twins
there, of all objectives and variants, whatever part of them is shown. So a pair has the same corrected p
in every table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd

from raylab.evaluation.significance import DRAWS, Comparison, compare
from raylab.experiment.heads import DENSE, SPARSE

LEVEL = 0.05
_PLACE = ["collection", "split", "measure"]
_KEY = ["size", "objective", "variant"]


@dataclass(frozen=True)
class Twins:
    """The sparse system (`b`) against the dense one (`a`) of one size, objective and variant."""

    collection: str
    split: str
    measure: str
    size: str
    objective: str
    variant: str
    comparison: Comparison

    @property
    def question(self) -> str:
        """What the family of tests is about."""
        return f"sparse against dense on {self.collection} {self.split} by {self.measure}"

    @property
    def differ(self) -> bool:
        """Whether the paired t-test says so, corrected by Holm for the family."""
        return self.comparison.p_t_holm <= LEVEL


def twins(
    results: pd.DataFrame, per_query: pd.DataFrame, measure: str, draws: int = DRAWS
) -> list[Twins]:
    """Every pair of trained twins by a measure, family by family; a pair's values are means over its seeds.

    Pairs with fewer than 2 queries, and runs with a value that is not finite, are left out.

    Args:
        draws: of the randomisation test.
    """
    trained = results.loc[(results["kind"] == "trained") & (results["measure"] == measure)]
    chosen = per_query.loc[
        (per_query["measure"] == measure) & per_query["system"].isin(list(trained["system"]))
    ]
    finite = np.isfinite(
        chosen.groupby(["system", "seed", *_PLACE], dropna=False)["value"].transform("sum")
    )
    values = dict(iter(chosen.loc[finite].groupby(_PLACE[:2])))
    found = []
    for place, rows in trained.groupby(_PLACE[:2], sort=True):
        if place in values:
            found += _family(rows, values[place], draws)
    return found


def _family(rows: pd.DataFrame, values: pd.DataFrame, draws: int) -> list[Twins]:
    collection, split, measure = rows[_PLACE].iloc[0]
    of_seeds: dict[str, dict[str, list[float]]] = {}
    columns = (values[name].tolist() for name in ("system", "query_id", "value"))
    for system, query_id, value in zip(*columns, strict=True):
        of_seeds.setdefault(system, {}).setdefault(query_id, []).append(value)
    means = {
        system: {query_id: fmean(seeds) for query_id, seeds in by_query.items()}
        for system, by_query in of_seeds.items()
    }
    pairs = {
        key: names
        for key, names in _pairs(rows)
        if all(len(means.get(name, ())) > 1 for name in names)
    }
    if not pairs:
        return []
    compared = {
        (" ".join((collection, split, *key)).strip(), measure): {
            name: means[name] for name in names
        }
        for key, names in pairs.items()
    }
    tests = compare(compared, draws=draws)
    return [
        Twins(collection, split, measure, *key, test)
        for key, test in zip(pairs, tests, strict=True)
    ]


def _pairs(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], tuple[str, str]]]:
    """Size, objective and variant with the names of the dense and the sparse system."""
    systems: dict[tuple[str, str, str], dict[str, str]] = {}
    columns = (rows[name].tolist() for name in (*_KEY, "head", "system"))
    for size, objective, variant, head, system in zip(*columns, strict=True):
        systems.setdefault((size, objective, variant), {})[head] = system
    for key, named in sorted(systems.items()):
        if {DENSE.name, SPARSE.name} <= named.keys():
            yield key, (named[DENSE.name], named[SPARSE.name])
