"""The measuring half of a grid: encode, index, search, evaluate and profile every system.

What has a run, measures and a profile, and stands in the ledger, is not looked at again: neither its
representations nor their indexes, of which there are many.

With `Execution.no_index`, passages are scored as they are encoded and neither embeddings nor indexes of
them are stored (`raylab.stages.scan`); runs, measures and profiles are the same, at the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from raylab.experiment.config import Execution
from raylab.experiment.grid import Cell
from raylab.index.embeddings import shards
from raylab.jobs.encode import encode_all
from raylab.jobs.pool import encoders
from raylab.jobs.progress import Monitor
from raylab.jobs.scan import scan_all
from raylab.jobs.tasks import build_index, evaluate_all, profile_system, run_all, scanned_profile
from raylab.pipeline.measured import BM25, MeasuredCollection
from raylab.pipeline.stages import GridStages
from raylab.stages.encode import EncodeTask, System, all_made_parts
from raylab.stages.profile import Profile
from raylab.stages.scan import Scan
from raylab.stages.search import Evaluation, IndexTask
from raylab.stages.stage import find_or_make, missing
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, read_table


def missing_tasks(
    store: Store, execution: Execution, stages: GridStages, system: System
) -> list[EncodeTask]:
    """What is to be encoded of a system and not yet there: collection by collection, passages first."""
    tasks: list[EncodeTask] = []
    embeddings = [measured.embeddings(system) for measured in stages.measured]
    made = [[]] * len(embeddings) if execution.no_index else all_made_parts(store, embeddings)
    for measured, one, parts in zip(stages.measured, embeddings, made, strict=True):
        if parts is None:
            tasks += one.parts(execution.shard_passages)
        tasks += measured.queries(system).values()
    return missing(store, tasks)


Pair = tuple[str, str]
"""Names of a collection and of a system."""


def _in_ledger(store: Store) -> set[str]:
    """Fingerprints of the artifacts whose making the storage's ledger tells of."""
    try:
        return set(read_table(store, LEDGER)["fingerprint"])
    except FileNotFoundError:
        return set()


@dataclass
class Evaluated:
    """What was measured: (run, measures) by collection, system and split; profiles; and what stands behind."""

    evaluations: dict[tuple[str, str, str], tuple[Artifact, Artifact]]
    profiles: dict[Pair, Artifact]
    used: list[Artifact] = field(default_factory=list)


