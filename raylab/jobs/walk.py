"""One walk along the chain of stages: look each artifact up, make what is missing."""

from __future__ import annotations

import contextlib
import functools

from raylab.artifacts import Address, Artifact, Store
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
from raylab.jobs.train import (
    AdaptationJob,
    FineTuningJob,
    Start,
    adaptation_address,
    cell_address,
    families,
    family_key,
    start_of,
)
from raylab.models.backbone import weights_fingerprint
from raylab.models.hub import load_tokenizer
from raylab.plan import GridPlan


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
        self.planned = {own.cell: own.flops for own in plan.cells}  # by run name
        self.store, self.monitor, self.stack = store, monitor, stack
        self.cells = grid.cells()
        self.backbones = list(dict.fromkeys(cell.backbone for cell in self.cells))
        self.weights = {b: weights_fingerprint(b, execution.models_dir) for b in self.backbones}
        self.starts = list(dict.fromkeys(map(start_of, self.cells)))
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
        monitor.budget_flops = sum(self.planned[cell.run_name] for cell in self.cells)
        collection, tokens = self._ingest()
        groups = self._teach(collection)
        adapted = self._adapt(tokens)
        trained = self._fine_tune(collection, tokens, groups, adapted)
        subjects = self._subjects(trained)
        what = self.grid.ladder.recipe, self.execution, self.store, monitor, self.ray
        measured = Measuring(*what, collection, tokens, subjects).run()
        starts = [self.store.committed(address) for address in adapted.values()]
        used = [collection, *tokens.values(), groups, *starts, *trained.values()]
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

    def _adapt(self, tokens: dict[str, Artifact]) -> dict[Start, Address]:
        """MNTP of every backbone that cells start from."""
        addresses = {
            start: adaptation_address(
                start[0], self.weights[start[0]], start[1], tokens[start[0].name]
            )
            for start in self.starts
        }
        missing = [s for s, address in addresses.items() if self.store.find(address) is None]
        if missing:
            self.ray()
            self.monitor.enter("adapt", len(addresses), len(addresses) - len(missing))
            jobs = [
                AdaptationJob(
                    addresses[start],
                    *start,
                    tokens[start[0].name],
                    self.store,
                    self.execution,
                    self.monitor.board,
                )
                for start in reversed(missing)
            ]
            adapt_all(jobs, self.execution.concurrent_trials, self.monitor.advance)
        return addresses

    def _fine_tune(
        self,
        collection: Artifact,
        tokens: dict[str, Artifact],
        groups: Artifact,
        adapted: dict[Start, Address],
    ) -> dict[Cell, Artifact]:
        addresses = {
            cell: cell_address(cell, adapted[start_of(cell)], tokens[cell.backbone.name], groups)
            for cell in self.cells
        }
        trained = {cell: self.store.find(address) for cell, address in addresses.items()}
        monitor = self.monitor
        monitor.spent = {
            cell.run_name: a.meta["spent_flops"] for cell, a in trained.items() if a is not None
        }
        missing = [cell for cell, artifact in trained.items() if artifact is None]
        chosen = self._within_total(missing, monitor.spent_flops)
        if chosen:
            self.ray()
            monitor.enter("fine-tune", len(self.cells), len(monitor.spent))
            part = training_part(collection)
            arrays = make_arrays(self.store, collection, groups, next(iter(tokens.values())), part)
            jobs = [
                FineTuningJob(
                    family_key([addresses[cell] for cell in family]),
                    tuple((addresses[cell], cell) for cell in family if cell in chosen),
                    self.grid.ladder.recipe.encoding,
                    adapted[start_of(family[0])],
                    tokens[family[0].backbone.name],
                    groups,
                    collection.manifest["name"],
                    part,
                    self.store,
                    self.execution,
                    monitor.board,
                    arrays,
                )
                for family in families(self.cells)
                if chosen & set(family)
            ]
            by_name = {job.run_name: job for job in jobs}

            def finished(name: str) -> None:
                for address, cell in by_name[name].cells:
                    artifact = self.store.find(address)
                    if artifact is not None:
                        meta = artifact.meta
                        monitor.spent[cell.run_name] = meta["spent_flops"]
                        monitor.advance(
                            f"{cell.run_name}: {meta['steps']} steps, loss {meta['loss']:.4g}"
                        )

            fine_tune_all(self.store, self.execution, jobs, finished)
            trained = {cell: self.store.find(address) for cell, address in addresses.items()}
        return {cell: artifact for cell, artifact in trained.items() if artifact is not None}

    def _within_total(self, missing: list[Cell], spent: float) -> set[Cell]:
        """The cells the total budget still holds, in the order of the grid."""
        total = self.grid.total_budget_flops
        chosen = set()
        for cell in missing:
            flops = self.planned[cell.run_name]
            if total is None or spent + flops <= total:
                spent += flops
                chosen.add(cell)
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
            causal = "" if backbone.bidirectional else "-causal"
            name = f"untrained-{head}-{backbone.name}{causal}"
            subjects.append((Subject(name, head, backbone, self.weights[backbone], None), None))
        for cell, artifact in trained.items():
            subject = Subject(
                cell.run_name, cell.head, cell.backbone, artifact.fingerprint, artifact
            )
            subjects.append((subject, cell))
        return subjects
