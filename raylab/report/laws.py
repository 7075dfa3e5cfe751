"""The laws of a report: what is fitted, forecast and claimed of its held-out splits, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from raylab.config import ConfigError
from raylab.evaluation.entropy import MEASURE as ENTROPY
from raylab.report.rows import TRAINED, Result, benchmarks
from raylab.scaling import (
    LAWS,
    Claim,
    Fit,
    Forecast,
    Optimum,
    Series,
    claims,
    fit,
    forecast,
    isoflop,
    series,
    slices,
)

GAIN = "nDCG@10"
TARGETS = (ENTROPY, GAIN)
DRAWS = 1000
SURFACES = ("joint", "chinchilla")


@dataclass(frozen=True)
class Refusal:
    """What was not fitted: the law, the series, and why in a few words."""

    law: str
    series: Series
    reason: str


@dataclass
class Study:
    """All that the scaling section shows; every part in the order of the series."""

    draws: int
    fits: list[Fit] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    optima: list[Optimum] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def made(self) -> Iterator[Fit | Forecast | Optimum | Claim]:
        yield from (*self.fits, *self.forecasts, *self.optima, *self.claims)


def study(
    rows: Sequence[Result], results: pd.DataFrame, per_query: pd.DataFrame, draws: int = DRAWS
) -> Study:
    """Fit what the runs allow: laws of N and D where budgets vary, else of the one that varies.

    Validation splits are left out, and runs of other variants than the plain recipe and budgets.
    """
    made = Study(draws)
    if not any(row.kind == TRAINED for row in rows):
        return made
    for benchmark in benchmarks(rows):
        where = {"collection": benchmark.collection, "split": benchmark.split}
        if not benchmark.held_out:
            continue
        for one in series(results, per_query, TARGETS, **where):
            _fit(made, one)
        for measure in TARGETS:
            if measure in benchmark.measures:
                tests = claims(results, per_query, measure, draws=draws, **where)
                # Entropies of two heads have two temperatures: which head is better they do not tell.
                made.claims += [one for one in tests if measure != ENTROPY or not one.size]
    return made


def _fit(made: Study, whole: Series) -> None:
    sizes = len(set(whole.sizes))
    budgets = len({design[1:] for design in whole.designs})
    laws = SURFACES if sizes > 1 and budgets > 1 else ("size",) if budgets == 1 else ("data",)
    for law in laws:
        for part in slices(whole, law):
            _fit_law(made, part, law)


def _fit_law(made: Study, part: Series, law: str) -> None:
    options: dict[str, Any] = {"draws": made.draws}
    own = len(made.fits)
    for n in _numbers(part, law):
        try:
            made.fits.append(fit(part, law, n, **options))
        except ConfigError:
            made.refused.append(Refusal(law, part, refusal(part, law)))
            return
    held_out = ("size",) if law == "size" else ("budget",) if law == "data" else ("size", "budget")
    for largest in held_out:
        try:
            made.forecasts.append(forecast(part, law, largest, **options))
        except ConfigError as error:
            reason = str(error).removeprefix(f"{part.name}: ")
            made.refused.append(Refusal(f"{law} without the largest {largest}", part, reason))
    for fitted in made.fits[own:] if law in SURFACES else ():
        try:
            made.optima += isoflop(part, fitted)
        except ConfigError as error:
            reason = str(error).removeprefix(f"{part.name}: ")
            made.refused.append(Refusal(f"optima of {law}", part, reason))


def _numbers(part: Series, law: str) -> tuple[str, ...]:
    """N without the head, and with it where that is another number."""
    with_head = (part.numbers["with_head"] > part.numbers["parameters"]).any()
    return ("parameters", "with_head") if with_head and law != "data" else ("parameters",)


def refusal(part: Series, law: str) -> str:
    """Why a law cannot be fitted: `3 sizes, 3 parameters: no degree of freedom`."""
    sizes, budgets = len(set(part.sizes)), len({design[1:] for design in part.designs})
    levels = {
        "size": _counted(sizes, "size"),
        "data": _counted(budgets, "budget"),
    }.get(law, f"{_counted(sizes, 'size')} x {_counted(budgets, 'budget')}")
    parameters, points = len(LAWS[law].parameters), len(set(part.designs))
    left = points - parameters
    why = "no degree of freedom" if left < 1 else "fewer than 3 levels of N or D"
    return f"{levels}, {parameters} parameters: {why}"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
