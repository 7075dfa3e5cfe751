"""Fits, forecasts, optima, claims and domains compared as flat rows: an estimate a row, with all it rests on."""

from __future__ import annotations

import math
from typing import Any

from raylab.scaling.bootstrap import Interval
from raylab.scaling.claims import Claim
from raylab.scaling.domain_differences import DomainDifference
from raylab.scaling.fit import Fit
from raylab.scaling.forecast import Forecast
from raylab.scaling.isoflop import Optimum
from raylab.scaling.points import Facts

COLUMNS: tuple[str, ...] = (
    "row", "head", "objective", "collection", "split", "measure", "domain", "where", "law", "n", "d", "about",
    "quantity", "value", "low", "high", "confidence", "measured", "relative_error", "verdict", "p",
    "family", "question", "r_squared", "degrees_of_freedom", "clusters", "n_runs", "points", "n_queries", "seeds",
    "lowest_N", "highest_N", "lowest_D", "highest_D", "lowest_C", "highest_C", "excluded",
)  # fmt: skip


def rows(estimate: Fit | Forecast | Optimum | Claim | DomainDifference) -> list[dict[str, Any]]:
    """The estimates of a result under `COLUMNS`; a column that means nothing to one is None."""
    common = dict.fromkeys(COLUMNS) | _facts(estimate)
    if isinstance(estimate, Fit):
        common |= {"row": "fit", "r_squared": _known(estimate.r_squared)}
        return [
            common
            | _estimate(name, one, estimate.confidence)
            | {"verdict": "at its bound" if name in estimate.at_bounds else None}
            for name, one in estimate.parameters.items()
        ]
    if isinstance(estimate, Forecast):
        common["row"] = "forecast"
        return [
            common
            | _estimate("loss", one.predicted, estimate.confidence)
            | {
                "about": f"held out {estimate.hold_out}: {one.size} at {one.budget_flops:.3g}",
                "measured": one.measured,
                "relative_error": one.relative_error,
                "verdict": "held" if one.held else "missed",
            }
            for one in estimate.predictions
        ]
    if isinstance(estimate, Optimum):
        about = f"{estimate.method} at {estimate.budget_flops:.3g}"
        common |= {"row": "optimum", "about": about, "verdict": estimate.place}
        named = {
            "N": estimate.tried_n, "D": estimate.tried_d, "loss": estimate.loss,
            "exponent": estimate.exponent,
        }  # fmt: skip
        known = {name: one for name, one in named.items() if one is not None}
        if not known:
            return [common | {"quantity": "N"}]
        return [common | _estimate(name, one, estimate.confidence) for name, one in known.items()]
    if isinstance(estimate, DomainDifference):
        of = f"{estimate.quantity} of {estimate.law}" if estimate.law else estimate.quantity
        common |= {"row": "domain", "about": f"{of}, against {estimate.against}"}
        named = {
            "in domain": estimate.inside, "out of domain": estimate.outside,
            "difference": estimate.difference,
        }  # fmt: skip
        return [
            common
            | _estimate(name, one, estimate.confidence)
            | {"verdict": estimate.verdict if name == "difference" else None}
            for name, one in named.items()
        ]
    quantity = "difference" if estimate.size else "slope per decade"
    return [
        common
        | _estimate(quantity, estimate.estimate, estimate.confidence)
        | {
            "row": "claim",
            "about": f"{estimate.claim}{f': {estimate.size}' if estimate.size else ''}",
            "verdict": estimate.verdict,
            "p": _known(estimate.p),
            "family": estimate.family,
            "question": estimate.question or None,
        }
    ]


def _estimate(name: str, one: Interval, confidence: float) -> dict[str, Any]:
    bounds = {"value": _known(one.value), "low": _known(one.low), "high": _known(one.high)}
    return {
        "quantity": name,
        "confidence": None if bounds["low"] is None else confidence,
    } | bounds


def _facts(facts: Facts) -> dict[str, Any]:
    names = (
        "head", "objective", "collection", "split", "measure", "domain", "where", "law", "n", "d",
        "degrees_of_freedom", "clusters", "n_runs", "points", "n_queries",
    )  # fmt: skip
    row = {name: getattr(facts, name, None) for name in names}
    for name, (low, high) in facts.window.items():
        row |= {f"lowest_{name}": _known(low), f"highest_{name}": _known(high)}
    return row | {
        "seeds": " ".join(map(str, facts.seeds)),
        "excluded": "; ".join(facts.excluded),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
