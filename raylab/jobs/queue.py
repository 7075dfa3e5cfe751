"""The queue of a grid's runs, as an actor: groups of workers take runs from it, the driver sees what happens.

A group is one Ray Train run, started by a Tune trial. It takes the run that it was started for, and when that is
done another, as long as one is short and ready: five processes and 20 seconds are then paid once, not once a run. A
long run has a group of its own, and so has what follows a fault. Where training holds every device, a group gives way
to measuring now and then, so that rows come while others train.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from raylab.data.faults import CollectionError
from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.jobs.cluster import on_head
from raylab.jobs.pool import devices_there, training_devices
from raylab.live.facts import EventKind
from raylab.planning.scheduling import Item, Queue
from raylab.stages.train import RUNS, AdaptationJob, FineTuningJob, run_folder
from raylab.storage.artifacts import DamagedArtifact
from raylab.storage.checkpoints import Checkpoints
from raylab.training.faults import TrainingError

Job = AdaptationJob | FineTuningJob
_FINAL = (ConfigError, CollectionError, DamagedArtifact, TrainingError)  # would come again
SHORT_S = 900.0  # predicted: to start a group takes a fortieth of that
# Tasks of measuring that wait, those of four systems on a small collection: to fewer no group gives way, since it
# takes seconds to start the next one.
GIVE_WAY = 16


class RunEvent(NamedTuple):
    """Something that happened to a run: what, of which, more about it, and when (Unix seconds)."""

    kind: EventKind
    name: str
    text: str
    at: float


class News(NamedTuple):
    """What the driver asks for.

    ``busy`` and ``free``: devices that runs hold, and those of the cluster that none holds or will at once; ``ready``:
    runs that could start if there were more; ``is_done``: nothing is left to start.
    """

    events: list[RunEvent]
    busy: int
    free: int
    ready: int
    is_done: bool


@dataclass
class _Group:
    """A group of workers, and the run it is at."""

    run: str
    starts: int = 0  # of its workers, at this run
    faults: int = 0  # of this run, since its last new checkpoint
    kept: int = -1  # step of that checkpoint


class RunQueue:
    """Which run starts next, on what is free; a group has the name of the run that it was started for.

    Args:
        jobs: by the names that the items have.
    """

    def __init__(self, items: Sequence[Item], jobs: Mapping[str, Job], execution: Execution):
        self.queue, self.jobs, self.execution = Queue(items), jobs, execution
        self.groups: dict[str, _Group] = {}
        self.begun: list[str] = []  # counted as running, and not taken yet
        self.taken: dict[str, float] = {}  # when (Unix seconds) a run was given to a group
        self.happened: list[RunEvent] = []
        self.errors: list[BaseException] = []
        self.waits = False
        self.measuring = 0  # tasks of it that are at work or wait
        self.lent = 0  # devices, to measuring, while it has something to do

    def devices(self) -> int:
        """How many training may hold now."""
        return training_devices(self.execution)

    def room(self) -> int:
        """How many the cluster has."""
        return devices_there(self.execution)

    # ------------------------------------------------------------------------ of groups

    def start(self) -> str | None:
        """The run to start a group for; None while all that could must wait."""
        name = self._next()
        if name is None:
            self._tell_of_waiting()
        else:
            self.groups[name] = _Group(name)
        return name

    def at_work(self, group: str) -> str | None:
        """The run of a group whose workers start, or start again; None where the group has ended."""
        state = self.groups.get(group)
        if state is None:
            return None
        state.starts += 1
        board = self.jobs[state.run].board
        if state.starts > 1 and board is not None:
            board.workers_failed.remote(state.run)
        return state.run

    def job(self, run: str) -> Job:
        """All that a worker needs to know of a run."""
        return self.jobs[run]

    def taken_at(self, run: str) -> float:
        """When this queue gave a run to a group, in Unix seconds; its workers may have had to start since, or again."""
        return self.taken[run]

    def following(self, group: str) -> str | None:
        """A group's run is done: the one that it takes next, or None, and the group ends."""
        state = self.groups.pop(group)
        self._end(state.run, failed=False)
        devices = self.queue.items[state.run].devices
        goes_on = state.starts == 1 and not self._gives_way(devices)
        name = self._next(devices) if goes_on else None
        if name is not None:
            self.groups[group] = _Group(name, 1)
        return name

    def failed(self, group: str, error: BaseException) -> bool:
        """A group lost its workers by an error; whether to start them again, at the same run.

        Not where the error would come again, nor after more than `max_failures` since the last new checkpoint.
        """
        state = self.groups.get(group)
        if state is None:  # all its runs had ended
            return False
        kept = newest_checkpoint(self.jobs[state.run])
        state.faults = 1 if kept > state.kept else state.faults + 1
        state.kept = max(state.kept, kept)
        if not isinstance(error, _FINAL) and state.faults <= self.execution.max_failures:
            return True
        del self.groups[group]
        self.errors.append(error)
        self._end(state.run, failed=True)
        return False

    # -------------------------------------------------------------------- of the driver

    def news(self, measuring: int = 0) -> News:
        """What happened since the last call, and where the queue stands.

        Args:
            measuring: tasks of it that are at work or wait.
        """
        self.measuring = measuring
        if not measuring:
            self.lent = 0
        happened, self.happened = self.happened, []
        busy, is_done = self.queue.busy, self.queue.done and not self.begun
        free = max(0, self.room() - busy)
        ready = 0 if self.execution.concurrent_trials else len(self.queue.ready)
        return News(happened, busy, free, ready, is_done)

    def first_error(self) -> BaseException | None:
        """Of the runs that failed."""
        return self.errors[0] if self.errors else None

    # ------------------------------------------------------------------------- inwards

    def _next(self, of_devices: int | None = None) -> str | None:
        """A run that may start now; for a group that goes on, a short one of as many devices."""
        if not self.begun:
            free = self.devices() - self.queue.busy - self.lent
            self.begun = [item.name for item in self.queue.start(free, time.monotonic())]
        for name in self.begun:
            item = self.queue.items[name]
            if of_devices is None or (item.devices == of_devices and item.seconds <= SHORT_S):
                self.begun.remove(name)
                self.waits = False
                self.taken[name] = time.time()
                self._tell("start", name)
                return name
        return None

    def _gives_way(self, devices: int) -> bool:
        """Whether a group's devices are lent to measuring: where it waits for some, and training holds all others."""
        free = self.room() - self.queue.busy
        if self.measuring < GIVE_WAY or self.lent or self.begun or free > devices:
            return False
        self.lent = devices
        return True

    def _end(self, name: str, failed: bool) -> None:
        (self.queue.drop if failed else self.queue.finish)(name)
        self._tell("died" if failed else "end", name)

    def _tell_of_waiting(self) -> None:
        """Once: devices are free, and all that is left waits for runs that go on."""
        queue, free = self.queue, self.devices() - self.queue.busy - self.lent
        if free > 0 and queue.running and any(queue.left.values()) and not self.waits:
            self.waits = True
            self._tell("wait", min(queue.running), f"{free} free until it ends")

    def _tell(self, kind: EventKind, name: str, text: str = "") -> None:
        self.happened.append(RunEvent(kind, name, text, time.time()))


def newest_checkpoint(job: Job) -> int:
    """The step of a run's newest checkpoint; -1: it has none."""
    step = Checkpoints(job.store, f"{RUNS}/{run_folder(job)}").newest()
    return -1 if step is None else step


@contextlib.contextmanager
def run_queue(
    items: Sequence[Item], jobs: Mapping[str, Job], execution: Execution
) -> Iterator[Any]:
    """A `RunQueue` in a process on the head, for workers on any node, while the block runs."""
    actor: Any = ray.remote(**on_head())(RunQueue).remote(items, dict(jobs), execution)
    try:
        yield actor
    finally:
        ray.kill(actor)
