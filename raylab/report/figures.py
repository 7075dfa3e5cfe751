"""The scaling plot: effectiveness against the number of non-embedding parameters.

Hue and line style say the head, marker and shade the objective, so that it can be read in black and
white and by the colour-blind (hues of Okabe and Ito). The bytes are a function of the tables.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from raylab.report.formats import objective_label, quantity
from raylab.report.rows import BASELINE, HEADS, OBJECTIVES, TRAINED, UNTRAINED, rank
from raylab.report.tables import GridTable, Line

MOST_PANELS = 3
_PANEL_INCHES, _LEGEND_INCHES, _HEIGHT_INCHES = (6.2, 4.6, 4.0), 1.9, 4.3
_DPI = 150
# The share of the smallest gap between two sizes over which the series of a size are spread.
_DODGE_OF_GAP = 0.4
_SINGLE_GAP = math.log(2)

_SHADES = {
    "sparse": ("#0B3C5D", "#0072B2", "#4FA8DC"),
    "dense": ("#8A3300", "#D55E00", "#E69F00"),
}
_OTHER_SHADES = ("#333333", "#666666", "#999999")
_DASHES = {"sparse": "-", "dense": (0, (5, 2))}
_MARKERS = {"cl": "o", "kd": "s", "cl+kd": "^"}
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "raylab",
    "svg.fonttype": "path",
}
_NO_METADATA = {
    "png": {"Software": None},
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
}

_BARS_OF_QUERIES = "bars: 95 % bootstrap\ninterval over queries"
_BARS_OF_SEEDS = "bars: lowest to highest\nseed (one seed: 95 %\ninterval over queries)"

_Series = tuple[str, str | None, str | None]  # kind, head, objective


def drawn(tables: Sequence[GridTable]) -> list[GridTable]:
    """The tables that the plot shows: the first held-out ones, a panel each."""
    return [table for table in tables if table.benchmark.held_out][:MOST_PANELS]


def scaling_plot(tables: Sequence[GridTable]) -> dict[str, bytes]:
    """The scaling plot as `{"png": ..., "svg": ...}`, both of the same figure."""
    with matplotlib.style.context(["default", _STYLE]):
        figure = _figure(drawn(tables))
        return {kind: _saved(figure, kind) for kind in ("png", "svg")}


def _saved(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=_NO_METADATA[kind])
    return buffer.getvalue()


def _figure(tables: Sequence[GridTable]) -> Figure:
    panels = max(1, len(tables))
    width = panels * _PANEL_INCHES[panels - 1] + _LEGEND_INCHES
    figure = Figure(figsize=(width, _HEIGHT_INCHES), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, table in zip(figure.subplots(1, panels, squeeze=False)[0], tables, strict=True):
        _panel(axes, table)
    _legend(figure, tables)
    return figure


def _legend(figure: Figure, tables: Sequence[GridTable]) -> None:
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    baselines = {line.system for table in tables for line in table.of(BASELINE)}
    labels = sorted(handles, key=lambda label: label in baselines)
    several = any(table.seeds > 1 for table in tables)
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside right center",
        title=_BARS_OF_SEEDS if several else _BARS_OF_QUERIES,
        title_fontsize=8,
        alignment="left",
    )


def _panel(axes: Axes, table: GridTable) -> None:
    plotted = [line for line in table.lines if line.parameters]
    series = sorted({_series(line) for line in plotted}, key=_series_order)
    axes.set_xscale("log")
    sizes = {line.parameters: line.size or "" for line in plotted if line.parameters}
    gaps = [math.log(b / a) for a, b in pairwise(sorted(sizes))]
    spread = _DODGE_OF_GAP * min(gaps, default=_SINGLE_GAP)
    for i, one in enumerate(series):
        shift = math.exp(spread * (i / (len(series) - 1) - 0.5)) if len(series) > 1 else 1.0
        _draw(axes, one, [line for line in plotted if _series(line) == one], shift)
    for line in table.of(BASELINE):
        axes.axhline(
            line.estimate.value,
            color="#444444",
            linestyle=(0, (3, 3)),
            linewidth=1.1,
            label=line.system,
        )
    _label(axes, table, sizes, spread)


def _series(line: Line) -> _Series:
    return line.kind, line.head, line.objective


def _series_order(series: _Series) -> tuple:
    kind, head, objective = series
    return rank(HEADS, head), kind == UNTRAINED, rank(OBJECTIVES, objective)


def _draw(axes: Axes, series: _Series, lines: Sequence[Line], shift: float) -> None:
    kind, head, objective = series
    shades = _SHADES.get(head or "", _OTHER_SHADES)
    trained = kind == TRAINED
    shade = shades[rank(OBJECTIVES, objective)[0] % len(shades)] if trained else shades[1]
    label = objective_label(objective) if trained else kind
    axes.errorbar(
        [line.parameters * shift for line in lines if line.parameters],
        [line.estimate.value for line in lines],
        yerr=_error_bars(lines),
        color=shade,
        linestyle=_DASHES.get(head or "", "-.") if trained else "none",
        linewidth=1.6,
        marker=_MARKERS.get(objective or "", "v") if trained else "D",
        markersize=5.5 if trained else 5,
        markerfacecolor=shade if trained else "white",
        elinewidth=0.9,
        capsize=2,
        label=f"{head or ''} {label}".strip(),
    )


def _error_bars(lines: Sequence[Line]) -> list[list[float]]:
    """Distances below and above; a bootstrap interval need not hold the value, a bar must."""
    estimates = [line.estimate for line in lines]
    low = [0.0 if e.low is None else max(0.0, e.value - e.low) for e in estimates]
    high = [0.0 if e.high is None else max(0.0, e.high - e.value) for e in estimates]
    return [low, high]


def _label(axes: Axes, table: GridTable, sizes: dict[int, str], spread: float) -> None:
    axes.set_title(table.benchmark.name, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel(table.benchmark.primary)
    axes.set_xlabel("non-embedding parameters (log scale)")
    ordered = sorted(sizes)
    axes.set_xticks(ordered, [f"{quantity(n)}\n{sizes[n]}" for n in ordered])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    if ordered:
        margin = math.exp(spread if len(ordered) > 1 else 4 * spread)
        axes.set_xlim(ordered[0] / margin, ordered[-1] * margin)
