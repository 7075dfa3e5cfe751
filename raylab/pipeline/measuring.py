"""Which task comes next: a system on a collection is encoded, indexed, searched and measured as its parts are ready.

    represent     passages in parts, queries by split
    index         an index a part; with `Execution.no_index` passages are scored as they are encoded instead
    search        where there are many parts, in pieces
    measure       run and measures of every split, and the profile

A pair of a collection and a system goes through these by itself, whatever the others do. BM25 has an index and no
representations.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell
from raylab.index.embeddings import shards
from raylab.pipeline.measured import BM25, MeasuredCollection
from raylab.pipeline.stages import GridStages
from raylab.stages.encode import Embeddings, EncodeTask, System, all_made_parts
from raylab.stages.profile import Profile
from raylab.stages.scan import Scan, join
from raylab.stages.search import BM25Task, Evaluation, IndexTask
from raylab.stages.stage import missing
from raylab.stages.work import ScannedProfile, Task
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

Pair = tuple[str, str]
"""Names of a collection and of a system."""


@dataclass
class PairWork:
    """A system on a collection: where its artifacts stand, and what it waits for.

    Args:
        name: of the collection and of the system.
        embeddings: of the passages; None for BM25.
        queries: their representations, by split.
        searches: runs and measures to make, by split.
        profiled: to be made as well, or None.
    """

    name: Pair
    collection: Artifact
    embeddings: Embeddings | None
    queries: Mapping[str, EncodeTask]
    searches: Mapping[str, Evaluation]
    profiled: Profile | None
    cell: Cell | None = None
    waiting: set[str] = field(default_factory=set)  # paths of the tasks that are under way
    phase: int = 0
    parts: list[Artifact] = field(default_factory=list)
    hits: Artifact | None = None
    indexes: tuple[Artifact, ...] = ()

    @classmethod
    def of(
        cls, measured: MeasuredCollection, system: System, cell: Cell | None, temperature: float
    ) -> PairWork:
        """``temperature``: of the system's training loss."""
        return cls(
            (measured.name, system.name),
            measured.collection,
            measured.embeddings(system),
            measured.queries(system),
            measured.evaluations(system),
            measured.profile(system, temperature),
            cell,
        )

    @classmethod
    def bm25(cls, measured: MeasuredCollection) -> PairWork:
        """BM25 on a collection."""
        name, searches = (measured.name, BM25), measured.bm25_evaluations()
        return cls(name, measured.collection, None, {}, searches, None)

    def evaluations(self) -> list[Evaluation]:
        """With what is searched, where that is known."""
        return [
            replace(evaluation, indexes=self.indexes, hits=self.hits)
            for evaluation in self.searches.values()
        ]

    def profile(self) -> list[Profile]:
        """With the parts that it is made of; none where none is wanted."""
        return [] if self.profiled is None else [replace(self.profiled, parts=tuple(self.parts))]

    def scan(self, shard_passages: int) -> Scan:
        """The pass over the passages that takes the place of stored embeddings."""
        assert self.embeddings is not None
        rows = tuple(shards(self.embeddings.count, shard_passages))
        queries = {split: task.address for split, task in self.queries.items()}
        return Scan(self.embeddings, self.collection, rows, queries, self.profiled)

    def wanted(self) -> list[Address]:
        """What is there when it is measured: runs, measures, and the profile."""
        wanted = [profile.address for profile in self.profile()]
        for evaluation in self.searches.values():
            wanted += [evaluation.run_address, evaluation.address]
        return wanted


def pairs_of(
    stages: GridStages, systems: Sequence[tuple[System, Cell | None]], baselines: bool = True
) -> list[PairWork]:
    """BM25 on every collection, if it is wanted; then every system on each."""
    pairs = [PairWork.bm25(measured) for measured in stages.measured] if baselines else []
    return pairs + [
        PairWork.of(measured, system, cell, stages.temperature(system, cell))
        for system, cell in systems
        for measured in stages.measured
    ]


def measured_of(store: Store, pairs: Iterable[PairWork]) -> dict[Pair, dict[str, Artifact]]:
    """Those of which nothing is missing, with what is wanted of each by its path."""
    wanted = [(pair.name, address) for pair in pairs for address in pair.wanted()]
    found = store.find_all(address for _, address in wanted)
    measured: dict[Pair, dict[str, Artifact]] = {name: {} for name, _ in wanted}
    for (name, address), artifact in zip(wanted, found, strict=True):
        if artifact is None:
            measured.pop(name, None)
        elif name in measured:
            measured[name][address.path] = artifact
    return measured


Phase = Literal["represent", "index", "search", "measure"]
_PHASES: tuple[Phase, ...] = get_args(Phase)


