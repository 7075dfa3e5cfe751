"""Learning rates tuned by successive halving, cell by cell, on the validation queries alone.

A rung of the halving is a grid like any other: Ray Tune schedules its cells, its compute stands in the ledger, what is
finished is never done again. All rates start with a part of the budget; of each cell (size, head, objective) the
better part goes on to a larger one, and the best of those that had the whole is the winner (1502.07943).
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from raylab.data.collections import VALIDATION
from raylab.experiment.config import ConfigError, check
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell, Grid, Variant
from raylab.experiment.recipe_file import TunedCell

MEASURE = "nDCG@10"
Key = tuple[str, str, str]  # size, head, objective
Runner = Callable[[Grid, Execution], pd.DataFrame]
"""Runs a grid, or goes on with it; the current results."""


@dataclass(frozen=True)
class Halving:
    """Which learning rates are tried, and what part of the budget each round gets.

    `shares` rise to 1; after a round one of `ratio` rates of a cell goes on, at least one.
    """

    rates: tuple[float, ...]
    shares: tuple[float, ...] = (0.25, 1.0)
    ratio: float = 3.0

    def __post_init__(self) -> None:
        distinct = len(set(self.rates)) == len(self.rates)
        right = "two or more positive numbers, each once"
        check(len(self.rates) > 1 and distinct and min(self.rates) > 0, "rates", self.rates, right)
        rises = list(self.shares) == sorted(set(self.shares))
        right = "rising parts of the budget, above 0, the last one 1"
        fits = bool(self.shares) and rises and self.shares[0] > 0 and self.shares[-1] == 1
        check(fits, "shares", self.shares, right)
        check(self.ratio > 1, "ratio", self.ratio, "above 1")

    def survivors(self, values: Mapping[float, float]) -> tuple[float, ...]:
        """The rates that go on: the best of `values`, a lower rate first among equals."""
        ranked = sorted(values, key=lambda rate: (-values[rate], rate))
        return tuple(sorted(ranked[: max(1, math.ceil(len(ranked) / self.ratio))]))


@dataclass(frozen=True)
class Winner:
    """The learning rate that a cell ends with, and the measure of every rate that had the whole budget."""

    key: Key
    rate: float
    values: Mapping[float, float]
    tried: tuple[float, ...]

    @property
    def at_edge(self) -> bool:
        """Whether it is the smallest or the largest that was tried: its optimum may lie beyond."""
        return self.rate in (min(self.tried), max(self.tried))

    def tuned(self) -> TunedCell:
        """As a recipe file holds it."""
        measured = ", ".join(f"{rate:g}: {value:.3f}" for rate, value in self.values.items())
        about = f"validation {MEASURE} with the whole budget: {measured}"
        edge = "; the optimum may lie beyond the rates tried" if self.at_edge else ""
        return TunedCell(*self.key, {"learning_rate": self.rate}, about + edge)


def tune(grid: Grid, halving: Halving, execution: Execution, run: Runner) -> list[Winner]:
    """Tune the learning rate of every cell of a grid without variants.

    Args:
        grid: what is tuned; its seeds are averaged over.
        run: runs a grid in the execution's storage.

    Raises:
        ConfigError: a grid that varies something already, or a collection without validation queries.
    """
    if tuple(grid.variants) != (Variant(),):
        raise ConfigError("tuning: the grid must have no variants of its own")
    left: dict[Key, tuple[float, ...]] = {_key(cell): halving.rates for cell in grid.cells()}
    values: dict[Key, dict[float, float]] = {}
    for share in halving.shares:
        one = round_of(grid, left, share)
        results = run(one, execution)
        values = _values(one, results)
        left = {key: halving.survivors(values[key]) for key in left}
    return [
        Winner(key, max(of, key=lambda rate: (of[rate], -rate)), of, halving.rates)
        for key, of in values.items()
    ]


def round_of(grid: Grid, left: Mapping[Key, Sequence[float]], share: float) -> Grid:
    """The grid of one round: every cell with the rates that are left to it, at a share of its budget."""
    rates = sorted({rate for of in left.values() for rate in of})
    variants = tuple(
        Variant(_name(rate, share), fine_tuning={"learning_rate": rate}) for rate in rates
    )
    names = [
        f"{head}-{size}-{objective}-{_name(rate, share)}"
        for (size, head, objective), of in left.items()
        for rate in of
    ]
    if grid.epochs == "recipe":
        raise ConfigError("tuning: a budget in FLOPs, or a number of epochs")
    budget: dict[str, float] = {}
    if grid.epochs is not None:
        budget["epochs"] = share * grid.epochs
    else:
        given = grid.budget_flops
        budget["budget_flops"] = share * (
            grid.ladder.recipe.budget_flops if given is None else given
        )
    return dataclasses.replace(grid, variants=variants, cells_filter=",".join(names), **budget)  # type: ignore[arg-type]


def _name(rate: float, share: float) -> str:
    return f"rate{rate:g}-of{share:g}"


def _key(cell: Cell) -> Key:
    return cell.backbone.name, cell.head.name, cell.objective.name


def _values(grid: Grid, results: pd.DataFrame) -> dict[Key, dict[float, float]]:
    """Validation measure by cell and rate, the mean over seeds."""
    rows = results[
        (results["kind"] == "trained")
        & (results["split"] == VALIDATION)
        & (results["measure"] == MEASURE)
    ]
    columns = (rows[name].tolist() for name in ("system", "seed", "value"))
    by_run = {(system, int(seed)): value for system, seed, value in zip(*columns, strict=True)}
    found: dict[Key, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in grid.cells():
        if (cell.name, cell.seed) not in by_run:
            raise ConfigError(
                f"tuning: {cell.run_name} has no {MEASURE} on split {VALIDATION!r}; the collection must have one"
            )
        rate = cell.fine_tuning.learning_rate
        found[_key(cell)][rate].append(by_run[cell.name, cell.seed])
    return {
        key: {rate: sum(values) / len(values) for rate, values in sorted(of.items())}
        for key, of in found.items()
    }
