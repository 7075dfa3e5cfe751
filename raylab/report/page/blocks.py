"""Tables of the page: what a block is, and those of values, tests, costs and fingerprints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from raylab.report import formats, published
from raylab.report.formats import NOTHING, quantity
from raylab.report.heads import HeadsCompared
from raylab.report.layout import Entry, Layout
from raylab.report.rows import TRAINED, Benchmark, Result, benchmarks
from raylab.report.tables import Estimate, GridTable, Line

# Columns of words; the others are numbers.
# fmt: off
_TEXT = frozenset((
    "measured by", "system", "size", "head", "objective", "variant", "budget", "stage", "split", "kind", "seed",
    "fingerprint", "about", "source", "law", "N", "part", "held out", "claim", "verdict", "of", "method",
    "place", "window", "measure", "in domain", "out of domain",
))
# fmt: on


@dataclass(frozen=True)
class Column:
    """A column of a table on the page: its heading, and whether it holds numbers."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class Block:
    """A table on the page: `classes` are the CSS classes of its rows, `rows_filter` its source."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...] = ()
    rows_filter: str = ""
    note: str = ""


def columns(names: Iterable[str]) -> tuple[Column, ...]:
    """Columns by name; those that hold text are known."""
    return tuple(Column(name, name not in _TEXT) for name in names)


def grid(table: GridTable) -> Block:
    """A grid table."""
    return Block(
        formats.title(table),
        columns(formats.header(table)),
        tuple(formats.cells(line, table.varied) for line in table.lines),
        tuple(_classes(table.lines)),
        table.benchmark.primary_filter,
        formats.note(table),
    )


def _classes(lines: Sequence[Line]) -> Iterable[str]:
    sizes = [line.size for line in lines]
    for line, before in zip(lines, [None, *sizes[:-1]], strict=True):
        marks = {
            line.kind: True,
            "best": line.best,
            "below": line.below_untrained,
            "starts": line.size != before,
        }
        yield " ".join(name for name, holds in marks.items() if holds)


def in_layout(grid: Layout) -> Block:
    """The grid in the paper's layout."""
    names = [f"{group} {heading}" for group in grid.groups for heading in grid.headings]
    pad = ("",) * (len(grid.names) - 1)
    rows = [(*row_names, *map(_shown, entries)) for row_names, entries in grid.rows]
    references = [(name, *pad, *map(_shown, entries)) for name, entries in grid.references]
    return Block(
        "In the layout of the paper",
        columns((*grid.names, *names)),
        (*rows, *references),
        (*("" for _ in rows), *("baseline" for _ in references)),
        note=grid.note,
    )


def _shown(entry: Entry | None) -> str:
    return NOTHING if entry is None else f"{entry.marked} {entry.spread}".strip()


def reference() -> Block:
    """What others published."""
    rows = [
        (
            one.system,
            one.about,
            *(f"{100 * v:.1f}" if (v := one.values.get(c)) else NOTHING for c in published.COLUMNS),
            one.source,
        )
        for one in published.PUBLISHED
    ]
    return Block(
        "Published, not measured here",
        columns(("system", "about", *published.COLUMNS, "source")),
        tuple(rows),
        note="MS MARCO dev: MRR@10, others nDCG@10; values x 100. Compare them with a column above only "
        "where it is of the same benchmark, whole.",
    )


def wide(rows: Sequence[Result], benchmark: Benchmark) -> Block:
    """Every measure of a benchmark, a line a system and seed."""
    of_benchmark = [
        row
        for row in rows
        if (row.collection, row.split) == (benchmark.collection, benchmark.split)
    ]
    body = []
    for (system, seed), group in groupby(of_benchmark, key=lambda row: (row.system, row.seed)):
        by_measure = {row.measure: row for row in group}
        values = (_value(by_measure.get(measure)) for measure in benchmark.measures)
        body.append((system, NOTHING if seed is None else str(seed), *values))
    return Block(
        benchmark.name + formats.kind_of(benchmark),
        columns(("system", "seed", *benchmark.measures)),
        tuple(body),
        rows_filter=benchmark.rows_filter,
    )


