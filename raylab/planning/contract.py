"""The budget as a contract: what a user sets as the budget of a cell, and the steps that spend it.

1e15             FLOPs a cell
20h@h100         hours of one such device at its efficiency, as FLOPs
3epochs          over the training queries
epochs           as many as the recipe lists for the cell's size and objective
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from raylab.experiment.config import ConfigError
from raylab.experiment.families import Start, start_of
from raylab.experiment.grid import Cell, Grid
from raylab.planning.devices import budget_flops_of_hours
from raylab.planning.flops import ALIKE, planned_steps
from raylab.planning.plan import GridPlan, named_device

# Steps whose real batches are costed before a run; longer runs go on at their mean.
LOOKED_AT = 256
_HOURS = re.compile(r"(?P<hours>[0-9.eE+-]+)h@(?P<device>[\w-]+)")


@dataclass(frozen=True)
class Budget:
    """Of each cell: FLOPs, or epochs; neither: the recipe's FLOPs."""

    flops: float | None = None
    epochs: float | Literal["recipe"] | None = None


def parse_budget(text: str | None, efficiency: float | None = None) -> Budget:
    """A budget as it is typed (see above); `efficiency` replaces the device's own.

    Raises:
        ConfigError: none of these.
    """
    if text is None:
        return Budget()
    right = (
        "FLOPs (1e15), hours of a device (20h@h100), epochs (3epochs), or 'epochs' for the recipe's"
    )
    try:
        if text == "epochs":
            return Budget(epochs="recipe")
        if text.endswith("epochs"):
            return Budget(epochs=_positive(text.removesuffix("epochs")))
        if hours := _HOURS.fullmatch(text):
            device = named_device(hours["device"])
            return Budget(budget_flops_of_hours(_positive(hours["hours"]), device, efficiency))
        return Budget(_positive(text))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"budget {text!r}: it must be {right}") from None


def parse_budgets(text: str) -> tuple[float, ...]:
    """FLOPs by commas, as `--budgets` takes them.

    Raises:
        ConfigError: none, or something else.
    """
    try:
        budgets = tuple(_positive(part) for part in text.split(",") if part)
    except ValueError:
        budgets = ()
    if not budgets:
        raise ConfigError(f"budgets {text!r}: it must be FLOPs by commas (1e12,2e12)")
    return budgets


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value


def steps_of(
    cell: Cell, cost: Callable[[int], float], training_queries: int, adaptation_flops: float
) -> int:
    """The steps that spend the cell's budget, to the nearest: solved from its own real batches.

    The first 256 batches are costed one by one, what is beyond at their mean, so that a run of at most
    that many is within half a step of its budget and a longer one within sampling error.

    Args:
        cost: FLOPs of a step.
        training_queries, adaptation_flops: see `budget.planned_steps`.

    Raises:
        ConfigError: the budget is too small for half a step.
    """
    steps = planned_steps(cell, cost(0), training_queries, adaptation_flops)
    if cell.epochs is not None:
        return steps
    budget = cell.budget_flops - (adaptation_flops if cell.charged_adaptation else 0.0)
    spent = 0.0
    for step in range(LOOKED_AT):
        flops = cost(step)
        if spent + flops / 2 > budget:
            return step
        spent += flops
    return LOOKED_AT + round((budget - spent) * LOOKED_AT / spent)


def within_total(
    total: float | None,
    spent: float,
    missing: Sequence[Cell],
    flops: Callable[[Cell], float],
    mntp_flops: Callable[[Start], float],
    starts: Collection[Start] = (),
) -> set[Cell]:
    """The cells that fit into a total budget, in their order; one that does not fit is skipped.

    Args:
        spent: FLOPs of the cells that are there.
        flops: of a cell.
        mntp_flops: of the MNTP behind a start: paid once, with the first cell that starts from it.
        starts: those of the cells that are there.
    """
    paid = set(starts)
    spent += sum(map(mntp_flops, paid))
    chosen = set()
    for cell in missing:
        start = start_of(cell)
        cost = flops(cell) + (0.0 if start in paid else mntp_flops(start))
        if total is None or spent + cost <= total:
            spent += cost
            chosen.add(cell)
            paid.add(start)
    return chosen


def rounding(grid: Grid, plan: GridPlan) -> str | None:
    """A sentence where whole steps are too large a part of a budget for its cells to be alike; else None."""
    shares = [
        (cell_plan.step_flops / cell_plan.flops, cell_plan.cell)
        for cell, cell_plan in zip(grid.cells(), plan.cells, strict=True)
        if cell.epochs is None
    ]
    share, worst = max(shares, default=(0.0, ""))
    if len(shares) < 2 or share <= ALIKE:
        return None
    return (
        f"a step of {worst} is {share:.1%} of its budget: cells of that budget may differ by as much; a larger "
        f"budget or a smaller batch keeps them within {ALIKE:.0%} of each other"
    )