class SystemsEvaluation:
    """Measures systems of a grid on all its collections.

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
        self.stages, self.execution = stages, execution
        self.store, self.monitor, self.connect = store, monitor, connect
        # A system's collections stand together, so that its model is loaded once.
        self.pairs: dict[Pair, tuple[MeasuredCollection, System, Cell | None]] = {
            (measured.name, system.name): (measured, system, cell)
            for system, cell in systems
            for measured in stages.measured
        }
        self.embeddings = {
            pair: measured.embeddings(system) for pair, (measured, system, _) in self.pairs.items()
        }
        self.wanted = {pair: self._wanted(pair) for pair in self.pairs}
        told = _in_ledger(store)
        measured = self._measured(self.pairs)
        self.open = [
            pair
            for pair, embeddings in self.embeddings.items()
            if embeddings.address.fingerprint not in told or pair not in measured
        ]

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
        wholes = self.store.find_all(self.embeddings[pair].address for pair in self.open)
        stored += [artifact for artifact in wholes if artifact is not None]
        return Evaluated(evaluations, profiles, [*queries, *hits.values(), *stored])

    # ----------------------------------------------------------------- representations

    def _encode(self) -> tuple[list[Artifact], dict[Pair, tuple[Artifact, ...]]]:
        """Query representations, and the parts of the passages' by pair (none with `no_index`)."""
        asked = [
            task
            for measured, system, _ in map(self.pairs.__getitem__, self.open)
            for task in measured.queries(system).values()
        ]
        parts: dict[Pair, list[Artifact]] = {}
        tasks: dict[Pair, list[EncodeTask]] = {}
        if not self.execution.no_index:
            embeddings = [self.embeddings[pair] for pair in self.open]
            made = all_made_parts(self.store, embeddings)
            for pair, one, known_parts in zip(self.open, embeddings, made, strict=True):
                if known_parts is None:
                    tasks[pair] = one.parts(self.execution.shard_passages)
                else:
                    parts[pair] = known_parts
        every = [*(task for members in tasks.values() for task in members), *asked]
        artifacts = find_or_make(self.store, every, lambda missing: self._encoders(every, missing))
        for pair, members in tasks.items():
            self.embeddings[pair].commit(self.store, members)
            parts[pair] = self.store.all_committed(task.address for task in members)
        queries = artifacts[len(every) - len(asked) :]
        return queries, {pair: tuple(members) for pair, members in parts.items()}

    def _encoders(self, every: list[EncodeTask], missing: list[EncodeTask]) -> None:
        self._enter("encode", len(every), len(missing))

        def finished(task: EncodeTask, warning: str | None) -> None:
            self.monitor.advance()
            if warning:
                self.monitor.say(f"WARNING {task.system.name}: {warning}")

        encode_all(self.store, self.execution, missing, finished)

    def _index(
        self, parts: Mapping[Pair, tuple[Artifact, ...]]
    ) -> dict[Pair, tuple[Artifact, ...]]:
        """An index for every part, by pair."""
        tasks = {pair: [IndexTask(part) for part in members] for pair, members in parts.items()}
        every = [task for members in tasks.values() for task in members]

        def make(missing: list[IndexTask]) -> None:
            self._enter("index", len(every), len(missing))
            calls = [(build_index, (self.store, task.part)) for task in missing]
            run_all(calls, self._tasks_at_once(), self.monitor.advance)

        indexes = iter(find_or_make(self.store, every, make))
        return {pair: tuple(next(indexes) for _ in members) for pair, members in tasks.items()}

    # -------------------------------------------------------------------------- one pass

    @cached_property
    def _scans(self) -> dict[Pair, Scan]:
        scans = {}
        for pair in self.open:
            (measured, system, _), embeddings = self.pairs[pair], self.embeddings[pair]
            rows = tuple(shards(embeddings.count, self.execution.shard_passages))
            queries = {s: task.address for s, task in measured.queries(system).items()}
            profile = self._profile_of(pair)
            scans[pair] = Scan(embeddings, measured.collection, rows, queries, profile)
        return scans

    def _profile_of(self, pair: Pair) -> Profile:
        measured, system, cell = self.pairs[pair]
        return measured.profile(system, self.stages.temperature(system, cell))

    def _scan(self) -> dict[Pair, Artifact]:
        """Hits by pair, of all that have no run or no profile yet, or whose hits are there."""
        scans = self._scans
        found = self.store.find_all(scan.address for scan in scans.values())
        artifacts = dict(zip(scans, found, strict=True))
        absent = [pair for pair in self.open if artifacts[pair] is None]
        measured = self._measured(absent)
        absent = [pair for pair in absent if pair not in measured]
        if absent:
            self._enter("scan", len(scans), len(absent))

            def finished(hits: Artifact) -> None:
                size, name = hits.meta["unstored_bytes"], hits.manifest["name"]
                self.monitor.advance(f"{name}: {size:,} bytes of embeddings not stored")

            scan_all(self.store, self.execution, [scans[pair] for pair in absent], finished)
            made = self.store.all_committed(scans[pair].address for pair in absent)
            artifacts |= dict(zip(absent, made, strict=True))
        return {pair: hits for pair, hits in artifacts.items() if hits is not None}

    def _wanted(self, pair: Pair) -> list[Address]:
        """Profile, runs and measures."""
        measured, system, _ = self.pairs[pair]
        wanted = [self._profile_of(pair).address]
        for evaluation in measured.evaluations(system).values():
            wanted += [evaluation.run_address, evaluation.address]
        return wanted

    def _measured(self, pairs: Iterable[Pair]) -> set[Pair]:
        """Those of which nothing wanted is missing."""
        wanted = [(pair, address) for pair in pairs for address in self.wanted[pair]]
        found = self.store.find_all(address for _, address in wanted)
        absent = {pair for (pair, _), one in zip(wanted, found, strict=True) if one is None}
        return {pair for pair, _ in wanted} - absent

    # ------------------------------------------------------------------------- measures

    def _evaluate(
        self, indexes: Mapping[Pair, tuple[Artifact, ...]], hits: Mapping[Pair, Artifact]
    ) -> dict[tuple[str, str, str], tuple[Artifact, Artifact]]:
        """(run, measures) by (collection, system, split)."""
        evaluations = {
            (*pair, split): replace(evaluation, indexes=indexes.get(pair, ()), hits=hits.get(pair))
            for pair, (measured, system, _) in self.pairs.items()
            for split, evaluation in measured.evaluations(system).items()
        }
        for measured in self.stages.measured:
            for split, evaluation in measured.bm25_evaluations().items():
                evaluations[measured.name, BM25, split] = evaluation

        def make(missing: list[Evaluation]) -> None:
            self._enter("evaluate", len(evaluations), len(missing))
            at_once, gpu = self._tasks_at_once(), self.execution.use_gpu
            evaluate_all(self.store, missing, at_once, gpu, self.monitor.advance)

        measures = find_or_make(self.store, list(evaluations.values()), make)
        runs = self.store.all_committed(one.run_address for one in evaluations.values())
        return dict(zip(evaluations, zip(runs, measures, strict=True), strict=True))

    def _profile(
        self, parts: Mapping[Pair, tuple[Artifact, ...]], hits: Mapping[Pair, Artifact]
    ) -> dict[Pair, Artifact]:
        """By pair."""
        profiles = {
            pair: replace(self._profile_of(pair), parts=parts.get(pair, ())) for pair in self.pairs
        }
        pair_of = {profile.address.path: pair for pair, profile in profiles.items()}

        def call(profile: Profile) -> tuple[Any, tuple[Any, ...]]:
            pair = pair_of[profile.address.path]
            if pair in hits:
                return scanned_profile, (self.store, self._scans[pair], hits[pair])
            return profile_system, (self.store, profile)

        def make(missing: list[Profile]) -> None:
            self._enter("profile", len(profiles), len(missing))
            run_all(list(map(call, missing)), self._tasks_at_once(), self.monitor.advance)

        artifacts = find_or_make(self.store, list(profiles.values()), make)
        return dict(zip(profiles, artifacts, strict=True))

    # --------------------------------------------------------------------------- running

    def _enter(self, name: str, total: int, missing: int) -> None:
        self.connect()
        self.monitor.enter(name, total, total - missing)

    def _tasks_at_once(self) -> int:
        return 4 * encoders(self.execution)