def _value(row: Result | None) -> str:
    if row is None or row.value is None:
        return NOTHING
    return str(Estimate(row.value, row.ci_low, row.ci_high))


def heads(tests: Sequence[HeadsCompared]) -> Block:
    """The tests of sparse cells against their dense twins."""
    varied = any(one.variant for one in tests)
    body = [
        (
            one.benchmark.name,
            one.size,
            formats.objective_label(one.objective),
            *((formats.variant_label(one.variant),) if varied else ()),
            f"{test.mean_b:.3f}",
            f"{test.mean_a:.3f}",
            f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]",
            f"{test.effect:+.2f} [{test.effect_low:+.2f}, {test.effect_high:+.2f}]",
            *(f"{p:.2g}" for p in (test.p_t, test.p_t_bonferroni, test.p_t_holm)),
            *(f"{p:.2g}" for p in (test.p_random, test.p_random_holm)),
        )
        for one in tests
        for test in (one.comparison,)
    ]
    names = ("sparse", "dense", "difference", "Cohen's d", "t-test p", "Bonferroni", "Holm")
    randomised = ("randomisation p", "Holm (randomisation)")
    identity = ("split", "size", "objective", *(("variant",) if varied else ()))
    return Block(
        "Sparse against dense at equal size and objective",
        columns((*identity, *names, *randomised)),
        tuple(body),
        note=f"Two-sided paired tests over queries by the primary measure (with several seeds, their "
        "mean for each query); brackets: 95 % intervals of each comparison alone. Bonferroni and "
        f"Holm correct for one family a question: {_families(tests)}.",
    )


def _families(tests: Sequence[HeadsCompared]) -> str:
    """`sparse against dense on scifact test by nDCG@10, 9 pairs`."""
    families = {one.twins.question: one.comparison.family for one in tests}
    return "; ".join(f"{question}, {pairs} pairs" for question, pairs in families.items())


def efficiency(rows: Sequence[Result]) -> Block:
    """What a search costs beside the primary measure that it brings; baselines included."""
    body = []
    for benchmark in benchmarks(rows):
        where = (benchmark.collection, benchmark.split, benchmark.primary)
        of_benchmark = [row for row in rows if (row.collection, row.split, row.measure) == where]
        if all(cost is None for row in of_benchmark for cost in _costs(row)):
            continue
        body += [
            (
                row.system,
                NOTHING if row.seed is None else str(row.seed),
                f"{benchmark.name}: {benchmark.primary}",
                NOTHING if row.value is None else f"{row.value:.3f}",
                *_cost_texts(*_costs(row)),
            )
            for row in of_benchmark
        ]
    names = ("terms a passage", "terms a query", "multiply-adds a score", "index bytes")
    return Block(
        "Cost of a search beside its quality",
        columns(("system", "seed", "measured by", "value", *names, "ms a query")),
        tuple(body),
        note="A score's multiply-adds: sparse, the terms that a query and a passage share on average "
        "(SPLADE's FLOPS); dense, its dimensions. Time: one core, all queries of the split at once.",
    )


def _costs(row: Result) -> list[float | None]:
    return [getattr(row, name) for name in formats.EFFICIENCY]


def _cost_texts(*costs: float | None) -> tuple[str, ...]:
    *amounts, size, milliseconds = costs
    return (
        *(NOTHING if amount is None else f"{amount:,.1f}" for amount in amounts),
        quantity(size),
        NOTHING if milliseconds is None else f"{milliseconds:,.2f}",
    )


def fingerprints(rows: Sequence[Result]) -> Block:
    """Of the checkpoint of a trained system, of the run of another."""
    splits: dict[tuple, list[str]] = {}
    for row in rows:
        splits.setdefault((row.system, row.seed, row.kind, row.fingerprint), []).append(row.split)
    return Block(
        "Fingerprints",
        columns(("system", "seed", "split", "fingerprint")),
        tuple(
            (
                system,
                NOTHING if seed is None else str(seed),
                "all" if kind == TRAINED else ", ".join(dict.fromkeys(names)),
                fingerprint or NOTHING,
            )
            for (system, seed, kind, fingerprint), names in splits.items()
        ),
    )
