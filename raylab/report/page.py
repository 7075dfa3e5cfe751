"""The report as one HTML page that works offline: plot, tables, ledger and notes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import jinja2
import pandas as pd
from markupsafe import Markup

from raylab.report import formats
from raylab.report.figures import MOST_PANELS, drawn
from raylab.report.formats import NOTHING, count, quantity
from raylab.report.heads import HeadsCompared
from raylab.report.notes import notes
from raylab.report.rows import TRAINED, Benchmark, Result, benchmarks
from raylab.report.tables import Estimate, GridTable, Line, below_untrained

_TEXT = (
    "measured by",
    "system",
    "size",
    "head",
    "objective",
    "stage",
    "split",
    "kind",
    "seed",
    "fingerprint",
)
_AMOUNTS = ("seconds", "flops", "tokens", "size_bytes")


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


def render(
    rows: Sequence[Result],
    tables: Sequence[GridTable],
    ledger: pd.DataFrame,
    svg: bytes,
    tests: Sequence[HeadsCompared] = (),
) -> str:
    """The page, from `rows.read_rows`, their grid tables, the ledger, the scaling plot and the tests."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raylab", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = drawn(tables)
    return environment.get_template("page.html").render(
        collections=", ".join(dict.fromkeys(row.collection for row in rows)),
        summary=summary(rows),
        svg=inline(svg),
        shown=[table.benchmark for table in shown],
        most_panels=MOST_PANELS,
        not_shown=[t.benchmark.name for t in tables if t.benchmark.held_out and t not in shown],
        alternative=_alternative(shown),
        held_out=[_grid(table) for table in tables if table.benchmark.held_out],
        validation=[_grid(table) for table in tables if not table.benchmark.held_out],
        wide=[_wide(rows, benchmark) for benchmark in benchmarks(rows)],
        heads=_heads(tests),
        efficiency=_efficiency(rows),
        budget=_budget(rows),
        ledger=_ledger(ledger),
        fingerprints=_fingerprints(rows),
        negative=[_negative(benchmark, line) for benchmark, line in below_untrained(tables)],
        notes=notes(rows),
    )


def inline(svg: bytes) -> Markup:
    """An SVG file as an element of a page: without prolog and document type."""
    text = svg.decode()
    return Markup(re.sub(r"<svg ", '<svg aria-hidden="true" ', text[text.index("<svg") :], count=1))


def summary(rows: Sequence[Result]) -> str:
    """What was run, in one line: cells, sizes, heads, objectives, seeds."""
    trained = [row for row in rows if row.kind == TRAINED]
    cells = {(row.size, row.head, row.objective) for row in trained}
    objectives = [formats.objective_label(o) for o in _distinct(row.objective for row in trained)]
    seeds = [str(seed) for seed in sorted({row.seed for row in trained if row.seed is not None})]
    parts = [
        f"{len(cells)} trained cell{'' if len(cells) == 1 else 's'}",
        "sizes: " + ", ".join(_distinct(row.size for row in rows)),
        "heads: " + ", ".join(_distinct(row.head for row in rows)),
        "objectives: " + ", ".join(objectives),
        "seeds: " + ", ".join(seeds),
    ]
    return "; ".join(part for part in parts if not part.endswith(": "))


def _distinct(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))


def _alternative(shown: Sequence[GridTable]) -> str:
    panels = "; ".join(f"{t.benchmark.primary} on {t.benchmark.name}" for t in shown)
    return f"Scaling plot: {panels}, against non-embedding parameters. Its values are tabled below."


def _columns(names: Iterable[str]) -> tuple[Column, ...]:
    return tuple(Column(name, name not in _TEXT) for name in names)


