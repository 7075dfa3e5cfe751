"""How long each part of a grid will take: what the queue orders by, and a simulation adds up.

a run        start + steps x (overhead + FLOPs of a step / (FLOP/s of a device x workers))
encoding     shards x overhead + FLOPs / FLOP/s of a device
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raylab.experiment.execution import Execution
from raylab.experiment.families import Start, families, start_of
from raylab.experiment.grid import Cell, Grid
from raylab.planning.devices import Device
from raylab.planning.plan import CellPlan, GridPlan
from raylab.planning.scheduling import Item, Simulated, simulate

_MOST_SHARDS = 256  # of a collection (raylab.index.embeddings)


@dataclass(frozen=True)
class Pace:
    """How fast one device is; seconds, and FLOP/s that are reached."""

    run_s: float  # a run beside its steps: processes, loading, committing
    step_s: float  # a step beside its arithmetic
    training_flops: float
    encoding_flops: float
    shard_s: float  # an embedding shard beside its arithmetic
    measure_s: float  # index, search, measures and profile of a cell, on one device
    start_s: float  # of the whole: connecting, data, the first workers

    @classmethod
    def of(cls, device: Device) -> Pace:
        """From a data sheet: training and encoding at the device's efficiency."""
        rate = device.peak_flops * device.efficiency
        return cls(60.0, 0.0, rate, rate, 1.0, 0.0, 120.0)


# Measured on one of two shared cores: the ledger of experiments/isoflop.py, a default grid (docs/log.md).
CORE = Pace(
    run_s=20.0,
    step_s=0.026,
    training_flops=3.4e10,
    encoding_flops=5.0e10,
    shard_s=0.1,
    measure_s=3.6,
    start_s=20.0,
)


class Durations:
    """Predicted durations of what a plan is made of.

    Args:
        pace: None: a core's; else `Pace.of(device)`.
    """

    def __init__(self, plan: GridPlan, execution: Execution, pace: Pace | None = None):
        self.plan, self.execution, self.pace = plan, execution, pace or CORE
        self.cells = {part.cell: part for part in plan.cells}
        self.adaptations = {part.start: part for part in plan.adaptations}

    def flops(self, cell: Cell) -> float:
        """What the cell's contract comes to."""
        return self.cells[cell.run_name].flops

    def adaptation_flops(self, start: Start) -> float:
        """Of the MNTP that makes a start; 0 where it has none."""
        adaptation = self.adaptations.get(start)
        return adaptation.flops if adaptation else 0.0

    def adaptation(self, name: str, start: Start) -> Item:
        """The item of the MNTP that makes a start."""
        adaptation = self.adaptations.get(start)
        steps, flops = (adaptation.steps, adaptation.flops) if adaptation else (0, 0.0)
        return Item(name, "adapt", self._run_s(steps, flops), self.execution.workers)

    def training(self, name: str, cells: Sequence[Cell], after: tuple[str, ...]) -> Item:
        """The item of a run that makes these cells of one family, smallest budget first."""
        steps = flops = 0.0
        for shorter, cell in zip([None, *cells[:-1]], cells, strict=True):
            cell_plan = self.cells[cell.run_name]
            shared = self._stable_share(shorter, cell_plan)
            steps += cell_plan.steps * (1 - shared)
            flops += cell_plan.executed_flops * (1 - shared)
        return Item(name, "train", self._run_s(steps, flops), self.execution.workers, after)

    def _stable_share(self, shorter: Cell | None, cell_plan: CellPlan) -> float:
        """The share of a run's steps that the next shorter one of its family has taken already."""
        if shorter is None:
            return 0.0
        before = self.cells[shorter.run_name].steps
        return before * (1 - shorter.fine_tuning.decay_fraction) / max(cell_plan.steps, 1)

    def _run_s(self, steps: float, flops: float) -> float:
        pace = self.pace
        rate = pace.training_flops * self.execution.workers
        return pace.run_s + steps * pace.step_s + flops / rate

    def encoding(self, name: str, group: str, after: tuple[str, ...]) -> list[Item]:
        """The items of a system's embedding shards, with how much of each is done; `group` is HEAD-SIZE."""
        evaluation = next(
            evaluation for evaluation in self.plan.evaluations if evaluation.name == group
        )
        shards = min(_MOST_SHARDS, math.ceil(evaluation.passages / self.execution.shard_passages))
        seconds = evaluation.encode_flops / evaluation.systems / self.pace.encoding_flops
        each = seconds / shards + self.pace.shard_s + self.pace.measure_s / shards
        return [Item(f"{name}-{i}", "encode", each, 1, after) for i in range(shards)]

    def items(self, grid: Grid) -> list[Item]:
        """A whole grid, nothing of it done: every MNTP, every run, every encoding, the untrained too."""
        cells = grid.cells()
        starts = {
            start: f"mntp-{i}-{start[0].name}" for i, start in enumerate(map(start_of, cells))
        }
        items = [self.adaptation(name, start) for start, name in starts.items()]
        for head, size in dict.fromkeys((c.head, c.backbone.name) for c in cells):
            items += self.encoding(f"untrained-{head.name}-{size}", f"{head.name}-{size}", ())
        for family in families(cells):
            name = family[-1].run_name
            items.append(self.training(name, family, (starts[start_of(family[0])],)))
            for cell in family:
                group = f"{cell.head.name}-{cell.backbone.name}"
                items += self.encoding(f"encode-{cell.run_name}", group, (name,))
        return items

    def simulated(self, grid: Grid, devices: int) -> Simulated:
        """The whole grid on so many devices, start included.

        Raises:
            ValueError: a run has more workers than there are devices.
        """
        simulated = simulate(self.items(grid), devices)
        start = self.pace.start_s
        return replace(
            simulated,
            makespan_s=simulated.makespan_s + start,
            trained_s=simulated.trained_s + start,
        )
