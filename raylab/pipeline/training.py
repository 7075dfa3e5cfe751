"""The training half of a grid: MNTP and fine-tuning as trials of one queue, measuring on what they leave free."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from raylab.data.ingested import stored_topics, training_part
from raylab.experiment.execution import Execution
from raylab.experiment.families import Start, families, start_of
from raylab.experiment.grid import Cell
from raylab.jobs.cluster import device_bytes
from raylab.jobs.demand import Demand, check_room
from raylab.jobs.pool import training_devices
from raylab.jobs.progress import Monitor
from raylab.jobs.queue import Job, RunEvent, run_queue
from raylab.jobs.trials import QueueView, run_trials
from raylab.jobs.work import filling
from raylab.live.facts import PlannedCell
from raylab.pipeline.evaluation import warn
from raylab.pipeline.measuring import Measuring, PairWork, pairs_of
from raylab.pipeline.stages import GridStages
from raylab.planning.contract import within_total
from raylab.planning.durations import Durations
from raylab.planning.plan import GridPlan, check_plan
from raylab.planning.scheduling import Item
from raylab.stages.train import AdaptationJob, FineTuningJob, family_key, jobs_name
from raylab.stages.validation import SPLITS, ValidationQueries, validation_queries
from raylab.stages.work import Task
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store


class Training:
    """Trains the cells of a grid that are missing and that its total budget holds.

    Args:
        connect: connects to Ray; called before anything runs.
        arrived: is told of every system that is measured on a collection, as it is.
    """

    def __init__(
        self,
        stages: GridStages,
        plan: GridPlan,
        execution: Execution,
        store: Store,
        monitor: Monitor,
        connect: Callable[[], None],
        arrived: Callable[[PairWork], None],
    ):
        self.arrived = arrived
        self.stages, self.plan, self.execution = stages, plan, execution
        self.store, self.monitor, self.connect = store, monitor, connect
        self.durations = Durations(plan, execution)

    def run(self) -> dict[Cell, Artifact]:
        """The trained cells: all of the grid but those that the total budget leaves out.

        Raises:
            ConfigError: a run does not fit its device's memory, or the cluster can never hold its workers.
            TrainingError: a loss is not finite.
        """
        stages, store = self.stages, self.store
        chosen = self._chosen()
        if chosen:
            starts = dict.fromkeys(start_of(cell) for cell in stages.cells if cell in chosen)
            found = store.find_all(stages.starts[start] for start in starts)
            missing = [s for s, one in zip(starts, found, strict=True) if one is None]
            self.connect()
            check_room(self.execution)
            self._check_memory()
            total, done = len(missing) + len(stages.cells), len(self.monitor.spent)
            self.monitor.enter("train", total, done)
            jobs: dict[str, Job] = {}
            items: list[Item] = []
            for job in map(self._adaptation_job, missing):
                jobs[job.run_name] = job
                start = (job.backbone, job.adaptation)
                items.append(self.durations.adaptation(job.run_name, start))
            for job in self._fine_tuning_jobs(chosen):
                jobs[job.run_name] = job
                start = start_of(job.cells[0][1])
                after = (jobs_name(stages.starts[start].path),) if start in missing else ()
                cells = [cell for _, cell in job.cells]
                items.append(self.durations.training(job.run_name, cells, after))
            self._tell_plan(chosen, jobs, items)
            self._run_jobs(jobs, items)
        return {cell: made for cell, made in self._found().items() if made is not None}

    def _found(self) -> dict[Cell, Artifact | None]:
        retrievers = self.stages.retrievers
        return dict(zip(retrievers, self.store.find_all(retrievers.values()), strict=True))

    def _chosen(self) -> set[Cell]:
        """The cells to train: those that are missing and that the total budget still holds."""
        grid, monitor, durations = self.stages.grid, self.monitor, self.durations
        trained = self._found()
        monitor.spent = {
            cell.run_name: a.meta["spent_flops"] for cell, a in trained.items() if a is not None
        }
        missing = [cell for cell, artifact in trained.items() if artifact is None]
        # MNTP that cells share is paid once; where it is charged, every cell's own FLOPs hold it.
        shared = grid.adaptation_charge == "shared"
        chosen = within_total(
            grid.total_budget_flops,
            monitor.spent_flops,
            missing,
            durations.flops,
            durations.adaptation_flops if shared else lambda _: 0.0,
            {start_of(cell) for cell, artifact in trained.items() if artifact is not None},
        )
        for cell in missing:
            if cell not in chosen:
                monitor.planned.pop(cell.run_name, None)
        if left_out := len(missing) - len(chosen):
            total = f"total budget {grid.total_budget_flops:.3g} FLOPs"
            monitor.say(f"{total}: {left_out} cell(s) are not started")
        return chosen

    def _tell_plan(self, chosen: set[Cell], jobs: Mapping[str, Job], items: Sequence[Item]) -> None:
        """What will run, and when by the plan: for the display, and for those who watch."""
        monitor, stages = self.monitor, self.stages
        devices = training_devices(self.execution)
        overhead_s = self.durations.pace.run_s
        monitor.scheduled(items, devices, overhead_s)
        if monitor.log is None:
            return
        run_of = {
            cell: name
            for name, job in jobs.items()
            if isinstance(job, FineTuningJob)
            for _, cell in job.cells
        }
        cells = [
            self._planned_cell(cell, run_of.get(cell, cell.run_name), cell in chosen)
            for cell in stages.cells
        ]
        device = self.execution.device or ("gpu" if self.execution.use_gpu else "cpu-core")
        name = stages.collection.manifest["name"]
        monitor.log.planned(name, cells, items, devices, device, overhead_s)

    def _planned_cell(self, cell: Cell, run: str, chosen: bool) -> PlannedCell:
        part = self.durations.cells[cell.run_name]
        done = cell.run_name in self.monitor.spent
        return PlannedCell(
            cell.run_name,
            run,
            cell.backbone.name,
            cell.head.name,
            cell.objective.name,
            cell.seed,
            cell.variant,
            part.flops,
            part.steps,
            part.parameters,
            "planned" if chosen else "done" if done else "left out",
        )

    def _check_memory(self) -> None:
        """Refuse, before anything is trained, what does not fit; say so where nobody knows."""
        limit = device_bytes(self.execution, training_devices(self.execution))
        if limit is None:
            self.monitor.say(
                "memory is not checked: the cluster tells no known device; name the device"
            )
        else:
            check_plan(self.plan, limit)

    def _adaptation_job(self, start: Start) -> AdaptationJob:
        address, tokens = self.stages.starts[start], self.stages.tokens[start[0].name]
        return AdaptationJob(
            address, *start, tokens, self.store, self.execution, self.monitor.board
        )

    def _fine_tuning_jobs(self, chosen: set[Cell]) -> Iterator[FineTuningJob]:
        """One job a family that has cells to make."""
        stages, collection = self.stages, self.stages.collection
        for family in families(stages.cells):
            if chosen & set(family):
                yield FineTuningJob(
                    family_key([stages.retrievers[cell] for cell in family]),
                    tuple((stages.retrievers[cell], cell) for cell in family if cell in chosen),
                    stages.grid.ladder.recipe.encoding,
                    stages.starts[start_of(family[0])],
                    stages.tokens[family[0].backbone.name],
                    stages.groups,
                    stages.arrays,
                    collection.manifest["name"],
                    training_part(collection),
                    self.store,
                    self.execution,
                    self.monitor.board,
                    self._validation,
                )

    @functools.cached_property
    def _validation(self) -> ValidationQueries | None:
        """What runs are validated on; None where nobody asks for it."""
        if not self.execution.validate:
            return None
        collection = self.stages.collection
        topics = stored_topics(self.store, collection, SPLITS)
        return validation_queries(collection.meta["name"], topics)

    def _run_jobs(self, jobs: dict[str, Job], items: list[Item]) -> None:
        """Run the jobs, and measure what they make on devices that they leave free."""
        monitor, execution, stages = self.monitor, self.execution, self.stages
        measuring = Measuring(self.store, execution, self.arrived, monitor.say)

        def done(task: Task, warning: str | None) -> list[Task]:
            warn(monitor, task, warning)
            return measuring.finished(task)

        with (
            Demand(execution, monitor.say).asking() as demand,
            run_queue(items, jobs, execution) as queue,
        ):

            def told(event: RunEvent) -> None:
                monitor.run_event(event.kind, event.name, event.text, event.at)
                if event.kind == "end":
                    fill(measuring.begin(self._made_by(jobs[event.name])))

            view = QueueView(queue, demand, told)
            view.look()
            with filling(self.store, execution, demand, lambda: view.free, done) as fill:
                untrained = [(system, None) for system in stages.untrained]
                fill(measuring.begin(pairs_of(stages, untrained)))
                run_trials(self.store, execution, view)

    def _made_by(self, job: Job) -> list[PairWork]:
        """What can be measured of what a run has made; the monitor is told of it."""
        monitor, stages = self.monitor, self.stages
        if isinstance(job, AdaptationJob):
            monitor.advance(job.run_name)
            return []
        systems = []
        for address, cell in job.cells:
            artifact = self.store.find(address)
            if artifact is None:
                continue
            facts = artifact.meta
            monitor.spent[cell.run_name] = facts["spent_flops"]
            loss = f"{facts['steps']} steps, loss {facts['loss']:.4g}"
            monitor.advance(f"{cell.run_name}: {loss}")
            systems.append((stages.system(cell), cell))
        return pairs_of(stages, systems, baselines=False)
