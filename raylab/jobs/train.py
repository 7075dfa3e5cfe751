"""Training on Ray Train + DeepSpeed: one Ray Train run is a group of workers, which trains run after run of a grid.

What a worker does is in `raylab.jobs.workers`, imported on the worker alone: this module is also
loaded by each group's Tune trial and Train controller, which need no model library (4 s each).
"""

from __future__ import annotations

import time
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from raylab.experiment.execution import Execution
from raylab.jobs.cluster import arrow_filesystem, root_cause
from raylab.storage.store import Store

TUNE = "tune"  # folder of Tune's and Ray Train's own state below the storage root, while runs train


def _work(config: dict[str, Any]) -> None:
    """Runs on every worker of a group."""
    from raylab.jobs import workers  # see the top of this module

    workers.work_through(config["queue"], config["group"])


def train(store: Store, execution: Execution, queue: Any, group: str) -> None:
    """Start a group of workers, which train the run that it was started for, and those that it takes then.

    Workers whose node Ray says is taken away are started again by Ray Train.

    Args:
        queue: an actor, `raylab.jobs.queue.RunQueue`.
        group: name of the run that it is started for.

    Raises:
        What the workers ended by, unwrapped.
    """
    trainer = TorchTrainer(
        _work,
        train_loop_config={"queue": queue, "group": group},
        torch_config=TorchConfig(backend="nccl" if execution.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=execution.workers,
            use_gpu=execution.use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if execution.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=f"{group}-{time.time_ns()}",  # what is kept of a run stands in its own folder
            storage_path=f"{store.root}/{TUNE}/groups",
            storage_filesystem=None if store.is_local else arrow_filesystem(store),
            failure_config=ray.train.FailureConfig(max_failures=0),  # the queue counts
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise root_cause(error) from None
