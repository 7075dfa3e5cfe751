"""The plan of a grid, before anything runs: steps, tokens, FLOPs, memory, hours and price of every cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raylab.data.faults import LeavingOut
from raylab.data.known_sizes import KnownCollection
from raylab.data.sources import Source
from raylab.data.supervision.length_groups import length_groups
from raylab.experiment.config import Adaptation, Backbone, ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.families import Start
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.heads import HEADS, Head
from raylab.experiment.objectives import OBJECTIVES
from raylab.experiment.references import load_reference
from raylab.planning.collections import (
    CollectionSizes,
    EvaluationPlan,
    KnownSizes,
    Sample,
    further_planned,
    further_sources,
    plan_evaluation,
    sizes_of,
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
from raylab.planning.models import PlannedModel, plan_model, weight_bytes
from raylab.planning.node_needs import NodeNeeds, node_needs
from raylab.planning.storage_bytes import StoragePlan, plan_storage

_DRAWS = 32


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts of a training step, queries and passages, float [T] in order of length.

    `mean_T` are those of an ordinary step, `longest_T` those that hardly any step exceeds: FLOPs are planned from
    the former, memory from the latter.
    """

    mean_T: np.ndarray
    longest_T: np.ndarray


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
    tuning: str | None = None  # tuned or transferred; None: the recipe does not say

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
    """What a grid will take.

    `known`: models and collections that are not on this machine, and are planned from what is known of them.
    """

    cells: tuple[CellPlan, ...]
    adaptations: tuple[AdaptationPlan, ...] = ()
    evaluations: tuple[EvaluationPlan, ...] = ()
    storage: StoragePlan | None = None
    node: NodeNeeds | None = None
    known: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        """Of the whole grid: MNTP once, training, encoding, search."""
        training = sum(part.steps * part.step_flops for part in self.cells)
        evaluation = sum(part.encode_flops + part.search_flops for part in self.evaluations)
        return training + sum(part.flops for part in self.adaptations) + evaluation


def plan_grid(
    grid: Grid,
    source: Source | KnownCollection,
    execution: Execution,
    evaluation: bool = True,
    from_tables: bool = False,
) -> GridPlan:
    """Plan every cell from lengths sampled from the collection's own texts.

    The run itself solves steps from the lengths of its real batches; the two differ by sampling.

    Args:
        source: a collection, or (with `from_tables`) a named benchmark that is not on this machine.
        evaluation: plan encoding, search and what is stored as well, for which the whole collections are
            read once.
        from_tables: models and further collections that are not on this machine may be known ones; a run
            must have them.

    Raises:
        ConfigError: an unknown model, a head or an objective that cannot be loaded, a budget too small for
            one step, or a batch that the workers
            cannot share.
        CollectionError: a faulty record that is not to be left out.
    """
    plans: list[CellPlan] = []
    adaptations: dict[Start, AdaptationPlan] = {}
    on_fault = LeavingOut(grid.on_fault)
    if from_tables or isinstance(source, KnownCollection):
        others = further_planned(grid, source)
    else:
        others = further_sources(grid, source)
    sizes = [sizes_of(source, on_fault), *(sizes_of(one, on_fault, False) for one in others)]
    evaluated: dict[str, EvaluationPlan] = {}
    systems: Counter[str] = Counter()
    untrained: dict[str, set[tuple[Backbone, Head]]] = {}
    models: dict[Backbone, PlannedModel] = {}
    for cell in grid.cells():
        backbone = cell.backbone
        if backbone not in models:
            models[backbone] = plan_model(backbone, execution.models_dir, from_tables)
        shape, counts = models[backbone].shape, models[backbone].counts
        check_workers(cell, grid, execution)
        _load_own(cell)
        plans.append(
            plan_cell(
                cell,
                shape,
                _batch_lengths(cell, sizes[0].sample(counts)),
                execution,
                sizes[0].training_groups if cell.epochs is not None else 0,
            )
        )
        adaptation = _adaptation(cell, grid)
        start = backbone, adaptation
        if adaptation.steps and start not in adaptations:
            taken = {part.name for part in adaptations.values()}
            name = f"{backbone.name}-{cell.variant}" if backbone.name in taken else backbone.name
            adaptations[start] = _plan_adaptation(name, start, shape, execution)
        if evaluation:
            name = f"{cell.head.name}-{backbone.name}"
            if name not in evaluated:
                evaluated[name] = plan_evaluation(cell, grid, shape, counts, sizes)
            systems[name] += 1
            untrained.setdefault(name, set()).add((backbone, cell.head))
    storage = plan_storage(grid, execution, models, sizes) if evaluation else None
    return GridPlan(
        tuple(plans),
        tuple(adaptations.values()),
        tuple(part.times(systems[name] + len(untrained[name])) for name, part in evaluated.items()),
        storage,
        None if storage is None else node_needs(grid, execution, models, sizes, storage),
        _known_names(models, sizes),
    )


def _load_own(cell: Cell) -> None:
    """Find the functions of a head or an objective of one's own; the package's are there, and take a while to load.

    Raises:
        ConfigError: one that cannot be loaded.
    """
    if HEADS.get(cell.head.name) != cell.head:
        load_reference(cell.head.pooling)
    if OBJECTIVES.get(cell.objective.name) != cell.objective:
        load_reference(cell.objective.loss)


def _known_names(
    models: Mapping[Backbone, PlannedModel], sizes: Sequence[CollectionSizes]
) -> tuple[str, ...]:
    names = [backbone.source for backbone, model in models.items() if model.known]
    names += [one.name for one in sizes if isinstance(one, KnownSizes)]
    return tuple(dict.fromkeys(names))


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
    queries = cell.fine_tuning.batch_queries
    rows = fine_tuning_rows(length_groups(lengths.mean_T, queries))
    load = cell_load(
        cell,
        shape,
        fine_tuning_rows(length_groups(lengths.longest_T, queries)),
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
        tuning=cell.tuning_origin,
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
    """The shortest, the second shortest text and so on of a step: their mean and their longest over some draws.

    Groups are cut of texts in order of length, so these means have the padding of the steps that they are means of.
    """
    tuning = cell.fine_tuning
    rng = np.random.default_rng(0)
    kinds = (
        (np.minimum(sample.queries, tuning.query_length), 1),
        (np.minimum(sample.passages, tuning.passage_length), passages_per_query(cell)),
    )
    drawn = [
        np.sort(
            np.concatenate(
                [rng.choice(of, tuning.batch_queries * a_query) for of, a_query in kinds]
            )
        )
        for _ in range(_DRAWS)
    ]
    return Lengths(np.mean(drawn, axis=0), np.max(drawn, axis=0).astype(float))


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
