"""The laws fitted so far, drawn with the forecast of the sizes that are still to be measured.

Fits are those of `raylab.scaling`, of the series that the report would fit; nothing is fitted in another way here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raylab.evaluation.entropy import MEASURE as ENTROPY
from raylab.experiment.config import ConfigError
from raylab.live.facts import LivePlan, PlannedCell
from raylab.report.charts import isoflops
from raylab.report.charts.drawing import FITTED, OPTIMUM, Panel, Row, draw
from raylab.report.charts.theme import STAR, Style, labels, styles
from raylab.report.formats import quantity
from raylab.report.laws import shown_series
from raylab.report.page.law_texts import freedom_text
from raylab.report.rows import Result
from raylab.scaling import Fit, Series, Study, fit, slices

_LAW = "size"
_DRAWS = 200  # the report takes 1,000
_POINTS = 40
_MOST_PANELS = 4
_FORECAST = "forecast"


@dataclass(frozen=True)
class Forecast:
    """What the law says of a planned size of a head, an objective and a budget; the interval is the law's own."""

    head: str
    objective: str
    collection: str
    split: str
    measure: str
    size: str
    parameters: int
    loss: float
    low: float | None
    high: float | None


def laws(
    rows: Sequence[Result], results: pd.DataFrame, per_query: pd.DataFrame, plan: LivePlan | None
) -> dict[str, Any]:
    """Chart, forecasts and refusals as a JSON object; without a fit, no curve and no band.

    `spec` is None where there is no run of a held-out split. `refused` says of every series without a law why.
    """
    whole = shown_series(rows, results, per_query)
    parts = _newest_budget([part for one in whole for part in slices(one, _LAW)])
    fits: dict[str, Fit] = {}
    refused: dict[str, list[str]] = {}
    for part in parts:
        try:
            fits[part.name] = fit(part, _LAW, draws=_DRAWS)
        except ConfigError as error:
            reason = str(error).removeprefix(f"{part.name}: ")
            refused.setdefault(reason, []).append(part.name)
    forecasts: list[Forecast] = []
    for part in parts:
        if part.name in fits:
            forecasts += _forecasts(fits[part.name], part, plan)
    spec = _chart(parts, fits, forecasts)
    return {
        "title": "Loss against size, with the law fitted so far",
        "note": _note(fits, bool(forecasts)),
        "spec": spec,
        "forecasts": [vars(one) for one in forecasts],
        "refused": [f"{reason} ({', '.join(names)})" for reason, names in refused.items()],
        "more": _isoflops(whole),
    }


def _isoflops(whole: Sequence[Series]) -> list[dict[str, Any]]:
    """The report's IsoFLOP charts, where sizes and budgets vary."""
    study = Study(_DRAWS)
    for one in whole:
        if one.measure == ENTROPY and min(len(set(one.sizes)), len(set(one.budgets))) > 1:
            study.add(one, "chinchilla")
    return [
        {
            "name": chart.name,
            "title": chart.title,
            "note": chart.note,
            "spec": chart.spec,
            "freedom": chart.freedom,
        }
        for chart in isoflops.charts(study)
    ]


def _newest_budget(parts: Sequence[Series]) -> list[Series]:
    """Of each series the part with most sizes; of equals, the largest budget: one curve a series."""
    best: dict[tuple, Series] = {}
    for part in parts:
        key = part.head, part.objective, part.collection, part.split, part.measure
        if key not in best or _reach(part) > _reach(best[key]):
            best[key] = part
    return list(best.values())


def _reach(part: Series) -> tuple[int, float]:
    return len(set(part.sizes)), max(part.budgets, default=0.0)


def _forecasts(fitted: Fit, part: Series, plan: LivePlan | None) -> list[Forecast]:
    """Of the plan's sizes that the series lacks."""
    found = {}
    for cell in plan.cells if plan else ():
        if _is_to_come(cell, part):
            found[cell.size] = cell
    forecasts = []
    for cell in found.values():
        loss = fitted.predict(float(cell.parameters))
        about = part.head, part.objective, part.collection, part.split, part.measure
        ends = _finite(loss.low), _finite(loss.high)
        forecasts.append(Forecast(*about, cell.size, cell.parameters, float(loss.value), *ends))
    return forecasts


