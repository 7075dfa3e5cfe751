"""The measuring half of a grid: what training left unmeasured, and all that stands behind the tables.

With `Execution.no_index`, passages are scored as they are encoded and neither embeddings nor indexes of
them are stored (`raylab.stages.scan`); runs, measures and profiles are the same, at the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell
from raylab.jobs.progress import Monitor
from raylab.jobs.work import work_all
from raylab.pipeline.measuring import Measuring, Pair, PairWork, measured_of, pairs_of
from raylab.pipeline.stages import GridStages
from raylab.stages.encode import EncodeTask, System, all_made_parts
from raylab.stages.search import IndexTask
from raylab.stages.work import Task
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, read_table


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


def warn(monitor: Monitor, task: Task, warning: str | None) -> None:
    """Say a task's warning."""
    if warning and isinstance(task, EncodeTask):
        monitor.say(f"WARNING {task.system.name}: {warning}")


class SystemsEvaluation:
    """Measures systems of a grid on all its collections.

    Args:
        systems: with the cells that made them, None for untrained ones.
        connect: connects to Ray; called when something is to be measured.
        arrived: is told of every pair that is measured, as it is.
    """

    def __init__(
        self,
        stages: GridStages,
        systems: Sequence[tuple[System, Cell | None]],
        execution: Execution,
        store: Store,
        monitor: Monitor,
        connect: Callable[[], None],
        arrived: Callable[[PairWork], None],
    ):
        self.execution, self.arrived = execution, arrived
        self.store, self.monitor, self.connect = store, monitor, connect
        self.pairs = pairs_of(stages, systems)

    def run(self) -> Evaluated:
        """Measure what is missing, and gather everything.

        Raises:
            DamagedArtifact, ValueError: from the stages.
        """
        told = _in_ledger(self.store)
        done = measured_of(self.store, self.pairs)
        left = [pair for pair in self.pairs if pair.name not in done]
        if left:
            self._measure(left, len(done))
        measured = {path: artifact for own in done.values() for path, artifact in own.items()}
        wanted = [address for pair in left for address in pair.wanted()]
        made = self.store.all_committed(wanted)
        measured |= {place.path: one for place, one in zip(wanted, made, strict=True)}
        shown = [pair for pair in self.pairs if pair.embeddings is not None]
        fresh = [
            pair for pair in shown if self._behind(pair).fingerprint not in told or pair in left
        ]
        return self._gathered(measured, shown, fresh)

    def _measure(self, left: list[PairWork], done: int) -> None:
        self.connect()
        self.monitor.enter("measure", len(self.pairs), done)

        def measured(pair: PairWork) -> None:
            self.monitor.advance()
            self.arrived(pair)

        measuring = Measuring(self.store, self.execution, measured, self.monitor.say)

        def finished(task: Task, warning: str | None) -> list[Task]:
            warn(self.monitor, task, warning)
            return measuring.finished(task)

        work_all(self.store, self.execution, measuring.begin(left), finished, self.monitor.say)

    # ------------------------------------------------------------------------- gathering

    def _behind(self, pair: PairWork) -> Address:
        """What is stored of a pair's passages; once the ledger tells of it, its many parts are not looked at."""
        assert pair.embeddings is not None
        if self.execution.no_index:
            return pair.scan(self.execution.shard_passages).address
        return pair.embeddings.address

    def _gathered(
        self, measured: Mapping[str, Artifact], shown: Iterable[PairWork], fresh: list[PairWork]
    ) -> Evaluated:
        """``measured``: what is wanted of every pair, by its path."""
        evaluations = {
            (*pair.name, split): (measured[one.run_address.path], measured[one.address.path])
            for pair in self.pairs
            for split, one in pair.searches.items()
        }
        profiles = {
            pair.name: measured[one.address.path] for pair in shown for one in pair.profile()
        }
        return Evaluated(evaluations, profiles, self._used(fresh))

    def _used(self, fresh: list[PairWork]) -> list[Artifact]:
        """Queries, and embeddings with their parts and indexes, or hits."""
        store = self.store
        addresses = [task.address for pair in fresh for task in pair.queries.values()]
        addresses += [self._behind(pair) for pair in fresh]
        if not self.execution.no_index:
            embeddings = [pair.embeddings for pair in fresh if pair.embeddings is not None]
            made = all_made_parts(store, embeddings)
            parts = [part for of_pair in made for part in of_pair or ()]
            addresses += [part.address for part in parts]
            addresses += [IndexTask(part).address for part in parts]
        return [artifact for artifact in store.find_all(addresses) if artifact is not None]
