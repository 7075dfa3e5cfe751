"""The scaling laws: what each is of, its value and derivatives (batched), and how it is reported.

| law | formula | parameters | source |
|---|---|---|---|
| size | L(N) = (A/N)^a + d | A a d | 2403.18684 |
| data | L(D) = (B/D)^b + d | B b d | 2403.18684 |
| joint | L(N, D) = [(A/N)^(a/b) + B/D]^b + d | A a B b d | 2403.18684 |
| chinchilla | L(N, D) = E + A/N^a + B/D^b | E A a B b | 2203.15556 |
| retrieval_flops, index_bytes | L(x) = (A/x)^a + d | A a d | the law of size, in what a search costs |

The solver works on other parameters than are reported, since A of a small exponent spans decades and
goes with it: theta = (floor, c, a) and, of two covariates, (floor, c, a, g, b), where c and g are
the logs of the terms of N and D at the centre of the covariates. With x = log covariate - centre:

    one covariate   L = floor + exp(c - a x)
    chinchilla      L = floor + exp(c - a x1) + exp(g - b x2)
    joint           L = floor + exp(b logaddexp((c - a x1) / b, g / b - x2))

Legend: S parameter sets (any leading shape), R runs, K covariates, P parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from raylab.experiment.config import ConfigError

HoldOut = Literal["size", "budget"]

# Exponents and log terms (at the centre, of a loss near 1) that the fits stay within.
EXPONENTS = (0.01, 10.0)
LOG_TERMS = (-30.0, 30.0)
_TINY = 1e-300
# Where fits start: a grid of exponents, and of floors as shares of the smallest loss.
_GRID = np.geomspace(0.05, 3.0, 12)
_FLOORS = (0.0, 0.3, 0.6, 0.9, 0.98)
_SMALLEST = np.exp(-8.0)


@dataclass(frozen=True)
class Law:
    """A law of the form floor + (A/x)^a, with such a term for each covariate. Other forms are subclasses.

    Args:
        formula: as it is printed.
        parameters: names, in the order reported: scale and exponent of each covariate, then the floor.
        covariates: among N (parameters), D (tokens or queries), C (FLOPs) and the other numbers of a run.
        within: the runs that lie on one curve are those of one budget, of one size, or all.
        hold_out: what forecasts leave out: the runs of the largest size, of the largest budget.
        sparse_only: whether it is about the cost of a search, which is that of sparse retrievers.

    Raises:
        ConfigError: no covariate, or other than one parameter for each place of theta.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    covariates: tuple[str, ...]
    within: Literal["budget", "size", "all"] = "all"
    hold_out: tuple[HoldOut, ...] = ("size",)
    sparse_only: bool = False

    def __post_init__(self) -> None:
        if not self.covariates or len(self.parameters) != len(self.places):
            raise ConfigError(
                f"law {self.name!r}: {len(self.parameters)} parameters for {len(self.covariates)} covariates; "
                f"it needs a covariate, and {len(self.places)} parameters: two for each, and a floor"
            )

    @property
    def places(self) -> tuple[int, ...]:
        """Where in theta each reported parameter stands."""
        return (*range(1, 1 + 2 * len(self.covariates)), 0)

    @property
    def exponents(self) -> dict[str, int]:
        """Names of the reported exponents, each with its place in theta."""
        named = zip(self.parameters, self.places, strict=True)
        return {name: place for name, place in named if place and place % 2 == 0}

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest theta, float64 [P] each: no floor below 0, no negative exponent."""
        pairs = [(0.0, np.inf)] + [LOG_TERMS, EXPONENTS] * len(self.covariates)
        return np.array([low for low, _ in pairs]), np.array([high for _, high in pairs])

    def at_bounds(self, theta_P: np.ndarray) -> tuple[str, ...]:
        """The floor and exponents that lie at a bound, by their names: the data do not hold them."""
        at_P = np.any([np.isclose(theta_P, bound, 1e-3, 0) for bound in self.bounds], axis=0)
        named = zip(self.parameters, self.places, strict=True)
        return tuple(name for name, place in named if place % 2 == 0 and at_P[place])

    def value(self, theta_SP: np.ndarray, x_RK: np.ndarray) -> np.ndarray:
        """L, float64 [S, R]."""
        return theta_SP[..., :1] + self.above_floor(theta_SP, x_RK)[0]

    def log_jacobian(self, theta_SP: np.ndarray, x_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L, float64 [S, R], and its derivatives by theta, float64 [S, R, P]."""
        ones = np.ones(theta_SP.shape[:-1] + x_RK.shape[:1])
        above, columns = self.above_floor(theta_SP, x_RK)
        value = theta_SP[..., :1] + above
        return np.log(value), np.stack([ones, *columns], -1) / value[..., None]

    def reported(self, theta_SP: np.ndarray, centre_K: np.ndarray, unit: float) -> np.ndarray:
        """The parameters as named, float64 [S, P], of losses in `unit`s and covariates about `centre_K`."""
        values = [unit * theta_SP[..., 0]]
        for k, centre in enumerate(centre_K):
            log_term = theta_SP[..., 1 + 2 * k] + np.log(unit)
            exponent = theta_SP[..., 2 + 2 * k]
            log_scale = self.log_scale(log_term, exponent, centre)
            values += [np.exp(np.minimum(log_scale, 700.0)), exponent]
        return np.stack([values[place] for place in self.places], -1)

    def optimum(self, reported_SP: np.ndarray, log_c: float) -> tuple[np.ndarray, np.ndarray]:
        """log N at which a law of N and D is least where N D = C, and the exponent of that N in C.

        With A/N^a + B/D^b it is N = G C^(b/(a+b)), G = (aA/(bB))^(1/(a+b)) (2203.15556, equation 4).

        Args:
            reported_SP: the parameters as reported.
            log_c: log C.
        """
        _, *terms = np.moveaxis(reported_SP[..., np.argsort(self.places)], -1, 0)
        big_a, a, big_b, b = terms
        # A term that a draw has none of is as good as none: its optimum is at the end of all sizes.
        log_a, log_b = (np.log(np.maximum(scale, _TINY)) for scale in (big_a, big_b))
        log_n = _balance(*self.as_sum(log_a, a, log_b, b), log_c)
        return log_n, b / (a + b)

    # ------------------------------------------------------------- what another form says anew

    def above_floor(
        self, theta_SP: np.ndarray, x_RK: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """L less its floor, float64 [S, R], and its derivatives by the rest of theta, in that order."""
        terms = [
            np.exp(theta_SP[..., 1 + 2 * k, None] - theta_SP[..., 2 + 2 * k, None] * x_RK[:, k])
            for k in range(x_RK.shape[1])
        ]
        columns = [column for k, term in enumerate(terms) for column in (term, -x_RK[:, k] * term)]
        return np.asarray(sum(terms)), columns

    def log_scale(self, log_term: np.ndarray, exponent: np.ndarray, centre: float) -> np.ndarray:
        """log A of a covariate, of its log term at the centre, which is a (log A - centre)."""
        return log_term / exponent + centre

    def as_sum(
        self, log_a: np.ndarray, a: np.ndarray, log_b: np.ndarray, b: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """log A, a, log B, b of a sum A/N^a + B/D^b that falls and rises as the law does."""
        return a * log_a, a, b * log_b, b

    def starts(self, x_RK: np.ndarray, y_R: np.ndarray) -> np.ndarray:
        """Where a fit starts, float64 [S, P]: on a grid of exponents, all else solved for.

        What is linear in a law is solved for by non-negative least squares of relative residuals
        (variable projection, 2603.22339). Losses `y_R` are near 1.
        """
        return np.array(list(self._nodes(x_RK, y_R)))

    def _nodes(self, x_RK: np.ndarray, y_R: np.ndarray) -> Iterator[list[float]]:
        for exponents in itertools.product(_GRID, repeat=x_RK.shape[1]):
            powers = np.exp(-np.asarray(exponents) * x_RK)
            columns = np.column_stack([np.ones(len(y_R)), powers]) / y_R[:, None]
            floor, *sizes = nnls(columns, np.ones(len(y_R)))[0]
            theta = [max(floor, 1e-3)]
            for size, exponent in zip(sizes, exponents, strict=True):
                theta += [np.log(max(size, _SMALLEST)), exponent]
            yield theta


class ChinchillaLaw(Law):
    """E + A/N^a + B/D^b: the floor is reported first, and the scales stand outside of the powers."""

    @property
    def places(self) -> tuple[int, ...]:
        return tuple(range(1 + 2 * len(self.covariates)))

    def log_scale(self, log_term: np.ndarray, exponent: np.ndarray, centre: float) -> np.ndarray:
        return log_term + exponent * centre

    def as_sum(
        self, log_a: np.ndarray, a: np.ndarray, log_b: np.ndarray, b: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return log_a, a, log_b, b


class JointLaw(Law):
    """[(A/N)^(a/b) + B/D]^b + d: the terms are not added, but meet within a power."""

    def above_floor(
        self, theta_SP: np.ndarray, x_RK: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        c, a, g, b = (theta_SP[..., place, None] for place in range(1, 5))
        x_n, x_d = x_RK[:, 0], x_RK[:, 1]
        of_n, of_d = (c - a * x_n) / b, g / b - x_d
        log_sum = np.logaddexp(of_n, of_d)
        share = np.exp(of_n - log_sum)
        term = np.exp(b * log_sum)
        # As x log x at 0: a term with no share adds nothing, however far off it is.
        weighted = np.where(share > 0, share * of_n, 0.0)
        by_b = log_sum - weighted - (1 - share) * (of_d + x_d)
        return term, [term * share, -x_n * term * share, term * (1 - share), term * by_b]

    def as_sum(
        self, log_a: np.ndarray, a: np.ndarray, log_b: np.ndarray, b: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return log_a * a / b, a / b, log_b, np.ones_like(b)

    def _nodes(self, x_RK: np.ndarray, y_R: np.ndarray) -> Iterator[list[float]]:
        for a, b, share in itertools.product(_GRID, _GRID, _FLOORS):
            floor = share * y_R.min()
            target = (y_R - floor) ** (1 / b)
            columns = np.exp(-np.array([a / b, 1.0]) * x_RK) / target[:, None]
            of_n, of_d = np.maximum(nnls(columns, np.ones(len(y_R)))[0], _SMALLEST ** (1 / b))
            yield [max(floor, 1e-3), b * np.log(of_n), a, b * np.log(of_d), b]


def _balance(
    log_a: np.ndarray, a: np.ndarray, log_b: np.ndarray, b: np.ndarray, log_c: float
) -> np.ndarray:
    """log N at the least A/N^a + B/D^b with N D = C."""
    return (np.log(a / b) + log_a - log_b) / (a + b) + b / (a + b) * log_c


_POWER = ("A", "a", "d")
_BOTH = ("size", "budget")
LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("size", "(A/N)^a + d", _POWER, ("N",), within="budget"),
        Law("data", "(B/D)^b + d", ("B", "b", "d"), ("D",), within="size", hold_out=("budget",)),
        JointLaw(
            "joint",
            "[(A/N)^(a/b) + B/D]^b + d",
            ("A", "a", "B", "b", "d"),
            ("N", "D"),
            hold_out=_BOTH,
        ),
        ChinchillaLaw(
            "chinchilla",
            "E + A/N^a + B/D^b",
            ("E", "A", "a", "B", "b"),
            ("N", "D"),
            hold_out=_BOTH,
        ),
        Law("retrieval_flops", "(A/x)^a + d", _POWER, ("retrieval_flops",), sparse_only=True),
        Law("index_bytes", "(A/x)^a + d", _POWER, ("index_bytes",), sparse_only=True),
    )
}


def find_law(law: str | Law) -> Law:
    """A law by its name in `LAWS`; a law itself is as it is.

    Raises:
        ConfigError: no such law.
    """
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        raise ConfigError(f"law = {law!r}: it must be one of {', '.join(LAWS)}")
    return LAWS[law]


def laws_of(*covariates: str) -> tuple[Law, ...]:
    """The laws of the table that are of these covariates and no others."""
    return tuple(law for law in LAWS.values() if law.covariates == covariates)
