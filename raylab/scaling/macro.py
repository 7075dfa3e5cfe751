"""Series over all collections out of domain: the mean of their means, each collection with one weight.

A run's loss is the mean over collections of its mean over queries. The values of a series are scaled so that
their plain mean is that: those of a collection with n of all Q queries by Q / (C n), for C collections. The
queries of a collection are its stratum: the bootstrap draws them among themselves, so that how collections
differ from each other, which were chosen, is no noise. No test of significance is of such a mean.

Legend: R runs, Q queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from raylab.evaluation.domains import OUT_OF_DOMAIN
from raylab.scaling.points import Series

# What differs between collections, so that a mean over them says nothing.
_OF_A_COLLECTION = ("retrieval_flops", "index_bytes")


def macro_means(series_found: Sequence[Series]) -> list[Series]:
    """A mean over the collections out of domain for each (head, objective, measure) that has two or more.

    Splits of one collection share its weight. Runs that some split lacks are left out, with the reason.
    """
    by_key: dict[tuple[str, str, str], list[Series]] = {}
    for one in series_found:
        if one.domain == OUT_OF_DOMAIN:
            by_key.setdefault((one.head, one.objective, one.measure), []).append(one)
    means = [
        _mean(parts) for parts in by_key.values() if len({one.collection for one in parts}) > 1
    ]
    return [one for one in means if one.systems]


def runs_of(one: Series) -> list[tuple[str, int]]:
    """(system, seed) of each run."""
    return list(zip(one.systems, one.seeds, strict=True))


def _losses(one: Series, runs: Sequence[tuple[str, int]]) -> np.ndarray:
    """Losses of these runs of a series, in their order, float64 [R, Q]."""
    place = {run: r for r, run in enumerate(runs_of(one))}
    return one.losses_RQ[[place[run] for run in runs]]


def _mean(parts: Sequence[Series]) -> Series:
    common = set.intersection(*(set(runs_of(one)) for one in parts))
    names = [one.collection for one in parts]
    collections = len(set(names))
    every = {run: None for one in parts for run in runs_of(one)}
    left_out = tuple(
        f"{system}-seed{seed}: not measured on all {collections} collections"
        for system, seed in every
        if (system, seed) not in common
    )
    first = parts[0].keep(np.array([run in common for run in runs_of(parts[0])], bool))
    runs, queries = runs_of(first), sum(len(one.query_ids) for one in parts)
    losses = [
        _losses(one, runs)
        * (queries / (len(one.query_ids) * collections * names.count(one.collection)))
        for one in parts
    ]
    unknown = dict.fromkeys(_OF_A_COLLECTION, np.full(len(runs), np.nan))
    return dataclasses.replace(
        first,
        collection=f"{collections} collections",
        split=OUT_OF_DOMAIN,
        numbers=first.numbers | unknown,
        query_ids=tuple(
            f"{one.collection} {one.split} {query_id}"
            for one in parts
            for query_id in one.query_ids
        ),
        losses_RQ=np.hstack(losses),
        excluded=tuple(dict.fromkeys(line for one in parts for line in one.excluded)) + left_out,
        strata=tuple(len(one.query_ids) for one in parts),
    )
