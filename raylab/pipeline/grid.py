"""The whole chain for a grid of cells; what is finished is never done again.

`raylab.pipeline.stages` lists what there is to make. Every stage's artifact is looked up first; Ray is connected
to at the first that is missing. The driver holds addresses and manifests only. A damaged artifact that a
stage meets is set aside, and the chain is gone through again from the start.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from raylab import report
from raylab.data.ingest import collection_address, gaps
from raylab.data.ingested import training_part
from raylab.data.sources import Source, open_collection
from raylab.data.supervision.held_out import group_notes
from raylab.evaluation.measures import check_own
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.paths import with_absolute_paths
from raylab.jobs.cluster import connect
from raylab.jobs.ingest import ingest
from raylab.jobs.metrics import Publisher
from raylab.jobs.pools import data_pool, ray_pool
from raylab.jobs.progress import Display, Monitor
from raylab.live.logs import DriverLog
from raylab.pipeline.arriving import Arrivals
from raylab.pipeline.checkup import check_cheaply
from raylab.pipeline.collect import Measured, collect
from raylab.pipeline.driver import sole_driver
from raylab.pipeline.evaluation import SystemsEvaluation
from raylab.pipeline.real_plan import choose_teacher, grid_stages
from raylab.pipeline.stages import GridStages
from raylab.pipeline.training import Training
from raylab.planning.collections import further_sources
from raylab.planning.devices import DEVICES
from raylab.planning.plan import GridPlan, check_plan, plan_grid
from raylab.stages.arrays import make_arrays
from raylab.stages.stage import Stage, StageKind, find_or_make, write_list
from raylab.stages.teach import make_groups
from raylab.stages.tokenise import tokenise
from raylab.storage.artifacts import Artifact, DamagedArtifact
from raylab.storage.store import Store

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
        StorageError: the storage became full or cannot be reached.
    """
    grid, execution = with_absolute_paths(grid, execution)
    source = open_collection(grid.collection)
    teacher = choose_teacher(grid, source)
    further = further_sources(grid, source)
    check_own(grid.measures)
    plan = plan_grid(grid, source, execution, evaluation=False)  # refuses what cannot run
    if execution.device is not None:  # else the cluster is asked, once it is there
        check_plan(plan, DEVICES[execution.device].memory_bytes)
    store = Store(execution.storage, cache_bytes=execution.cache_bytes)
    with sole_driver(store):
        for _ in range(_DAMAGE_ROUNDS):
            with contextlib.ExitStack() as stack:
                monitor = Monitor(display, DriverLog(store))
                pipeline = GridPipeline(
                    grid, execution, source, further, teacher, plan, store, monitor, stack
                )
                try:
                    measured = pipeline.run()
                    results, ledger = collect(store, measured, execution, pipeline.interim)
                except DamagedArtifact as damage:
                    log.warning("%s; it will be made again", damage)
                    store.discard(damage.path)
                    continue
            left_out = tuple(c.run_name for c in grid.cells() if c not in measured.trained)
            pages = report.write_unless_standing(store, results, ledger, command)
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
        further: Sequence[Source],
        teacher: str | None,
        plan: GridPlan,
        store: Store,
        monitor: Monitor,
        stack: contextlib.ExitStack,
    ):
        self.grid, self.execution, self.teacher = grid, execution, teacher
        self.sources = (source, *further)
        self.plan, self.store, self.monitor, self.stack = plan, store, monitor, stack
        self.connected = self.accepted = False
        self.interim: Mapping[str, Collection[str]] = {}

    def connect(self) -> None:
        """Connect to Ray, at the first stage that has something to do."""
        if not self.connected:
            self.connected = True
            self.stack.enter_context(connect(self.execution))
            if os.environ.get("RAY_ADDRESS"):  # else the only node is this one
                check_cheaply(self.store)
            self.stack.enter_context(self.monitor.watching())
            self.stack.enter_context(Publisher(self.monitor, self.execution).publishing())
            self._tell()

    def _tell(self) -> None:
        """Tell the storage how far the grid is: once its input was accepted, and something is missing."""
        if self.connected and self.accepted and self.monitor.log is not None:
            self.monitor.log.begin()

    def run(self) -> Measured:
        """Every stage in turn.

        Raises:
            ConfigError, CollectionError, TrainingError, DamagedArtifact: from the stages.
        """
        stages = self._stages(self._ingest())
        self.accepted = True
        self._tell()
        every = stages.all()
        write_list(self.store, every)
        self.monitor.cells, self.monitor.cells_total = stages.cells, len(stages.cells)
        used = [one.collection for one in stages.measured]
        for kind in ("tokenise", "teach", "arrange"):
            used += self._data(kind, [stage for stage in every if stage.kind == kind], stages)
        arrivals = Arrivals(stages, self.execution, self.store)
        running = self.execution, self.store, self.monitor, self.connect, arrivals.add
        training = Training(stages, self.plan, *running)
        self.monitor.planned = {c.run_name: training.durations.flops(c) for c in stages.cells}
        with arrivals.adding():
            trained = training.run()
            systems = stages.systems(list(trained))
            evaluated = SystemsEvaluation(stages, systems, *running).run()
        self.interim = arrivals.parts
        adapted = self.store.find_all(stages.starts.values())
        used += [artifact for artifact in adapted if artifact is not None]
        used += [*trained.values(), *evaluated.used]
        trained_on = stages.collection.meta["name"]
        measured = evaluated.evaluations, evaluated.profiles
        return Measured(trained_on, systems, trained, *measured, used)

    def _ingest(self) -> list[Artifact]:
        """The collection that trains, and the further ones."""

        def make(missing: list[Stage]) -> None:
            self.connect()
            self.monitor.enter("ingest", len(missing))
            for stage in missing:
                collection = ingest(self.store, stage.task, self.grid.on_fault)
                name, splits = collection.meta["name"], collection.meta["splits"]
                counts = f"{collection.meta['passages']} passages, splits {splits}"
                self.monitor.advance(counts if len(missing) == 1 else f"{name}: {counts}")

        on_fault = self.grid.on_fault
        stages = [
            Stage("ingest", collection_address(source, on_fault), (), source)
            for source in self.sources
        ]
        collections = find_or_make(self.store, stages, make)
        for gap in (gap for collection in collections for gap in gaps(collection.meta)):
            self.monitor.say(gap)
        return collections

    def _stages(self, collections: Sequence[Artifact]) -> GridStages:
        """The list, once it is known what the collections hold."""
        pool = functools.partial(ray_pool, gpu=self.execution.use_gpu)
        return grid_stages(self.grid, self.execution, self.store, collections, self.teacher, pool)

    def _data(self, kind: StageKind, stages: list[Stage], grid: GridStages) -> list[Artifact]:
        """Stages that this process makes, with work that it hands out to Ray: one after the other."""
        collection = grid.collection

        def make(missing: list[Stage]) -> None:
            self.connect()
            self.monitor.enter(kind, len(missing))
            for stage in missing:
                if kind == "tokenise":
                    texts = self.store.committed(stage.inputs[0])
                    tokenise(self.store, texts, stage.task, data_pool)
                    self.monitor.advance()
                elif kind == "teach":
                    meta = make_groups(stage.task).meta
                    pseudo = f"{meta['pseudo']} of them pseudo-queries"
                    self.monitor.advance(f"{meta['groups']} groups, {pseudo}")
                    for note in group_notes(meta):
                        self.monitor.say(f"{kind}: {note}")
                else:
                    groups, tokens = self.store.all_committed(stage.inputs)
                    part = training_part(collection)
                    make_arrays(self.store, collection, groups, tokens, part, data_pool)
                    self.monitor.advance()

        return find_or_make(self.store, stages, make)