def _grid(table: GridTable) -> Block:
    return Block(
        formats.title(table),
        _columns(formats.header(table)),
        tuple(formats.cells(line) for line in table.lines),
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


def _wide(rows: Sequence[Result], benchmark: Benchmark) -> Block:
    own = [
        row
        for row in rows
        if (row.collection, row.split) == (benchmark.collection, benchmark.split)
    ]
    body = []
    for (system, seed), group in groupby(own, key=lambda row: (row.system, row.seed)):
        by_measure = {row.measure: row for row in group}
        values = (_value(by_measure.get(measure)) for measure in benchmark.measures)
        body.append((system, NOTHING if seed is None else str(seed), *values))
    return Block(
        benchmark.name + ("" if benchmark.held_out else " (validation)"),
        _columns(("system", "seed", *benchmark.measures)),
        tuple(body),
        rows_filter=benchmark.rows_filter,
    )


def _value(row: Result | None) -> str:
    if row is None or row.value is None:
        return NOTHING
    return str(Estimate(row.value, row.ci_low, row.ci_high))


def _heads(tests: Sequence[HeadsCompared]) -> Block:
    body = [
        (
            one.benchmark.name,
            one.size,
            formats.objective_label(one.objective),
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
    return Block(
        "Sparse against dense at equal size and objective",
        _columns(("split", "size", "objective", *names, *randomised)),
        tuple(body),
        note=f"Two-sided paired tests over queries by the primary measure (with several seeds, their "
        f"mean for each query); brackets: 95 % intervals of each comparison alone. Bonferroni and "
        f"Holm correct for the family of {len(tests)} comparisons in this table.",
    )


def _efficiency(rows: Sequence[Result]) -> Block:
    """What a search costs beside the primary measure that it brings; baselines included."""
    body = []
    for benchmark in benchmarks(rows):
        where = (benchmark.collection, benchmark.split, benchmark.primary)
        own = [row for row in rows if (row.collection, row.split, row.measure) == where]
        if all(cost is None for row in own for cost in _costs(row)):
            continue
        body += [
            (
                row.system,
                NOTHING if row.seed is None else str(row.seed),
                f"{benchmark.name}: {benchmark.primary}",
                NOTHING if row.value is None else f"{row.value:.3f}",
                *_cost_texts(*_costs(row)),
            )
            for row in own
        ]
    names = ("terms a passage", "terms a query", "multiply-adds a score", "index bytes")
    return Block(
        "Cost of a search beside its quality",
        _columns(("system", "seed", "measured by", "value", *names, "ms a query")),
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


def _budget(rows: Sequence[Result]) -> Block:
    cells = {(r.system, r.seed, r.fingerprint): r for r in rows if r.kind == TRAINED}
    names = ("system", "seed", "planned FLOPs", "spent FLOPs", "spent", "steps", "seconds")
    return Block(
        "Budget, planned and spent",
        _columns(names),
        tuple(
            (
                row.system,
                NOTHING if row.seed is None else str(row.seed),
                quantity(row.budget_flops),
                quantity(row.spent_flops),
                _share(row.spent_flops, row.budget_flops),
                count(row.steps),
                _seconds(row.seconds),
            )
            for row in cells.values()
        ),
        rows_filter=f"kind == {TRAINED!r}",
    )


def _share(spent: float | None, planned: float | None) -> str:
    return f"{spent / planned:.1%}" if spent is not None and planned else NOTHING


def _ledger(ledger: pd.DataFrame) -> Block:
    by_stage: dict[str, list[tuple]] = {}  # in the order of the ledger, which is that of the chain
    for stage, *amounts in zip(ledger["stage"], *(ledger[a] for a in _AMOUNTS), strict=True):
        by_stage.setdefault(stage, []).append(tuple(amounts))
    lines = [_ledger_line(stage, own) for stage, own in by_stage.items()]
    total = _ledger_line("all", [amounts for own in by_stage.values() for amounts in own])
    return Block(
        "Compute by stage",
        _columns(("stage", "artifacts", "seconds", "FLOPs", "tokens", "bytes")),
        (*lines, total),
        (*("" for _ in lines), "total"),
    )


def _ledger_line(stage: str, artifacts: Sequence[tuple]) -> tuple[str, ...]:
    known = [[a[i] for a in artifacts if not pd.isna(a[i])] for i in range(len(_AMOUNTS))]
    seconds, *others = (sum(values) if values else None for values in known)
    return (stage, count(len(artifacts)), _seconds(seconds), *map(quantity, others))


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:,.1f}"


def _fingerprints(rows: Sequence[Result]) -> Block:
    splits: dict[tuple, list[str]] = {}
    for row in rows:
        splits.setdefault((row.system, row.seed, row.kind, row.fingerprint), []).append(row.split)
    return Block(
        "Fingerprints",
        _columns(("system", "seed", "split", "fingerprint")),
        tuple(
            (
                system,
                NOTHING if seed is None else str(seed),
                "all" if kind == TRAINED else ", ".join(dict.fromkeys(own)),
                fingerprint or NOTHING,
            )
            for (system, seed, kind, fingerprint), own in splits.items()
        ),
    )


def _negative(benchmark: Benchmark, line: Line) -> str:
    return (
        f"{line.system} on {benchmark.name}: {benchmark.primary} {line.estimate}, "
        f"{formats.gain_text(line)}"
    )
