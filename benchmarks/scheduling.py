"""Makespan and utilisation of the paper's grid on 4 to 64 GPUs, by the queue that runs it.

The paper's 18 cells (3 sizes x 2 heads x 3 objectives) on H100s at 40 % of their peak, 4 GPUs a run, MNTP and
encoding of MS MARCO's 8.84 M passages included; durations by the cost model. Beside it what a staged run
would take: all MNTP, then all cells in the grid's order, then all encoding.

    python benchmarks/scheduling.py
"""

from __future__ import annotations

import dataclasses

import numpy as np

from raylab.data.supervision.length_groups import PADDED
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.ladders import LLAMA3
from raylab.experiment.objectives import CL
from raylab.planning.devices import DEVICES
from raylab.planning.durations import Durations, Pace
from raylab.planning.flops import Rows, Shape, adaptation_flops, encode_flops, passages_per_query
from raylab.planning.memory import adaptation_load
from raylab.planning.plan import AdaptationPlan, EvaluationPlan, GridPlan, Lengths, plan_cell
from raylab.planning.scheduling import Item, simulate

SHAPES = {
    "1b": Shape(16, 2048, 8192, 32, 8, 64, 128_256, True),
    "3b": Shape(28, 3072, 8192, 24, 8, 128, 128_256, True),
    "8b": Shape(32, 4096, 14336, 32, 8, 128, 128_256, False),
}
PASSAGES, TRAINING_QUERIES = 8_841_823, 532_751
# Mean tokens of MS MARCO's queries and passages, as cut for training; 700 M tokens in all passages.
MEAN_QUERY, MEAN_TRAINING_PASSAGE = 9.0, 76.0
MEAN_PASSAGE = 79
WORKERS = 4
GPUS = (4, 8, 32, 64)
EXECUTION = Execution(workers=WORKERS, use_gpu=True, zero_stage=2)


def paper_plan(grid: Grid) -> GridPlan:
    """The plan of the grid from the models' shapes alone: no model, no collection is read."""
    cells = []
    for cell in grid.cells():
        queries = cell.fine_tuning.batch_queries
        listed = queries * passages_per_query(cell)
        texts = np.repeat([MEAN_QUERY, PADDED * MEAN_TRAINING_PASSAGE], [queries, listed])
        shape, lengths = SHAPES[cell.backbone.name], Lengths(texts, texts)
        cells.append(plan_cell(cell, shape, lengths, EXECUTION, TRAINING_QUERIES))
    mntp = grid.ladder.recipe.adaptation
    adaptations = [
        AdaptationPlan(
            backbone.name,
            mntp.steps,
            float(mntp.steps * mntp.batch_blocks * mntp.block_length),
            adaptation_flops(shape, mntp),
            adaptation_load(shape, mntp, WORKERS, EXECUTION.zero_stage, 2),
            (backbone, mntp),
        )
        for backbone in grid.ladder.select(grid.sizes)
        for shape in [SHAPES[backbone.name]]
    ]
    evaluations = [_evaluation(cell) for cell in grid.cells() if cell.objective == CL]
    return GridPlan(tuple(cells), tuple(adaptations), tuple(evaluations))


def _evaluation(cell: Cell) -> EvaluationPlan:
    each = encode_flops(SHAPES[cell.backbone.name], Rows(1, MEAN_PASSAGE), cell.head)
    name = f"{cell.head.name}-{cell.backbone.name}"
    return EvaluationPlan(name, 1, PASSAGES, PASSAGES * MEAN_PASSAGE, PASSAGES * each, 0.0)


def staged(items: list[Item], devices: int) -> float:
    """Seconds where each stage waits for the one before, cells in the grid's order, four GPUs each."""
    total = 0.0
    for kind in ("adapt", "train", "encode"):
        slots = [0.0] * (devices if kind == "encode" else devices // WORKERS)
        for item in items:
            if item.kind == kind:
                first = slots.index(min(slots))
                slots[first] += item.seconds
        total += max(slots)
    return total


def main() -> None:
    pace = Pace.of(DEVICES["h100"])
    fixed = Grid(LLAMA3, "msmarco")
    epochs = dataclasses.replace(fixed, epochs="recipe")
    print("| budget | GPUs | makespan | trained after | used | bound | staged |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, grid in (("5.5e19 FLOPs a cell", fixed), ("the paper's epochs", epochs)):
        durations = Durations(paper_plan(grid), EXECUTION, pace)
        items = durations.items(grid)
        for gpus in GPUS:
            found = simulate(items, gpus)
            hours = [seconds / 3600 for seconds in (found.makespan_s, found.trained_s)]
            bound = sum(item.seconds * item.devices for item in items) / gpus / 3600
            print(
                f"| {name} | {gpus} | {hours[0]:.1f} h | {hours[1]:.1f} h | {found.utilisation:.1%} "
                f"| {bound:.1f} h | {staged(items, gpus) / 3600:.1f} h |"
            )


if __name__ == "__main__":
    main()
