"""The plan of a grid whose data are there: steps and FLOPs of its own batches, as the run itself solves them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from raylab.data.ingest import collection_address
from raylab.data.ingested import training_part
from raylab.data.sources import EMBEDDED, Source
from raylab.data.supervision.batches import TrainingBatches
from raylab.data.supervision.groups import open_groups
from raylab.data.tokens import PassageStore
from raylab.experiment.config import Backbone, ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell, Grid
from raylab.models.backbone import load_config, resolve_source
from raylab.models.hub import load_tokenizer
from raylab.models.identity import weights_fingerprint
from raylab.pipeline.stages import GridStages
from raylab.planning.contract import LOOKED_AT, steps_of
from raylab.planning.flops import (
    Rows,
    Shape,
    adaptation_flops,
    fine_tuning_flops,
    fine_tuning_rows,
    passages_per_query,
)
from raylab.planning.plan import CellPlan, GridPlan, plan_grid
from raylab.stages.mine import Mining
from raylab.stages.shards import Pool, local_pool
from raylab.stages.teaching import SHIPPED, Teaching
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store
from raylab.training.loop import OVERSPEND


def choose_teacher(grid: Grid, source: Source) -> str | None:
    """The teacher to use: none when no cell distils, the shipped scores where there are some.

    Raises:
        ConfigError: a cell distils and no teacher is at hand.
    """
    if not any(cell.objective.needs_teacher for cell in grid.cells()) and not source.embedded:
        return grid.teacher
    if grid.teacher is not None:
        return grid.teacher
    if source.embedded:
        return SHIPPED
    raise ConfigError(
        f"cells with KD need teacher scores, and collection {source.name!r} ships none: "
        "name a teacher (a model folder, a hub id or a Parquet file of scores), or leave out the objectives "
        "that need one"
    )


def grid_stages(
    grid: Grid,
    execution: Execution,
    store: Store,
    collections: Sequence[Artifact],
    teacher: str | None,
    pool: Pool = local_pool,
) -> GridStages:
    """The list of what there is to make, once it is known what the collections hold.

    ``collections``: the one that trains, then those to measure on as well.
    """
    collection, *further = collections
    cells, models_dir = grid.cells(), execution.models_dir
    backbones = list(dict.fromkeys(cell.backbone for cell in cells))
    mining = Mining(
        pseudo_queries=any(cell.fine_tuning.pseudo_fraction > 0 for cell in cells),
        on_fault=grid.on_fault,
    )
    teaching = Teaching(
        store,
        collection,
        mining,
        teacher,
        models_dir,
        execution.encoding_actors or None,
        EMBEDDED.get(grid.collection),
        compute_dtype=grid.teacher_dtype,
        pool=pool,
    )
    weights = {backbone: weights_fingerprint(backbone, models_dir) for backbone in backbones}
    tokenizers = {b.name: load_tokenizer(b, models_dir) for b in backbones}
    return GridStages(grid, collection, teaching, weights, tokenizers, tuple(further))


def plan_with_data(grid: Grid, source: Source, execution: Execution) -> GridPlan:
    """The plan of a grid; of its own batches where its storage holds them, else an estimate.

    Raises:
        ConfigError, CollectionError: as `plan_grid`.
    """
    plan = plan_grid(grid, source, execution, from_tables=True)
    if any(backbone.source in plan.known for backbone in grid.ladder.backbones):
        return plan  # its batches are made of tokens, and there is no tokenizer
    store = Store(execution.storage)
    collection = store.find(collection_address(source, grid.on_fault))
    if collection is None:
        return plan
    stages = grid_stages(grid, execution, store, [collection], choose_teacher(grid, source))
    arrays = store.find(stages.arrays)
    tokens = dict(zip(stages.tokens, store.find_all(stages.tokens.values()), strict=True))
    if arrays is None or None in tokens.values():
        return plan
    batches = _Batches(stages, store, arrays, {s: t for s, t in tokens.items() if t is not None})
    shape = cache(lambda backbone: _shape(backbone, execution))
    cells = [
        _solved(cell, cell_plan, shape(cell.backbone), batches.of(cell))
        for cell, cell_plan in zip(grid.cells(), plan.cells, strict=True)
    ]
    return replace(plan, cells=tuple(cells))


def _shape(backbone: Backbone, execution: Execution) -> Shape:
    return Shape.of(load_config(backbone, resolve_source(backbone, execution.models_dir)))


@dataclass
class _Steps:
    """The first steps of a cell's batches: the groups of texts of each, padded and real."""

    batches: TrainingBatches
    rows: dict[int, list[Rows]]

    def __getitem__(self, step: int) -> list[Rows]:
        if step not in self.rows:
            self.rows[step] = fine_tuning_rows(self.batches.draw(step).length_groups)
        return self.rows[step]


class _Batches:
    """Batches of the cells; cells that draw the same ones share them."""

    def __init__(
        self, stages: GridStages, store: Store, arrays: Artifact, tokens: dict[str, Artifact]
    ):
        self.stages, self.store, self.arrays, self.tokens = stages, store, arrays, tokens
        self.known: dict[Any, _Steps] = {}

    def of(self, cell: Cell) -> _Steps:
        size, passages = cell.backbone.name, passages_per_query(cell)
        tuning = cell.fine_tuning
        # What a draw depends on; learning rates and the like do not count.
        drawn = (
            tuning.batch_queries,
            tuning.query_length,
            tuning.passage_length,
            tuning.pseudo_fraction,
            tuning.random_fraction,
            tuning.corrupted_positives,
        )
        key = self.stages.tokens[size].path, cell.backbone.tokenization, drawn, passages, cell.seed
        if key not in self.known:
            part = training_part(self.stages.collection)
            store = PassageStore(self.store.local(self.tokens[size]) / part)
            groups = open_groups(self.store.local(self.arrays))
            tokenizer = self.stages.tokenizers[size]
            batches = TrainingBatches(
                groups, store, tokenizer, tuning, passages, cell.seed, needs_teacher=False
            )
            self.known[key] = _Steps(batches, {})
        return self.known[key]


def _solved(cell: Cell, plan: CellPlan, shape: Shape, drawn: _Steps) -> CellPlan:
    """A cell's plan with the steps that its own batches come to, and what these take."""

    def cost(step: int) -> float:
        return fine_tuning_flops(cell, shape, drawn[step])

    charged = 0.0
    if cell.charged_adaptation and cell.adaptation is not None:
        charged = adaptation_flops(shape, cell.adaptation)
    steps = steps_of(cell, cost, drawn.batches.training_queries, charged)
    if cell.epochs is None and steps <= LOOKED_AT:
        # As the run does, which ends before a step that would overspend.
        spent = itertools.accumulate(map(cost, range(steps)))
        steps = sum(flops <= cell.budget_flops * OVERSPEND for flops in spent) or 1
    looked_at = [drawn[step] for step in range(min(steps, LOOKED_AT))]
    step_flops = _mean([fine_tuning_flops(cell, shape, rows) for rows in looked_at])
    repeated = plan.executed_flops / (plan.steps * plan.step_flops)
    return replace(
        plan,
        steps=steps,
        estimated=False,
        step_flops=step_flops,
        flops=steps * step_flops + charged,
        executed_flops=steps * step_flops * repeated,
        tokens=steps * _mean([sum(part.tokens for part in rows) for rows in looked_at]),
        real_tokens=steps * _mean([sum(part.real for part in rows) for rows in looked_at]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
