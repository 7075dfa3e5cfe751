"""Tables of the scaling section: fits, forecasts, optima, claims, and what was refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from raylab.report.blocks import Block, columns
from raylab.report.formats import NOTHING, objective_label, quantity, variant_label
from raylab.report.laws import Study
from raylab.scaling import COLUMNS, LAWS, Claim, Fit, Forecast, Interval, Optimum
from raylab.scaling import rows as flat
from raylab.scaling.points import Facts

_OF = ("head", "objective", "split", "measure")
_N = {"parameters": "without head", "with_head": "with head"}
_SERIES = ("head", "objective", "collection", "split", "measure", "where")
_BOUND, _WITHIN = "at its bound", "within"
_HUGE = 1e6  # beyond this, and below its inverse, powers of ten


@dataclass(frozen=True)
class Section:
    """The scaling section: `refused` and `excluded` are lines of text, `held` a summary of forecasts."""

    fits: Block
    forecasts: Block
    designs: Block
    optima: Block
    claims: Block
    held: str
    refused: tuple[str, ...]
    excluded: tuple[str, ...]
    negative: tuple[str, ...]
    draws: int


def section(study: Study) -> Section:
    """All that the section shows of a study."""
    designs = [one for made in study.forecasts for one in made.predictions]
    held = sum(one.held for one in designs)
    return Section(
        _fits(study.fits),
        _forecasts(study.forecasts),
        _designs(study.forecasts),
        _optima(study),
        _claims(study.claims),
        f"{held} of {len(designs)} designs held out lie within their 95 % prediction intervals."
        if designs
        else "",
        tuple(_refused(study)),
        tuple(dict.fromkeys(line for one in study.made() for line in one.excluded)),
        tuple(_negative(study)),
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
    names = [p for p in ("E", "d", "A", "a", "B", "b") if any(p in one.parameters for one in fits)]
    body = [
        (
            *_of(one),
            one.where or "all",
            one.law,
            _N[one.n],
            *(_parameter(one, name) for name in names),
            f"{one.r_squared:.3f}",
            str(one.degrees_of_freedom),
            f"{one.n_runs} / {one.points} / {len(one.seeds)}",
            f"{one.n_queries:,}",
            _window(one),
            str(len(one.excluded)),
        )
        for one in fits
    ]
    laws = dict.fromkeys(one.law for one in fits)
    facts = ("R\u00b2", "df", "runs / designs / seeds", "queries", "window", "excluded")
    return Block(
        "Fits",
        columns((*_OF, "part", "law", "N", *names, *facts)),
        tuple(body),
        note="; ".join(f"{law}: L = {LAWS[law].formula}" for law in laws)
        + ". Losses: contrastive entropy as it is, of nDCG@10 what lacks to 1; N: non-embedding parameters "
        f"without or with the vocabulary head; D: real tokens. {_BOUND.capitalize()}: the data do not "
        "hold the parameter; what it says beyond the window is not to be relied on.",
    )


def _of(one: Facts) -> tuple[str, ...]:
    return one.head, objective_label(one.objective), f"{one.collection} {one.split}", one.measure


def _parameter(one: Fit, name: str) -> str:
    if name not in one.parameters:
        return ""
    return f"{_interval(one.parameters[name])}{f' {_BOUND}' if name in one.at_bounds else ''}"


def _interval(one: Interval) -> str:
    return f"{_number(one.value)} [{_number(one.low)}, {_number(one.high)}]"


def _number(value: float) -> str:
    if value and not 1 / _HUGE <= abs(value) < _HUGE:
        return f"{value:.0e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


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
            *_of(one),
            one.where or "all",
            one.law,
            f"largest {one.hold_out}: {_held_out(one)}",
            str(len(one.predictions)),
            str(sum(own.held for own in one.predictions)),
            f"{fmean(abs(own.relative_error) for own in one.predictions):.1%}",
            f"{max((own.relative_error for own in one.predictions), key=abs):+.1%}",
            str(one.degrees_of_freedom),
        )
        for one in forecasts
    ]
    errors = ("designs", "held", "mean |error|", "worst error", "df")
    return Block(
        "Forecasts",
        columns((*_OF, "part", "law", "held out", *errors)),
        tuple(body),
        tuple("" if all(p.held for p in one.predictions) else "below" for one in forecasts),
        note="Fitted without the largest size or budget (N without head), which is then predicted. Held: the "
        "measured loss lies within the 95 % prediction interval. Error: predicted over measured, less 1.",
    )


def _held_out(one: Forecast) -> str:
    first = one.predictions[0]
    return first.size if one.hold_out == "size" else quantity(first.budget_flops, "FLOPs")


def _designs(forecasts: Sequence[Forecast]) -> Block:
    every = [(one, own) for one in forecasts for own in one.predictions]
    body = [
        (
            *_of(one),
            one.law,
            one.hold_out,
            own.size,
            quantity(own.budget_flops, "FLOPs") if own.budget_flops else NOTHING,
            _interval(own.predicted),
            f"{own.measured:.3f}",
            f"{own.relative_error:+.1%}",
            "yes" if own.held else "no",
        )
        for one, own in every
    ]
    return Block(
        "Every design that was held out",
        columns(
            (*_OF, "law", "held out", "size", "budget", "predicted", "measured", "error", "held")
        ),
        tuple(body),
        tuple("" if own.held else "below" for _, own in every),
    )


def _optima(study: Study) -> Block:
    """Of Chinchilla's surface and the parabolas; those of the joint law are in the CSV."""
    body = [
        (
            *_of(one),
            _N[one.n],
            quantity(one.budget_flops, "FLOPs"),
            one.method,
            _quantities(one.optimal_n),
            _quantities(one.optimal_d),
            NOTHING if one.exponent is None else _interval(one.exponent),
            _place(one, study.fits),
        )
        for one in study.optima
        if one.law == "chinchilla"
    ]
    return Block(
        "IsoFLOP optima",
        columns((*_OF, "N", "budget", "method", "N*", "D*", "exponent of N in C", "place")),
        tuple(body),
        tuple("untrained" if row[-1] != _WITHIN else "" for row in body),
        note="Of the Chinchilla surface along C = k N D, and of parabolas in log N (an illustration, biased "
        "even without noise). At the edge: the optimum is at or beyond the smallest or largest size "
        "tried at that budget, so the sizes do not hold it. Open: its interval reaches beyond them. Those "
        "of the joint law: laws.csv.",
    )


