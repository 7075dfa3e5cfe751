"""The plan of a grid, before anything runs: steps, tokens, FLOPs, memory, hours and price of every cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylab.data.faults import LeavingOut
from raylab.data.sources import Source
from raylab.experiment.config import Adaptation, Backbone, ConfigError, Execution
from raylab.experiment.families import Start
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.references import load_reference
from raylab.models.backbone import load_config, resolve_source
from raylab.models.hub import check_vocabulary, load_tokenizer
from raylab.planning.collections import (
    CollectionSizes,
    EvaluationPlan,
    Sample,
    further_sources,
    plan_evaluation,
)
from raylab.planning.devices import DEVICES, Device
from raylab.planning.flops import (
    Shape,
    adaptation_flops,
    encode_flops,
    fine_tuning_flops,
    fine_tuning_rows,
    passages_per_query,
    planned_steps,
)
from raylab.planning.memory import Load, adaptation_load, cell_load
from raylab.planning.memory_fit import check_memory, fit

_DRAWS = 32


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a text in a training batch: what it is padded to, and what it has."""

    query: float
    passage: float
    real_query: float
    real_passage: float


@dataclass(frozen=True)
class CellPlan:
    """What a cell will take: solved from its budget, before anything runs.

    `flops` is the contract's account: `steps` times `step_flops`, and MNTP's where the cell is charged
    for it. `executed_flops` is what its own devices do: without MNTP, and with the forward pass
    that micro-batches repeat.
    """

    cell: str
    steps: int
    tokens: float  # with padding
    real_tokens: float
    step_flops: float
    flops: float
    executed_flops: float
    parameters: int
    load: Load
    estimated: bool = False  # an epoch's length is not known before the training groups are there

    @property
    def memory_bytes(self) -> float:
        """A worker's, at the fullest moment of a step."""
        return self.load.memory().total


@dataclass(frozen=True)
class AdaptationPlan:
    """What the MNTP of one size will take; `start` is what cells start from after it."""

    name: str
    steps: int
    tokens: float
    flops: float
    load: Load
    start: Start


@dataclass(frozen=True)
class GridPlan:
    """What a grid will take."""

    cells: tuple[CellPlan, ...]
    adaptations: tuple[AdaptationPlan, ...] = ()
    evaluations: tuple[EvaluationPlan, ...] = ()

    @property
    def flops(self) -> float:
        """Of the whole grid: MNTP once, training, encoding, search."""
        training = sum(part.steps * part.step_flops for part in self.cells)
        evaluation = sum(part.encode_flops + part.search_flops for part in self.evaluations)
        return training + sum(part.flops for part in self.adaptations) + evaluation


def plan_grid(
    grid: Grid, source: Source, execution: Execution, evaluation: bool = True
) -> GridPlan:
    """Plan every cell from lengths sampled from the collection's own texts.

    The run itself solves steps from the lengths of its real batches; the two differ by sampling.

    Args:
        evaluation: plan encoding and search as well, for which the whole collections are read once.

    Raises:
        ConfigError: an unknown model, a head or an objective that cannot be loaded, a budget too small for
            one step, or a batch that the workers
            cannot share.
        CollectionError: a faulty record that is not to be left out.
    """
    plans: list[CellPlan] = []
    adaptations: dict[Start, AdaptationPlan] = {}
    on_fault = LeavingOut(grid.on_fault)
    sizes = CollectionSizes(source, on_fault)
    further = [CollectionSizes(one, on_fault, False) for one in further_sources(grid, source)]
    evaluated: dict[str, EvaluationPlan] = {}
    for cell in grid.cells():
        backbone = cell.backbone
        shape = Shape.of(load_config(backbone, resolve_source(backbone, execution.models_dir)))
        check_workers(cell, grid, execution)
        load_reference(cell.head.pooling)
        load_reference(cell.objective.loss)
        tokenizer = load_tokenizer(backbone, execution.models_dir)
        source_of_model = resolve_source(backbone, execution.models_dir)
        check_vocabulary(backbone, source_of_model, tokenizer, shape.vocabulary)
        plans.append(
            plan_cell(
                cell,
                shape,
                _batch_lengths(cell, sizes.sample(tokenizer)),
                execution,
                sizes.training_groups if cell.epochs is not None else 0,
            )
        )
        adaptation = _adaptation(cell, grid)
        start = backbone, adaptation
        if adaptation.steps and start not in adaptations:
            taken = {part.name for part in adaptations.values()}
            name = f"{backbone.name}-{cell.variant}" if backbone.name in taken else backbone.name
            adaptations[start] = _plan_adaptation(name, start, shape, execution)
        if evaluation:
            part = plan_evaluation(cell, grid, shape, tokenizer, [sizes, *further])
            before = evaluated.get(part.name)
            evaluated[part.name] = part if before is None else before.with_cells_of(part)
    return GridPlan(tuple(plans), tuple(adaptations.values()), tuple(evaluated.values()))


