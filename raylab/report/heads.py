"""Sparse against dense at equal size, objective and variant: paired tests on the values of single queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from raylab.evaluation.significance import Comparison, PerQuery, compare
from raylab.experiment.heads import DENSE, SPARSE
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

LEVEL = 0.05


@dataclass(frozen=True)
class HeadsCompared:
    """The sparse cell against the dense cell of one size, objective and variant on one benchmark."""

    benchmark: Benchmark
    size: str
    objective: str
    variant: Variation
    comparison: Comparison

    @property
    def winner(self) -> str | None:
        """The system that is better, None where Holm's correction of the t-test leaves it open."""
        test = self.comparison
        if not test.p_t_holm <= LEVEL:
            return None
        return test.b if test.difference > 0 else test.a


def compare_heads(rows: Sequence[Result], per_query: pd.DataFrame) -> list[HeadsCompared]:
    """Every sparse cell with its dense twin on the primary measure of every benchmark, as one family.

    A cell with several seeds has, for each query, their mean. Ordered as `benchmarks`, then by size
    objective and variant; empty where no cell has a twin, or a benchmark fewer than 2 queries.

    Args:
        per_query: as `raylab.storage.tables` describes it.
    """
    named: dict[tuple[str, str, Variation], dict[str | None, str]] = {}  # in the order of the rows
    for row in rows:
        if row.kind == TRAINED and row.size and row.objective:
            key = row.size, row.objective, Variation.of(row)
            named.setdefault(key, {})[row.head] = row.system
    sizes = list(dict.fromkeys(row.size for row in rows))  # by parameters
    twins = [
        (*key, systems[DENSE.name], systems[SPARSE.name])
        for key, systems in sorted(named.items(), key=lambda item: _order(sizes, *item[0]))
        if {DENSE.name, SPARSE.name} <= systems.keys()
    ]
    values: dict[tuple[str, str], PerQuery] = {}
    about: list[tuple[Benchmark, str, str, Variation]] = []
    for benchmark in benchmarks(rows):
        systems = _values(per_query, benchmark)
        for size, objective, variant, *names in twins:
            pair = {name: systems.get(name, {}) for name in names}
            if all(len(by_query) > 1 for by_query in pair.values()):
                where = " ".join((benchmark.name, size, objective, variant.name)).strip()
                values[where, benchmark.primary] = pair
                about.append((benchmark, size, objective, variant))
    if not values:
        return []
    # One pair a key, dense first, in the order of the keys.
    return [HeadsCompared(*a, one) for a, one in zip(about, compare(values), strict=True)]


def mark(table: GridTable, tests: Sequence[HeadsCompared]) -> GridTable:
    """The table with a mark on every cell that a test found better than its twin."""
    winners = {test.winner for test in tests if test.benchmark == table.benchmark} - {None}
    lines = tuple(replace(line, beats_twin=line.system in winners) for line in table.lines)
    return replace(table, lines=lines)


def _order(sizes: Sequence[str | None], size: str, objective: str, variant: Variation) -> tuple:
    return sizes.index(size), rank(OBJECTIVES, objective), variant.rank


def _values(per_query: pd.DataFrame, benchmark: Benchmark) -> PerQuery:
    """System -> query -> mean over seeds, of the benchmark's primary measure."""
    of_benchmark = per_query.query(benchmark.primary_filter)
    columns = (of_benchmark[name].tolist() for name in ("system", "query_id", "value"))
    listed: dict[str, dict[str, list[float]]] = {}
    for system, query_id, value in zip(*columns, strict=True):
        listed.setdefault(system, {}).setdefault(query_id, []).append(value)
    return {
        system: {query_id: sum(seeds) / len(seeds) for query_id, seeds in by_query.items()}
        for system, by_query in listed.items()
    }
