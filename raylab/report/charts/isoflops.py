"""IsoFLOP charts: contrastive entropy against N, a curve a budget, with what was fitted through them.

Legend: R runs, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raylab.evaluation.entropy import MEASURE as ENTROPY
from raylab.report.charts.chart import Chart
from raylab.report.charts.drawing import FITTED, OPTIMUM, Panel, Row, draw
from raylab.report.charts.theme import DASHES, SALTIRE, STAR, TRIPOD, Style, styles
from raylab.report.formats import objective_label, quantity
from raylab.report.page.law_texts import freedom_text
from raylab.report.rows import HEADS, OBJECTIVES, TRAINED, rank
from raylab.scaling import Fit, Optimum, Series, Study

_LAW = "chinchilla"
_FEWEST_BUDGETS, _FEWEST_SIZES = 2, 3
_POINTS = 60
_N = {"parameters": "non-embedding parameters", "with_head": "parameters with the vocabulary head"}
_MARKS = {
    "interior": "surface: optimum",
    "open": "surface: optimum, open",
    "below": "surface: least beyond\nthe sizes tried",
    "above": "surface: least beyond\nthe sizes tried",
    "vertex": "parabola: vertex",
}
_SHAPES = {
    "surface: optimum": STAR,
    "surface: optimum, open": STAR,
    _MARKS["below"]: TRIPOD,
    "parabola: vertex": SALTIRE,
}
_HOLLOW = _MARKS["open"]
_Z = 1.96


def charts(study: Study) -> list[Chart]:
    """A chart a head, a panel an objective and held-out split; empty without surfaces to draw."""
    # No row of the results is of a mean over collections.
    surfaces = [
        fit
        for fit in study.fits
        if fit.law == _LAW and fit.measure == ENTROPY and not fit.series.strata
    ]
    heads = sorted({fit.head for fit in surfaces}, key=lambda head: rank(HEADS, head))
    drawn = []
    for head in heads:
        by_panel: dict[tuple, list[Fit]] = {}
        of_head = [fit for fit in surfaces if fit.head == head]
        for fit in sorted(of_head, key=lambda fit: rank(OBJECTIVES, fit.objective)):
            by_panel.setdefault((fit.collection, fit.split, fit.objective), []).append(fit)
        steadiest = [min(fits, key=lambda f: _k_range(f, study)) for fits in by_panel.values()]
        if shown := [fit for fit in steadiest if _enough(fit)]:
            drawn.append(_chart(head, shown, study))
    return drawn


def _chart(head: str, fits: Sequence[Fit], study: Study) -> Chart:
    budgets = sorted({budget for fit in fits for budget in _budgets(fit)})
    keys = [(head, None, f"{budget:g}") for budget in budgets]
    style_of = {
        quantity(budget, "FLOPs"): replace(style, dash=DASHES[place % len(DASHES)])
        for place, (budget, style) in enumerate(zip(budgets, styles(keys).values(), strict=True))
    }
    colour = next(iter(style_of.values())).colour
    panels = [_panel(fit, study) for fit in fits]
    marks = {row["mark"] for panel in panels for row in panel.rows if row["role"] == OPTIMUM}
    style_of |= {
        mark: Style(colour, shape, None, mark == _HOLLOW)
        for mark, shape in _SHAPES.items()
        if mark in marks
    }
    return Chart(
        f"isoflop-{head}",
        f"IsoFLOP curves, {head}",
        draw(panels, style_of, "bars: 95 % interval\nover queries", columns=2),
        "Lines and bands: the fitted L(N, D) = E + A/N^a + B/D^b along C = k N D, k the median of the "
        "runs, with the N along which k varies least. Stars: its optima; hollow where the interval of N reaches "
        "beyond the sizes tried, so that they do not hold it. Vertices of parabolas in log N through the runs "
        "of a budget are an illustration, biased even without noise. The lower the better.",
        tuple(
            f"collection == {fit.collection!r} and split == {fit.split!r} and measure == {ENTROPY!r} and "
            f"kind == 'trained' and head == {head!r} and objective == {fit.objective!r}"
            for fit in fits
        ),
        "; ".join(map(_freedom, fits)),
    )


def _freedom(fit: Fit) -> str:
    bounds = f"; at their bounds: {', '.join(fit.at_bounds)}" if fit.at_bounds else ""
    return (
        f"{objective_label(fit.objective)}: {freedom_text(fit)} ({fit.n_runs} runs, "
        f"{len(fit.parameters)} parameters; R\u00b2 {fit.r_squared:.3f}{bounds})"
    )


def _budgets(fit: Fit) -> list[float]:
    return sorted({budget for budget in fit.series.budgets if budget})


def _optima(fit: Fit, study: Study) -> list[Optimum]:
    names = ("law", "n", "head", "objective", "collection", "split", "measure")
    return [o for o in study.optima if all(getattr(o, n) == getattr(fit, n) for n in names)]


def _k_range(fit: Fit, study: Study) -> float:
    """How far k varies among the runs: C = k N D is one curve a budget where it does not."""
    ranges = [optimum.k_range for optimum in _optima(fit, study)]
    return max((high / low for low, high in ranges), default=math.inf)


def _enough(fit: Fit) -> bool:
    return len(_budgets(fit)) >= _FEWEST_BUDGETS and len(set(fit.series.sizes)) >= _FEWEST_SIZES


def _panel(fit: Fit, study: Study) -> Panel:
    """The runs, the surface at each budget, and the optima, which lie under the runs."""
    n_R = fit.series.covariate("N", fit.n)
    runs, curves, marks = [], [], []
    for budget in _budgets(fit):
        label = quantity(budget, "FLOPs")
        chosen = np.array(fit.series.budgets) == budget
        runs += run_rows(fit.series.keep(chosen), label, fit.n)
        for optimum in _optima(fit, study):
            if optimum.budget_flops == budget:
                marks += _mark(fit, optimum, label)
                if optimum.method == "surface":
                    curves += _curve(fit, optimum, n_R[chosen], label)
    size_of = dict(zip(n_R.tolist(), fit.series.sizes, strict=True))
    ticks = tuple((n, f"{quantity(n)}\n{size_of[n]}") for n in sorted(size_of))
    title = f"{fit.collection} {fit.split}, {fit.head} {objective_label(fit.objective)}"
    rows = [*curves, *marks, *runs]
    return Panel(title, _N[fit.n], f"{ENTROPY}, nats", rows, log=True, ticks=ticks)


def run_rows(series: Series, label: str, n: str = "parameters") -> list[Row]:
    """The runs of a series: means over queries with their normal 95 % intervals."""
    losses_RQ, mean_R = series.losses_RQ, series.losses_R
    queries = losses_RQ.shape[1]
    half_R = np.zeros_like(mean_R)
    if queries > 1:
        half_R = _Z * losses_RQ.std(1, ddof=1) / math.sqrt(queries)
    n_R = series.covariate("N", n)
    columns = n_R, mean_R, mean_R - half_R, mean_R + half_R
    return [
        {"series": label, "mark": label, "role": TRAINED, "system": system}
        | dict(zip(("x", "y", "low", "high"), values, strict=True))
        for system, *values in zip(series.systems, *(c.tolist() for c in columns), strict=True)
    ]


def _curve(fit: Fit, optimum: Optimum, n_R: np.ndarray, label: str) -> list[Row]:
    """The law along C = k N D at the FLOPs that the runs of the budget spent, with its interval."""
    n = np.geomspace(n_R.min(), n_R.max(), _POINTS)
    loss = fit.predict(n, optimum.product / n)
    columns = (np.asarray(values).tolist() for values in (n, loss.value, loss.low, loss.high))
    return [
        {"series": label, "role": FITTED, "x": x, "y": y, "low": low, "high": high}
        for x, y, low, high in zip(*columns, strict=True)
    ]


def _mark(fit: Fit, optimum: Optimum, label: str) -> list[Row]:
    """The optimum; of a surface that is least beyond the sizes tried, its value at their nearer end.

    A parabola without a vertex has no mark.
    """
    low, high = optimum.tried
    if optimum.method == "parabola" and optimum.place != "vertex":
        return []
    n = low if optimum.place == "below" else high
    if optimum.optimal_n is not None:
        n = min(max(optimum.optimal_n.value, low), high)
    loss = fit.predict(n, optimum.product / n).value
    if optimum.method == "parabola" and optimum.loss is not None:
        loss = optimum.loss.value
    mark = _MARKS[optimum.place]
    return [{"series": label, "mark": mark, "role": OPTIMUM, "x": n, "y": float(loss)}]
