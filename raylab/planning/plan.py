"""The plan of a grid, before anything runs: steps, tokens, FLOPs, memory, hours and price of every cell."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raylab.data.collections import TRAIN, read_passages, read_queries, read_topics
from raylab.data.faults import LeavingOut, OnFault
from raylab.data.ingest import KnownGaps
from raylab.data.registry import encoding_for
from raylab.data.sources import Source
from raylab.experiment.config import Adaptation, Backbone, ConfigError, Execution
from raylab.experiment.families import Start
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.references import load_reference
from raylab.models.backbone import load_config, resolve_source
from raylab.models.hub import load_tokenizer
from raylab.planning.devices import DEVICES, Device
from raylab.planning.flops import (
    Rows,
    Shape,
    adaptation_flops,
    dense_search_flops,
    encode_flops,
    fine_tuning_flops,
    fine_tuning_rows,
    passages_per_query,
    planned_steps,
    sparse_search_flops,
)
from raylab.planning.memory import Load, adaptation_load, cell_load
from raylab.planning.memory_fit import check_memory, fit

_SAMPLE_TEXTS = 1_000
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
class EvaluationPlan:
    """What encoding the collection and searching it will take, for all cells of a size and head."""

    name: str
    cells: int
    passages: int
    tokens: float
    encode_flops: float
    search_flops: float


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


@dataclass
class _Sample:
    """Token counts of the first training queries and passages under one tokenizer."""

    queries: list[int]
    passages: list[int]


@dataclass
class _Sizes:
    """How much there is of a collection, counted when first needed."""

    source: Source
    on_fault: OnFault
    _topics: dict[str, int] = field(default_factory=dict)
    _passages: int | None = None

    @property
    def queries(self) -> dict[str, int]:
        """Judged queries by split."""
        if not self._topics:
            topics = read_topics(self.source, self.on_fault)
            self._topics = {
                split: len(split_topics.queries) for split, split_topics in topics.items()
            }
        return self._topics

    @property
    def passages(self) -> int:
        if self._passages is None:
            on_fault = KnownGaps(self.source, self.on_fault)
            self._passages = sum(1 for _ in read_passages(self.source.passages, on_fault))
        return self._passages


def plan_grid(
    grid: Grid, source: Source, execution: Execution, evaluation: bool = True
) -> GridPlan:
    """Plan every cell from lengths sampled from the collection's own texts.

    The run itself solves steps from the lengths of its real batches; the two differ by sampling.

    Args:
        evaluation: plan encoding and search as well, for which the whole collection is read once.

    Raises:
        ConfigError: an unknown model, a head or an objective that cannot be loaded, a budget too small for
            one step, or a batch that the workers
            cannot share.
        CollectionError: a faulty record that is not to be left out.
    """
    plans: list[CellPlan] = []
    adaptations: dict[Start, AdaptationPlan] = {}
    samples: dict[Any, _Sample] = {}
    on_fault = LeavingOut(grid.on_fault)
    sizes = _Sizes(source, on_fault)
    evaluated: dict[str, EvaluationPlan] = {}
    for cell in grid.cells():
        backbone = cell.backbone
        shape = Shape.of(load_config(backbone, resolve_source(backbone, execution.models_dir)))
        check_workers(cell, grid, execution)
        load_reference(cell.head.pooling)
        load_reference(cell.objective.loss)
        tokenizer = load_tokenizer(backbone, execution.models_dir)
        key = tokenizer.fingerprint, tokenizer.tokenization
        if key not in samples:
            samples[key] = _sample_lengths(tokenizer, source, on_fault)
        plans.append(
            plan_cell(
                cell,
                shape,
                _batch_lengths(cell, samples[key]),
                execution,
                sizes.queries.get(TRAIN, 0) if cell.epochs is not None else 0,
            )
        )
        adaptation = _adaptation(cell, grid)
        start = backbone, adaptation
        if adaptation.steps and start not in adaptations:
            taken = {part.name for part in adaptations.values()}
            name = f"{backbone.name}-{cell.variant}" if backbone.name in taken else backbone.name
            adaptations[start] = _plan_adaptation(name, start, shape, execution)
        if evaluation:
            part = _plan_evaluation(cell, grid, shape, samples[key], sizes)
            before = evaluated.get(part.name)
            evaluated[part.name] = part if before is None else _added(before, part)
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


def _plan_evaluation(
    cell: Cell, grid: Grid, shape: Shape, sample: _Sample, sizes: _Sizes
) -> EvaluationPlan:
    """One cell's encoding of the collection and of all judged queries but the training ones, and its search.

    Sorted by length, texts are padded by about 1 %, which is left out. A sparse query and
    passage share at most the query's terms; that bound is planned for.
    """
    encoding = encoding_for(grid.ladder.recipe.encoding, sizes.source.name)
    queries = sum(count for split, count in sizes.queries.items() if split != TRAIN)
    tokens = flops = 0.0
    for count, lengths, limit in (
        (sizes.passages, sample.passages, encoding.passage_limit),
        (queries, sample.queries, encoding.query_limit),
    ):
        cut = np.minimum(lengths, limit).tolist()
        each = [encode_flops(shape, Rows(1, length), cell.head) for length in cut]
        flops += count * float(np.mean(each))
        tokens += count * float(np.mean(cut))
    if cell.head.is_sparse:
        shared = min(encoding.top_k_query or shape.vocabulary, shape.vocabulary)
        search = sparse_search_flops(queries, sizes.passages, shared)
    else:
        search = dense_search_flops(queries, sizes.passages, shape.hidden)
    name = f"{cell.head.name}-{cell.backbone.name}"
    return EvaluationPlan(name, 1, sizes.passages, tokens, flops, search)


def _added(one: EvaluationPlan, other: EvaluationPlan) -> EvaluationPlan:
    return EvaluationPlan(
        one.name,
        one.cells + other.cells,
        one.passages,
        one.tokens + other.tokens,
        one.encode_flops + other.encode_flops,
        one.search_flops + other.search_flops,
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


def _sample_lengths(tokenizer, source: Source, on_fault: OnFault) -> _Sample:
    split = TRAIN if TRAIN in source.queries else next(iter(source.queries))
    queries = [
        q.text
        for q in itertools.islice(
            read_queries(source.queries[split], on_fault).values(), _SAMPLE_TEXTS
        )
    ]
    path = source.train_passages or source.passages
    first = itertools.islice(read_passages(path, KnownGaps(source, on_fault)), _SAMPLE_TEXTS)
    passages = [f"{p.title} {p.text}" for p in first]
    around_q, around_p = tokenizer.overhead("query"), tokenizer.overhead("passage")
    return _Sample(
        [len(t) + around_q for t in tokenizer.encode(queries)],
        [len(t) + around_p for t in tokenizer.encode(passages)],
    )


def _batch_lengths(cell: Cell, sample: _Sample) -> Lengths:
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
