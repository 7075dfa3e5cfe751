"""Quality against the share of the supervision that is wrong, and against the cell that had none wrong.

Legend: B draws, Q queries, S systems.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raylab.report.charts.chart import Chart
from raylab.report.charts.drawing import Panel, Row, draw
from raylab.report.charts.quality import bars_of, point, references
from raylab.report.charts.theme import REFERENCE_STYLE, Key, labels, styles
from raylab.report.rows import TRAINED
from raylab.report.tables import GridTable, Line

_BOTH, _POSITIVES, _SCORES = "positives and teacher scores", "positives", "teacher scores"
_NAMES = {
    _BOTH: "corruption",
    _POSITIVES: "corruption-positives",
    _SCORES: "corruption-scores",
}
_DRAWS = 1000

Cell = list[tuple[float, Line]]
"""Lines that differ in the share alone, each with its share, smallest first."""


def charts(tables: Sequence[GridTable], per_query: pd.DataFrame | None = None) -> list[Chart]:
    """A chart a kind of corruption: each held-out table's values, and shares of the uncorrupted cell's."""
    kinds = {corrupted(line) for table in tables for line in table.of(TRAINED)}
    return [_chart(kind, tables, per_query) for kind in sorted({kind for kind, _ in kinds if kind})]


def corrupted(line: Line) -> tuple[str, float]:
    """What was corrupted (empty: nothing), and the share of it; of two shares the larger one."""
    positives, scores = line.corrupted_positives, line.corrupted_scores
    kind = _BOTH if positives and scores else _POSITIVES if positives else _SCORES if scores else ""
    return kind, max(positives, scores)


def _chart(kind: str, tables: Sequence[GridTable], per_query: pd.DataFrame | None) -> Chart:
    cells = [_cells(table, kind) for table in tables]
    keys = list(dict.fromkeys(key for of_table in cells for key in of_table))
    several_sizes = len({size for _, _, size in keys}) > 1
    shown_key = {key: key if several_sizes else (*key[:2], "") for key in keys}
    label_of = labels(shown_key.values())
    style_of = {label_of[key]: style for key, style in styles(list(label_of)).items()}
    points = [one for of_table in cells for cell in of_table.values() for one in cell]
    ticks = tuple((share, f"{share:.0%}") for share in sorted({share for share, _ in points}))
    x_label = f"share of the training {kind} that is wrong"
    panels = []
    for table, of_table in zip(tables, cells, strict=True):
        values = _by_query(table, per_query)
        rows, kept_rows = [], []
        for key, cell in of_table.items():
            label = label_of[shown_key[key]]
            rows += [point(line, share, label) for share, line in cell]
            kept_rows += _kept(cell, label, values)
        title, measure = table.benchmark.name, table.benchmark.primary
        if rows:
            rows += references(table)
            style_of |= {row["series"]: REFERENCE_STYLE for row in references(table)}
            panels.append(Panel(title, x_label, measure, rows, ticks=ticks, apart=True))
        if kept_rows:
            title, kept = f"{title}, relative to nothing wrong", f"share of {measure} kept"
            panels.append(Panel(title, x_label, kept, kept_rows, ticks=ticks, apart=True))
    lines = [line for _, line in points]
    variants = sorted({line.variant.name for line in lines})
    shown = f"(kind == 'baseline' or (kind == 'trained' and variant in {variants!r}))"
    return Chart(
        _NAMES[kind],
        f"Quality against wrong {kind}",
        draw(panels, style_of, bars_of(lines), columns=2),
        "Kept: the mean over that of the same cell with nothing wrong; its bars are 95 % bootstrap intervals "
        "over queries, the same drawn for both.",
        tuple(f"{table.benchmark.primary_filter} and {shown}" for table in tables),
    )


def _cells(table: GridTable, kind: str) -> dict[Key, Cell]:
    """The cell of each (head, objective, size) that has any corrupted in this way; the plain recipe is 0."""
    by_share: dict[Key, dict[float, Line]] = {}
    for line in table.of(TRAINED):
        line_kind, share = corrupted(line)
        if line_kind == kind or not (line_kind or line.variant):
            by_share.setdefault((line.head, line.objective, line.size or ""), {})[share] = line
    return {key: sorted(lines.items()) for key, lines in by_share.items() if any(lines)}


def _by_query(table: GridTable, per_query: pd.DataFrame | None) -> pd.DataFrame | None:
    """Values of the primary measure, a row a query, a column a system: means over seeds."""
    if per_query is None:
        return None
    values = per_query.query(table.benchmark.primary_filter)
    return values.pivot_table(index="query_id", columns="system", values="value", aggfunc="mean")


def _kept(cell: Cell, label: str, values: pd.DataFrame | None) -> list[Row]:
    """The values over the first one's, which had nothing wrong; no rows where no such line is known."""
    share, clean = cell[0]
    if share or clean.estimate.value <= 0:
        return []
    lows, highs = _intervals([line.system for _, line in cell], values)
    return [
        point(line, share, label)
        | {"y": line.estimate.value / clean.estimate.value, "low": low, "high": high}
        for (share, line), low, high in zip(cell, lows, highs, strict=True)
    ]


def _intervals(
    systems: Sequence[str], values: pd.DataFrame | None
) -> tuple[Sequence[float | None], Sequence[float | None]]:
    """Percentile intervals of each system's mean over the first one's, queries drawn for both."""
    unknown = [None] * len(systems)
    if values is None or not set(systems) <= set(values.columns):
        return unknown, unknown
    values_QS = values[list(systems)].dropna().to_numpy()
    if len(values_QS) < 2:
        return unknown, unknown
    picked_BQ = np.random.default_rng(0).integers(len(values_QS), size=(_DRAWS, len(values_QS)))
    means_BS = np.stack([values_QS[picked].mean(0) for picked in picked_BQ])
    if not (means_BS[:, 0] > 0).all():
        return unknown, unknown
    low_S, high_S = np.quantile(means_BS / means_BS[:, :1], (0.025, 0.975), axis=0)
    return low_S.tolist(), high_S.tolist()
