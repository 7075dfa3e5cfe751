"""Figures drawn: panels of rows become one Vega-Lite description, and that becomes SVG, PNG and JSON.

The bytes are a function of the panels. Nothing is fetched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import altair as alt
import vl_convert
from altair.utils.schemapi import debug_mode

from raylab.report.charts.chart import Chart
from raylab.report.charts.theme import CONFIG, SOLID, Style
from raylab.report.rows import BASELINE, TRAINED, UNTRAINED

FITTED, OPTIMUM = "fitted", "optimum"

_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_PIXELS_A_UNIT = 2.0  # of the PNG
_WIDTHS, _HEIGHT = (480, 380, 340), 300  # of a panel, by the number of columns
_KEY_WIDTH, _KEY_HEIGHT = 36, 19  # of the legend's keys
_NEAR = 0.14  # of a panel's width: labels of ticks nearer than this would touch
_MOST_TICKS = 7
# The share of the smallest gap between two places over which the series of a place are spread.
_SPREAD_OF_GAP = 0.4
_ONE_PLACE, _APART = 0.05, 0.15  # of a linear axis: shares of x

Row = dict[str, Any]
"""A point: its `x` and `y`, its interval from `low` to `high`, its `system`, and its `role`:
a kind of row, or `FITTED`, or `OPTIMUM`.

`series` is the label whose colour and dash it has, `mark` the label whose shape and fill it has.
A line joins the trained rows of a series in their order, or the fitted ones where a panel has any.
"""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    `ticks`: of the horizontal axis, value and label each; none: chosen when drawn. `apart`: series are
    set apart sideways, so that intervals of equal x show.
    """

    title: str
    x_label: str
    y_label: str
    rows: list[Row]
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    apart: bool = False

    @property
    def points(self) -> list[Row]:
        return [row for row in self.rows if row["role"] != BASELINE]


class _Channels(NamedTuple):
    colour: alt.Color
    dash: alt.StrokeDash
    shape: alt.Shape
    fill: Any


def draw(
    panels: Sequence[Panel], style_of: Mapping[str, Style], heading: str, columns: int
) -> dict[str, Any]:
    """The Vega-Lite of panels, row by row in so many `columns`, with one legend under its `heading`.

    `style_of`: by the label of a series or mark, in the legend's order.
    """
    columns = min(len(panels), columns)
    channels, width = _channels(style_of), _WIDTHS[min(columns, len(_WIDTHS)) - 1]
    about = "; ".join(f"{p.y_label} against {p.x_label}, {p.title}" for p in panels)
    # Whatever theme the process has chosen; and parts are not checked one by one, which takes as long as the rest.
    with alt.theme.enable("none"), debug_mode(False):
        drawn = [_panel(panel, channels, width) for panel in panels]
        grid = alt.concat(*drawn, columns=columns, spacing=28)
        figure = alt.hconcat(grid, _legend(style_of, channels, heading), center=True)
        spec = figure.properties(description=about).configure(**CONFIG).to_dict(validate=False)
    # What is not finite is unknown: JSON has no word for it.
    return json.loads(json.dumps(spec), parse_constant=lambda _: None)


def to_svg(chart: Chart) -> bytes:
    """The chart as SVG, without ids, so that a page can hold several."""
    svg = vl_convert.vegalite_to_svg(chart.spec, vl_version=_VEGA_LITE, allowed_base_urls=[])
    return svg.encode()


def to_png(chart: Chart) -> bytes:
    """The chart as PNG, of the same figure as the SVG."""
    return vl_convert.vegalite_to_png(
        chart.spec, vl_version=_VEGA_LITE, scale=_PIXELS_A_UNIT, allowed_base_urls=[]
    )


def to_json(chart: Chart) -> bytes:
    """The description, which a page can show live, with what stands beside it as its `usermeta`."""
    usermeta = {key: value for key, value in vars(chart).items() if key != "spec"}
    spec = chart.spec | {"usermeta": usermeta}
    return (json.dumps(spec, indent=1, ensure_ascii=False) + "\n").encode()


