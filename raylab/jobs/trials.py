"""The runs of a grid on Ray Tune: one trial a run, each a Ray Train run, started by `raylab.planning.scheduling`.

MNTP and fine-tuning are trials alike: Tune asks the queue for the next one (as a search algorithm), and
the queue answers when what it waits for is done and its devices are free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raylab.jobs.cluster import arrow_filesystem, root_cause
from raylab.jobs.train import train
from raylab.live.facts import EventKind
from raylab.planning.scheduling import Queue
from raylab.stages.train import AdaptationJob, FineTuningJob
from raylab.storage.store import Store

Job = AdaptationJob | FineTuningJob


class RunQueue:
    """The queue as threads share it: Tune starts and ends runs, the filler asks what is left.

    Args:
        devices: how many there are now.
        told: is told of runs that start, end and fail, and of devices that must wait: kind, name, text.
    """

    def __init__(
        self,
        queue: Queue,
        devices: Callable[[], int],
        told: Callable[[EventKind, str, str], None] = lambda kind, name, text: None,
    ):
        self.queue, self.devices, self.told = queue, devices, told
        self.waits = False
        self.lock = threading.Lock()
        self.next: list[str] = []

    def take(self) -> str | None:
        """The run to start now; None while all that could must wait."""
        with self.lock:
            if not self.next:
                free = self.devices() - self.queue.busy
                self.next = [item.name for item in self.queue.start(free, time.monotonic())]
            if self.next:
                self.waits = False
                self.told("start", self.next[0], "")
                return self.next.pop(0)
            self._tell_of_waiting()
            return None

    def _tell_of_waiting(self) -> None:
        """Once: devices are free, and all that is left waits for runs that go on."""
        queue, free = self.queue, self.devices() - self.queue.busy
        if free > 0 and queue.running and any(queue.left.values()) and not self.waits:
            self.waits = True
            self.told("wait", min(queue.running), f"{free} free until it ends")

    def end(self, name: str, failed: bool) -> None:
        with self.lock:
            (self.queue.drop if failed else self.queue.finish)(name)
            self.told("died" if failed else "end", name, "")

    @property
    def done(self) -> bool:
        """Whether nothing is left to start."""
        with self.lock:
            return self.queue.done and not self.next

    def free(self) -> int:
        """Devices that no run holds, nor will at once."""
        with self.lock:
            return max(0, self.devices() - self.queue.busy)


class _QueueSearcher(Searcher):
    """Tune's search algorithm: the next run of the queue."""

    def __init__(self, runs: RunQueue):
        super().__init__()
        self.runs = runs
        self.names: dict[str, str] = {}  # by trial

    def __getstate__(self) -> dict:
        return {}  # as `_Finished`

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.runs.done:
            return Searcher.FINISHED
        name = self.runs.take()
        if name is None:
            return None
        self.names[trial_id] = name
        return {"run": name}

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        self.runs.end(self.names[trial_id], error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is done stands in the storage, and the same command asks it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class _Finished(tune.Callback):
    """Tells the driver of every run that ends."""

    def __init__(self, finished: Callable[[str], None]):
        self.finished = finished

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks for `restore`, which is not used here; a display cannot be

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.finished(trial.config["run"])


def _trial(config: dict[str, Any], jobs: dict[str, Job]) -> dict[str, Any]:
    """What it returns is the trial's result: of one that has none Tune prints a line."""
    train(jobs[config["run"]])
    return {"finished": True}


def run_trials(
    store: Store, jobs: Mapping[str, Job], runs: RunQueue, finished: Callable[[str], None]
) -> None:
    """Run all jobs, each when its turn comes.

    Trials are not retried by Tune: a lost worker is Ray Train's affair, and a lost driver's runs
    resume from their own checkpoints when the same command runs again.

    Args:
        jobs: by the names they have in the queue.

    Raises:
        The first failed trial's own error, unwrapped, when all others have ended.
    """
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, jobs=dict(jobs)), {"CPU": 0.01}),
        tune_config=tune.TuneConfig(
            search_alg=_QueueSearcher(runs),
            reuse_actors=True,  # a process takes 3 s to start
            num_samples=len(jobs),
            trial_name_creator=lambda trial: trial.config["run"],
            trial_dirname_creator=lambda trial: trial.config["run"],
        ),
        run_config=tune.RunConfig(
            name=f"grid-{int(time.time())}",
            storage_path=f"{store.root}/tune",
            storage_filesystem=None if store.is_local else arrow_filesystem(store),
            callbacks=[_Finished(finished)],
            verbose=0,
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise root_cause(results.errors[0])
