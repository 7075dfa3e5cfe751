"""IsoFLOP charts: contrastive entropy against N, a curve a budget, with what was fitted through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raylab.evaluation.entropy import MEASURE as ENTROPY
from raylab.report.charts.chart import Axis, Chart, Look, Panel, Series, looks
from raylab.report.formats import objective_label, quantity
from raylab.report.rows import HEADS, OBJECTIVES, rank
from raylab.scaling import Fit, Optimum, Study

_LAW = "chinchilla"
_FEWEST_BUDGETS, _FEWEST_SIZES = 2, 3
_POINTS = 60
_N = {"parameters": "non-embedding parameters", "with_head": "parameters with the vocabulary head"}
_WITHIN, _AT_EDGE = "surface: optimum", "surface: optimum at\nor beyond the edge"
_VERTEX, _BETTER_END = "parabola: vertex", "parabola: better end,\nno vertex within"
_Z = 1.96


def charts(found: Study) -> list[Chart]:
    """A chart a head, a panel an objective and held-out split; empty without surfaces to draw."""
    surfaces = [one for one in found.fits if one.law == _LAW and one.measure == ENTROPY]
    heads = sorted({one.head for one in surfaces}, key=lambda head: rank(HEADS, head))
    made = [_chart(head, [s for s in surfaces if s.head == head], found.optima) for head in heads]
    return [chart for chart in made if not chart.empty]


def _chart(head: str, surfaces: Sequence[Fit], optima: Sequence[Optimum]) -> Chart:
    by_panel: dict[tuple, list[Fit]] = {}
    for one in sorted(surfaces, key=lambda s: rank(OBJECTIVES, s.objective)):
        by_panel.setdefault((one.collection, one.split, one.objective), []).append(one)
    panels, filters, freedom = [], [], []
    for (collection, split, objective), own in by_panel.items():
        fitted = min(own, key=lambda one: _spread(one, optima))
        if not _enough(fitted):
            continue
        mine = [o for o in optima if _same(o, fitted)]
        panels.append(
            _panel(fitted, mine, f"{collection} {split}, {head} {objective_label(objective)}")
        )
        filters.append(
            f"collection == {collection!r} and split == {split!r} and measure == {ENTROPY!r} and "
            f"kind == 'trained' and head == {head!r} and objective == {objective!r}"
        )
        freedom.append(
            f"{objective_label(objective)}: {fitted.degrees_of_freedom} ({fitted.n_runs} runs, "
            f"{len(fitted.parameters)} parameters; R\u00b2 {fitted.r_squared:.3f}"
            + (f"; at their bounds: {', '.join(fitted.at_bounds)}" if fitted.at_bounds else "")
            + ")"
        )
    return Chart(
        f"isoflop-{head}",
        f"IsoFLOP curves, {head}",
        tuple(panels),
        "bars: 95 % interval\nover queries",
        "Lines and bands: the fitted L(N, D) = E + A/N^a + B/D^b along C = k N D, k the median of the "
        "runs, with the N along which k varies least. Stars: its optima; hollow where the optimum lies at "
        "or beyond the edge of the sizes tried, which is no finding. Parabolas in log N through the runs "
        "of a budget are an illustration, biased even without noise. The lower the better.",
        tuple(filters),
        "; ".join(freedom),
        columns=2,
    )


def _same(optimum: Optimum, fitted: Fit) -> bool:
    names = ("law", "n", "head", "objective", "collection", "split", "measure")
    return all(getattr(optimum, name) == getattr(fitted, name) for name in names)


def _spread(fitted: Fit, optima: Sequence[Optimum]) -> float:
    """How far k varies among the runs: C = k N D is one curve a budget where it does not."""
    ranges = [o.k_range for o in optima if _same(o, fitted)]
    return max((high / low for low, high in ranges), default=math.inf)


def _enough(fitted: Fit) -> bool:
    runs = fitted.series
    budgets = {budget for budget in runs.budgets if budget}
    return len(budgets) >= _FEWEST_BUDGETS and len(set(runs.sizes)) >= _FEWEST_SIZES


def _panel(fitted: Fit, optima: Sequence[Optimum], title: str) -> Panel:
    runs = fitted.series
    budgets = sorted({budget for budget in runs.budgets if budget})
    keys = [(runs.head, runs.objective, f"{budget:g}") for budget in budgets]
    look = dict(zip(budgets, looks(keys).values(), strict=True))
    dashes = _dashes(budgets)
    measured, lines, marks = [], [], []
    for budget in budgets:
        label = quantity(budget, "FLOPs")
        own = np.flatnonzero(np.array(runs.budgets) == budget)
        measured.append(_measured(fitted, own, label, replace(look[budget], dash="none")))
        surface = next(
            (o for o in optima if (o.budget_flops, o.method) == (budget, "surface")), None
        )
        vertex = next(
            (o for o in optima if (o.budget_flops, o.method) == (budget, "parabola")), None
        )
        if surface is not None:
            drawn = replace(look[budget], marker="", dash=dashes[budget])
            lines.append(_surface(fitted, surface, own, label, drawn))
            marks.append(_mark(fitted, surface, look[budget]))
        if vertex is not None:
            marks.append(_vertex(vertex, look[budget]))
    series = (*measured, *lines, *marks)
    sizes = dict(zip(fitted.series.covariate("N", fitted.n).tolist(), runs.sizes, strict=True))
    ticks = tuple((n, f"{quantity(n)}\n{sizes[n]}") for n in sorted(sizes))
    return Panel(title, Axis(_N[fitted.n], True, ticks), Axis(f"{ENTROPY}, nats"), series)


def _dashes(budgets: Sequence[float]) -> dict[float, str]:
    known = ("solid", "6 2", "1.5 1.5", "6 2 1.5 2", "10 2 2 2", "3 1 1 1 1 1")
    return {budget: known[i % len(known)] for i, budget in enumerate(budgets)}


def _measured(fitted: Fit, own: np.ndarray, label: str, look: Look) -> Series:
    losses_RQ = fitted.series.losses_RQ[own]
    means = losses_RQ.mean(1)
    half = (
        _Z * losses_RQ.std(1, ddof=1) / math.sqrt(losses_RQ.shape[1])
        if losses_RQ.shape[1] > 1
        else 0
    )
    return Series(
        label,
        tuple(fitted.series.covariate("N", fitted.n)[own].tolist()),
        tuple(means.tolist()),
        tuple((means - half).tolist()),
        tuple((means + half).tolist()),
        look,
        names=tuple(fitted.series.systems[r] for r in own),
    )


def _surface(fitted: Fit, optimum: Optimum, own: np.ndarray, label: str, look: Look) -> Series:
    """The law along C = k N D at the FLOPs that the runs of the budget spent, with its interval."""
    product = optimum.optimal_n.value * optimum.optimal_d.value  # C / k
    n_R = fitted.series.covariate("N", fitted.n)[own]
    n = np.geomspace(n_R.min(), n_R.max(), _POINTS)
    value = fitted.predict(n, product / n)
    low, high, middle = (
        tuple(np.asarray(e).tolist()) for e in (value.low, value.high, value.value)
    )
    return Series(label, tuple(n.tolist()), middle, low, high, look, "fitted", bars=False)


def _mark(fitted: Fit, optimum: Optimum, look: Look) -> Series:
    """Where the surface is least; beyond the sizes tried, its value at their nearer end."""
    low, high = optimum.tried
    n, loss = optimum.optimal_n.value, optimum.loss.value
    edge = optimum.place == "edge"
    if edge:
        product = n * optimum.optimal_d.value
        n = min(max(n, low), high)
        loss = float(fitted.predict(n, product / n).value)
    look = replace(look, marker="*", dash="none", hollow=edge)
    return Series(_AT_EDGE if edge else _WITHIN, (n,), (loss,), look=look, role="optimum")


def _vertex(optimum: Optimum, look: Look) -> Series:
    edge = optimum.place == "edge"
    label = _BETTER_END if edge else _VERTEX
    look = replace(look, marker="1" if edge else "x", dash="none")
    at, loss = optimum.optimal_n.value, optimum.loss.value
    return Series(label, (at,), (loss,), look=look, role="optimum")
