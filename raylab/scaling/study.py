"""All that a law gives on a series: its fits, forecasts and optima, and why what is not made is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from raylab.experiment.config import ConfigError
from raylab.scaling.bootstrap import Interval
from raylab.scaling.claims import Claim
from raylab.scaling.curves import with_ends_of_largest
from raylab.scaling.domain_differences import (
    SLOPE,
    DomainDifference,
    domain_pairs,
    exponent_differences,
    slope_difference,
)
from raylab.scaling.fit import Fit, fit
from raylab.scaling.forecast import Forecast, HoldOut, forecast
from raylab.scaling.isoflop import Optimum, isoflop
from raylab.scaling.laws import Law, find_law
from raylab.scaling.points import Series, slices


@dataclass(frozen=True)
class Refusal:
    """What could not be made of a series: `what` is `fit`, `forecast`, `optima` or `difference`.

    `law`: None for the difference of a slope; a difference is of the series out of domain.
    """

    what: str
    law: Law | None
    series: Series
    reason: str
    hold_out: str = ""  # of a forecast

    @property
    def named(self) -> str:
        """`chinchilla`, `chinchilla without the largest size`, `optima of chinchilla`."""
        law = SLOPE if self.law is None else self.law.name
        if self.what in ("optima", "difference"):
            return f"{self.what} of {law}"
        without = f" without the largest {self.hold_out}" if self.hold_out else ""
        return f"{law}{without}"


@dataclass
class Study:
    """What was fitted and predicted, in the order of the calls; options are those of `fit`."""

    draws: int = 1000
    d: str = "tokens"
    seed: int = 0
    fits: list[Fit] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    optima: list[Optimum] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    domains: list[DomainDifference] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def made(self) -> Iterator[Fit | Forecast | Optimum | Claim | DomainDifference]:
        yield from (
            *self.fits, *self.forecasts, *self.optima, *self.claims, *self.domains,
        )  # fmt: skip

    def add(self, whole: Series, law: str | Law) -> None:
        """Fit a law to each slice of a series that it is about, without the head and with it.

        Args:
            law: a law of one's own, or the name of one in `LAWS`.

        Raises:
            ConfigError: no such law, or one of a covariate that runs do not have.
        """
        law = find_law(law)
        for name in law.covariates:
            whole.covariate(name)
        for part in slices(whole, law):
            self._add(part, law)

    def compare_domains(self, series_found: Sequence[Series]) -> None:
        """Set slopes, and exponents of the fits there are, out of domain against those in domain.

        N is without the head. What cannot be compared is refused, with the reason.
        """
        known: dict[tuple, Interval] = {}
        for inside, outside in domain_pairs(series_found):
            try:
                self.domains.append(
                    slope_difference(inside, outside, draws=self.draws, seed=self.seed, known=known)
                )
            except ConfigError as error:
                self._refuse("difference", None, outside, error, of=inside.name)
            for within in self._fits_of(inside):
                without = [
                    one
                    for one in self._fits_of(outside)
                    if (one.law, one.where) == (within.law, within.where)
                ]
                try:
                    if not without:
                        raise ConfigError(f"{within.law} is not fitted out of domain")
                    self.domains += exponent_differences(within, without[0], self.draws, self.seed)
                except ConfigError as error:
                    self._refuse("difference", within.definition, outside, error)

    def _fits_of(self, whole: Series) -> list[Fit]:
        names = ("head", "objective", "collection", "split", "measure", "domain")
        return [
            one
            for one in self.fits
            if one.n == "parameters"
            and all(getattr(one, name) == getattr(whole, name) for name in names)
        ]

    def fit_points(self, whole: Series, law: Law) -> None:
        """Fit a law of N and D to points of curves, and forecast where the largest size ends."""
        if self._fit(whole, law):
            self._forecast(with_ends_of_largest(whole), law, ("size",))

    def _add(self, part: Series, law: Law) -> None:
        fits = self._fit(part, law)
        if fits:
            self._forecast(part, law, law.hold_out)
        for fitted in fits if law.covariates == ("N", "D") else ():
            try:
                self.optima += isoflop(part, fitted)
            except ConfigError as error:
                self._refuse("optima", law, part, error)

    @property
    def _options(self) -> dict[str, Any]:
        return {"d": self.d, "draws": self.draws, "seed": self.seed}

    def _fit(self, part: Series, law: Law) -> list[Fit]:
        fits: list[Fit] = []
        try:
            for n in _sizes(part, law):
                fits.append(fit(part, law, n, **self._options))
        except ConfigError as error:
            self._refuse("fit", law, part, error)
        self.fits += fits
        return fits

    def _forecast(self, part: Series, law: Law, largest: Sequence[HoldOut]) -> None:
        for hold_out in largest:
            try:
                self.forecasts.append(forecast(part, law, hold_out, **self._options))
            except ConfigError as error:
                self._refuse("forecast", law, part, error, hold_out)

    def _refuse(
        self,
        kind: str,
        law: Law | None,
        part: Series,
        error: ConfigError,
        hold_out: str = "",
        of: str = "",
    ) -> None:
        reason = str(error).removeprefix(f"{of or part.name}: ")
        self.refused.append(Refusal(kind, law, part, reason, hold_out))


def _sizes(part: Series, law: Law) -> tuple[str, ...]:
    """N without the head, and with it where that is another number."""
    with_head = (part.numbers["with_head"] > part.numbers["parameters"]).any()
    return ("parameters", "with_head") if with_head and "N" in law.covariates else ("parameters",)
