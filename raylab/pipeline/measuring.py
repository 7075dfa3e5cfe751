"""The measuring half of a walk: encode, index, search, evaluate and profile every subject of a grid.

With `Execution.no_index`, passages are scored as they are encoded and neither embeddings nor indexes of
them are stored (`raylab.stages.scan`); runs, measures and profiles are the same, at the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from raylab.data.collections import TRAIN
from raylab.data.ingest import PASSAGES
from raylab.experiment.config import Execution
from raylab.experiment.grid import Cell, Recipe
from raylab.experiment.objectives import CL
from raylab.index.embeddings import shards
from raylab.jobs.encode import encode_all
from raylab.jobs.pool import encoders
from raylab.jobs.progress import Monitor
from raylab.jobs.scan import scan_all
from raylab.jobs.tasks import build_index, evaluate_all, profile_subject, run_all, scanned_profile
from raylab.pipeline.collect import BM25
from raylab.stages.encode import EncodeTask, Subject, passage_task, query_task
from raylab.stages.profile import Profile
from raylab.stages.scan import Scan, shard_addresses
from raylab.stages.search import Evaluation, index_address
from raylab.storage.artifacts import Address, Artifact, DamagedArtifact
from raylab.storage.store import Store

Shards = Mapping[str, tuple[Artifact | Address, ...]]
"""By subject, in row order."""


@dataclass
class Measured:
    """What was measured: by (system, split), and by system; and every artifact that stands behind it."""

    evaluations: dict[tuple[str, str], tuple[Artifact, Artifact]]  # (run, measures)
    profiles: dict[str, Artifact]
    used: list[Artifact] = field(default_factory=list)


class Measuring:
    """Measures the subjects of a grid.

    Args:
        ray: connects; called at the first stage that has something to do.
        tokens: by size.
    """

    def __init__(
        self,
        recipe: Recipe,
        execution: Execution,
        store: Store,
        monitor: Monitor,
        ray: Callable[[], None],
        collection: Artifact,
        tokens: Mapping[str, Artifact],
        subjects: list[tuple[Subject, Cell | None]],
    ):
        self.recipe, self.execution, self.store = recipe, execution, store
        self.monitor, self.ray = monitor, ray
        self.collection, self.tokens, self.subjects = collection, tokens, subjects
        self.splits = [split for split in collection.meta["splits"] if split != TRAIN]
        self.rows = {
            size: tuple(shards(own.meta[PASSAGES], execution.shard_passages))
            for size, own in tokens.items()
        }

    def run(self) -> Measured:
        """Every stage in turn.

        Raises:
            DamagedArtifact, ValueError: from the stages.
        """
        hits: dict[str, Artifact] = {}
        scans: dict[str, Scan] = {}
        passages: Shards
        indexes: Shards
        queries, made = self._encode()
        if self.execution.no_index:
            passages = {subject.name: self._addresses(subject) for subject, _ in self.subjects}
            indexes = {name: tuple(map(index_address, own)) for name, own in passages.items()}
        else:
            passages, indexes = made, self._index(made)
        profiles = self._profiles(passages, queries)
        evaluations = self._evaluations(queries, indexes)
        if self.execution.no_index:
            scans = self._scans(queries, profiles)
            hits = self._scanned(scans, evaluations, profiles)
        measured = Measured(self._evaluate(evaluations, hits), self._profile(profiles, scans, hits))
        measured.used = [*queries.values(), *hits.values()]
        stored = [a for own in (*passages.values(), *indexes.values()) for a in own]
        measured.used += [a for a in stored if isinstance(a, Artifact)]
        return measured

    # ----------------------------------------------------------------- representations

    def _addresses(self, subject: Subject) -> tuple[Address, ...]:
        size = subject.backbone.name
        return shard_addresses(subject, self.recipe.encoding, self.tokens[size], self.rows[size])

    def tasks(self, subject: Subject) -> list[EncodeTask]:
        """What is to be encoded of a subject and not yet there, passages first."""
        passages = [] if self.execution.no_index else self._passage_tasks(subject)
        tasks = [*passages, *self._query_tasks(subject)]
        return [task for task in tasks if self.store.find(task.address) is None]

    def _query_tasks(self, subject: Subject) -> list[EncodeTask]:
        encoding = self.recipe.encoding
        return [query_task(subject, encoding, self.collection, split) for split in self.splits]

    def _passage_tasks(self, subject: Subject) -> list[EncodeTask]:
        size, encoding = subject.backbone.name, self.recipe.encoding
        return [passage_task(subject, encoding, self.tokens[size], r) for r in self.rows[size]]

    def _encode(
        self,
    ) -> tuple[dict[tuple[str, str], Artifact], dict[str, tuple[Artifact, ...]]]:
        """Queries by subject and split; passages by subject, unless they are scored as they are encoded."""
        queries = {
            (subject.name, task.part): task
            for subject, _ in self.subjects
            for task in self._query_tasks(subject)
        }
        passages = {subject.name: self._passage_tasks(subject) for subject, _ in self.subjects}
        if self.execution.no_index:
            passages = {}
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

        def artifact(task: EncodeTask) -> Artifact:
            return found[task.address.path] or self.store.committed(task.address)

        return (
            {key: artifact(t) for key, t in queries.items()},
            {name: tuple(map(artifact, own)) for name, own in passages.items()},
        )

    def _index(self, passages: dict[str, tuple[Artifact, ...]]) -> dict[str, tuple[Artifact, ...]]:
        addresses = {shard.path: index_address(shard) for own in passages.values() for shard in own}
        found = {path: self.store.find(address) for path, address in addresses.items()}
        missing = [a for own in passages.values() for a in own if found[a.path] is None]
        if missing:
            self.ray()
            self.monitor.enter("index", len(found), len(found) - len(missing))
            calls = [(build_index, (self.store, shard)) for shard in missing]
            run_all(calls, self._tasks_at_once(), self.monitor.advance)
        indexes = {p: found[p] or self.store.committed(a) for p, a in addresses.items()}
        return {name: tuple(indexes[s.path] for s in own) for name, own in passages.items()}

    # -------------------------------------------------------------------------- one pass

    def _scans(
        self, queries: Mapping[tuple[str, str], Artifact], profiles: Mapping[str, Profile]
    ) -> dict[str, Scan]:
        scans = {}
        for subject, _ in self.subjects:
            size = subject.backbone.name
            scans[subject.name] = Scan(
                subject,
                self.recipe.encoding,
                self.collection,
                self.tokens[size],
                self.rows[size],
                {split: queries[subject.name, split] for split in self.splits},
                profiles[subject.name],
            )
        return scans

    def _scanned(
        self,
        scans: dict[str, Scan],
        evaluations: Mapping[tuple[str, str], Evaluation],
        profiles: Mapping[str, Profile],
    ) -> dict[str, Artifact]:
        """Hits by subject, of all that have no run or no profile yet, or whose hits are there."""
        found = {name: self.store.find(scan.address) for name, scan in scans.items()}
        wanted = {
            name
            for name in scans
            if self.store.find(profiles[name].address) is None
            or any(self._measured(evaluations[name, split]) is None for split in self.splits)
        }
        missing = [scans[name] for name in scans if name in wanted and found[name] is None]
        if missing:
            self.ray()
            self.monitor.enter("scan", len(scans), len(scans) - len(missing))

            def finished(hits: Artifact) -> None:
                size = hits.meta["unstored_bytes"]
                name = hits.manifest["name"]
                self.monitor.advance(f"{name}: {size:,} bytes of embeddings not stored")

            scan_all(self.store, self.execution, missing, finished)
            made = {s.subject.name: self.store.committed(s.address) for s in missing}
            found |= made
        return {name: hits for name, hits in found.items() if hits is not None}

    # ------------------------------------------------------------------------- measures

    def _evaluations(
        self, queries: Mapping[tuple[str, str], Artifact], indexes: Shards
    ) -> dict[tuple[str, str], Evaluation]:
        pairs = [(subject.name, split) for subject, _ in self.subjects for split in self.splits]
        evaluations = {
            (name, split): Evaluation(
                name, self.collection, split, queries[name, split], indexes[name]
            )
            for name, split in pairs
        }
        return evaluations | {
            (BM25, split): Evaluation(BM25, self.collection, split, None, ())
            for split in self.splits
        }

    def _evaluate(
        self, evaluations: Mapping[tuple[str, str], Evaluation], hits: Mapping[str, Artifact]
    ) -> dict[tuple[str, str], tuple[Artifact, Artifact]]:
        """(run, measures) by (system, split)."""
        missing = [e for e in evaluations.values() if self._measured(e) is None]
        if missing:
            self.ray()
            self.monitor.enter("evaluate", len(evaluations), len(evaluations) - len(missing))
            missing = [replace(e, hits=hits.get(e.name)) for e in missing]
            gpu = self.execution.use_gpu
            at_once = self._tasks_at_once()
            evaluate_all(self.store, missing, at_once, gpu, self.monitor.advance)
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

    def _profiles(
        self, passages: Shards, queries: Mapping[tuple[str, str], Artifact]
    ) -> dict[str, Profile]:
        """Profiles by system; an untrained subject has the temperature of its head's contrast."""
        profiles = {}
        for subject, cell in self.subjects:
            tuning = (
                cell.fine_tuning if cell else self.recipe.tuning(subject.backbone, subject.head, CL)
            )
            own = {split: queries[subject.name, split] for split in self.splits}
            profiles[subject.name] = Profile(
                subject.name, self.collection, passages[subject.name], own, tuning.temperature
            )
        return profiles

    def _profile(
        self,
        profiles: Mapping[str, Profile],
        scans: Mapping[str, Scan],
        hits: Mapping[str, Artifact],
    ) -> dict[str, Artifact]:
        found = {name: self.store.find(profile.address) for name, profile in profiles.items()}
        missing = [name for name in profiles if found[name] is None]
        if missing:
            self.ray()
            self.monitor.enter("profile", len(found), len(found) - len(missing))
            calls = [
                (scanned_profile, (self.store, scans[name], hits[name]))
                if name in hits
                else (profile_subject, (self.store, profiles[name]))
                for name in missing
            ]
            run_all(calls, self._tasks_at_once(), self.monitor.advance)
        return {
            name: found[name] or self.store.committed(profile.address)
            for name, profile in profiles.items()
        }

    def _tasks_at_once(self) -> int:
        return 4 * encoders(self.execution)
