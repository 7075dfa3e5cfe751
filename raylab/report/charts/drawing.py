"""Charts drawn: one renderer from a description to SVG and PNG.

Marker, fill and dash tell series apart in black and white, hue and shade beside them (hues of Okabe and
Ito, for the colour-blind). The bytes are a function of the description.
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
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from raylab.report.charts.chart import Axis, Chart, Look, Panel, Series
from raylab.report.formats import quantity

_PANEL_INCHES, _LEGEND_INCHES, _HEIGHT_INCHES = (6.2, 4.6, 4.0), 1.9, 4.3
_DPI = 150
# The share of the smallest gap between two places over which the series of a place are spread.
_DODGE_OF_GAP = 0.4
_SINGLE_GAP = math.log(2)
_ONE_PLACE, _APART = 0.05, 0.15  # of a linear axis: shares of x
_MOST_TICKS = 7
_DARK_LIGHT = {
    "sparse": ("#0B3C5D", "#5DB4E5"),
    "dense": ("#7A2E00", "#EFA030"),
    "grey": ("#222222", "#9A9A9A"),
}
_ORDER = {"fitted": 2.0, "optimum": 2.5, "measured": 3.0, "untrained": 3.0}
_NEAR = 0.13  # of the width: labels of ticks nearer than this are set one below the other
_SIZES = {"*": 15.0, "x": 8.0, "1": 10.0}
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


def render(chart: Chart) -> dict[str, bytes]:
    """The chart as `{"png": ..., "svg": ...}`, both of the same figure."""
    with matplotlib.style.context(["default", _STYLE]):
        drawn = figure(chart)
        return {kind: _saved(drawn, kind) for kind in ("png", "svg")}


def _saved(drawn: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=kind, dpi=_DPI, metadata=_NO_METADATA[kind])
    return buffer.getvalue()


def figure(chart: Chart) -> Figure:
    """The chart as a figure of matplotlib, under the style that is set."""
    panels = max(1, len(chart.panels))
    columns = min(panels, chart.columns)
    rows = -(-panels // columns)
    width = columns * _PANEL_INCHES[min(columns, 3) - 1] + _LEGEND_INCHES
    drawn = Figure(figsize=(width, rows * _HEIGHT_INCHES), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    places = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(places, chart.panels, strict=False):
        _panel(axes, panel)
    for axes in places[len(chart.panels) :]:
        axes.remove()
    _legend(drawn, chart)
    return drawn


def _legend(drawn: Figure, chart: Chart) -> None:
    handles: dict[str, list] = {}
    for axes in drawn.axes:
        own: dict[str, list] = {}
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            own.setdefault(label, []).append(handle)
        handles = own | handles
    series = [one for panel in chart.panels for one in panel.series]
    order = [one.label for one in series]
    optima = {one.label for one in series if one.role == "optimum"}
    labels = sorted(handles, key=lambda x: order.index(x) if x in order else len(order))
    drawn.legend(
        # Points and the line fitted through them share a label, and an entry.
        [handles[x][0] if x in optima else tuple(handles[x]) for x in labels],  # pyright: ignore
        labels,
        loc="outside right center",
        title=chart.legend,
        title_fontsize=8,
        alignment="left",
        handlelength=3.2,
    )


def colour(look: Look) -> str:
    """The colour of a look: its hue, from dark to light."""
    ends = (_rgb(end) for end in _DARK_LIGHT.get(look.hue, _DARK_LIGHT["grey"]))
    mixed = (round(a + (b - a) * look.shade) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{part:02X}" for part in mixed)


def _rgb(code: str) -> tuple[int, ...]:
    return tuple(int(code[i : i + 2], 16) for i in (1, 3, 5))


def _dash(look: Look) -> str | tuple[float, tuple[float, ...]]:
    if look.dash in ("solid", "none"):
        return look.dash
    return 0, tuple(map(float, look.dash.split()))


# ------------------------------------------------------------------------------------- a panel


def _panel(axes: Axes, panel: Panel) -> None:
    if panel.x.log:
        axes.set_xscale("log")
    if panel.y.log:
        axes.set_yscale("log")
    spread = _spread(panel)
    dodged = [one for one in panel.series if panel.apart and one.role in ("measured", "untrained")]
    for one in panel.series:
        place = dodged.index(one) / (len(dodged) - 1) - 0.5 if one in dodged[1:] else -0.5
        _draw(axes, one, _moved(one.x, spread * place, panel.x.log) if one in dodged else one.x)
    for rule in panel.rules:
        axes.axhline(
            rule.y, color="#444444", linestyle=(0, (3, 3)), linewidth=1.1, label=rule.label
        )
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel(panel.y.label)
    axes.set_xlabel(panel.x.label + (" (log scale)" if panel.x.log else ""))
    _limits(axes, panel, spread)
    _ticks(axes.xaxis, panel.x, axes.get_xlim())
    if panel.y.log:
        _ticks(axes.yaxis, panel.y, axes.get_ylim())


def _spread(panel: Panel) -> float:
    """How far apart the first and the last of the series at one x are set, in the axis' own measure."""
    places = sorted({x for one in panel.series for x in one.x})
    if panel.x.log:
        places = [math.log(x) for x in places]
    elif places and places[-1] - places[0] < _ONE_PLACE * abs(places[-1]):
        return _APART * abs(places[-1])
    gaps = [b - a for a, b in pairwise(places)]
    return _DODGE_OF_GAP * min(gaps, default=_SINGLE_GAP if panel.x.log else 1.0)