# ----------------------------------------------------------------------------------------- parts


def _channels(style_of: Mapping[str, Style]) -> _Channels:
    def scale(values: Iterable) -> alt.Scale:
        return alt.Scale(domain=list(style_of), range=list(values))

    styles = style_of.values()
    hollow = [label for label, style in style_of.items() if style.hollow]
    colour = alt.Color("series:N", legend=None, scale=scale(s.colour for s in styles))
    dashes = scale(list(s.dash or SOLID) for s in styles)
    return _Channels(
        colour,
        alt.StrokeDash("series:N", legend=None, scale=dashes),
        alt.Shape("mark:N", legend=None, scale=scale(s.shape or "circle" for s in styles)),
        alt.when(alt.FieldOneOfPredicate("mark", hollow))
        .then(alt.value("white"))
        .otherwise(colour),
    )


def _panel(panel: Panel, channels: _Channels, width: int) -> alt.LayerChart:
    rows, ends = _placed(panel)
    fitted = any(row["role"] == FITTED for row in rows)
    y_scale = _y_scale(rows, fitted)
    y = alt.Y("y:Q", title=panel.y_label, scale=y_scale, axis=alt.Axis(tickCount=6))
    low = alt.Y("low:Q", title=panel.y_label, scale=y_scale)

    def of(*roles: str) -> alt.Chart:
        one_of = alt.FieldOneOfPredicate("role", roles)
        return alt.Chart().transform_filter(one_of).encode(color=channels.colour)

    x = _x(panel, ends, width)
    bars = of(TRAINED, UNTRAINED).transform_filter("isValid(datum.low)")
    line = of(FITTED if fitted else TRAINED).mark_line(order=False)
    tooltip = ["system:N", "x:Q", "y:Q", "low:Q", "high:Q"]
    layers = [
        of(BASELINE).mark_rule(strokeWidth=1.2).encode(y=y, strokeDash=channels.dash),
        line.encode(x=x, y=y, strokeDash=channels.dash),
        bars.mark_errorbar(ticks=True).encode(x=x, y=low, y2="high"),
        of(OPTIMUM, TRAINED, UNTRAINED)
        .mark_point()
        .encode(x=x, y=y, shape=channels.shape, fill=channels.fill, tooltip=tooltip),
    ]
    if fitted:
        layers.insert(0, of(FITTED).mark_area(opacity=0.13).encode(x=x, y=low, y2="high"))
    data = alt.Data(values=rows)
    return alt.LayerChart(layer=layers, data=data, title=panel.title, width=width, height=_HEIGHT)


def _legend(style_of: Mapping[str, Style], channels: _Channels, heading: str) -> alt.LayerChart:
    """Line and shape of a series in one key; Vega-Lite's own legend shows one or the other."""
    keys, bottom = [], 0.0
    for label, style in style_of.items():
        height = _KEY_HEIGHT * (1 + 0.75 * label.count("\n"))
        key = {"series": label, "mark": label, "y": bottom + height / 2}
        keys.append(key | {"line": bool(style.dash), "point": bool(style.shape)})
        bottom += height
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, bottom], range=[0, bottom], nice=False))
    base = alt.Chart().encode(y=y)
    line = base.transform_filter("datum.line").mark_rule(strokeWidth=1.8)
    point = base.transform_filter("datum.point").mark_point()
    text = base.mark_text(align="left", baseline="middle", fontSize=11, lineBreak="\n")
    colour, middle = channels.colour, alt.value(_KEY_WIDTH / 2)
    ends = {"x": alt.value(0), "x2": alt.value(_KEY_WIDTH)}
    return alt.LayerChart(
        layer=[
            line.encode(**ends, color=colour, strokeDash=channels.dash),
            point.encode(x=middle, color=colour, shape=channels.shape, fill=channels.fill),
            text.encode(x=alt.value(_KEY_WIDTH + 8), text="mark:N"),
        ],
        data=alt.Data(values=keys),
        title=alt.TitleParams(heading.split("\n"), fontSize=10.5, fontWeight="normal"),
        width=_KEY_WIDTH,
        height=bottom,
    )


