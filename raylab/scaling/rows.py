"""Fits, forecasts, optima and claims as flat rows: an estimate a row, with all that it rests on."""

from __future__ import annotations

import math
from typing import Any

from raylab.scaling.bootstrap import Interval
from raylab.scaling.claims import Claim
from raylab.scaling.fit import Fit
from raylab.scaling.forecast import Forecast
from raylab.scaling.isoflop import Optimum
from raylab.scaling.points import Facts

COLUMNS: tuple[str, ...] = (
    "row", "head", "objective", "collection", "split", "measure", "where", "law", "n", "d", "about",
    "quantity", "value", "low", "high", "confidence", "measured", "relative_error", "verdict", "p",
    "family", "r_squared", "degrees_of_freedom", "n_runs", "points", "n_queries", "seeds",
    "lowest_N", "highest_N", "lowest_D", "highest_D", "lowest_C", "highest_C", "excluded",
)  # fmt: skip


def rows(found: Fit | Forecast | Optimum | Claim) -> list[dict[str, Any]]:
    """The estimates of a result under `COLUMNS`; a column that means nothing to one is None."""
    common = dict.fromkeys(COLUMNS) | _facts(found)
    if isinstance(found, Fit):
        common |= {"row": "fit", "r_squared": _known(found.r_squared)}
        return [
            common
            | _estimate(name, one, found.confidence)
            | {"verdict": "at its bound" if name in found.at_bounds else None}
            for name, one in found.parameters.items()
        ]
    if isinstance(found, Forecast):
        common["row"] = "forecast"
        return [
            common
            | _estimate("loss", one.predicted, found.confidence)
            | {
                "about": f"held out {found.hold_out}: {one.size} at {one.budget_flops:.3g}",
                "measured": one.measured,
                "relative_error": one.relative_error,
                "verdict": "held" if one.held else "missed",
            }
            for one in found.predictions
        ]
    if isinstance(found, Optimum):
        about = f"{found.method} at {found.budget_flops:.3g}"
        common |= {"row": "optimum", "about": about, "verdict": found.place}
        named = {"N": found.optimal_n, "D": found.optimal_d, "loss": found.loss}
        if found.exponent is not None:
            named["exponent"] = found.exponent
        return [common | _estimate(name, one, found.confidence) for name, one in named.items()]
    quantity = "difference" if found.size else "slope per decade"
    return [
        common
        | _estimate(quantity, found.estimate, found.confidence)
        | {
            "row": "claim",
            "about": f"{found.claim}{f': {found.size}' if found.size else ''}",
            "verdict": found.verdict,
            "p": _known(found.p),
            "family": found.family,
        }
    ]


def _estimate(name: str, one: Interval, confidence: float) -> dict[str, Any]:
    bounds = {"value": _known(one.value), "low": _known(one.low), "high": _known(one.high)}
    return {"quantity": name, "confidence": confidence} | bounds


def _facts(found: Facts) -> dict[str, Any]:
    names = (
        "head", "objective", "collection", "split", "measure", "where", "law", "n", "d",
        "degrees_of_freedom", "n_runs", "points", "n_queries",
    )  # fmt: skip
    own = {name: getattr(found, name, None) for name in names}
    for name, (low, high) in found.window.items():
        own |= {f"lowest_{name}": _known(low), f"highest_{name}": _known(high)}
    return own | {
        "seeds": " ".join(map(str, found.seeds)),
        "excluded": "; ".join(found.excluded),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
