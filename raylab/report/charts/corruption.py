"""Quality against the share of the supervision that is wrong, and against the cell that had none wrong.

Legend: B draws, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raylab.report.charts.chart import Axis, Chart, Key, Look, Panel, Rule, Series, looks
from raylab.report.charts.figures import BARS_OF_QUERIES, BARS_OF_SEEDS, points, series_label
from raylab.report.rows import BASELINE, TRAINED
from raylab.report.tables import GridTable, Line

_BOTH, _POSITIVES, _SCORES = "positives and teacher scores", "positives", "teacher scores"
_NAMES = {
    _BOTH: "corruption",
    _POSITIVES: "corruption-positives",
    _SCORES: "corruption-scores",
}
_DRAWS = 1000


def charts(tables: Sequence[GridTable], per_query: pd.DataFrame | None = None) -> list[Chart]:
    """A chart a kind of corruption: each held-out table's values, and shares of the uncorrupted cell's."""
    kinds = sorted(
        {found[0] for table in tables for line in table.of(TRAINED) if (found := corrupted(line))}
    )
    made = [_chart(kind, tables, per_query) for kind in kinds]
    return [chart for chart in made if not chart.empty]


def corrupted(line: Line) -> tuple[str, float] | None:
    """What was corrupted, and the share of it; of two shares the larger one. None: nothing was."""
    positives, scores = line.corrupted_positives, line.corrupted_scores
    if not positives and not scores:
        return None
    kind = _BOTH if positives and scores else _POSITIVES if positives else _SCORES
    return kind, max(positives, scores)


def _chart(kind: str, tables: Sequence[GridTable], per_query: pd.DataFrame | None) -> Chart:
    cells = {table.benchmark.name: _cells(table, kind) for table in tables}
    found = list(dict.fromkeys(key for own in cells.values() for key in own))
    sizes = {key[2] for key in found}
    look = looks(found)
    label = {key: series_label(key if len(sizes) > 1 else (*key[:2], "")) for key in found}
    shares = sorted({share for own in cells.values() for cell in own.values() for share, _ in cell})
    ticks = tuple((share, f"{share:.0%}") for share in shares)
    axis = Axis(f"share of the training {kind} that is wrong", ticks=ticks)
    panels = []
    for table in tables:
        own = cells[table.benchmark.name]
        series = tuple(
            points([line for _, line in cell], _share, label[key], look[key])
            for key, cell in own.items()
        )
        rules = tuple(Rule(line.system, line.estimate.value) for line in table.of(BASELINE))
        title, measure = table.benchmark.name, table.benchmark.primary
        if series:
            panels.append(Panel(title, axis, Axis(measure), series, rules, apart=True))
        values = _by_query(table, per_query)
        relative = tuple(
            _relative(cell, label[key], look[key], values)
            for key, cell in own.items()
            if cell[0][0] == 0 and cell[0][1].estimate.value > 0
        )
        if relative:
            title = f"{title}, relative to nothing wrong"
            panels.append(
                Panel(title, axis, Axis(f"share of {measure} kept"), relative, apart=True)
            )
    lines = [line for own in cells.values() for cell in own.values() for _, line in cell]
    several = any(line.estimate.seeds > 1 for line in lines)
    shown = sorted({line.variant for line in lines})
    keep = f"(kind == 'baseline' or (kind == 'trained' and variant in {shown!r}))"
    return Chart(
        _NAMES[kind],
        f"Quality against wrong {kind}",
        tuple(panels),
        BARS_OF_SEEDS if several else BARS_OF_QUERIES,
        "Kept: the mean over that of the same cell with nothing wrong; its bars are 95 % bootstrap intervals "
        "over queries, the same drawn for both.",
        tuple(f"{table.benchmark.primary_filter} and {keep}" for table in tables),
        columns=2,
    )


def _share(line: Line) -> float:
    return (corrupted(line) or (None, 0.0))[1]


def _cells(table: GridTable, kind: str) -> dict[Key, list[tuple[float, Line]]]:
    """Lines by share, of each (head, objective, size) that has any corrupted in this way; the plain recipe is 0."""
    found: dict[Key, dict[float, Line]] = {}
    for line in table.of(TRAINED):
        own = corrupted(line)
        key = (line.head, line.objective, line.size or "")
        if own is not None and own[0] == kind:
            found.setdefault(key, {})[own[1]] = line
        elif not line.variant:
            found.setdefault(key, {})[0.0] = line
    return {key: sorted(own.items()) for key, own in found.items() if any(own)}


def _by_query(table: GridTable, per_query: pd.DataFrame | None) -> pd.DataFrame | None:
    """Values of the primary measure, a row a query, a column a system: means over seeds."""
    if per_query is None:
        return None
    own = per_query.query(table.benchmark.primary_filter)
    return own.pivot_table(index="query_id", columns="system", values="value", aggfunc="mean")


def _relative(
    cell: Sequence[tuple[float, Line]], label: str, look: Look, values: pd.DataFrame | None
) -> Series:
    lines = [line for _, line in cell]
    clean = lines[0].estimate.value
    low, high = _intervals([line.system for line in lines], values)
    return Series(
        label,
        tuple(share for share, _ in cell),
        tuple(line.estimate.value / clean for line in lines),
        low,
        high,
        look,
        names=tuple(line.system for line in lines),
    )


def _intervals(
    systems: Sequence[str], values: pd.DataFrame | None
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Percentile intervals of each system's mean over the first one's, queries drawn for both."""
    unknown = (None,) * len(systems)
    if values is None or not set(systems) <= set(values.columns):
        return unknown, unknown
    own_QS = values[list(systems)].dropna().to_numpy()
    if len(own_QS) < 2:
        return unknown, unknown
    picked_BQ = np.random.default_rng(0).integers(len(own_QS), size=(_DRAWS, len(own_QS)))
    means_BS = np.stack([own_QS[picked].mean(0) for picked in picked_BQ])
    usable = means_BS[:, 0] > 0
    if not usable.all():
        return unknown, unknown
    ratios_BS = means_BS / means_BS[:, :1]
    low, high = np.quantile(ratios_BS, (0.025, 0.975), axis=0)
    return tuple(map(float, low)), tuple(map(float, high))
