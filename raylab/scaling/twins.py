"""Sparse against dense at equal size, objective and variant: one family of tests a question.

In domain the question is which heads differ on one split by one measure; its family is every pair of trained
twins there. Out of domain it is which heads differ on collections that they were not trained on, by one
measure; its family is every pair on every one of those collections, and no test is of a mean over them.
A family is of all objectives and variants, whatever part of them is shown, so that a pair has the same
corrected p in every table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import pandas as pd

from raylab.evaluation.domains import IN_DOMAIN, Domain, domain
from raylab.evaluation.significance import DRAWS, Comparison, compare, corrected
from raylab.experiment.heads import DENSE, SPARSE

LEVEL = 0.05
_PLACE = ["collection", "split", "measure"]
_KEY = ["size", "objective", "variant"]
Key = tuple[str, str, str]
"""Size, objective and variant."""


@dataclass(frozen=True)
class Twins:
    """The sparse system (`b`) against the dense one (`a`) of one size, objective and variant.

    `question`: what the family of tests is about.
    """

    collection: str
    split: str
    measure: str
    size: str
    objective: str
    variant: str
    domain: Domain
    comparison: Comparison
    question: str = ""

    @property
    def differ(self) -> bool:
        """Whether the paired t-test says so, corrected by Holm for the family."""
        return self.comparison.p_t_holm <= LEVEL


def twins(
    results: pd.DataFrame, per_query: pd.DataFrame, measure: str, draws: int = DRAWS
) -> list[Twins]:
    """Every pair of trained twins by a measure, split by split; a pair's values are means over its seeds.

    Pairs with fewer than 2 queries, and runs with a value that is not finite, are left out. So are two
    cells that were trained on different collections.

    Args:
        results: of all splits, since families reach over those out of domain.
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
    found: list[Twins] = []
    for place, rows in trained.groupby(_PLACE[:2], sort=True):
        if place in values:
            found += _on_split(rows, values[place], draws)
    return _in_families(found)


def _in_families(found: list[Twins]) -> list[Twins]:
    """The pairs with their questions, corrected for all that ask the same one."""
    out = len({one.collection for one in found if one.domain != IN_DOMAIN})
    outside = f"{out} collection{'' if out == 1 else 's'} out of domain"
    families: dict[str, list[int]] = {}
    for place, one in enumerate(found):
        of = f"{one.collection} {one.split}" if one.domain == IN_DOMAIN else outside
        families.setdefault(f"sparse against dense on {of} by {one.measure}", []).append(place)
    told = list(found)
    for question, places in families.items():
        tests = corrected([found[place].comparison for place in places])
        for place, test in zip(places, tests, strict=True):
            told[place] = replace(found[place], comparison=test, question=question)
    return told


def _on_split(rows: pd.DataFrame, values: pd.DataFrame, draws: int) -> list[Twins]:
    """The pairs of one split, corrected for nothing yet."""
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
        key: (trained_on, names)
        for key, trained_on, names in _pairs(rows)
        if all(len(means.get(name, ())) > 1 for name in names)
    }
    tests: dict[Key, Comparison] = {}
    # Pairs over the same queries share the draws of signs.
    for keys in _by_queries({key: means[names[0]] for key, (_, names) in pairs.items()}):
        of_keys = [pairs[key][1] for key in keys]
        systems = {name: means[name] for names in of_keys for name in names}
        compared = compare({(f"{collection} {split}", measure): systems}, of_keys, draws=draws)
        tests |= zip(keys, compared, strict=True)
    return [
        Twins(collection, split, measure, *key, domain(collection, trained_on), tests[key])
        for key, (trained_on, _) in pairs.items()
    ]


def _by_queries(values: Mapping[Key, Mapping[str, float]]) -> list[list[Key]]:
    """Keys whose values are of the same queries, together."""
    same: dict[frozenset[str], list[Key]] = {}
    for key, by_query in values.items():
        same.setdefault(frozenset(by_query), []).append(key)
    return list(same.values())


def _pairs(rows: pd.DataFrame) -> Iterator[tuple[Key, str, tuple[str, str]]]:
    """Size, objective and variant; what both were trained on; names of the dense and the sparse system."""
    systems: dict[Key, dict[str, tuple[str, str]]] = {}
    if "trained_on" not in rows.columns:
        rows = rows.assign(trained_on=None)
    rows = rows.assign(trained_on=rows["trained_on"].fillna(""))
    columns = (rows[name].tolist() for name in (*_KEY, "head", "system", "trained_on"))
    for size, objective, variant, head, system, trained_on in zip(*columns, strict=True):
        systems.setdefault((size, objective, variant), {})[head] = system, trained_on
    for key, named in sorted(systems.items()):
        if {DENSE.name, SPARSE.name} <= named.keys():
            (dense, of_dense), (sparse, of_sparse) = named[DENSE.name], named[SPARSE.name]
            if of_dense == of_sparse:
                yield key, of_dense, (dense, sparse)
