"""The cells of a grid on Ray Tune: one trial a cell, each a Ray Train run, under a shared budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raylab.artifacts import Store
from raylab.config import Execution
from raylab.jobs.cluster import arrow_filesystem, root_cause, unwrapped
from raylab.jobs.train import AdaptationJob, FineTuningJob, train


@ray.remote(num_cpus=0, max_retries=3)
def adapt(job: AdaptationJob) -> str:
    """One size's MNTP, as a Ray Train run of its own."""
    train(job)
    return job.run_name


def adapt_all(jobs: Sequence[AdaptationJob], limit: int, finished: Callable[[str], None]) -> None:
    """Adapt all sizes, at most `limit` at a time.

    Raises:
        The first run's own error, unwrapped.
    """
    queue, running = list(jobs), []
    while queue or running:
        while queue and len(running) < limit:
            running.append(adapt.remote(queue.pop(0)))
        (ready,), running = ray.wait(running, num_returns=1)
        finished(unwrapped(ray.get, ready))


class _Finished(tune.Callback):
    """Tells the driver of every cell that ends."""

    def __init__(self, finished: Callable[[str], None]):
        self.finished = finished

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks for `restore`, which is not used here; a display cannot be

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.finished(trial.config["run"])


def _trial(config: dict[str, Any], jobs: dict[str, FineTuningJob]) -> None:
    train(jobs[config["run"]], callbacks=[TuneReportCallback()])


def fine_tune_all(
    store: Store,
    execution: Execution,
    jobs: Sequence[FineTuningJob],
    finished: Callable[[str], None],
) -> None:
    """Train all cells, in the given order, at most `concurrent_trials` at a time.

    Trials are not retried by Tune: a lost worker is Ray Train's affair, and a lost driver's cells
    resume from their own checkpoints when the same command runs again.

    Raises:
        The first failed trial's own error, unwrapped, when all others have ended.
    """
    by_name = {job.run_name: job for job in jobs}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, jobs=by_name), {"CPU": 0.01}),
        param_space={"run": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=execution.concurrent_trials,
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
