"""Tables of the scaling section: fits, forecasts and optima; claims are `raylab.report.page.findings`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from raylab.report.formats import NOTHING, quantity
from raylab.report.page import domains
from raylab.report.page.blocks import Block, columns
from raylab.report.page.findings import claims_block, negative, refusals
from raylab.report.page.law_texts import (
    BOUND,
    N_LABELS,
    OF,
    freedom_text,
    held_out_text,
    interval_text,
    of_series,
)
from raylab.scaling import COLUMNS, Fit, Forecast, Interval, Optimum, Study
from raylab.scaling import rows as flat
from raylab.scaling.points import Facts

_SERIES = ("head", "objective", "collection", "split", "measure", "where")
_WITHIN = "within"


@dataclass(frozen=True)
class Section:
    """The scaling section: `refused` and `excluded` are lines of text, `held` a summary of forecasts."""

    fits: Block
    forecasts: Block
    designs: Block
    optima: Block
    claims: Block
    domains: Block
    held: str
    refused: tuple[str, ...]
    excluded: tuple[str, ...]
    negative: tuple[str, ...]
    draws: int


def section(study: Study) -> Section:
    """All that the section shows of a study."""
    designs = [one for forecast in study.forecasts for one in forecast.predictions]
    held = sum(one.held for one in designs)
    return Section(
        _fits(study.fits),
        _forecasts(study.forecasts),
        _designs(study.forecasts),
        _optima(study),
        claims_block(study.claims),
        domains.block(study),
        f"{held} of {len(designs)} designs held out lie within their 95 % prediction intervals."
        if designs
        else "",
        tuple(refusals(study)),
        tuple(dict.fromkeys(line for one in study.made() for line in one.excluded)),
        tuple(negative(study)),
        study.draws,
    )


def to_csv(study: Study) -> str:
    """Every estimate of a study in full precision."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for one in study.made() for row in flat(one))
    return buffer.getvalue()


def _fits(fits: Sequence[Fit]) -> Block:
    every = dict.fromkeys(name for one in fits for name in one.parameters)
    names = sorted(every, key=lambda name: f"EdAaBb{name}".index(name))
    body = [
        (
            *of_series(one),
            one.where or "all",
            one.law,
            N_LABELS[one.n],
            *(_parameter(one, name) for name in names),
            f"{one.r_squared:.3f}",
            freedom_text(one),
            f"{one.n_runs} / {one.points} / {len(one.seeds)}",
            f"{one.n_queries:,}",
            _window(one),
            str(len(one.excluded)),
        )
        for one in fits
    ]
    formulas = {one.law: one.formula for one in fits}
    facts = ("R\u00b2", "df", "runs / designs / seeds", "queries", "window", "excluded")
    return Block(
        "Fits",
        columns((*OF, "part", "law", "N", *names, *facts)),
        tuple(body),
        note="; ".join(f"{law}: L = {formula}" for law, formula in formulas.items())
        + ". Losses: contrastive entropy as it is, of nDCG@10 what lacks to 1; N: non-embedding parameters "
        "without or with the vocabulary head; D: real tokens. df: of the coarsest clusters that share noise, which "
        f"sizes are where there are several. {BOUND.capitalize()}: the data do not "
        "hold the parameter; what it says beyond the window is not to be relied on.",
    )


def _parameter(one: Fit, name: str) -> str:
    if name not in one.parameters:
        return ""
    return f"{interval_text(one.parameters[name])}{f' {BOUND}' if name in one.at_bounds else ''}"


def _window(one: Facts) -> str:
    known = {n: ends for n, ends in one.window.items() if ends[0] == ends[0]}
    return "; ".join(
        f"{name} {quantity(low)}"
        + (f" to {quantity(high)}" if quantity(high) != quantity(low) else "")
        for name, (low, high) in known.items()
    )


