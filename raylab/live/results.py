"""What the tables of a running laboratory hold, for its page: measured cells, and the report's own scaling chart."""

from __future__ import annotations

import math
import threading
from typing import Any

import pandas as pd

from raylab.live.views import Measured
from raylab.report.charts.chart import Chart, shown_tables
from raylab.report.rows import TRAINED, Result, benchmarks, read_rows
from raylab.report.tables import grid_table
from raylab.storage.artifacts import path_of
from raylab.storage.merging import read_current
from raylab.storage.store import Store
from raylab.storage.tables import RESULTS


class Results:
    """The results table as last read; it is read again when the file has changed.

    `version`: changes with the table; None: there is none yet.
    """

    def __init__(self, store: Store):
        self.store = store
        self.version: str | None = None
        self.measured: dict[str, Measured] = {}
        self.rows: list[Result] = []
        self.table = pd.DataFrame()
        self._chart: tuple[str | None, dict[str, Any] | None] = (None, None)
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Look at the table, and read it where it has changed.

        Raises:
            DamagedTable: it is not a whole table.
            StorageError, OSError: the storage cannot be reached.
        """
        version = self._tag()
        if version is None or version == self.version:
            return
        table = read_current(self.store, RESULTS)
        self.table, self.rows = table, list(read_rows(table))
        self.measured = measured_cells(self.rows)
        self.version = version

    def _tag(self) -> str | None:
        files = self.store.files
        if self.store.is_local:
            facts = files.facts("", [RESULTS]).get(RESULTS)
            return None if facts is None else f"{facts.tag}-{facts.bytes}"
        try:
            entry = files.fs.info(files.full(RESULTS))
        except FileNotFoundError:
            return None
        return f"{entry.get('ETag') or entry.get('etag')}-{entry['size']}"

    def chart(self) -> dict[str, Any] | None:
        """The scaling chart of the report, in Vega-Lite, with its intervals; None before there is a row."""
        with self._lock:
            if self._chart[0] != self.version:
                self._chart = self.version, _spec(scaling_chart(self.rows))
            return self._chart[1]


def _spec(chart: Chart | None) -> dict[str, Any] | None:
    return None if chart is None else {"title": chart.title, "note": chart.note, "spec": chart.spec}


def scaling_chart(rows: list[Result]) -> Chart | None:
    """Quality against size, of the held-out benchmarks; None where nothing is measured."""
    from raylab.report.charts import quality  # imports Altair: only who asks for a chart waits

    if not rows:
        return None
    tables = [grid_table(rows, benchmark) for benchmark in benchmarks(rows)]
    return quality.scaling(shown_tables(tables))


def measured_cells(rows: list[Result]) -> dict[str, Measured]:
    """Trained cells by the names of their runs, with their value of the first held-out benchmark."""
    first = next((one for one in benchmarks(rows) if one.held_out), None)
    found: dict[str, Measured] = {}
    for row in rows:
        if row.kind != TRAINED or row.seed is None:
            continue
        name = f"{row.system}-seed{row.seed}"
        about = row.size or "", row.head or "", row.objective or "", row.seed, row.variant
        before = found.get(name)
        quality = before.quality if before else None
        shown = first is not None and (row.collection, row.split, row.measure) == (
            first.collection,
            first.split,
            first.primary,
        )
        if shown and row.value is not None and math.isfinite(row.value):
            quality = f"{row.measure} {row.value:.3f}"
        place = path_of("retriever", name, row.fingerprint) if row.fingerprint else None
        found[name] = Measured(*about, row.spent_flops, quality, place)
    return found
