"""The whole chain for a grid of cells; what is finished is never done again.

`raylab.pipeline.stages` lists what there is to make. Every stage's artifact is looked up first; Ray is connected
to at the first that is missing. The driver holds addresses and manifests only. A damaged artifact that a
stage meets is set aside, and the chain is gone through again from the start.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from dataclasses import dataclass

import pandas as pd

from raylab import report
from raylab.data.ingest import collection_address, gaps
from raylab.data.ingested import training_part
from raylab.data.sources import EMBEDDED, Source, open_collection
from raylab.data.supervision.held_out import group_notes
from raylab.experiment.config import ConfigError, Execution
from raylab.experiment.grid import Grid
from raylab.jobs.cluster import connect
from raylab.jobs.ingest import ingest
from raylab.jobs.pools import data_pool, ray_pool
from raylab.jobs.progress import Display, Monitor
from raylab.models.hub import load_tokenizer
from raylab.models.identity import weights_fingerprint
from raylab.pipeline.collect import Measured, collect
from raylab.pipeline.driver import sole_driver
from raylab.pipeline.evaluation import SystemsEvaluation
from raylab.pipeline.stages import GridStages
from raylab.pipeline.training import Training
from raylab.planning.devices import DEVICES
from raylab.planning.plan import GridPlan, check_plan, plan_grid
from raylab.stages.arrays import make_arrays
from raylab.stages.mine import Mining
from raylab.stages.stage import Stage, StageKind, find_or_make, write_list
from raylab.stages.teach import make_groups
from raylab.stages.teaching import SHIPPED, Teaching
from raylab.stages.tokenise import tokenise
from raylab.storage.artifacts import Artifact, DamagedArtifact
from raylab.storage.merging import read_current
from raylab.storage.store import Store
from raylab.storage.tables import PER_QUERY

log = logging.getLogger("raylab")
_DAMAGE_ROUNDS = 3


@dataclass(frozen=True)
class Outcome:
    """What a grid ends with."""

    results: pd.DataFrame
    report: report.Report
    nothing_to_do: bool
    untrained_cells: tuple[str, ...]  # selected cells that the total budget left out


def run_grid(
    grid: Grid, execution: Execution, display: Display = "auto", command: str | None = None
) -> Outcome:
    """Run (or go on with) a grid.

    Args:
        display: of progress.
        command: what a user typed: kept in the storage, and told by the report.

    Raises:
        ConfigError, CollectionError: bad input, before anything is trained.
        TrainingError: a cell's loss is not finite.
        StorageError: the storage cannot be written to.
    """
    source = open_collection(grid.collection)
    teacher = choose_teacher(grid, source)
    plan = plan_grid(grid, source, execution, evaluation=False)  # refuses what cannot run
    if execution.device is not None:  # else the cluster is asked, once it is there
        check_plan(plan, DEVICES[execution.device].memory_bytes)
    store = Store(execution.storage)
    with sole_driver(store):
        for _ in range(_DAMAGE_ROUNDS):
            with contextlib.ExitStack() as stack:
                pipeline = GridPipeline(
                    grid, execution, source, teacher, plan, store, Monitor(display), stack
                )
                try:
                    measured = pipeline.run()
                    results, ledger = collect(store, source.name, measured, execution)
                except DamagedArtifact as damage:
                    log.warning("%s; it will be made again", damage)
                    store.discard(damage.path)
                    continue
            left_out = tuple(c.run_name for c in grid.cells() if c not in measured.trained)
            per_query = read_current(store, PER_QUERY)
            pages = report.write(store, results, ledger, per_query, command)
            return Outcome(results, pages, not pipeline.connected, left_out)
        raise RuntimeError(
            f"{store.uri}: artifacts were damaged again and again; check the storage"
        )


class GridPipeline:
    """One pass over the stages of a grid: look each artifact up, make what is missing.

    Ray is connected to (on `stack`) only when something is missing.
    """

    def __init__(
        self,
        grid: Grid,
        execution: Execution,
        source: Source,
        teacher: str | None,
        plan: GridPlan,
        store: Store,
        monitor: Monitor,
        stack: contextlib.ExitStack,
    ):
        self.grid, self.execution, self.source, self.teacher = grid, execution, source, teacher
        self.plan, self.store, self.monitor, self.stack = plan, store, monitor, stack
        self.connected = False

    def connect(self) -> None:
        """Connect to Ray, at the first stage that has something to do."""
        if not self.connected:
            self.connected = True
            self.stack.enter_context(connect(self.execution))
            self.stack.enter_context(self.monitor.watching())

    def run(self) -> Measured:
        """Every stage in turn.

        Raises:
            ConfigError, CollectionError, TrainingError, DamagedArtifact: from the stages.
        """
        stages = self._stages(self._ingest())
        every = stages.all()
        write_list(self.store, every)
        self.monitor.cells_total = len(stages.cells)
        used = [stages.collection]
        for kind in ("tokenise", "teach", "arrange"):
            used += self._data(kind, [stage for stage in every if stage.kind == kind], stages)
        running = self.execution, self.store, self.monitor, self.connect
        training = Training(stages, self.plan, *running)
        self.monitor.budget_flops = sum(map(training.durations.flops, stages.cells))
        trained = training.run()
        systems = stages.systems(list(trained))
        evaluated = SystemsEvaluation(stages, systems, *running).run()
        adapted = (self.store.find(address) for address in stages.starts.values())
        used += [artifact for artifact in adapted if artifact is not None]
        used += [*trained.values(), *evaluated.used]
        return Measured(systems, trained, evaluated.evaluations, evaluated.profiles, used)

    def _ingest(self) -> Artifact:
        def make(missing: list[Stage]) -> None:
            self.connect()
            self.monitor.enter("ingest", 1)
            collection = ingest(self.store, self.source, self.grid.on_fault)
            counts = f"{collection.meta['passages']} passages, splits {collection.meta['splits']}"
            self.monitor.advance(counts)

        address = collection_address(self.source, self.grid.on_fault)
        (collection,) = find_or_make(self.store, [Stage("ingest", address, (), None)], make)
        for gap in gaps(collection.meta):
            self.monitor.say(gap)
        return collection

    def _stages(self, collection: Artifact) -> GridStages:
        """The list, once it is known what the collection holds."""
        cells, models_dir = self.grid.cells(), self.execution.models_dir
        backbones = list(dict.fromkeys(cell.backbone for cell in cells))
        mining = Mining(
            pseudo_queries=any(cell.fine_tuning.pseudo_fraction > 0 for cell in cells),
            on_fault=self.grid.on_fault,
        )
        teaching = Teaching(
            self.store,
            collection,
            mining,
            self.teacher,
            models_dir,
            self.execution.encoding_actors or None,
            EMBEDDED.get(self.grid.collection),
            compute_dtype=self.grid.teacher_dtype,
            pool=functools.partial(ray_pool, gpu=self.execution.use_gpu),
        )
        weights = {backbone: weights_fingerprint(backbone, models_dir) for backbone in backbones}
        tokenizers = {b.name: load_tokenizer(b, models_dir) for b in backbones}
        return GridStages(self.grid, collection, teaching, weights, tokenizers)

    def _data(self, kind: StageKind, stages: list[Stage], grid: GridStages) -> list[Artifact]:
        """Stages that this process makes, with work that it hands out to Ray: one after the other."""
        collection = grid.collection

        def make(missing: list[Stage]) -> None:
            self.connect()
            self.monitor.enter(kind, len(missing))
            for stage in missing:
                if kind == "tokenise":
                    tokenise(self.store, collection, stage.task, data_pool)
                    self.monitor.advance()
                elif kind == "teach":
                    meta = make_groups(stage.task).meta
                    pseudo = f"{meta['pseudo']} of them pseudo-queries"
                    self.monitor.advance(f"{meta['groups']} groups, {pseudo}")
                    for note in group_notes(meta):
                        self.monitor.say(f"{kind}: {note}")
                else:
                    groups, tokens = (self.store.committed(place) for place in stage.inputs)
                    part = training_part(collection)
                    make_arrays(self.store, collection, groups, tokens, part, data_pool)
                    self.monitor.advance()

        return find_or_make(self.store, stages, make)


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
