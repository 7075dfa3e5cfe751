"""Quality against the share of the supervision that is wrong, and against the cell that had none wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from raylab.report.charts.chart import Chart
from raylab.report.charts.drawing import Panel, Row, draw
from raylab.report.charts.quality import bars_of, point, references
from raylab.report.charts.theme import REFERENCE_STYLE, labels, styles
from raylab.report.kept import KINDS, Kept, cells_of, corrupted, kept, untrained_of
from raylab.report.rows import TRAINED
from raylab.report.tables import GridTable
from raylab.scaling import Interval

_NAMES: dict[str, str] = dict(
    zip(KINDS, ("corruption", "corruption-positives", "corruption-scores"), strict=True)
)


def charts(tables: Sequence[GridTable], per_query: pd.DataFrame | None = None) -> list[Chart]:
    """A chart a kind of corruption: each held-out table's values, and shares of the uncorrupted cell's."""
    kinds = {corrupted(line) for table in tables for line in table.of(TRAINED)}
    return [_chart(kind, tables, per_query) for kind in sorted({kind for kind, _ in kinds if kind})]


def _chart(kind: str, tables: Sequence[GridTable], per_query: pd.DataFrame | None) -> Chart:
    cells = [cells_of(table, kind) for table in tables]
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
        rows, of_value, of_gain = [], [], []
        for key, cell in of_table.items():
            label = label_of[shown_key[key]]
            rows += [point(line, share, label) for share, line in cell]
            for one in kept(cell, untrained_of(table, key), per_query, table.benchmark):
                of_value.append(_point(one, one.of_value, label))
                if one.of_gain is not None:
                    of_gain.append(_point(one, one.of_gain, label))
        title, measure = table.benchmark.name, table.benchmark.primary
        if rows:
            rows += references(table)
            style_of |= {row["series"]: REFERENCE_STYLE for row in references(table)}
            panels.append(Panel(title, x_label, measure, rows, ticks=ticks, apart=True))
        title = f"{title}, relative to nothing wrong"
        of = f"share of {measure} kept", f"share of the gain over untrained in {measure} kept"
        for y_label, kept_rows in zip(of, (of_value, of_gain), strict=True):
            if kept_rows:
                panels.append(Panel(title, x_label, y_label, kept_rows, ticks=ticks, apart=True))
    lines = [line for _, line in points]
    variants = sorted({line.variant.name for line in lines})
    shown = f"(kind == 'baseline' or (kind == 'trained' and variant in {variants!r}))"
    return Chart(
        _NAMES[kind],
        f"Quality against wrong {kind}",
        draw(panels, style_of, bars_of(lines), columns=2),
        "Kept: the mean, and its gain over untrained, over that of the same cell with nothing wrong; bars are "
        "95 % bootstrap intervals over seeds (their noise pooled over the shares of a cell) and queries.",
        tuple(f"{table.benchmark.primary_filter} and {shown}" for table in tables),
    )


def _point(one: Kept, share: Interval, label: str) -> Row:
    ends = {"low": share.low, "high": share.high}
    known = {name: None if end != end else end for name, end in ends.items()}
    return point(one.line, one.share, label) | {"y": share.value} | known
