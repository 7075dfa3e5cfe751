"""A chart as the report keeps it: a Vega-Lite description, and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylab.report.tables import GridTable

MOST_PANELS = 3


@dataclass(frozen=True)
class Chart:
    """A figure of the report.

    `spec`: in Vega-Lite, with every value at full precision; its `description` says what each panel
    shows. `note`: how to read it. `rows_filter`: the rows it shows, each an argument of
    `DataFrame.query` on the results. `freedom`: degrees of freedom of what is fitted, in words.
    """

    name: str
    title: str
    spec: dict[str, Any]
    note: str
    rows_filter: tuple[str, ...]
    freedom: str = "nothing is fitted; lines join measured points"


def shown_tables(tables: Sequence[GridTable]) -> list[GridTable]:
    """The tables that charts show: the first held-out ones, a panel each."""
    return [table for table in tables if table.benchmark.held_out][:MOST_PANELS]
