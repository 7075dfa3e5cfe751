"""Sparse against dense at equal size and objective: paired tests on the values of single queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from raylab.evaluation.significance import Comparison, PerQuery, compare
from raylab.report.rows import OBJECTIVES, TRAINED, Benchmark, Result, benchmarks, rank


@dataclass(frozen=True)
class HeadsCompared:
    """The sparse cell against the dense cell of one size and objective on one benchmark."""

    benchmark: Benchmark
    size: str
    objective: str
    comparison: Comparison


def compare_heads(rows: Sequence[Result], per_query: pd.DataFrame) -> list[HeadsCompared]:
    """Every sparse cell with its dense twin on the primary measure of every benchmark, as one family.

    A cell with several seeds has, for each query, their mean. Ordered as `benchmarks`, then by size
    and objective; empty where no cell has a twin, or a benchmark fewer than 2 queries.

    Args:
        per_query: as `raylab.results` describes it.
    """
    trained = [row for row in rows if row.kind == TRAINED]
    sizes = list(dict.fromkeys(row.size for row in trained if row.size))  # by parameters
    named = {(row.size, row.objective, row.head): row.system for row in trained}
    twins = [
        (size, objective, named[size, objective, "dense"], named[size, objective, "sparse"])
        for size in sizes
        for objective in sorted({o for s, o, _ in named if s == size and o}, key=_by_objective)
        if {(size, objective, "dense"), (size, objective, "sparse")} <= named.keys()
    ]
    values: dict[tuple[str, str], PerQuery] = {}
    about: list[tuple[Benchmark, str, str]] = []
    for benchmark in benchmarks(rows):
        systems = _values(per_query, benchmark)
        for size, objective, *names in twins:
            pair = {name: systems.get(name, {}) for name in names}
            if all(len(own) > 1 for own in pair.values()):
                values[f"{benchmark.name} {size} {objective}", benchmark.primary] = pair
                about.append((benchmark, size, objective))
    if not values:
        return []
    # One pair a key, dense first, in the order of the keys.
    return [HeadsCompared(*a, one) for a, one in zip(about, compare(values), strict=True)]


def _by_objective(objective: str) -> tuple[int, str]:
    return rank(OBJECTIVES, objective)


def _values(per_query: pd.DataFrame, benchmark: Benchmark) -> PerQuery:
    """System -> query -> mean over seeds, of the benchmark's primary measure."""
    own = per_query.query(benchmark.primary_filter)
    columns = (own[name].tolist() for name in ("system", "query_id", "value"))
    listed: dict[str, dict[str, list[float]]] = {}
    for system, query_id, value in zip(*columns, strict=True):
        listed.setdefault(system, {}).setdefault(query_id, []).append(value)
    return {
        system: {query_id: sum(found) / len(found) for query_id, found in by_query.items()}
        for system, by_query in listed.items()
    }
