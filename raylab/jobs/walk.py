"""One walk along the chain of stages: look each artifact up, make what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

from raylab.artifacts import Artifact, Store
from raylab.config import Backbone, Cell, Execution, Grid, HeadKind
from raylab.data.ingest import collection_address
from raylab.data.sources import EMBEDDED, Source
from raylab.jobs.arrays import make_arrays
from raylab.jobs.cluster import connect
from raylab.jobs.collect import Walked
from raylab.jobs.encode import Subject
from raylab.jobs.fine_tune import adapt_all, fine_tune_all
from raylab.jobs.ingest import ingest, training_part
from raylab.jobs.measuring import Measuring
from raylab.jobs.monitor import Monitor
from raylab.jobs.shards import ray_pool
from raylab.jobs.teach import Mining, Teaching, make_groups
from raylab.jobs.tokenise import tokenise, tokens_address
from raylab.jobs.train import AdaptationJob, CellJob, adaptation_address, cell_address
from raylab.models.backbone import weights_fingerprint
from raylab.models.hub import load_tokenizer


class Walk:
    """One walk along the chain; Ray is connected to (on `stack`) only when something is missing."""

    def __init__(
        self,
        grid: Grid,
        execution: Execution,
        source: Source,
        teacher: str | None,
        store: Store,
        monitor: Monitor,
        stack: contextlib.ExitStack,
    ):
        self.grid, self.execution, self.source, self.teacher = grid, execution, source, teacher
        self.store, self.monitor, self.stack = store, monitor, stack
        self.cells = grid.cells()
        self.backbones = list(dict.fromkeys(cell.backbone for cell in self.cells))
        self.weights = {b: weights_fingerprint(b, execution.models_dir) for b in self.backbones}
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
        monitor.budget_flops = sum(cell.budget_flops for cell in self.cells)
        collection, tokens = self._ingest()
        groups = self._teach(collection)
        adapted = self._adapt(tokens)
        trained = self._fine_tune(collection, tokens, groups, adapted)
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
                found = tokenise(self.store, collection, tokenizer)
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

    def _adapt(self, tokens: dict[str, Artifact]) -> dict[str, Artifact]:
        adaptation = self.grid.ladder.recipe.adaptation
        addresses = {
            b.name: adaptation_address(b, self.weights[b], adaptation, tokens[b.name])
            for b in self.backbones
        }
        adapted = {name: self.store.find(address) for name, address in addresses.items()}
        missing = [b for b in self.backbones if adapted[b.name] is None]
        if missing:
            self.ray()
            self.monitor.enter("adapt", len(adapted), len(adapted) - len(missing))
            jobs = [
                AdaptationJob(
                    addresses[b.name],
                    b,
                    adaptation,
                    tokens[b.name],
                    self.store,
                    self.execution,
                    self.monitor.board,
                )
                for b in reversed(missing)
            ]
            adapt_all(jobs, self.execution.concurrent_trials, self.monitor.advance)
        return {name: adapted[name] or self.store.committed(a) for name, a in addresses.items()}

    def _fine_tune(
        self,
        collection: Artifact,
        tokens: dict[str, Artifact],
        groups: Artifact,
        adapted: dict[str, Artifact],
    ) -> dict[Cell, Artifact]:
        jobs = {
            cell: CellJob(
                cell_address(cell, adapted[cell.backbone.name], tokens[cell.backbone.name], groups),
                cell,
                self.grid.ladder.recipe.encoding,
                adapted[cell.backbone.name],
                tokens[cell.backbone.name],
                groups,
                collection.manifest["name"],
                training_part(collection),
                self.store,
                self.execution,
                self.monitor.board,
            )
            for cell in self.cells
        }
        trained = {cell: self.store.find(job.address) for cell, job in jobs.items()}
        missing = [cell for cell, artifact in trained.items() if artifact is None]
        monitor = self.monitor
        monitor.spent = {
            cell.run_name: a.meta["spent_flops"] for cell, a in trained.items() if a is not None
        }
        chosen = self._within_total(missing, monitor.spent_flops)
        if chosen:
            self.ray()
            monitor.enter("fine-tune", len(self.cells), len(monitor.spent))
            part = training_part(collection)
            arrays = make_arrays(self.store, collection, groups, next(iter(tokens.values())), part)
            ready = {"board": monitor.board, "arrays": arrays}
            board = {cell: dataclasses.replace(jobs[cell], **ready) for cell in chosen}
            left = (
                None
                if self.grid.total_budget_flops is None
                else self.grid.total_budget_flops - monitor.spent_flops
            )
            by_name = {cell.run_name: cell for cell in chosen}

            def finished(name: str) -> None:
                artifact = self.store.find(jobs[by_name[name]].address)
                if artifact is not None:
                    monitor.spent[name] = artifact.meta["spent_flops"]
                    monitor.advance(
                        f"{name}: {artifact.meta['steps']} steps, loss {artifact.meta['loss']:.4g}"
                    )

            fine_tune_all(self.store, self.execution, list(board.values()), left, finished)
            trained = {cell: self.store.find(job.address) for cell, job in jobs.items()}
        return {cell: artifact for cell, artifact in trained.items() if artifact is not None}

    def _within_total(self, missing: list[Cell], spent: float) -> list[Cell]:
        """The cells the total budget still holds, those of small models (most steps, slowest a FLOP) first."""
        total = self.grid.total_budget_flops
        chosen = []
        for cell in missing:
            if total is None or spent + cell.budget_flops <= total:
                spent += cell.budget_flops
                chosen.append(cell)
        left_out = len(missing) - len(chosen)
        if left_out:
            self.monitor.say(f"total budget {total:.3g} FLOPs: {left_out} cell(s) are not started")
        return chosen

    # ------------------------------------------------------------ what is measured

    def _subjects(self, trained: dict[Cell, Artifact]) -> list[tuple[Subject, Cell | None]]:
        subjects: list[tuple[Subject, Cell | None]] = []
        pairs: dict[tuple[Backbone, HeadKind], None] = dict.fromkeys(
            (c.backbone, c.head) for c in self.cells
        )
        for backbone, head in pairs:
            name = f"untrained-{head}-{backbone.name}"
            subjects.append((Subject(name, head, backbone, self.weights[backbone], None), None))
        for cell, artifact in trained.items():
            subject = Subject(
                cell.run_name, cell.head, cell.backbone, artifact.fingerprint, artifact
            )
            subjects.append((subject, cell))
        return subjects
