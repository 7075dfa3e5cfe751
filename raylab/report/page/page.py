"""The report as one HTML page that works offline: charts, tables, laws, ledger and notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jinja2
import pandas as pd
from markupsafe import Markup

from raylab.report import formats
from raylab.report.charts.chart import MOST_PANELS, Chart, shown_tables
from raylab.report.formats import count
from raylab.report.heads import HeadsCompared
from raylab.report.layout import Layout
from raylab.report.page import blocks, compute
from raylab.report.page.law_blocks import section
from raylab.report.page.notes import notes
from raylab.report.rows import TRAINED, Benchmark, Result, Variation, benchmarks, read_rows
from raylab.report.tables import GridTable, Line, below_untrained
from raylab.scaling import Study


@dataclass(frozen=True)
class Figure:
    """A chart on the page, and what it rests on: `facts` by name, in words."""

    chart: Chart
    svg: Markup
    alternative: str
    facts: tuple[tuple[str, str], ...]
    fingerprints: int


@dataclass(frozen=True)
class Contents:
    """All that the page shows: the tables as read, and what the report made of them."""

    rows: Sequence[Result]
    results: pd.DataFrame
    ledger: pd.DataFrame
    tables: Sequence[GridTable]
    layout: Layout
    charts: Sequence[Chart]
    svgs: Mapping[str, bytes]
    tests: Sequence[HeadsCompared] = ()
    study: Study | None = None
    command: str | None = None


def render(contents: Contents) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raylab.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows, tables, study = contents.rows, contents.tables, contents.study
    kept = compute.contract(rows)
    shown = shown_tables(tables)
    return environment.get_template("page.html").render(
        collections=", ".join(dict.fromkeys(row.collection for row in rows)),
        summary=summary(rows),
        command=contents.command,
        figures=[_figure(chart, contents) for chart in contents.charts],
        most_panels=MOST_PANELS,
        not_shown=[t.benchmark.name for t in tables if t.benchmark.held_out and t not in shown],
        layout=None if contents.layout.empty else blocks.in_layout(contents.layout),
        published=blocks.reference(),
        held_out=[blocks.grid(table) for table in tables if table.benchmark.held_out],
        validation=[blocks.grid(table) for table in tables if not table.benchmark.held_out],
        wide=[blocks.wide(rows, benchmark) for benchmark in benchmarks(rows)],
        heads=blocks.heads(contents.tests),
        laws=None if study is None else section(study),
        efficiency=blocks.efficiency(rows),
        budget=compute.budget(rows),
        contract=compute.by_budget(kept),
        verdicts=compute.verdicts(kept),
        ledger=compute.ledger(contents.ledger),
        fingerprints=blocks.fingerprints(rows),
        negative=[_negative(benchmark, line) for benchmark, line in below_untrained(tables)],
        notes=notes(rows, fitted=study is not None and bool(study.fits)),
    )


def _figure(chart: Chart, contents: Contents) -> Figure:
    shown = pd.concat([contents.results.query(rows) for rows in chart.rows_filter])
    shown = read_rows(shown.drop_duplicates())
    trained = [row for row in shown if row.kind == TRAINED]
    seeds = sorted({row.seed for row in trained if row.seed is not None})
    queries = sorted({row.queries for row in shown if row.queries is not None})
    facts = (
        ("Seeds", ", ".join(map(str, seeds)) or "none"),
        (
            "Rows",
            f"{count(len(shown))}, of {count(len({row.fingerprint for row in trained}))} checkpoints",
        ),
        ("Queries", " and ".join(map(count, queries)) or "unknown"),
        ("Degrees of freedom", chart.freedom),
    )
    return Figure(
        chart,
        inline(contents.svgs[chart.name]),
        f"{chart.title}: {chart.spec['description']}. Its values: {chart.name}.json.",
        facts,
        len({row.fingerprint for row in shown}),
    )


def inline(svg: bytes) -> Markup:
    """An SVG file as an element of a page; its description is the page's own."""
    return Markup(svg.decode().replace("<svg ", '<svg aria-hidden="true" ', 1))


def summary(rows: Sequence[Result]) -> str:
    """What was run, in one line: cells, sizes, heads, objectives, variants, seeds."""
    trained = [row for row in rows if row.kind == TRAINED]
    cells = {(row.size, row.head, row.objective, row.variant) for row in trained}
    objectives = [formats.objective_label(o) for o in _distinct(row.objective for row in trained)]
    seeds = [str(seed) for seed in sorted({row.seed for row in trained if row.seed is not None})]
    variants = [formats.variant_label(v) for v in dict.fromkeys(map(Variation.of, trained))]
    parts = [
        f"{len(cells)} trained cell{'' if len(cells) == 1 else 's'}",
        "sizes: " + ", ".join(_distinct(row.size for row in rows)),
        "heads: " + ", ".join(_distinct(row.head for row in rows)),
        "objectives: " + ", ".join(objectives),
        "variants: " + ", ".join(variants),
        "seeds: " + ", ".join(seeds),
    ]
    return "; ".join(part for part in parts if not part.endswith(": "))


def _distinct(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))


def _negative(benchmark: Benchmark, line: Line) -> str:
    return (
        f"{line.system} on {benchmark.name}: {benchmark.primary} {line.estimate}, "
        f"{formats.gain_text(line)}"
    )
