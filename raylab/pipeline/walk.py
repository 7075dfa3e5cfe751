"""One walk along the chain of stages: look each artifact up, make what is missing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from raylab.data.ingest import collection_address
from raylab.data.ingested import training_part
from raylab.data.sources import EMBEDDED, Source
from raylab.experiment.config import Backbone, Execution
from raylab.experiment.families import Start, families, start_of
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.heads import Head
from raylab.jobs.cluster import connect, device_bytes
from raylab.jobs.filling import filling
from raylab.jobs.ingest import ingest
from raylab.jobs.pools import data_pool, ray_pool
from raylab.jobs.progress import Monitor
from raylab.jobs.train import training_devices
from raylab.jobs.trials import Job, Turns, run_trials
from raylab.models.hub import load_tokenizer
from raylab.models.identity import weights_fingerprint
from raylab.pipeline.collect import Walked
from raylab.pipeline.measuring import Measuring
from raylab.planning.contract import within_total
from raylab.planning.durations import Durations
from raylab.planning.plan import GridPlan, check_plan
from raylab.planning.scheduling import Item, Queue
from raylab.stages.arrays import make_arrays
from raylab.stages.encode import EncodeTask, Subject
from raylab.stages.mine import Mining
from raylab.stages.teach import make_groups
from raylab.stages.teaching import Teaching
from raylab.stages.tokenise import tokenise, tokens_address
from raylab.stages.train import (
    AdaptationJob,
    FineTuningJob,
    adaptation_address,
    cell_address,
    family_key,
    jobs_name,
)
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store


class Walk:
    """One walk along the chain; Ray is connected to (on `stack`) only when something is missing."""

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
        self.cells = grid.cells()
        self.backbones = list(dict.fromkeys(cell.backbone for cell in self.cells))
        self.weights = {b: weights_fingerprint(b, execution.models_dir) for b in self.backbones}
        self.durations = Durations(plan, execution)
        self.worked = False

    def ray(self) -> None:
        """Connect at the first stage that has something to do."""
        if not self.worked:
            self.worked = True
            self.stack.enter_context(connect(self.execution))
            self.stack.enter_context(self.monitor.watching())

    def run(self) -> Walked:
        """Every stage in turn.

        Raises:
            ConfigError, CollectionError, TrainingError, DamagedArtifact: from the stages.
        """
        monitor = self.monitor
        monitor.cells_total = len(self.cells)
        monitor.budget_flops = sum(self.durations.flops(cell) for cell in self.cells)
        collection, tokens = self._ingest()
        groups = self._teach(collection)
        adapted, trained = self._train(collection, tokens, groups)
        subjects = self._subjects(trained)
        what = self.grid.ladder.recipe, self.execution, self.store, monitor, self.ray
        measured = Measuring(*what, collection, tokens, subjects).run()
        used = [collection, *tokens.values(), groups, *adapted.values(), *trained.values()]
        return Walked(
            subjects, trained, measured.evaluations, measured.profiles, used + measured.used
        )

    # ------------------------------------------------------------------ data

    def _ingest(self) -> tuple[Artifact, dict[str, Artifact]]:
        collection = self.store.find(collection_address(self.source, self.grid.on_fault))
        if collection is None:
            self.ray()
            self.monitor.enter("ingest", 1)
            collection = ingest(self.store, self.source, self.grid.on_fault)
            self.monitor.advance(
                f"{collection.meta['passages']} passages, splits {collection.meta['splits']}"
            )
        tokens: dict[str, Artifact] = {}  # by size; sizes of one tokenizer share a store
        for backbone in self.backbones:
            tokenizer = load_tokenizer(backbone, self.execution.models_dir)
            found = self.store.find(tokens_address(collection, tokenizer))
            if found is None:
                self.ray()
                self.monitor.enter("tokenise", 1)
                found = tokenise(self.store, collection, tokenizer, data_pool)
                self.monitor.advance()
            tokens[backbone.name] = found
        return collection, tokens

    def _teach(self, collection: Artifact) -> Artifact:
        teaching = Teaching(
            self.store,
            collection,
            Mining(
                pseudo_queries=any(c.fine_tuning.pseudo_fraction > 0 for c in self.cells),
                on_fault=self.grid.on_fault,
            ),
            self.teacher,
            self.execution.models_dir,
            self.execution.encoding_actors or None,
            EMBEDDED.get(self.grid.collection),
            pool=functools.partial(ray_pool, gpu=self.execution.use_gpu),
        )
        groups = self.store.find(teaching.address())
        if groups is None:
            self.ray()
            self.monitor.enter("teach", 1)
            groups = make_groups(teaching)
            self.monitor.advance(
                f"{groups.meta['groups']} groups, {groups.meta['pseudo']} of them pseudo-queries"
            )
        return groups

    # -------------------------------------------------------------- training

    def _train(
        self, collection: Artifact, tokens: dict[str, Artifact], groups: Artifact
    ) -> tuple[dict[Start, Artifact], dict[Cell, Artifact]]:
        """MNTP of every backbone that cells start from, and the cells: in the order of the queue."""
        starts = {
            start: adaptation_address(
                start[0], self.weights[start[0]], start[1], tokens[start[0].name]
            )
            for start in map(start_of, self.cells)
        }
        cells = {
            cell: cell_address(cell, starts[start_of(cell)], tokens[cell.backbone.name], groups)
            for cell in self.cells
        }
        chosen = self._chosen(cells)
        wanted = dict.fromkeys(start_of(cell) for cell in self.cells if cell in chosen)
        missing = [start for start in wanted if self.store.find(starts[start]) is None]
        if chosen:
            self.ray()
            self._check_memory()
            self.monitor.enter("train", len(missing) + len(self.cells), len(self.monitor.spent))
            jobs: dict[str, Job] = {}
            items: list[Item] = []
            for start in missing:
                job = self._adaptation_job(start, starts[start], tokens)
                jobs[job.run_name] = job
                items.append(self.durations.adaptation(job.run_name, start))
            for job in self._fine_tuning_jobs(cells, chosen, starts, collection, tokens, groups):
                jobs[job.run_name] = job
                start = start_of(job.cells[0][1])
                after = (jobs_name(starts[start]),) if start in missing else ()
                own = [cell for _, cell in job.cells]
                items.append(self.durations.training(job.run_name, own, after))
            self._run(jobs, items, collection, tokens)
        adapted = {start: self.store.find(address) for start, address in starts.items()}
        trained = {cell: self.store.find(address) for cell, address in cells.items()}
        return (
            {start: a for start, a in adapted.items() if a is not None},
            {cell: a for cell, a in trained.items() if a is not None},
        )

    def _check_memory(self) -> None:
        """Refuse, before anything is trained, what does not fit; say so where nobody knows."""
        limit = device_bytes(self.execution, training_devices(self.execution))
        if limit is None:
            self.monitor.say(
                "memory is not checked: the cluster tells no known device; give --device"
            )
        else:
            check_plan(self.plan, limit)

    def _run(
        self,
        jobs: dict[str, Job],
        items: list[Item],
        collection: Artifact,
        tokens: dict[str, Artifact],
    ) -> None:
        """Run the jobs, and encode what they make on devices that they leave free."""
        monitor, execution = self.monitor, self.execution
        turns = Turns(Queue(items), lambda: training_devices(execution))
        what = self.grid.ladder.recipe, execution, self.store, monitor, self.ray
        measuring = Measuring(*what, collection, tokens, [])

        def encoded(task: EncodeTask, warning: str | None) -> None:
            if warning:
                monitor.say(f"WARNING {task.subject.name}: {warning}")

        with filling(self.store, execution, turns.free, encoded) as fill:
            for subject, _ in self._subjects({}):
                fill(measuring.tasks(subject))

            def finished(name: str) -> None:
                job = jobs[name]
                if isinstance(job, AdaptationJob):
                    monitor.advance(name)
                    return
                for address, cell in job.cells:
                    artifact = self.store.find(address)
                    if artifact is None:
                        continue
                    meta = artifact.meta
                    monitor.spent[cell.run_name] = meta["spent_flops"]
                    monitor.advance(
                        f"{cell.run_name}: {meta['steps']} steps, loss {meta['loss']:.4g}"
                    )
                    fill(measuring.tasks(_subject(cell, artifact)))

            run_trials(self.store, jobs, turns, finished)

    def _adaptation_job(
        self, start: Start, address: Address, tokens: dict[str, Artifact]
    ) -> AdaptationJob:
        own = tokens[start[0].name]
        return AdaptationJob(address, *start, own, self.store, self.execution, self.monitor.board)

    def _fine_tuning_jobs(
        self,
        addresses: dict[Cell, Address],
        chosen: set[Cell],
        starts: dict[Start, Address],
        collection: Artifact,
        tokens: dict[str, Artifact],
        groups: Artifact,
    ) -> Iterator[FineTuningJob]:
        """One job a family that has cells to make."""
        part = training_part(collection)
        arrays = make_arrays(
            self.store, collection, groups, next(iter(tokens.values())), part, data_pool
        )
        for family in families(self.cells):
            if chosen & set(family):
                yield FineTuningJob(
                    family_key([addresses[cell] for cell in family]),
                    tuple((addresses[cell], cell) for cell in family if cell in chosen),
                    self.grid.ladder.recipe.encoding,
                    starts[start_of(family[0])],
                    tokens[family[0].backbone.name],
                    groups,
                    collection.manifest["name"],
                    part,
                    self.store,
                    self.execution,
                    self.monitor.board,
                    arrays,
                )

    def _chosen(self, addresses: dict[Cell, Address]) -> set[Cell]:
        """The cells to train: those that are missing and that the total budget still holds."""
        trained = {cell: self.store.find(address) for cell, address in addresses.items()}
        monitor = self.monitor
        monitor.spent = {
            cell.run_name: a.meta["spent_flops"] for cell, a in trained.items() if a is not None
        }
        missing = [cell for cell, artifact in trained.items() if artifact is None]
        there = {start_of(cell) for cell, artifact in trained.items() if artifact is not None}
        # MNTP that cells share is paid once; where it is charged, every cell's own FLOPs hold it.
        shared = self.grid.adaptation_charge == "shared"
        total, durations = self.grid.total_budget_flops, self.durations
        chosen = within_total(
            total,
            monitor.spent_flops,
            missing,
            durations.flops,
            durations.adaptation_flops if shared else lambda _: 0.0,
            there,
        )
        left_out = len(missing) - len(chosen)
        if left_out:
            monitor.say(f"total budget {total:.3g} FLOPs: {left_out} cell(s) are not started")
        return chosen

    # ------------------------------------------------------------ what is measured

    def _subjects(self, trained: dict[Cell, Artifact]) -> list[tuple[Subject, Cell | None]]:
        subjects: list[tuple[Subject, Cell | None]] = []
        pairs: dict[tuple[Backbone, Head], None] = dict.fromkeys(
            (c.backbone, c.head) for c in self.cells
        )
        for backbone, head in pairs:
            causal = "" if backbone.bidirectional else "-causal"
            name = f"untrained-{head.name}-{backbone.name}{causal}"
            subjects.append((Subject(name, head, backbone, self.weights[backbone], None), None))
        subjects += [(_subject(cell, artifact), cell) for cell, artifact in trained.items()]
        return subjects


def _subject(cell: Cell, artifact: Artifact) -> Subject:
    return Subject(cell.run_name, cell.head, cell.backbone, artifact.fingerprint, artifact)
