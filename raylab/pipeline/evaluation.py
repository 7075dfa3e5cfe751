"""The measuring half of a grid: encode, index, search, evaluate and profile every system.

With `Execution.no_index`, passages are scored as they are encoded and neither embeddings nor indexes of
them are stored (`raylab.stages.scan`); runs, measures and profiles are the same, at the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from raylab.experiment.config import Execution
from raylab.experiment.grid import Cell
from raylab.index.embeddings import shards
from raylab.jobs.encode import encode_all
from raylab.jobs.pool import encoders
from raylab.jobs.progress import Monitor
from raylab.jobs.scan import scan_all
from raylab.jobs.tasks import build_index, evaluate_all, profile_system, run_all, scanned_profile
from raylab.pipeline.stages import BM25, GridStages
from raylab.stages.encode import EncodeTask, System
from raylab.stages.profile import Profile
from raylab.stages.scan import Scan
from raylab.stages.search import Evaluation, IndexTask
from raylab.stages.stage import find_or_make
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store


def missing_tasks(
    store: Store, execution: Execution, stages: GridStages, system: System
) -> list[EncodeTask]:
    """What is to be encoded of a system and not yet there, passages first."""
    embeddings = stages.embeddings(system)
    tasks = [] if execution.no_index else embeddings.parts(execution.shard_passages)
    if not execution.no_index and embeddings.made_parts(store) is not None:
        tasks = []
    tasks += stages.queries(system).values()
    return [task for task in tasks if store.find(task.address) is None]


@dataclass
class Evaluated:
    """What was measured: (run, measures) by system and split, profiles by system, and what stands behind."""

    evaluations: dict[tuple[str, str], tuple[Artifact, Artifact]]
    profiles: dict[str, Artifact]
    used: list[Artifact] = field(default_factory=list)


class SystemsEvaluation:
    """Measures systems of a grid.

    Args:
        systems: with the cells that made them, None for untrained ones.
        connect: connects to Ray; called at the first stage that has something to do.
    """

    def __init__(
        self,
        stages: GridStages,
        systems: Sequence[tuple[System, Cell | None]],
        execution: Execution,
        store: Store,
        monitor: Monitor,
        connect: Callable[[], None],
    ):
        self.stages, self.systems, self.execution = stages, systems, execution
        self.store, self.monitor, self.connect = store, monitor, connect
        self.embeddings = {system.name: stages.embeddings(system) for system, _ in systems}

    def run(self) -> Evaluated:
        """Every stage in turn.

        Raises:
            DamagedArtifact, ValueError: from the stages.
        """
        queries, parts = self._encode()
        indexes = self._index(parts)
        hits = self._scan() if self.execution.no_index else {}
        evaluations = self._evaluate(indexes, hits)
        profiles = self._profile(parts, hits)
        stored = [a for artifacts in (*parts.values(), *indexes.values()) for a in artifacts]
        wholes = (self.store.find(embeddings.address) for embeddings in self.embeddings.values())
        stored += [artifact for artifact in wholes if artifact is not None]
        return Evaluated(evaluations, profiles, [*queries, *hits.values(), *stored])

    # ----------------------------------------------------------------- representations

    def _encode(self) -> tuple[list[Artifact], dict[str, tuple[Artifact, ...]]]:
        """Query representations, and the parts of the passages' by system (none with `no_index`)."""
        asked = [
            task for system, _ in self.systems for task in self.stages.queries(system).values()
        ]
        parts: dict[str, list[Artifact]] = {}
        tasks: dict[str, list[EncodeTask]] = {}
        if not self.execution.no_index:
            for name, embeddings in self.embeddings.items():
                known_parts = embeddings.made_parts(self.store)
                if known_parts is None:
                    tasks[name] = embeddings.parts(self.execution.shard_passages)
                else:
                    parts[name] = known_parts
        every = [*(task for members in tasks.values() for task in members), *asked]
        artifacts = find_or_make(self.store, every, lambda missing: self._encoders(every, missing))
        for name, members in tasks.items():
            self.embeddings[name].commit(self.store, members)
            parts[name] = [self.store.committed(task.address) for task in members]
        queries = artifacts[len(every) - len(asked) :]
        return queries, {name: tuple(members) for name, members in parts.items()}

    def _encoders(self, every: list[EncodeTask], missing: list[EncodeTask]) -> None:
        self._enter("encode", len(every), len(missing))

        def finished(task: EncodeTask, warning: str | None) -> None:
            self.monitor.advance()
            if warning:
                self.monitor.say(f"WARNING {task.system.name}: {warning}")

        encode_all(self.store, self.execution, missing, finished)

    def _index(self, parts: Mapping[str, tuple[Artifact, ...]]) -> dict[str, tuple[Artifact, ...]]:
        """An index for every part, by system."""
        tasks = {name: [IndexTask(part) for part in members] for name, members in parts.items()}
        every = [task for members in tasks.values() for task in members]

        def make(missing: list[IndexTask]) -> None:
            self._enter("index", len(every), len(missing))
            calls = [(build_index, (self.store, task.part)) for task in missing]
            run_all(calls, self._tasks_at_once(), self.monitor.advance)

        indexes = iter(find_or_make(self.store, every, make))
        return {name: tuple(next(indexes) for _ in members) for name, members in tasks.items()}

    # -------------------------------------------------------------------------- one pass

    @cached_property
    def _scans(self) -> dict[str, Scan]:
        scans = {}
        for system, cell in self.systems:
            embeddings = self.embeddings[system.name]
            rows = tuple(shards(embeddings.count, self.execution.shard_passages))
            queries = {s: task.address for s, task in self.stages.queries(system).items()}
            profile = self.stages.profile(system, cell)
            scans[system.name] = Scan(embeddings, self.stages.collection, rows, queries, profile)
        return scans

    def _scan(self) -> dict[str, Artifact]:
        """Hits by system, of all that have no run or no profile yet, or whose hits are there."""
        scans = self._scans
        artifacts = {name: self.store.find(scan.address) for name, scan in scans.items()}
        missing = [
            scans[system.name]
            for system, cell in self.systems
            if artifacts[system.name] is None and not self._is_measured(system, cell)
        ]
        if missing:
            self._enter("scan", len(scans), len(missing))

            def finished(hits: Artifact) -> None:
                size, name = hits.meta["unstored_bytes"], hits.manifest["name"]
                self.monitor.advance(f"{name}: {size:,} bytes of embeddings not stored")

            scan_all(self.store, self.execution, missing, finished)
            for scan in missing:
                artifacts[scan.system.name] = self.store.committed(scan.address)
        return {name: hits for name, hits in artifacts.items() if hits is not None}

    def _is_measured(self, system: System, cell: Cell | None) -> bool:
        wanted = [self.stages.profile(system, cell).address]
        for evaluation in self.stages.evaluations(system).values():
            wanted += [evaluation.run_address, evaluation.address]
        return all(self.store.find(address) is not None for address in wanted)

    # ------------------------------------------------------------------------- measures

    def _evaluate(
        self, indexes: Mapping[str, tuple[Artifact, ...]], hits: Mapping[str, Artifact]
    ) -> dict[tuple[str, str], tuple[Artifact, Artifact]]:
        """(run, measures) by (system, split)."""
        evaluations = {
            (system.name, split): replace(
                evaluation, indexes=indexes.get(system.name, ()), hits=hits.get(system.name)
            )
            for system, _ in self.systems
            for split, evaluation in self.stages.evaluations(system).items()
        }
        for split, evaluation in self.stages.bm25_evaluations().items():
            evaluations[BM25, split] = evaluation

        def make(missing: list[Evaluation]) -> None:
            self._enter("evaluate", len(evaluations), len(missing))
            at_once, gpu = self._tasks_at_once(), self.execution.use_gpu
            evaluate_all(self.store, missing, at_once, gpu, self.monitor.advance)

        measures = find_or_make(self.store, list(evaluations.values()), make)
        return {
            key: (self.store.committed(evaluation.run_address), artifact)
            for (key, evaluation), artifact in zip(evaluations.items(), measures, strict=True)
        }

    def _profile(
        self, parts: Mapping[str, tuple[Artifact, ...]], hits: Mapping[str, Artifact]
    ) -> dict[str, Artifact]:
        """By system."""
        profiles = {
            system.name: replace(
                self.stages.profile(system, cell), parts=parts.get(system.name, ())
            )
            for system, cell in self.systems
        }

        def make(missing: list[Profile]) -> None:
            self._enter("profile", len(profiles), len(missing))
            calls = [
                (scanned_profile, (self.store, self._scans[profile.name], hits[profile.name]))
                if profile.name in hits
                else (profile_system, (self.store, profile))
                for profile in missing
            ]
            run_all(calls, self._tasks_at_once(), self.monitor.advance)

        artifacts = find_or_make(self.store, list(profiles.values()), make)
        return dict(zip(profiles, artifacts, strict=True))

    # --------------------------------------------------------------------------- running

    def _enter(self, name: str, total: int, missing: int) -> None:
        self.connect()
        self.monitor.enter(name, total, total - missing)

    def _tasks_at_once(self) -> int:
        return 4 * encoders(self.execution)
