"""The pools that make shards on Ray: actors of one CPU or GPU each, or tasks of Ray Data."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from raylab.jobs.cluster import core, unwrapped
from raylab.jobs.pool import room, run_on_actors
from raylab.stages.shards import Make, local_pool


@ray.remote
class _Worker:
    """Ray actor: makes shard after shard."""

    def __init__(self, start: Callable[[], Make]):
        self.start = start

    def ready(self) -> str:
        """The id of its node. Started here, so that an error of the start's is told as it is."""
        self.make = self.start()
        return ray.get_runtime_context().get_node_id()

    def work(self, task: Any) -> None:
        self.make(task)


def ray_pool(start: Callable[[], Make], tasks: list[Any], workers: int, gpu: bool = False) -> None:
    """Run tasks over Ray actors, of one CPU or one GPU each; never more than the cluster has now.

    Raises:
        The first task's own error, unwrapped; RuntimeError for a task that actors keep dying of.
    """
    resource, options = ("GPU", {"num_gpus": 1}) if gpu else ("CPU", {"num_cpus": 1})
    run_on_actors(
        lambda: _Worker.options(**options).remote(start),
        tasks,
        lambda: min(workers, room(resource, 1.0)),
        lambda actor, task: actor.work.remote(task),
        lambda task, result: None,
    )


_STARTED: dict[str, Make] = {}  # of this process, by the pool's key


@dataclass(frozen=True)
class _DataTask:
    """Ray Data function: makes the tasks whose numbers it is given; a process starts once a pool."""

    key: str
    start: Callable[[], Make]
    tasks: tuple[Any, ...]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.key not in _STARTED:
            _STARTED.clear()
            _STARTED[self.key] = self.start()
        for number in batch["id"].tolist():
            _STARTED[self.key](self.tasks[number])
        return batch


def data_pool(start: Callable[[], Make], tasks: list[Any], workers: int) -> None:
    """Run tasks on Ray Data, one a core at a time: more processes have less of the cores' caches.

    A single task is run in this process.

    Raises:
        The first task's own error, unwrapped.
    """
    if len(tasks) == 1:
        local_pool(start, tasks, workers)
        return
    dataset = ray.data.range(len(tasks), override_num_blocks=len(tasks)).map_batches(
        _DataTask(uuid.uuid4().hex, start, tuple(tasks)),  # type: ignore[arg-type]
        batch_size=1,
        num_cpus=core(),
    )
    unwrapped(dataset.materialize)
