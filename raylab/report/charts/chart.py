"""Charts as data: what is drawn, in which look, and which rows it is of.

A description holds every value at full precision and nothing of how it is drawn: `raylab.report.charts.drawing`
makes SVG and PNG of it, `to_json` a file that anyone can draw again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["measured", "untrained", "fitted", "optimum"]


@dataclass(frozen=True)
class Look:
    """How a series is told from others: marker and dash without colour, hue and shade with it.

    `marker`: of matplotlib, empty for none. `dash`: `solid`, `none`, or lengths of ink and gap by
    spaces, in units of the line's width. `shade`: 0 dark to 1 light. `hue`: a head's, or `grey`.
    """

    marker: str = "o"
    dash: str = "solid"
    hue: str = "grey"
    shade: float = 0.5
    hollow: bool = False
    width: float = 1.6


@dataclass(frozen=True)
class Axis:
    """An axis: its label, whether it is logarithmic, and labelled ticks (none: chosen when drawn)."""

    label: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Series:
    """Points that belong together, with intervals where `low` and `high` are known.

    `bars`: an interval a point, else a shaded band. `names`: of the points (systems), if they have any.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    look: Look = Look()
    role: Role = "measured"
    bars: bool = True
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A horizontal line across a panel: a system that is not of the grid."""

    label: str
    y: float


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `apart`: measured series are set apart sideways, so that bars of equal x show."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    apart: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure: panels row by row in so many `columns`, and what stands beside it.

    `legend`: the legend's heading. `note`: what is shown. `rows_filter`: of which rows, each an argument
    of `DataFrame.query` on the results. `freedom`: degrees of freedom of what is fitted, in words.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    legend: str = ""
    note: str = ""
    rows_filter: tuple[str, ...] = ()
    freedom: str = "nothing is fitted; lines join measured points"
    columns: int = 3

    @property
    def empty(self) -> bool:
        return not any(panel.series for panel in self.panels)


def to_json(chart: Chart) -> bytes:
    """The description as JSON, unknown values as null."""
    text = json.dumps(_plain(dataclasses.asdict(chart)), indent=1, ensure_ascii=False)
    return (text + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---------------------------------------------------------------------------------------- looks

_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p", "h", "8", "H")
_OF_OBJECTIVE = {"cl": "o", "kd": "s", "cl+kd": "^"}
_DASHES = {
    "sparse": ("solid", "7 1.5 1 1.5", "10 2"),
    "dense": ("5 2", "1.2 1.4", "3 1.2 1.2 1.2 1.2 1.2"),
}
_OTHER_DASHES = ("4 1 1 1", "2 1", "8 1 1 1 1 1")
UNTRAINED_LOOKS = {"sparse": Look("D", "none", "sparse", 0.5, True)} | {
    "dense": Look("d", "none", "dense", 0.5, True)
}

Key = tuple[str | None, str | None, str]
"""Head, objective, and what else tells series apart (a variant, a size) or nothing."""


def looks(keys: Sequence[Key]) -> dict[Key, Look]:
    """A look for each series, no two alike in marker, fill and dash.

    Hue and kind of dash say the head; the marker says the third part of the key where there are several,
    and the dash the objective, else the marker says the objective.
    """
    heads = _distinct(key[0] for key in keys)
    objectives, others = _distinct(k[1] for k in keys), _distinct(k[2] for k in keys)
    found = {}
    for key in keys:
        head, objective, other = key
        dashes = _DASHES.get(head or "", _OTHER_DASHES)
        place = others.index(other) if len(others) > 1 else objectives.index(objective)
        shade = place / max(1, (len(others) if len(others) > 1 else len(objectives)) - 1)
        dash = dashes[objectives.index(objective) % len(dashes)] if len(others) > 1 else dashes[0]
        marker = _MARKERS[place % len(_MARKERS)]
        if len(others) == 1:
            marker = _OF_OBJECTIVE.get(objective or "", _MARKERS[3 + place % 9])
        if head not in _DASHES and heads.index(head):  # heads that are not known share their dashes
            dash = f"{dash} {1 + heads.index(head)} 1"
        hollow = place >= len(_MARKERS)
        found[key] = Look(marker, dash, head if head in _DASHES else "grey", shade, hollow)
    return found


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))
