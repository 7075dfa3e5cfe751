"""The scaling laws: their parameters, their values and derivatives, batched.

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

from dataclasses import dataclass

import numpy as np

from raylab.experiment.config import ConfigError

# Exponents and log terms (at the centre, of a loss near 1) that the fits stay within.
EXPONENTS = (0.01, 10.0)
LOG_TERMS = (-30.0, 30.0)


@dataclass(frozen=True)
class Law:
    """A law by name. `parameters` in the order reported; `covariates` among N, D and what a run has."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    covariates: tuple[str, ...]

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest theta, float64 [P] each: no floor below 0, no negative exponent."""
        pairs = [(0.0, np.inf)] + [LOG_TERMS, EXPONENTS] * len(self.covariates)
        return np.array([low for low, _ in pairs]), np.array([high for _, high in pairs])

    def value(self, theta_SP: np.ndarray, x_RK: np.ndarray) -> np.ndarray:
        """L, float64 [S, R]."""
        floor = theta_SP[..., :1]
        if self.name == "joint":
            return floor + _joint_term(theta_SP, x_RK)[0]
        return floor + sum(_terms(theta_SP, x_RK))

    def log_jacobian(self, theta_SP: np.ndarray, x_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L, float64 [S, R], and its derivatives by theta, float64 [S, R, P]."""
        floor = theta_SP[..., :1]
        ones = np.ones(theta_SP.shape[:-1] + x_RK.shape[:1])
        if self.name == "joint":
            term, columns = _joint_term(theta_SP, x_RK)
            value = floor + term
        else:
            terms = _terms(theta_SP, x_RK)
            value = floor + sum(terms)
            columns = []
            for k, term in enumerate(terms):
                columns += [term, -x_RK[:, k] * term]
        return np.log(value), np.stack([ones, *columns], -1) / value[..., None]

    def reported(self, theta_SP: np.ndarray, centre_K: np.ndarray, unit: float) -> np.ndarray:
        """The parameters as named, float64 [S, P], of losses in `unit`s and covariates about `centre_K`."""
        floor = unit * theta_SP[..., 0]
        reported = {}
        for k, (big, small) in enumerate((("A", "a"), ("B", "b"))[: len(self.covariates)]):
            log_term = theta_SP[..., 1 + 2 * k] + np.log(unit)
            exponent = theta_SP[..., 2 + 2 * k]
            if self.name == "chinchilla":
                log_big = log_term + exponent * centre_K[k]
            else:
                log_big = log_term / exponent + centre_K[k]
            reported |= {big: _exp(log_big), small: exponent}
        if self.name == "data":
            reported = {"B": reported["A"], "b": reported["a"]}
        reported |= {"d": floor, "E": floor}
        return np.stack([reported[name] for name in self.parameters], -1)


def _exp(log: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(log, 700.0))


def _terms(theta_SP: np.ndarray, x_RK: np.ndarray) -> list[np.ndarray]:
    """exp(c - a x) of each covariate, float64 [S, R]."""
    return [
        np.exp(theta_SP[..., 1 + 2 * k, None] - theta_SP[..., 2 + 2 * k, None] * x_RK[:, k])
        for k in range(x_RK.shape[1])
    ]


def _joint_term(theta_SP: np.ndarray, x_RK: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """[(A/N)^(a/b) + B/D]^b, float64 [S, R], and its derivatives by c, a, g, b."""
    c, a, g, b = (theta_SP[..., place, None] for place in range(1, 5))
    x_n, x_d = x_RK[:, 0], x_RK[:, 1]
    of_n, of_d = (c - a * x_n) / b, g / b - x_d
    log_sum = np.logaddexp(of_n, of_d)
    share = np.exp(of_n - log_sum)
    term = np.exp(b * log_sum)
    # x log x style limit: a term with no share adds nothing, however far off it is.
    weighted = np.where(share > 0, share * of_n, 0.0)
    by_b = log_sum - weighted - (1 - share) * (of_d + x_d)
    return term, [term * share, -x_n * term * share, term * (1 - share), term * by_b]


_POWER = ("A", "a", "d")
LAWS = {
    law.name: law
    for law in (
        Law("size", "(A/N)^a + d", _POWER, ("N",)),
        Law("data", "(B/D)^b + d", ("B", "b", "d"), ("D",)),
        Law("joint", "[(A/N)^(a/b) + B/D]^b + d", ("A", "a", "B", "b", "d"), ("N", "D")),
        Law("chinchilla", "E + A/N^a + B/D^b", ("E", "A", "a", "B", "b"), ("N", "D")),
        Law("retrieval_flops", "(A/x)^a + d", _POWER, ("retrieval_flops",)),
        Law("index_bytes", "(A/x)^a + d", _POWER, ("index_bytes",)),
    )
}


def find_law(name: str) -> Law:
    """A law by name.

    Raises:
        ConfigError: no such law.
    """
    if name not in LAWS:
        raise ConfigError(f"law = {name!r}: it must be one of {', '.join(LAWS)}")
    return LAWS[name]