def _forecasts(forecasts: Sequence[Forecast]) -> Block:
    """A line a forecast: how many designs it held, and how far off it was."""
    body = [
        (
            *of_series(one),
            one.where or "all",
            one.law,
            f"largest {one.hold_out}: {held_out_text(one)}",
            str(len(one.predictions)),
            str(sum(p.held for p in one.predictions)),
            f"{fmean(abs(p.relative_error) for p in one.predictions):.1%}",
            f"{max((p.relative_error for p in one.predictions), key=abs):+.1%}",
            freedom_text(one),
        )
        for one in forecasts
    ]
    errors = ("designs", "held", "mean |error|", "worst error", "df")
    return Block(
        "Forecasts",
        columns((*OF, "part", "law", "held out", *errors)),
        tuple(body),
        tuple("" if all(p.held for p in one.predictions) else "below" for one in forecasts),
        note="Fitted without the largest size or budget (N without head), which is then predicted. Held: the "
        "measured loss lies within the 95 % prediction interval. Error: predicted over measured, less 1.",
    )


def _designs(forecasts: Sequence[Forecast]) -> Block:
    every = [(one, design) for one in forecasts for design in one.predictions]
    body = [
        (
            *of_series(one),
            one.law,
            one.hold_out,
            design.size,
            quantity(design.budget_flops, "FLOPs") if design.budget_flops else NOTHING,
            interval_text(design.predicted),
            f"{design.measured:.3f}",
            f"{design.relative_error:+.1%}",
            "yes" if design.held else "no",
        )
        for one, design in every
    ]
    return Block(
        "Every design that was held out",
        columns(
            (*OF, "law", "held out", "size", "budget", "predicted", "measured", "error", "held")
        ),
        tuple(body),
        tuple("" if design.held else "below" for _, design in every),
    )


def _optima(study: Study) -> Block:
    """Of Chinchilla's surface and the parabolas; those of the joint law are in the CSV."""
    body = [
        (
            *of_series(one),
            N_LABELS[one.n],
            quantity(one.budget_flops, "FLOPs"),
            one.method,
            _quantities(one.tried_n),
            _quantities(one.tried_d),
            NOTHING if one.exponent is None else interval_text(one.exponent),
            _place(one, study.fits),
        )
        for one in study.optima
        if one.law == "chinchilla"
    ]
    return Block(
        "IsoFLOP optima",
        columns((*OF, "N", "budget", "method", "N*", "D*", "exponent of N in C", "place")),
        tuple(body),
        tuple("untrained" if row[-1] != _WITHIN else "" for row in body),
        note="Of the Chinchilla surface along C = k N D, judged by the interval of N*: within the sizes tried at "
        "that budget; open, where it reaches beyond them (there it has no number: beyond); below or above them "
        "all, of which nothing else is said. Parabolas in log N are an illustration, biased even without noise: "
        "they have no intervals. Those of the joint law: laws.csv.",
    )


_PLACES = {
    "interior": _WITHIN,
    "open": "open",
    "below": "below the sizes tried",
    "above": "above the sizes tried",
    "vertex": "vertex",
}

_ENDS = {"below": "at the smallest", "above": "at the largest"}


def _place(one: Optimum, fits: Sequence[Fit]) -> str:
    place = _PLACES[one.place]
    if one.method == "parabola" and one.place != "vertex":
        return f"no vertex, better {_ENDS[one.place]}"
    names = ("law", "n", *_SERIES)
    fit = next(f for f in fits if all(getattr(f, name) == getattr(one, name) for name in names))
    if fit.at_bounds and one.place in ("interior", "open"):
        place += f", {' and '.join(fit.at_bounds)} {BOUND}"
    return place


def _quantities(one: Interval | None) -> str:
    """`1.2 M [800 k, beyond]`: what lies beyond the sizes tried has no number."""
    if one is None:
        return NOTHING
    if one.low != one.low and one.high != one.high and one.value == one.value:
        return _amount(one.value)
    return f"{_amount(one.value)} [{_amount(one.low)}, {_amount(one.high)}]"


def _amount(value: float) -> str:
    return "beyond" if value != value else quantity(value)
