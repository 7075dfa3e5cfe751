"""The runs of a grid on Ray Tune: a trial is a group of workers, started when the queue has a run for it.

MNTP and fine-tuning are runs alike: Tune asks the queue for the next one (as a search algorithm), and the queue
(`raylab.jobs.queue`, by the rules of `raylab.planning.scheduling`) answers when what it waits for is done and its
devices are free.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from raylab.experiment.execution import Execution
from raylab.jobs.cluster import arrow_filesystem, on_head, root_cause
from raylab.jobs.demand import Demand
from raylab.jobs.queue import News, RunEvent
from raylab.jobs.train import TUNE, train
from raylab.storage.store import Store
from raylab.training.faults import TrainingError

_LOOK_S = 0.3  # how often the driver asks the queue what happened
_ASK_AGAIN_S = 5.0  # how often it asks for a run although nothing did: nodes may have come


class QueueView:
    """The driver's view of the queue: asks it now and then what happened, and tells of it.

    Args:
        queue: an actor, `raylab.jobs.queue.RunQueue`.
        demand: is told how many devices runs hold, and could use.
        told: is told of runs that start, end and fail, and of devices that must wait.
    """

    def __init__(self, queue: Any, demand: Demand, told: Callable[[RunEvent], None]):
        self.queue, self.demand, self.told = queue, demand, told
        self.free = 0  # devices; read by those who fill them, in threads of their own
        self.is_done = False
        self.looked = self.asked = -math.inf
        self.has_news = True  # since a run was asked for in vain

    def look(self, at_once: bool = False) -> None:
        """Ask what happened, if it was not asked just now."""
        now = time.monotonic()
        if not at_once and now - self.looked < _LOOK_S:
            return
        self.looked = now
        news: News = ray.get(self.queue.news.remote(self.demand.tasks))
        self.has_news |= news.free < self.free  # of those that were lent
        self.free, self.is_done = news.free, news.is_done
        self.demand.busy, self.demand.runs = news.busy, news.ready
        self.has_news |= bool(news.events)
        for event in news.events:
            self.told(event)

    def next_run(self) -> str | None:
        """The run to start a group for, if there is one now."""
        now = time.monotonic()
        if not self.has_news and now - self.asked < _ASK_AGAIN_S:
            return None
        self.asked = now
        name: str | None = ray.get(self.queue.start.remote())
        self.has_news = name is not None
        return name


class _QueueSearcher(Searcher):
    """Tune's search algorithm: the next run of the queue."""

    def __init__(self, view: QueueView):
        super().__init__()
        self.view = view
        self.groups: dict[str, str] = {}  # by trial

    def __getstate__(self) -> dict:
        return {}  # as `_Looking`

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.view.is_done:
            return Searcher.FINISHED
        name = self.view.next_run()
        if name is None:
            return None
        self.groups[trial_id] = name
        return {"run": name}

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        if error:  # the trial was lost, more often than Tune starts it again
            fault = TrainingError(f"{self.groups[trial_id]}: its trial was lost again and again")
            ray.get(self.view.queue.failed.remote(self.groups[trial_id], fault))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is done stands in the storage, and the same command asks it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class _Looking(tune.Callback):
    """Looks at the queue while Tune goes round."""

    def __init__(self, view: QueueView):
        self.view = view

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks for `restore`, which is not used here; a display cannot be

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        self.view.look()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.view.look(at_once=True)


def _trial(config: dict[str, Any], store: Store, execution: Execution, queue: Any) -> dict:
    """A group's whole life; a run's own error is the queue's affair, so that Tune retries lost trials alone.

    What it returns is the trial's result: of one that has none Tune prints a line.
    """
    group, again = config["run"], True
    while again:
        try:
            train(store, execution, queue, group)
            again = False
        except Exception as error:
            again = ray.get(queue.failed.remote(group, error))
    return {"finished": True}


def run_trials(store: Store, execution: Execution, view: QueueView) -> None:
    """Run all that the queue holds.

    A lost trial is started again, and goes on with the run that its group was at; a lost worker is Ray Train's
    affair, and a lost driver's runs resume from their own checkpoints when the same command runs again.

    Raises:
        The first failed run's own error, unwrapped, when all others have ended.
    """
    resources = {"CPU": 0, **on_head()["resources"]}
    trial = tune.with_parameters(_trial, store=store, execution=execution, queue=view.queue)
    tuner = tune.Tuner(
        tune.with_resources(trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=_QueueSearcher(view),
            reuse_actors=True,  # a process takes 3 s to start
            num_samples=-1,  # until the queue has no more
            trial_name_creator=lambda trial: trial.config["run"],
            trial_dirname_creator=lambda trial: trial.config["run"],
        ),
        run_config=tune.RunConfig(
            name=f"grid-{int(time.time())}",
            storage_path=f"{store.root}/{TUNE}",
            storage_filesystem=None if store.is_local else arrow_filesystem(store),
            failure_config=tune.FailureConfig(max_failures=execution.max_failures),
            callbacks=[_Looking(view)],
            verbose=0,
        ),
    )
    results = tuner.fit()
    view.look(at_once=True)
    error = ray.get(view.queue.first_error.remote())
    for fault in [error, *results.errors]:
        if isinstance(fault, BaseException):
            raise root_cause(fault)
    # Tune's and Ray Train's own state; all of it has ended.
    with contextlib.suppress(FileNotFoundError):
        store.files.remove_tree(TUNE)