def _place(one: Optimum, fits: Sequence[Fit]) -> str:
    if one.place != "interior":
        return "at the edge"
    names = ("law", "n", *_SERIES)
    own = next(f for f in fits if all(getattr(f, name) == getattr(one, name) for name in names))
    parts = [_WITHIN]
    if one.optimal_n.low < one.tried[0] or one.optimal_n.high > one.tried[1]:
        parts.append("open")
    if own.at_bounds and one.method == "surface":
        parts.append(f"{' and '.join(own.at_bounds)} {_BOUND}")
    return ", ".join(parts)


def _quantities(one: Interval) -> str:
    return f"{_amount(one.value)} [{_amount(one.low)}, {_amount(one.high)}]"


def _amount(value: float) -> str:
    return "< 1" if value < 1 else quantity(value)


def _claims(claims: Sequence[Claim]) -> Block:
    """The slopes, a line each; sparse against dense, a line an objective: the tests are tabled elsewhere."""
    body = [
        (
            one.claim,
            *_of(one),
            NOTHING if one.reason else _interval(one.estimate),
            one.verdict,
            _reason(one),
            str(one.degrees_of_freedom),
            f"{one.n_runs} / {one.points} / {len(one.seeds)}",
        )
        for one in claims
        if not one.size
    ]
    pairs: dict[tuple, list[Claim]] = {}
    for one in claims:
        if one.size:
            pairs.setdefault((one.claim, *_of(one)), []).append(one)
    for key, own in pairs.items():
        claim, _, *where = key
        body.append(
            (
                claim,
                "both",
                *where,
                NOTHING,
                _majority(own),
                _counted(own),
                NOTHING,
                f"{len(own)} pairs",
            )
        )
    names = ("slope per decade of N", "verdict", "about", "df", "runs / designs / seeds")
    return Block(
        "The paper's three claims",
        columns(("claim", *_OF, *names)),
        tuple(body),
        note="Improves with size: of CL, the 95 % interval of the slope excludes 0, in the direction that is "
        "better. Flat in size: of KD, its 90 % interval lies within the margin (equivalence). Both "
        "within budgets. Sparse beats dense: paired t-tests, Holm over all pairs of the line's "
        "claim and measure.",
    )


