"""What the tables of laws share: which series a figure is of, and numbers that span decades."""

from __future__ import annotations

import math

from raylab.evaluation.domains import OUT_OF_DOMAIN
from raylab.report.formats import objective_label, quantity
from raylab.scaling import Claim, DomainDifference, Fit, Forecast, Interval
from raylab.scaling.points import Facts

OF = ("head", "objective", "split", "measure")
N_LABELS = {"parameters": "without head", "with_head": "with head"}
BOUND = "at its bound"
_HUGE = 1e6  # beyond this, and below its inverse, powers of ten


def of_series(one: Facts) -> tuple[str, ...]:
    """The cells under `OF`; a split says where it is out of domain."""
    split = f"{one.collection} {one.split}"
    if one.domain == OUT_OF_DOMAIN != one.split:
        split += f" ({OUT_OF_DOMAIN})"
    return one.head, objective_label(one.objective), split, one.measure


def interval_text(one: Interval) -> str:
    """`0.49 [0.18, 1.41]`; the estimate alone where it has no interval."""
    if math.isnan(one.low) and math.isnan(one.high):
        return number(one.value)
    return f"{number(one.value)} [{number(one.low)}, {number(one.high)}]"


def number(value: float) -> str:
    """Three digits; powers of ten where a number is huge or tiny."""
    if value and not 1 / _HUGE <= abs(value) < _HUGE:
        return f"{value:.0e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def freedom_text(one: Fit | Forecast | Claim | DomainDifference) -> str:
    """Degrees of freedom and what they are of: `3 of 5 sizes`."""
    return f"{one.degrees_of_freedom:.3g} of {one.clusters}"


def held_out_text(one: Forecast) -> str:
    """The size or the budget that a forecast was made without."""
    first = one.predictions[0]
    return first.size if one.hold_out == "size" else quantity(first.budget_flops, "FLOPs")
