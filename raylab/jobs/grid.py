"""The whole chain for a grid of cells; what is finished is never done again.

    source files -> collection -> tokens -> groups -> adapted backbones -> retrievers
                 -> embedding shards -> index shards -> runs -> measures -> results, ledger, report

Every arrow is a stage whose artifacts are looked up first. The driver holds addresses and manifests
only. A damaged artifact that a stage meets is set aside and the chain is walked again from the start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from raylab import report
from raylab.artifacts import Artifact, DamagedArtifact, Store
from raylab.budget import Shape
from raylab.config import Backbone, Cell, ConfigError, Execution, Grid
from raylab.data.collections import EMBEDDED, TRAIN, CollectionError, Source, open_collection
from raylab.encoding import shards
from raylab.evaluation.intervals import mean_interval
from raylab.jobs.cluster import connect
from raylab.jobs.encode import EncodeTask, Subject, encode_all, passage_task, query_task
from raylab.jobs.fine_tune import adapt_all, fine_tune_all
from raylab.jobs.ingest import (
    PASSAGES,
    collection_address,
    ingest,
    tokenise,
    tokens_address,
    training_part,
)
from raylab.jobs.monitor import Monitor
from raylab.jobs.search import Evaluation, build_index, index_address, run_all, search_and_evaluate
from raylab.jobs.teach import SHIPPED, Mining, Teaching, make_groups
from raylab.jobs.train import AdaptationJob, CellJob, adaptation_address, cell_address
from raylab.models.backbone import load_config, resolve_source, weights_fingerprint
from raylab.models.hub import load_tokenizer
from raylab.plan import plan_grid
from raylab.results import (
    LEDGER,
    LEDGER_SCHEMA,
    PER_QUERY,
    PER_QUERY_SCHEMA,
    RESULTS,
    RESULTS_SCHEMA,
    ledger_row,
    write_table,
)

log = logging.getLogger("raylab")
BM25 = "BM25"
_STAGES = (
    "collection",
    "tokens",
    "candidates",
    "scores",
    "groups",
    "backbone",
    "retriever",
    "embeddings",
    "index",
    "run",
    "measures",
)
_DAMAGE_ROUNDS = 3


@dataclass(frozen=True)
class Outcome:
    """What a grid ends with."""

    results: pd.DataFrame
    report: report.Report
    nothing_to_do: bool
    untrained_cells: tuple[str, ...]  # selected cells that the total budget left out


def run_grid(grid: Grid, execution: Execution, plain: bool | None = None) -> Outcome:
    """Run (or go on with) a grid.

    Raises:
        ConfigError, CollectionError: bad input, before anything is trained.
        TrainingError: a cell's loss is not finite.
    """
    source = open_collection(grid.collection)
    teacher = choose_teacher(grid, source)
    plan_grid(grid, source, execution)  # refuses budgets, sizes and batches that cannot run
    store = Store(execution.storage)
    with _sole_driver(store):
        for _ in range(_DAMAGE_ROUNDS):
            with contextlib.ExitStack() as stack:
                walk = _Walk(grid, execution, source, teacher, store, Monitor(plain), stack)
                try:
                    return walk.run()
                except DamagedArtifact as damage:
                    log.warning("%s; it will be made again", damage)
                    store.discard(damage.path)
        raise RuntimeError(
            f"{store.uri}: artifacts were damaged again and again; check the storage"
        )


def choose_teacher(grid: Grid, source: Source) -> str | None:
    """The teacher to use: none when no cell distils, the shipped scores where there are some.

    Raises:
        ConfigError: a cell distils and no teacher is at hand.
    """
    if all(cell.objective == "cl" for cell in grid.cells()) and not source.embedded:
        return grid.teacher
    if grid.teacher is not None:
        return grid.teacher
    if source.embedded:
        return SHIPPED
    raise ConfigError(
        f"cells with KD need teacher scores, and collection {source.name!r} ships none: "
        "give --teacher (a model folder, a hub id or a Parquet file of scores), or --cells '*-cl'"
    )


@contextlib.contextmanager
def _sole_driver(store: Store) -> Iterator[None]:
    """One driver a local storage; it also removes what killed writers left."""
    if not store.is_local:
        yield
        return
    fresh = not os.path.exists(store.root)
    os.makedirs(store.root, exist_ok=True)
    path = Path(store.root, "driver.lock")
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"--storage {store.uri}: another raylab driver is at work there"
            ) from None
        removed = store.sweep(_STAGES)
        if removed:
            log.warning("removed %d unfinished artifact(s) that a killed process left", removed)
        try:
            yield
        except (ConfigError, CollectionError):
            path.unlink()
            _remove_empty(Path(store.root), keep=not fresh)
            raise


def _remove_empty(folder: Path, keep: bool) -> None:
    """Remove the empty folders below `folder`, and itself when nothing is left and `keep` is false."""
    for child in folder.iterdir():
        if child.is_dir():
            _remove_empty(child, keep=False)
    if not keep:
        with contextlib.suppress(OSError):
            folder.rmdir()


class _Walk:
    """One walk along the chain."""

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

    def run(self) -> Outcome:
        monitor = self.monitor
        monitor.cells_total = len(self.cells)
        monitor.budget_flops = sum(cell.budget_flops for cell in self.cells)
        collection, tokens = self._ingest()
        groups = self._teach(collection)
        adapted = self._adapt(tokens)
        trained = self._fine_tune(collection, tokens, groups, adapted)
        subjects = self._subjects(trained)
        passages, queries = self._encode(subjects, collection, tokens)
        indexes = self._index(passages)
        evaluations = self._evaluate(subjects, collection, queries, indexes)
        used = [
            collection,
            *tokens.values(),
            groups,
            *adapted.values(),
            *trained.values(),
            *queries.values(),
        ]
        used += [a for own in (*passages.values(), *indexes.values()) for a in own]
        return self._report(subjects, trained, evaluations, used)

    # ------------------------------------------------------------------ data

    def _ingest(self) -> tuple[Artifact, dict[str, Artifact]]:
        collection = self.store.find(collection_address(self.source))
        if collection is None:
            self.ray()
            self.monitor.enter("ingest", 1)
            collection = ingest(self.store, self.source)
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
                found = tokenise(self.store, collection, backbone, self.execution.models_dir)
                self.monitor.advance()
            tokens[backbone.name] = found
        return collection, tokens

    def _teach(self, collection: Artifact) -> Artifact:
        teaching = Teaching(
            self.store,
            collection,
            Mining(pseudo_queries=any(c.fine_tuning.pseudo_fraction > 0 for c in self.cells)),
            self.teacher,
            self.execution.models_dir,
            self.execution.encoding_actors,
            EMBEDDED.get(self.grid.collection),
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
            adapted = {name: self.store.find(address) for name, address in addresses.items()}
        return {
            name: _present(artifact, addresses[name].path) for name, artifact in adapted.items()
        }

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
        monitor.cells_done = len(self.cells) - len(missing)
        monitor.spent_flops = sum(a.meta["spent_flops"] for a in trained.values() if a is not None)
        chosen = self._within_total(missing, monitor.spent_flops)
        if chosen:
            self.ray()
            monitor.enter("fine-tune", len(self.cells), monitor.cells_done)
            board = {cell: dataclasses.replace(jobs[cell], board=monitor.board) for cell in chosen}
            left = (
                None
                if self.grid.total_budget_flops is None
                else self.grid.total_budget_flops - monitor.spent_flops
            )
            by_name = {cell.run_name: cell for cell in chosen}

            def finished(name: str) -> None:
                artifact = self.store.find(jobs[by_name[name]].address)
                if artifact is not None:
                    monitor.cells_done += 1
                    monitor.spent_flops += artifact.meta["spent_flops"]
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

    # ------------------------------------------------------------ evaluation

    def _subjects(self, trained: dict[Cell, Artifact]) -> list[tuple[Subject, Cell | None]]:
        subjects: list[tuple[Subject, Cell | None]] = []
        for backbone, head in dict.fromkeys((c.backbone, c.head) for c in self.cells):
            name = f"untrained-{head}-{backbone.name}"
            subjects.append((Subject(name, head, backbone, self.weights[backbone], None), None))
        for cell, artifact in trained.items():
            subject = Subject(
                cell.run_name, cell.head, cell.backbone, artifact.fingerprint, artifact
            )
            subjects.append((subject, cell))
        return subjects

    def _splits(self, collection: Artifact) -> list[str]:
        return [split for split in collection.meta["splits"] if split != TRAIN]

    def _encode(
        self,
        subjects: list[tuple[Subject, Cell | None]],
        collection: Artifact,
        tokens: dict[str, Artifact],
    ) -> tuple[dict[str, list[Artifact]], dict[tuple[str, str], Artifact]]:
        encoding = self.grid.ladder.recipe.encoding
        passages: dict[str, list[EncodeTask]] = {}
        queries: dict[tuple[str, str], EncodeTask] = {}
        for subject, _ in subjects:
            own = tokens[subject.backbone.name]
            rows = shards(own.meta[PASSAGES], self.execution.shard_passages)
            passages[subject.name] = [passage_task(subject, encoding, own, r) for r in rows]
            for split in self._splits(collection):
                queries[subject.name, split] = query_task(subject, encoding, collection, split)
        tasks = [t for own in passages.values() for t in own] + list(queries.values())
        found = {t.address.path: self.store.find(t.address) for t in tasks}
        missing = [t for t in tasks if found[t.address.path] is None]
        if missing:
            self.ray()
            self.monitor.enter("encode", len(tasks), len(tasks) - len(missing))

            def finished(task: EncodeTask, warning: str | None) -> None:
                self.monitor.advance()
                if warning:
                    self.monitor.say(f"WARNING {task.subject.name}: {warning}")

            encode_all(self.store, self.execution, missing, finished)
            found |= {t.address.path: self.store.find(t.address) for t in missing}

        def artifact(task: EncodeTask) -> Artifact:
            return _present(found[task.address.path], task.address.path)

        return (
            {name: [artifact(t) for t in own] for name, own in passages.items()},
            {key: artifact(t) for key, t in queries.items()},
        )

    def _index(self, passages: dict[str, list[Artifact]]) -> dict[str, list[Artifact]]:
        addresses = {name: [index_address(a) for a in own] for name, own in passages.items()}
        found = {a.path: self.store.find(a) for own in addresses.values() for a in own}
        missing = [
            a for own in passages.values() for a in own if found[index_address(a).path] is None
        ]
        if missing:
            self.ray()
            self.monitor.enter("index", len(found), len(found) - len(missing))
            calls = [(build_index, (self.store, shard)) for shard in missing]
            run_all(calls, self._tasks_at_once(), self.monitor.advance)
            found = {
                path: self.store.find(a)
                for own in addresses.values()
                for a in own
                for path in (a.path,)
            }
        return {
            name: [_present(found[a.path], a.path) for a in own] for name, own in addresses.items()
        }

    def _evaluate(
        self,
        subjects: list[tuple[Subject, Cell | None]],
        collection: Artifact,
        queries: dict[tuple[str, str], Artifact],
        indexes: dict[str, list[Artifact]],
    ) -> dict[tuple[str, str], tuple[Artifact, Artifact]]:
        """(run, measures) by (system, split)."""
        evaluations = {
            (subject.name, split): Evaluation(
                subject.name,
                collection,
                split,
                queries[subject.name, split],
                tuple(indexes[subject.name]),
            )
            for subject, _ in subjects
            for split in self._splits(collection)
        }
        evaluations |= {
            (BM25, split): Evaluation(BM25, collection, split, None, ())
            for split in self._splits(collection)
        }
        missing = [e for e in evaluations.values() if self._measured(e) is None]
        if missing:
            self.ray()
            self.monitor.enter("evaluate", len(evaluations), len(evaluations) - len(missing))
            calls = [(search_and_evaluate, (self.store, e)) for e in missing]
            run_all(calls, self._tasks_at_once(), self.monitor.advance)
        found = {}
        for key, evaluation in evaluations.items():
            pair = self._measured(evaluation)
            if pair is None:
                raise DamagedArtifact(evaluation.run_address.path, "it vanished after it was made")
            found[key] = pair
        return found

    def _measured(self, evaluation: Evaluation) -> tuple[Artifact, Artifact] | None:
        run = self.store.find(evaluation.run_address)
        measures = self.store.find(evaluation.measures_address(run)) if run is not None else None
        return (run, measures) if run is not None and measures is not None else None

    def _tasks_at_once(self) -> int:
        return 4 * self.execution.encoding_actors

    # ---------------------------------------------------------------- results

    def _report(
        self,
        subjects: list[tuple[Subject, Cell | None]],
        trained: dict[Cell, Artifact],
        evaluations: dict[tuple[str, str], tuple[Artifact, Artifact]],
        used: list[Artifact],
    ) -> Outcome:
        by_name = {subject.name: (subject, cell) for subject, cell in subjects}
        rows: list[dict[str, Any]] = []
        per_query: list[dict[str, Any]] = []
        for (system, split), (run, measures) in evaluations.items():
            subject, cell = by_name.get(system, (None, None))
            facts = self._facts(subject, cell, trained, run)
            where = {"collection": self.source.name, "split": split}
            table = pq.read_table(self.store.local(measures) / "measures.parquet").to_pandas()
            for measure, own in table.groupby("measure", sort=False):
                value, low, high = mean_interval(own["value"].to_numpy())
                rows.append(
                    facts
                    | where
                    | {
                        "measure": measure,
                        "value": value,
                        "ci_low": low,
                        "ci_high": high,
                        "queries": len(own),
                    }
                )
            for record in table.to_dict("records"):
                per_query.append(
                    {
                        "fingerprint": run.fingerprint,
                        "system": facts["system"],
                        "seed": facts["seed"],
                        **where,
                        **record,
                    }
                )
        used = used + [a for pair in evaluations.values() for a in pair]
        unique = {artifact.path: artifact for artifact in used}
        results = write_table(self.store, RESULTS, rows, RESULTS_SCHEMA)
        write_table(self.store, PER_QUERY, per_query, PER_QUERY_SCHEMA)
        ledger = write_table(self.store, LEDGER, map(ledger_row, unique.values()), LEDGER_SCHEMA)
        pages = report.write(self.store, results, ledger)
        left_out = tuple(cell.run_name for cell in self.cells if cell not in trained)
        return Outcome(results, pages, not self.worked, left_out)

    def _facts(
        self,
        subject: Subject | None,
        cell: Cell | None,
        trained: dict[Cell, Artifact],
        run: Artifact,
    ) -> dict[str, Any]:
        facts: dict[str, Any] = dict.fromkeys(RESULTS_SCHEMA.names)
        if subject is None:
            return facts | {"kind": "baseline", "system": BM25, "fingerprint": run.fingerprint}
        facts |= {
            "size": subject.backbone.name,
            "head": subject.head,
            "parameters": self._parameters(subject.backbone),
        }
        if cell is None:
            return facts | {
                "kind": "untrained",
                "system": subject.name,
                "fingerprint": run.fingerprint,
            }
        meta = trained[cell].meta
        return facts | {
            "kind": "trained",
            "system": cell.name,
            "objective": cell.objective,
            "seed": cell.seed,
            "budget_flops": cell.budget_flops,
            "spent_flops": meta["spent_flops"],
            "steps": meta["steps"],
            "seconds": meta["train_seconds"],
            "fingerprint": trained[cell].fingerprint,
        }

    def _parameters(self, backbone: Backbone) -> int:
        return Shape.of(
            load_config(backbone, resolve_source(backbone, self.execution.models_dir))
        ).parameters


def _present(artifact: Artifact | None, path: str) -> Artifact:
    if artifact is None:
        raise DamagedArtifact(path, "it is not there after its stage ended")
    return artifact