def _moved(xs: Sequence[float], shift: float, log: bool) -> tuple[float, ...]:
    return tuple(x * math.exp(shift) if log else x + shift for x in xs)


def _draw(axes: Axes, one: Series, xs: Sequence[float]) -> None:
    look, shade = one.look, colour(one.look)
    line = {
        "color": shade,
        "linestyle": _dash(look),
        "linewidth": look.width,
        "marker": look.marker or "none",
        "markersize": _SIZES.get(look.marker, 5.5),
        "markerfacecolor": "white" if look.hollow else shade,
        "label": one.label or "_nolegend_",
        "zorder": _ORDER[one.role],
    }
    if not one.low:
        axes.plot(xs, one.y, **line)
    elif one.bars:
        axes.errorbar(xs, one.y, yerr=error_bars(one), elinewidth=0.9, capsize=2, **line)
    else:
        axes.plot(xs, one.y, **line)
        axes.fill_between(xs, *_bounds(one), color=shade, alpha=0.13, linewidth=0)  # pyright: ignore


def _bounds(one: Series) -> tuple[list[float], list[float]]:
    low = [y if end is None else end for y, end in zip(one.y, one.low, strict=True)]
    high = [y if end is None else end for y, end in zip(one.y, one.high, strict=True)]
    return low, high


def error_bars(one: Series) -> list[list[float]]:
    """Distances below and above; a bootstrap interval need not hold the value, a bar must."""
    low, high = _bounds(one)
    return [
        [max(0.0, y - end) for y, end in zip(one.y, low, strict=True)],
        [max(0.0, end - y) for y, end in zip(one.y, high, strict=True)],
    ]


def _limits(axes: Axes, panel: Panel, spread: float) -> None:
    xs = [x for one in panel.series for x in one.x]
    if not xs:
        return
    if any(not one.bars for one in panel.series) and not panel.y.log:
        _clip_bands(axes, panel)
    low, high = min(xs), max(xs)
    if panel.x.log:
        margin = math.exp(spread if low < high else 4 * spread)
        margin = max(margin, (high / low) ** 0.04)
        axes.set_xlim(low / margin, high * margin)
    elif panel.apart:
        axes.set_xlim(low - spread, high + spread)
    elif low == high:
        axes.set_xlim(low - 0.1 * abs(low or 1), high + 0.1 * abs(high or 1))


def _clip_bands(axes: Axes, panel: Panel) -> None:
    """Lines and bars set the limits; a band that is wider than they are is cut."""
    ends = [y for one in panel.series for y in one.y]
    for one in panel.series:
        if one.bars and one.low:
            ends += [end for side in _bounds(one) for end in side]
    margin = 0.06 * (max(ends) - min(ends))
    axes.set_ylim(min(ends) - margin, max(ends) + margin)


def _ticks(axis, description: Axis, limits: tuple[float, float]) -> None:
    if description.ticks:
        places = [at for at, _ in description.ticks]
        texts = [text for _, text in description.ticks]
        axis.set_ticks(places, _staggered(places, texts, limits, description.log))
    elif description.log:
        axis.set_major_locator(FixedLocator(log_ticks(*limits)))
        axis.set_major_formatter(FuncFormatter(lambda at, _: _short(at)))
    else:
        axis.set_major_locator(MaxNLocator(5))
        if max(map(abs, limits)) >= 1000:
            axis.set_major_formatter(FuncFormatter(lambda at, _: quantity(at)))
    if description.log:
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def _staggered(
    places: Sequence[float], texts: Sequence[str], limits: tuple[float, float], log: bool
) -> list[str]:
    """The labels, every second of those that are near each other set lower."""
    scale = math.log if log else float
    width = scale(limits[1]) - scale(limits[0])
    found: list[str] = []
    lowered = True
    for i, text in enumerate(texts):
        near = i > 0 and (scale(places[i]) - scale(places[i - 1])) / width < _NEAR
        lowered = near and not lowered and "\n" in text
        found.append("\n" * 2 + text if lowered else text)
    return found


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the limits; powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)):
        found = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
        if len(found) <= _MOST_TICKS:
            return found
    return found[:: -(-len(found) // _MOST_TICKS)]


def _short(value: float) -> str:
    """`200 k`, `1.5 T`, `0.05`: no more digits than a tick has."""
    if abs(value) < 1000:
        return f"{value:g}"
    number, _, unit = quantity(value).partition(" ")
    return f"{float(number):g} {unit}".rstrip() if "e" not in number else f"{value:.0e}"
