"""Sparse against dense at equal size, objective and variant: paired tests on the values of single queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from raylab.evaluation.domains import IN_DOMAIN
from raylab.evaluation.significance import Comparison
from raylab.report.rows import (
    OBJECTIVES,
    TRAINED,
    Benchmark,
    Result,
    Variation,
    benchmarks,
    rank,
)
from raylab.report.tables import GridTable
from raylab.scaling.twins import Twins, twins


@dataclass(frozen=True)
class HeadsCompared:
    """The sparse cell against the dense cell of one size, objective and variant on one benchmark."""

    benchmark: Benchmark
    variant: Variation
    twins: Twins

    @property
    def size(self) -> str:
        return self.twins.size

    @property
    def objective(self) -> str:
        return self.twins.objective

    @property
    def comparison(self) -> Comparison:
        return self.twins.comparison

    @property
    def winner(self) -> str | None:
        """The system that is better, None where Holm's correction of the t-test leaves it open."""
        test = self.comparison
        if not self.twins.differ:
            return None
        return test.b if test.difference > 0 else test.a


def compare_heads(rows: Sequence[Result], per_query: pd.DataFrame) -> list[HeadsCompared]:
    """Every sparse cell with its dense twin on the primary measure of every benchmark.

    Pairs that ask one question are one family (`raylab.scaling.twins`), and the same one wherever its tests
    are shown. Ordered as `benchmarks`, then by size, objective and variant; empty where no cell has a twin,
    or a benchmark fewer than 2 queries.

    Args:
        per_query: as `raylab.storage.tables` describes it.
    """
    variants = {row.variant: Variation.of(row) for row in rows if row.kind == TRAINED}
    sizes = list(dict.fromkeys(row.size for row in rows))  # by parameters
    every = benchmarks(rows)
    results = pd.DataFrame([vars(row) for row in rows])
    by_place: dict[tuple[str, str, str], list[Twins]] = {}
    for measure in dict.fromkeys(benchmark.primary for benchmark in every):
        asked = results.loc[_asked(results, every, measure)]
        for pair in twins(asked, per_query, measure):
            by_place.setdefault((pair.collection, pair.split, measure), []).append(pair)
    compared = []
    for benchmark in every:
        place = benchmark.collection, benchmark.split, benchmark.primary
        found = [
            HeadsCompared(benchmark, variants[pair.variant], pair)
            for pair in by_place.get(place, ())
        ]
        compared += sorted(found, key=lambda one: _order(sizes, one))
    return compared


def _asked(results: pd.DataFrame, every: Sequence[Benchmark], measure: str) -> list[bool]:
    """Which rows are of a question that is asked by a measure: of splits whose primary one it is, and of
    all out of domain where it is that of one of them."""
    domains = {one.domain for one in every if one.primary == measure} - {IN_DOMAIN}
    of = {
        (one.collection, one.split)
        for one in every
        if one.primary == measure or one.domain in domains
    }
    places = zip(results["collection"], results["split"], strict=True)
    return [place in of for place in places]


def mark(table: GridTable, tests: Sequence[HeadsCompared]) -> GridTable:
    """The table with a mark on every cell that a test found better than its twin."""
    winners = {test.winner for test in tests if test.benchmark == table.benchmark} - {None}
    lines = tuple(replace(line, beats_twin=line.system in winners) for line in table.lines)
    return replace(table, lines=lines)


def _order(sizes: Sequence[str | None], one: HeadsCompared) -> tuple:
    return sizes.index(one.size), rank(OBJECTIVES, one.objective), one.variant.rank
