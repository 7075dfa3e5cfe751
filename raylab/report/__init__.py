"""The report: tables, charts, laws and a static page, from the results tables alone.

results, values per query, ledger -> rows -> grid tables -> table.md, table.tex, table.csv
                                                         -> charts as SVG, PNG and Vega-Lite
                                  -> laws -> laws.csv    -> index.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd
from rich.console import Console

from raylab.experiment.config import check
from raylab.report import standing
from raylab.report.charts.chart import shown_tables
from raylab.report.formats import to_csv, to_markdown, to_rich
from raylab.report.heads import compare_heads, mark
from raylab.report.laws import DRAWS, study
from raylab.report.layout import Layout, layout, published_markdown, to_latex
from raylab.report.layout import to_markdown as layout_to_markdown
from raylab.report.layout import to_rich as layout_to_rich
from raylab.report.page.domains import to_markdown as domains_to_markdown
from raylab.report.page.law_blocks import to_csv as laws_to_csv
from raylab.report.page.page import Contents, render
from raylab.report.rows import benchmarks, read_rows
from raylab.report.tables import GridTable, grid_table
from raylab.storage.merging import of_cells, read_current
from raylab.storage.store import Store
from raylab.storage.tables import COMMAND, LEDGER, PER_QUERY, RESULTS

FOLDER = "report"
_OURS = re.compile(
    r"laws\.csv|(flops|sparsity|index-bytes|corruption[a-z-]*|isoflop-[a-z]+)\.(png|svg|json)"
)
# Files that every report has; a chart adds NAME.png, NAME.svg and NAME.json, its Vega-Lite; fitted laws laws.csv.
FILES = {
    "png": "scaling.png",
    "svg": "scaling.svg",
    "markdown": "table.md",
    "latex": "table.tex",
    "csv": "table.csv",
    "html": "index.html",
}


@dataclass(frozen=True)
class Report:
    """A written report: full path or URI of each file by its label, its tables, and the layout of the grid.

    Labels: those of `FILES`, and names of files for what not every report has.
    """

    paths: dict[str, str]
    tables: tuple[GridTable, ...]
    layout: Layout

    def show(self, console: Console) -> None:
        """Print the paper's table, where it is of several benchmarks; then the grid tables, held out first."""
        if len(self.layout.columns) > 1 and not self.layout.empty:
            console.print(layout_to_rich(self.layout))
            console.print()
        for table in self.tables:
            console.print(to_rich(table))
            console.print()


def write(
    store: Store,
    results: pd.DataFrame,
    ledger: pd.DataFrame,
    per_query: pd.DataFrame | None = None,
    command: str | None = None,
    draws: int = DRAWS,
) -> Report:
    """Render a results table and a ledger under `report/` of the storage.

    The same tables give the same bytes. Every file appears whole or not at all.

    Args:
        per_query: the values behind the means; without them no significance is tested and no law fitted.
        command: that made the tables, shown beside every figure, and kept in the storage.
        draws: of the bootstrap behind the laws' intervals.

    Raises:
        ValueError: the results have no rows, lack a column or contradict themselves.
    """
    # They import Altair (0.6 s): only a report that is written waits for it.
    from raylab.report.charts import corruption, drawing, isoflops, quality

    rows = read_rows(results)
    tests = [] if per_query is None else compare_heads(rows, per_query)
    tables = tuple(mark(grid_table(rows, benchmark), tests) for benchmark in benchmarks(rows))
    laws = None if per_query is None else study(rows, results, per_query, draws)
    shown = shown_tables(tables)
    charts = quality.charts(shown) + corruption.charts(shown, per_query)
    charts += isoflops.charts(laws) if laws else []
    in_layout = layout(tables)
    markdown = [layout_to_markdown(in_layout), published_markdown(), to_markdown(tables)]
    markdown += [domains_to_markdown(laws)] if laws else []
    svgs = {chart.name: drawing.to_svg(chart) for chart in charts}
    contents = {f"{name}.svg": svg for name, svg in svgs.items()}
    contents |= {f"{chart.name}.png": drawing.to_png(chart) for chart in charts}
    contents |= {f"{chart.name}.json": drawing.to_json(chart) for chart in charts}
    contents["table.md"] = "\n".join(part for part in markdown if part).encode()
    contents["table.tex"] = to_latex(in_layout).encode()
    contents["table.csv"] = to_csv(rows).encode()
    if laws and any(True for _ in laws.made()):
        contents["laws.csv"] = laws_to_csv(laws).encode()
    page = Contents(rows, results, ledger, tables, in_layout, charts, svgs, tests, laws, command)
    contents["index.html"] = render(page).encode()  # the last: it links to the others
    standing.forget(store)
    if command is not None:
        store.put_text(COMMAND, command + "\n")
    for name, data in contents.items():
        store.put_bytes(f"{FOLDER}/{name}", data)
    _forget(store, set(contents))
    more = {name: name for name in contents if name not in FILES.values()}
    return Report(_paths(store, FILES | more), tables, in_layout)


def _paths(store: Store, files: dict[str, str]) -> dict[str, str]:
    return {label: f"{store.uri}/{FOLDER}/{name}" for label, name in files.items()}


def _forget(store: Store, written: set[str]) -> None:
    """Remove charts and laws of a report before this one that it no longer has."""
    for name in store.files.names(FOLDER):
        if name not in written and _OURS.fullmatch(name):
            store.files.remove(f"{FOLDER}/{name}")


def write_unless_standing(
    store: Store, results: pd.DataFrame, ledger: pd.DataFrame, command: str | None
) -> Report:
    """`write`, from the storage's own values per query, unless the report was made from the same tables."""
    source, kept = standing.source_of(store, command), standing.kept(store)
    names = set(store.files.names(FOLDER))
    if kept is not None and kept.source == source and names.issuperset(kept.files.values()):
        return Report(_paths(store, kept.files), kept.tables, kept.layout)
    report = write(store, results, ledger, read_current(store, PER_QUERY), command)
    files = {label: path.rpartition("/")[2] for label, path in report.paths.items()}
    standing.keep(store, standing.Shown(source, files, report.tables, report.layout))
    return report


def rebuild(storage_uri: str, draws: int = DRAWS, cells: str = "*") -> Report:
    """Write the report again from the tables in a storage.

    Args:
        cells: the trained systems to show, as a grid's filter names them.

    Raises:
        FileNotFoundError: no grid has ended there yet.
        ConfigError: no trained system matches.
    """
    store = Store(storage_uri)
    results, ledger = read_current(store, RESULTS), read_current(store, LEDGER)
    if cells != "*":
        results = of_cells(results, cells)
        check(
            bool((results["kind"] == "trained").any()), "cells", cells, "a filter that some match"
        )
    try:
        per_query = read_current(store, PER_QUERY)
    except FileNotFoundError:  # the results alone were copied here
        per_query = None
    else:
        per_query = per_query.loc[per_query["system"].isin(list(results["system"]))]
    return write(store, results, ledger, per_query, _command(store), draws)


def _command(store: Store) -> str | None:
    try:
        return store.files.read(COMMAND).decode().strip() or None
    except FileNotFoundError:
        return None