class Measuring:
    """Takes pairs through their phases. Any thread may call it.

    Args:
        measured: called once a pair is through, from the thread that ended its last task.
        say: is told what is worth a line.
        until: the last phase.
    """

    def __init__(
        self,
        store: Store,
        execution: Execution,
        measured: Callable[[PairWork], None] = lambda pair: None,
        say: Callable[[str], None] = lambda text: None,
        until: Phase = "measure",
    ):
        self.store, self.execution, self.measured, self.say = store, execution, measured, say
        self.phases = _PHASES[: _PHASES.index(until) + 1]
        self.lock = threading.RLock()
        self.pair_of: dict[str, PairWork] = {}

    def begin(self, pairs: Iterable[PairWork]) -> list[Task]:
        """The tasks that can be done now; pairs that are measured have none, and are not told of."""
        pairs = list(pairs)
        if self.phases == _PHASES:
            done = measured_of(self.store, pairs)
            pairs = [pair for pair in pairs if pair.name not in done]
        represented = [(pair, pair.embeddings) for pair in pairs if pair.embeddings is not None]
        made: list[list[Artifact] | None] = [[] for _ in represented]
        if not self.execution.no_index:
            made = all_made_parts(self.store, [embeddings for _, embeddings in represented])
        first: dict[Pair, list[EncodeTask]] = {}
        for (pair, embeddings), parts in zip(represented, made, strict=True):
            own = embeddings.parts(self.execution.shard_passages) if parts is None else []
            first[pair.name] = [*own, *pair.queries.values()]
        absent = missing(self.store, (task for tasks in first.values() for task in tasks))
        left = {task.address.path for task in absent}
        tasks: list[Task] = []
        with self.lock:
            for pair in pairs:
                own = [task for task in first.get(pair.name, ()) if task.address.path in left]
                self._wait(pair, own)
                tasks += own or self._next(pair)
        return tasks

    def finished(self, task: Task) -> list[Task]:
        """The tasks that can be done now that this one is."""
        with self.lock:
            pair = self.pair_of.pop(task.address.path)
            pair.waiting.discard(task.address.path)
            return [] if pair.waiting else self._next(pair)

    def _wait(self, pair: PairWork, tasks: Iterable[Task]) -> None:
        for task in tasks:
            pair.waiting.add(task.address.path)
            self.pair_of[task.address.path] = pair

    def _next(self, pair: PairWork) -> list[Task]:
        """The tasks of the next phase that has something to do; none when the pair is through."""
        steps = {"represent": self._represented, "index": self._index}
        steps |= {"search": self._search, "measure": self._measure}
        while pair.phase < len(self.phases):
            phase = self.phases[pair.phase]
            pair.phase += 1
            if pair.embeddings is None and phase in ("represent", "search"):
                continue
            if tasks := steps[phase](pair):
                self._wait(pair, tasks)
                return tasks
        self.measured(pair)
        return []

    # ------------------------------------------------------------------------- phases

    def _represented(self, pair: PairWork) -> list[Task]:
        """The parts are there: put them together. Nothing is stored where passages are scored at once."""
        embeddings, store = pair.embeddings, self.store
        assert embeddings is not None
        if self.execution.no_index:
            return []
        made = embeddings.made_parts(store)
        if made is None:
            tasks = embeddings.parts(self.execution.shard_passages)
            embeddings.commit(store, tasks)
            made = store.all_committed(task.address for task in tasks)
        pair.parts = made
        return []

    def _index(self, pair: PairWork) -> list[Task]:
        if pair.embeddings is None:
            return list(missing(self.store, [BM25Task(pair.collection)]))
        if not self.execution.no_index:
            return list(missing(self.store, map(IndexTask, pair.parts)))
        scan = pair.scan(self.execution.shard_passages)
        pair.hits = self.store.find(scan.address)
        return [] if pair.hits is not None else list(missing(self.store, scan.pieces()))

    def _search(self, pair: PairWork) -> list[Task]:
        store = self.store
        if self.execution.no_index:
            pair.hits = pair.hits or self._joined(pair)
            return []
        addresses = (IndexTask(part).address for part in pair.parts)
        pair.indexes = tuple(store.all_committed(addresses))
        evaluations = pair.evaluations()
        found = store.find_all(one.run_address for one in evaluations)
        searches = [one for one, run in zip(evaluations, found, strict=True) if run is None]
        return list(missing(store, (piece for one in searches for piece in one.pieces())))

    def _joined(self, pair: PairWork) -> Artifact:
        scan = pair.scan(self.execution.shard_passages)
        hits = join(self.store, scan, scan.pieces())
        size, name = hits.meta["unstored_bytes"], hits.manifest["name"]
        self.say(f"{name}: {size:,} bytes of embeddings not stored")
        return hits

    def _measure(self, pair: PairWork) -> list[Task]:
        tasks: list[Task] = [*pair.evaluations()]
        if pair.hits is not None and pair.profiled is not None:
            tasks.append(ScannedProfile(pair.scan(self.execution.shard_passages), pair.hits))
        else:
            tasks += pair.profile()
        return list(missing(self.store, tasks))
