"""Cells that one run makes: alike but for their budgets, from a stable phase that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raylab.experiment.config import Adaptation, Backbone
from raylab.experiment.grid import Cell

Start = tuple[Backbone, Adaptation]
"""What a cell's fine-tuning starts from: a backbone, and the MNTP it went through."""


def start_of(cell: Cell) -> Start:
    assert cell.adaptation is not None  # a grid's cells have it
    return cell.backbone, cell.adaptation


def families(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that one run makes, smallest budget first: alike but for the budget, where a longer run
    begins as a shorter one does; any other cell alone."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        alike = replace(cell, budget_flops=1.0, variant="", varied="") if _extends(cell) else cell
        groups.setdefault(alike, []).append(cell)
    return [
        tuple(sorted(members, key=lambda cell: cell.budget_flops)) for members in groups.values()
    ]


def _extends(cell: Cell) -> bool:
    return cell.fine_tuning.extends and cell.epochs is None