def plan_cell(
    cell: Cell,
    shape: Shape,
    lengths: Lengths,
    execution: Execution | None = None,
    training_queries: float = 0,
) -> CellPlan:
    """Solve a cell's budget, or its epochs of so many queries, into steps.

    Raises:
        ConfigError: a budget too small for one step.
    """
    execution = execution or Execution()
    tuning = cell.fine_tuning
    rows = fine_tuning_rows(
        tuning,
        passages_per_query(cell),
        lengths.query,
        lengths.passage,
        lengths.real_query,
        lengths.real_passage,
    )
    load = cell_load(
        cell,
        shape,
        lengths.query,
        lengths.passage,
        execution.workers,
        execution.zero_stage,
        execution.micro_batch_texts,
        weight_bytes(cell.backbone),
    )
    step = fine_tuning_flops(cell, shape, rows)
    charged = 0.0
    if cell.charged_adaptation and cell.adaptation is not None:
        charged = adaptation_flops(shape, cell.adaptation)
    steps = planned_steps(cell, step, training_queries, charged)
    repeated = sum(encode_flops(shape, part, cell.head) for part in rows) if load.in_parts else 0.0
    return CellPlan(
        cell=cell.run_name,
        steps=steps,
        tokens=steps * sum(part.tokens for part in rows),
        real_tokens=steps * sum(part.real for part in rows),
        step_flops=step,
        flops=steps * step + charged,
        executed_flops=steps * (step + repeated),
        parameters=shape.parameters,
        load=load,
        estimated=cell.epochs is not None,
    )


def _plan_adaptation(name: str, start: Start, shape: Shape, execution: Execution) -> AdaptationPlan:
    adaptation = start[1]
    return AdaptationPlan(
        name,
        adaptation.steps,
        float(adaptation.steps * adaptation.batch_blocks * adaptation.block_length),
        adaptation_flops(shape, adaptation),
        adaptation_load(
            shape, adaptation, execution.workers, execution.zero_stage, weight_bytes(start[0])
        ),
        start,
    )


def _adaptation(cell: Cell, grid: Grid) -> Adaptation:
    return cell.adaptation or grid.ladder.recipe.adaptation


def weight_bytes(backbone: Backbone) -> int:
    """Of one weight, as it is computed with."""
    return 4 if backbone.compute_dtype == "float32" else 2


def check_workers(cell: Cell, grid: Grid, execution: Execution) -> None:
    """Batches are shared evenly, so that results do not depend on the number of workers."""
    for name, count in (
        ("fine_tuning.batch_queries", cell.fine_tuning.batch_queries),
        ("adaptation.batch_blocks", _adaptation(cell, grid).batch_blocks),
    ):
        if count % execution.workers:
            raise ConfigError(
                f"workers {execution.workers}: {name} = {count} cannot be shared evenly"
            )


def _batch_lengths(cell: Cell, sample: Sample) -> Lengths:
    """A batch is padded to its longest text: the mean of that, and of the texts themselves."""
    tuning = cell.fine_tuning
    rng = np.random.default_rng(0)
    listed = tuning.batch_queries * passages_per_query(cell)
    queries = np.minimum(sample.queries, tuning.query_length)
    passages = np.minimum(sample.passages, tuning.passage_length)

    def longest(lengths: np.ndarray, count: int) -> float:
        return float(np.mean([rng.choice(lengths, count).max() for _ in range(_DRAWS)]))

    return Lengths(
        longest(queries, tuning.batch_queries),
        longest(passages, listed),
        float(queries.mean()),
        float(passages.mean()),
    )


def check_plan(plan: GridPlan, device_bytes: float) -> None:
    """Refuse a grid of which something does not fit a worker's device.

    Raises:
        ConfigError: names it, and what would make it fit.
    """
    for cell_plan in plan.cells:
        check_memory(cell_plan.cell, fit(cell_plan.load, device_bytes))
    for mntp in plan.adaptations:
        check_memory(f"mntp-{mntp.name}", fit(mntp.load, device_bytes))


def named_device(name: str, efficiency: float | None = None) -> Device:
    """A device to plan for, at its own efficiency or the given one.

    Raises:
        ConfigError: an unknown name, or an efficiency that is not a share.
    """
    if name not in DEVICES:
        raise ConfigError(f"device {name!r}: it must be one of {', '.join(DEVICES)}")
    return DEVICES[name].at(efficiency)