def _is_to_come(cell: PlannedCell, part: Series) -> bool:
    return (
        (cell.head, cell.objective, cell.variant) == (part.head, part.objective, "")
        and cell.state == "planned"
        and cell.parameters > 0
        and cell.size not in part.sizes
    )


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _note(fits: dict[str, Fit], forecasts: bool) -> str:
    if not fits:
        return (
            "No law yet: a law of size needs four sizes of one budget. Points: means over queries."
        )
    freedom = "; ".join(
        f"{name}: {freedom_text(one)} degrees of freedom" for name, one in fits.items()
    )
    more = " Stars: what the law says of sizes that are not measured yet." if forecasts else ""
    return (
        f"Lines and bands: L(N) = (A/N)^a + d with its 95 % interval, from {_DRAWS} draws; the report takes more."
        f"{more} {freedom}."
    )


def _chart(
    parts: Sequence[Series], fits: dict[str, Fit], forecasts: Sequence[Forecast]
) -> dict[str, Any] | None:
    if not parts:
        return None
    keys = list(dict.fromkeys((part.head, part.objective, "") for part in parts))
    label_of = labels(keys)
    style_of: dict[str, Style] = {label_of[key]: style for key, style in styles(keys).items()}
    by_place: dict[tuple[str, str, str], list[Series]] = {}
    for part in parts:
        by_place.setdefault((part.collection, part.split, part.measure), []).append(part)
    panels = []
    for (collection, split, measure), own in list(by_place.items())[:_MOST_PANELS]:
        rows: list[Row] = []
        for part in own:
            label = label_of[part.head, part.objective, ""]
            to_come = [
                one
                for one in forecasts
                if (one.head, one.objective) == (part.head, part.objective)
                and (one.collection, one.split, one.measure) == (collection, split, measure)
            ]
            if part.name in fits:
                rows += _curve(fits[part.name], part, to_come, label)
            rows += _stars(to_come, label) + isoflops.run_rows(part, label)
        ticks = _ticks(own, forecasts)
        unit = f"{measure}, nats" if measure.startswith("CE@") else f"1 - {measure}"
        title = f"{collection} {split}"
        panels.append(Panel(title, "non-embedding parameters", unit, rows, log=True, ticks=ticks))
    if forecasts:
        style_of[_FORECAST] = Style("#444444", STAR, None, hollow=True)
    return draw(panels, style_of, "bars: 95 % interval\nover queries", columns=2)


def _ticks(own: Sequence[Series], forecasts: Sequence[Forecast]) -> tuple[tuple[float, str], ...]:
    sizes = {float(n): s for one in own for n, s in zip(one.covariate("N"), one.sizes, strict=True)}
    sizes |= {float(one.parameters): one.size for one in forecasts}
    return tuple((n, f"{quantity(n)}\n{sizes[n]}") for n in sorted(sizes))


def _curve(fitted: Fit, part: Series, to_come: Sequence[Forecast], label: str) -> list[Row]:
    sizes = [*part.covariate("N").tolist(), *(float(one.parameters) for one in to_come)]
    n = np.geomspace(min(sizes), max(sizes), _POINTS)
    loss = fitted.predict(n)
    columns = (np.asarray(values).tolist() for values in (n, loss.value, loss.low, loss.high))
    return [
        {"series": label, "role": FITTED, "x": x, "y": y, "low": low, "high": high}
        for x, y, low, high in zip(*columns, strict=True)
    ]


def _stars(to_come: Sequence[Forecast], label: str) -> list[Row]:
    return [
        {
            "series": label,
            "mark": _FORECAST,
            "role": OPTIMUM,
            "system": f"{one.size}, forecast",
            "x": float(one.parameters),
            "y": one.loss,
            "low": one.low,
            "high": one.high,
        }
        for one in to_come
    ]