def _reason(one: Claim) -> str:
    if one.reason:
        return one.reason.rpartition("; ")[2]
    return f"margin {one.margin:g}" if one.margin == one.margin else ""


def _majority(own: Iterable[Claim]) -> str:
    verdicts = {one.verdict for one in own}
    if verdicts == {"sparse"}:
        return "sparse beats dense"
    if {"sparse", "dense"} <= verdicts:
        return "mixed"
    return "in part" if "sparse" in verdicts else "dense" if "dense" in verdicts else "undecided"


def _counted(own: Sequence[Claim]) -> str:
    """Which cells which head won, by budget where there are any."""
    parts = []
    for verdict, said in (("sparse", "sparse better"), ("dense", "dense better")):
        sizes: dict[str, list[str]] = {}
        for one in own:
            if one.verdict == verdict:
                sizes.setdefault(one.size, []).append(one.where)
        if sizes:
            named = ", ".join(
                size + (f" ({', '.join(map(variant_label, at))})" if any(at) else "")
                for size, at in sizes.items()
            )
            parts.append(f"{said} in {sum(map(len, sizes.values()))}: {named}")
    open_ = sum(one.verdict not in ("sparse", "dense") for one in own)
    return "; ".join([*parts, *([f"undecided in {open_}"] if open_ else [])])


_AGAINST = {"worsens": "worsens with size", "not flat": "is not flat in size", "dense": "loses"}


def _negative(study: Study) -> list[str]:
    """Claims that came out against the paper, forecasts that missed, and fits that the data do not hold."""
    said = [
        f"{' '.join(_of(one))}: {_AGAINST[one.verdict]}, {_interval(one.estimate)} per decade of N"
        for one in study.claims
        if one.verdict in _AGAINST and not one.size
    ]
    losses = [one for one in study.claims if one.verdict == "dense"]
    for of in dict.fromkeys(_of(one)[1:] for one in losses):
        own = [one for one in study.claims if one.size and _of(one)[1:] == of]
        lost = sum(one.verdict == "dense" for one in own)
        said.append(f"{' '.join(of)}: dense beats sparse in {lost} of {len(own)} pairs")
    for one in study.forecasts:
        missed = [f"{p.size} ({p.relative_error:+.0%})" for p in one.predictions if not p.held]
        if missed:
            of = f"{' '.join(_of(one))}, {one.law} without the largest {one.hold_out}"
            said.append(f"{of}: missed {', '.join(missed)} at {_held_out(one)}")
    bound = [
        f"{' '.join(_of(f))} {f.law} ({_N[f.n]}: {', '.join(f.at_bounds)})"
        for f in study.fits
        if f.at_bounds
    ]
    if bound:
        said.append(
            f"{len(bound)} of {len(study.fits)} fits have a parameter {_BOUND}: {'; '.join(bound)}"
        )
    edge = sum(one.place == "edge" for one in study.optima)
    if edge:
        said.append(
            f"{edge} of {len(study.optima)} isoFLOP optima lie at the edge of the sizes tried"
        )
    return said


def _refused(study: Study) -> list[str]:
    """Reasons, each with the series that it is of: a line a reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for one in study.refused:
        of = one.series
        name = f"{of.head} {objective_label(of.objective)} {of.collection} {of.split} {of.measure}"
        where = f" {of.where}" if of.where else ""
        by_reason.setdefault((one.law, one.reason), []).append(name + where)
    return [f"{law}: {reason} ({', '.join(of)})." for (law, reason), of in by_reason.items()]
