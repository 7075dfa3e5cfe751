"""The grid table: one benchmark, one line a cell, with its untrained line and the baselines.

A cell with one seed shows the mean over queries and its 95 % bootstrap interval over queries. A
cell with several seeds shows the mean over seeds and the lowest and highest seed, in other
brackets: intervals over queries cannot be averaged into one that also covers the seeds. The
intervals of the single seeds are in the full table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from statistics import fmean

from raylab.report.rows import TRAINED, UNTRAINED, Benchmark, Result, Variation


@dataclass(frozen=True)
class Estimate:
    """A value with its interval: over queries for one seed, lowest to highest for several."""

    value: float
    low: float | None
    high: float | None
    seeds: int = 1

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        if self.seeds > 1:
            return f"{self.value:.3f} ({self.low:.3f}..{self.high:.3f})"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Line:
    """A line of the grid table; steps and FLOPs are means over seeds.

    `gain` is against the untrained line of the same size and head; `seeds_below` counts the seeds
    that end below it. `best` is the best trained cell of its head on this benchmark. `beats_twin`: it
    is better than the cell of the other head that is otherwise alike (`heads.mark`).
    """

    kind: str
    system: str
    size: str | None
    head: str | None
    objective: str | None
    parameters: int | None
    estimate: Estimate
    gain: float | None = None
    seeds_below: int = 0
    best: bool = False
    steps: float | None = None
    budget_flops: float | None = None
    spent_flops: float | None = None
    variant: Variation = field(default_factory=Variation)
    corrupted_positives: float = 0.0
    corrupted_scores: float = 0.0
    beats_twin: bool = False
    passage_postings: float | None = None
    retrieval_flops: float | None = None
    index_bytes: float | None = None
    seeds: tuple[int, ...] = ()
    fingerprints: tuple[str, ...] = ()

    @property
    def below_untrained(self) -> bool:
        return self.gain is not None and self.gain < 0


@dataclass(frozen=True)
class GridTable:
    """The lines of one benchmark's primary measure: baselines first, then by size and head."""

    benchmark: Benchmark
    lines: tuple[Line, ...]

    @property
    def seeds(self) -> int:
        """The most seeds any line has."""
        return max((line.estimate.seeds for line in self.lines), default=0)

    @property
    def varied(self) -> str:
        """What the variants of its cells are: `budget`, `variant`, or nothing where there are none."""
        varied = [line.variant for line in self.of(TRAINED) if line.variant]
        if not varied:
            return ""
        return "budget" if all(v.budget_flops is not None for v in varied) else "variant"

    def of(self, kind: str) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.kind == kind)


def grid_table(
    rows: Sequence[Result], benchmark: Benchmark, measure: str | None = None
) -> GridTable:
    """The grid table of a benchmark from `rows.read_rows`; rows without a value are left out.

    Args:
        measure: of the benchmark, default its primary one.
    """
    where = (benchmark.collection, benchmark.split, measure or benchmark.primary)
    selected = [
        row
        for row in rows
        if (row.collection, row.split, row.measure) == where and row.value is not None
    ]
    untrained = {(row.size, row.head): row.value for row in selected if row.kind == UNTRAINED}
    cells = [tuple(group) for _, group in groupby(selected, key=_cell)]
    best = _best_by_head(cells)
    return GridTable(
        benchmark,
        tuple(_line(cell, untrained.get((cell[0].size, cell[0].head)), best) for cell in cells),
    )


def _cell(row: Result) -> tuple:
    return row.kind, row.system, row.size, row.head, row.objective, row.variant


def _values(cell: Iterable[Result]) -> list[float]:
    return [row.value for row in cell if row.value is not None]


def _best_by_head(cells: Iterable[Sequence[Result]]) -> dict[str | None, float]:
    best: dict[str | None, float] = {}
    for cell in cells:
        if cell[0].kind == TRAINED:
            value = fmean(_values(cell))
            best[cell[0].head] = max(value, best.get(cell[0].head, value))
    return best


def _line(cell: Sequence[Result], untrained: float | None, best: dict[str | None, float]) -> Line:
    first, estimate = cell[0], _estimate(cell)
    line = Line(
        kind=first.kind,
        system=first.system,
        size=first.size,
        head=first.head,
        objective=first.objective,
        parameters=first.parameters,
        estimate=estimate,
        variant=Variation.of(first),
        corrupted_positives=first.corrupted_positives or 0.0,
        corrupted_scores=first.corrupted_scores or 0.0,
        passage_postings=_mean(row.passage_postings for row in cell),
        retrieval_flops=_mean(row.retrieval_flops for row in cell),
        index_bytes=_mean(row.index_bytes for row in cell),
        seeds=tuple(row.seed for row in cell if row.seed is not None),
        fingerprints=tuple(row.fingerprint for row in cell if row.fingerprint is not None),
    )
    if first.kind != TRAINED:
        return line
    line = replace(
        line,
        best=estimate.value == best[first.head],
        steps=_mean(row.steps for row in cell),
        budget_flops=_mean(row.budget_flops for row in cell),
        spent_flops=_mean(row.spent_flops for row in cell),
    )
    if untrained is None:
        return line
    return replace(
        line,
        gain=estimate.value - untrained,
        seeds_below=sum(value < untrained for value in _values(cell)),
    )


def _estimate(cell: Sequence[Result]) -> Estimate:
    values = _values(cell)
    if len(cell) == 1:
        return Estimate(values[0], cell[0].ci_low, cell[0].ci_high)
    return Estimate(fmean(values), min(values), max(values), len(cell))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def below_untrained(tables: Iterable[GridTable]) -> list[tuple[Benchmark, Line]]:
    """The negative results: trained cells of which some seed ends below the untrained line."""
    return [
        (table.benchmark, line)
        for table in tables
        for line in table.lines
        if line.seeds_below or line.below_untrained
    ]