# ------------------------------------------------------------------------------------------ axes


def _placed(panel: Panel) -> tuple[list[Row], tuple[float, float]]:
    """The rows, points with the `place` at which they are drawn; the ends of the horizontal axis."""
    measure, inverse = (math.log, math.exp) if panel.log else (float, float)
    at = sorted({measure(row["x"]) for row in panel.points}) or [0.0]
    gaps = (right - left for left, right in pairwise(at))
    spread = _SPREAD_OF_GAP * min(gaps, default=math.log(2))
    if not panel.log and at[-1] - at[0] < _ONE_PLACE * abs(at[-1]):
        spread = _APART * abs(at[-1])
    moved = [row for row in panel.points if panel.apart and row["role"] in (TRAINED, UNTRAINED)]
    series = list(dict.fromkeys(row["series"] for row in moved))
    step = spread / max(1, len(series) - 1)
    shift = {label: step * place - spread / 2 for place, label in enumerate(series)}
    rows = [row for row in panel.rows if row["role"] == BASELINE]
    for row in panel.points:
        place = measure(row["x"]) + shift.get(row["series"], 0.0)
        rows.append(row | {"place": inverse(place)})
    margin = spread if panel.apart else 0.05 * (at[-1] - at[0]) or 0.1
    return rows, (inverse(at[0] - margin), inverse(at[-1] + margin))


def _x(panel: Panel, ends: tuple[float, float], width: int) -> alt.X:
    kind = "log" if panel.log else "linear"
    axis: dict[str, Any] = {"tickCount": 5 if panel.points else 0}
    if ticks := [tick for tick in panel.ticks if ends[0] <= tick[0] <= ends[1]]:
        values = [value for value, _ in ticks]
        lines = json.dumps([text.split("\n") for _, text in ticks], ensure_ascii=False)
        lowered = alt.FieldOneOfPredicate("value", _lowered(values, panel.log, ends))
        axis = {
            "values": values,
            "labelExpr": f"{lines}[indexof({json.dumps(values)}, datum.value)]",
            "labelOverlap": False,
            "labelPadding": {"condition": {"test": lowered, "value": 30}, "value": 3},
        }
    else:
        if panel.log and panel.points:
            axis = {"values": log_ticks(*ends)}
        if ends[1] >= 1000:
            axis["format"] = "~s" if ends[1] < 1e15 else "~e"
    return alt.X(
        "place:Q",
        title=panel.x_label + (" (log scale)" if panel.log else ""),
        scale=alt.Scale(type=kind, domain=ends, nice=False, zero=False),
        axis=alt.Axis(**axis),
    )


def _lowered(values: Sequence[float], log: bool, ends: tuple[float, float]) -> list[float]:
    """Every second tick where labels would touch: these are set lower."""
    measure = math.log if log else float
    least = _NEAR * (measure(ends[1]) - measure(ends[0]))
    near = any(measure(right) - measure(left) < least for left, right in pairwise(values))
    return list(values[1::2]) if near else []


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the limits; powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)):
        ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
        if len(ticks) <= _MOST_TICKS:
            return ticks
    return ticks[:: -(-len(ticks) // _MOST_TICKS)]


def _y_scale(rows: Sequence[Row], fitted: bool) -> alt.Scale:
    """Chosen when drawn; with fits, lines and bars set the limits, and a wider band is cut."""
    ends = [row["y"] for row in rows]
    ends += [row[end] for row in rows if row["role"] == TRAINED for end in ("low", "high")]
    ends = [end for end in ends if end is not None and math.isfinite(end)]
    width = max(ends, default=0) - min(ends, default=0)
    if not ends or (width and not fitted):
        return alt.Scale(zero=False)
    margin = 0.06 * width or 0.1
    return alt.Scale(domain=[min(ends) - margin, max(ends) + margin], clamp=True)
