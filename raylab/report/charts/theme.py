"""How series are told apart, and how a figure looks.

Shape, fill and dash tell series apart in black and white; hue and shade do it beside them (hues after
Okabe and Ito, for the colour-blind).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raylab.report.formats import objective_label, quantity
from raylab.report.rows import Variation

Other = str | Variation
Key = tuple[str | None, str | None, Other]
"""Head, objective, and what else tells series apart (a variant, a size) or nothing."""
Dash = tuple[float, ...]
"""Lengths of ink and gap, in pixels."""

SOLID: Dash = (1, 0)
DASHES: tuple[Dash, ...] = (SOLID, (9, 3), (2, 2.5), (9, 3, 2, 3), (16, 3), (5, 2, 2, 2, 2, 2))
STAR = (
    "M0,-1.6L0.4,-0.54L1.52,-0.5L0.64,0.21L0.94,1.3L0,0.67"
    "L-0.94,1.3L-0.64,0.21L-1.52,-0.5L-0.4,-0.54Z"
)
SALTIRE = "M-0.8,-0.8L0.8,0.8M-0.8,0.8L0.8,-0.8"
TRIPOD = "M0,0L0,1.2M0,0L1.04,-0.6M0,0L-1.04,-0.6"
_SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "triangle-down",
    "cross",
    "triangle-left",
    "triangle-right",
    "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z",  # pentagon
    "M-0.5,-0.87L0.5,-0.87L1,0L0.5,0.87L-0.5,0.87L-1,0Z",  # hexagon
    "M-0.9,-0.9L0.9,0.9L0.9,-0.9L-0.9,0.9Z",  # bow tie
    "M-0.9,-0.9L0.9,-0.9L-0.9,0.9L0.9,0.9Z",  # hourglass
    "M-1,-0.4L1,-0.4L1,0.4L-1,0.4Z",  # bar
)
_SHAPE_OF_OBJECTIVE = {"cl": "circle", "kd": "square", "cl+kd": "triangle-up"}


@dataclass(frozen=True)
class Style:
    """`shape`: one of Vega's or an SVG path, filled with white if `hollow`. No dash: no line; no shape: no points."""

    colour: str
    shape: str | None
    dash: Dash | None
    hollow: bool = False


@dataclass(frozen=True)
class HeadStyle:
    """The ends of a head's colours, its dashes, and the shape of its untrained rows."""

    dark: str
    light: str
    dashes: tuple[Dash, ...]
    untrained: str

    def colour(self, shade: float) -> str:
        """From dark (0) to light (1)."""
        ends = (bytes.fromhex(end[1:]) for end in (self.dark, self.light))
        mixed = (round(dark + (light - dark) * shade) for dark, light in zip(*ends, strict=True))
        return "#" + bytes(mixed).hex()


_HEADS = {
    "sparse": HeadStyle("#0b3c5d", "#56aee0", (SOLID, (12, 2.5, 2, 2.5), (18, 4)), "diamond"),
    "dense": HeadStyle(
        "#7a2e00",
        "#e8952a",
        ((8, 3.5), (2, 2.2), (5, 2, 2, 2, 2, 2)),
        "M0,-1.1L0.5,0L0,1.1L-0.5,0Z",
    ),
}
_OTHER_HEAD = HeadStyle(
    "#222222", "#9a9a9a", ((6, 2, 2, 2), (3, 1.5), (13, 2, 2, 2, 2, 2)), "triangle-down"
)
REFERENCE_STYLE = Style("#444444", None, (4, 4))
CONFIG: dict[str, Any] = {
    "aria": False,  # the page describes a chart as a whole
    "background": "white",
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "padding": 8,
    "view": {"stroke": None},
    "title": {"anchor": "start", "frame": "group", "fontSize": 13, "offset": 10},
    "axis": {
        "domainColor": "#555555",
        "tickColor": "#555555",
        "gridColor": "#e4e4e4",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "axisX": {"grid": False},
    "line": {"strokeWidth": 1.8},
    "point": {"size": 55, "strokeWidth": 1.4, "opacity": 1},
    "errorbar": {"thickness": 1.1, "ticks": {"size": 5, "thickness": 1.1, "opacity": 1}},
}


def head_style(head: str | None) -> HeadStyle:
    return _HEADS.get(head or "", _OTHER_HEAD)


def untrained_style(head: str | None) -> Style:
    """Hollow, in the middle of the head's colours."""
    return Style(head_style(head).colour(0.5), head_style(head).untrained, None, hollow=True)


def styles(keys: Sequence[Key]) -> dict[Key, Style]:
    """A style for each series, no two alike in shape, fill and dash.

    Hue and kind of dash say the head; the shape says the third part of the key where there are several,
    and the dash the objective, else the shape says the objective.
    """
    heads, objectives, others = (_distinct(key[part] for key in keys) for part in range(3))
    by_other = len(others) > 1
    style_of = {}
    for key in keys:
        head, objective, other = key
        look = head_style(head)
        place = others.index(other) if by_other else objectives.index(objective)
        shade = place / max(1, len(others if by_other else objectives) - 1)
        shape = _SHAPES[place % len(_SHAPES)]
        if not by_other:
            shape = _SHAPE_OF_OBJECTIVE.get(objective or "", _SHAPES[3 + place % 9])
        dash = look.dashes[objectives.index(objective) % len(look.dashes) if by_other else 0]
        if look is _OTHER_HEAD and heads.index(head):  # other heads share their dashes
            dash = (*dash, 1 + heads.index(head), 1)
        style_of[key] = Style(look.colour(shade), shape, dash, place >= len(_SHAPES))
    return style_of


def labels(keys: Iterable[Key]) -> dict[Key, str]:
    """What the legend calls each series, no two alike: `sparse CL 1.60 TFLOPs`."""
    short = {}
    for head, objective, other in keys:
        named = _other_label(other)
        parts = (head or "", objective_label(objective), named)
        short[head, objective, other] = " ".join(part for part in parts if part)
    uses = Counter(short.values())
    return {
        key: label if uses[label] == 1 else f"{label} ({_name(key[2])})"
        for key, label in short.items()
    }


def _name(other: Other) -> str:
    return other.name if isinstance(other, Variation) else other


def _other_label(other: Other) -> str:
    if not isinstance(other, Variation):
        return other
    budget = other.budget_flops
    return other.name if budget is None else quantity(budget, "FLOPs")


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))
