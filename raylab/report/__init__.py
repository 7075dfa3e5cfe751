"""The report: the grid tables, the scaling plot and a static page, from the results tables alone.

results, values per query, ledger -> rows -> grid tables -> table.md, table.csv, scaling.png, scaling.svg, index.html
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from rich.console import Console

from raylab.artifacts import Store
from raylab.report.figures import scaling_plot
from raylab.report.formats import to_csv, to_markdown, to_rich
from raylab.report.heads import compare_heads
from raylab.report.page import render
from raylab.report.rows import benchmarks, read_rows
from raylab.report.tables import GridTable, grid_table
from raylab.results import LEDGER, PER_QUERY, RESULTS, read_table

FOLDER = "report"
# The page comes last: it links to the others.
FILES = {
    "png": "scaling.png",
    "svg": "scaling.svg",
    "markdown": "table.md",
    "csv": "table.csv",
    "html": "index.html",
}


@dataclass(frozen=True)
class Report:
    """A written report: full path or URI of each file by its label in `FILES`, and its tables."""

    paths: dict[str, str]
    tables: tuple[GridTable, ...]

    def show(self, console: Console) -> None:
        """Print the grid tables, held-out splits first."""
        for table in self.tables:
            console.print(to_rich(table))
            console.print()


def write(
    store: Store,
    results: pd.DataFrame,
    ledger: pd.DataFrame,
    per_query: pd.DataFrame | None = None,
) -> Report:
    """Render a results table and a ledger under `report/` of the storage.

    The same tables give the same bytes. Every file appears whole or not at all.

    Args:
        per_query: the values behind the means; without them no significance is tested.

    Raises:
        ValueError: the results have no rows, lack a column or contradict themselves.
    """
    rows = read_rows(results)
    tables = tuple(grid_table(rows, benchmark) for benchmark in benchmarks(rows))
    plot = scaling_plot(tables)
    tests = [] if per_query is None else compare_heads(rows, per_query)
    contents = {
        "png": plot["png"],
        "svg": plot["svg"],
        "markdown": to_markdown(tables).encode(),
        "csv": to_csv(rows).encode(),
        "html": render(rows, tables, ledger, plot["svg"], tests).encode(),
    }
    for label, name in FILES.items():
        store.put_bytes(f"{FOLDER}/{name}", contents[label])
    return Report({label: f"{store.uri}/{FOLDER}/{name}" for label, name in FILES.items()}, tables)


def rebuild(storage_uri: str) -> Report:
    """Write the report again from the tables in a storage.

    Raises:
        FileNotFoundError: no grid has ended there yet.
    """
    store = Store(storage_uri)
    results, ledger = read_table(store, RESULTS), read_table(store, LEDGER)
    try:
        per_query = read_table(store, PER_QUERY)
    except FileNotFoundError:  # the results alone were copied here
        per_query = None
    return write(store, results, ledger, per_query)
