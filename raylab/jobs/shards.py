"""Work in shards: each is an artifact of its own, so that a killed job goes on from the finished ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import ray
from ray.util import ActorPool

from raylab.artifacts import Address, Artifact, Store
from raylab.jobs.cluster import unwrapped


class Task(Protocol):
    """One shard's work; small, since it travels to the worker."""

    @property
    def address(self) -> Address: ...


Make = Callable[[Any], Any]  # commits a task's shard
# Runs (function that makes a worker's `Make`, tasks, how many workers)
Pool = Callable[[Callable[[], Make], list[Any], int], None]


@ray.remote(max_restarts=-1, max_task_retries=-1)
class _Worker:
    """Ray actor: makes shard after shard; restarted by Ray when it dies, and its shard done again."""

    def __init__(self, start: Callable[[], Make]):
        self.make = start()

    def work(self, task: Any) -> None:
        self.make(task)


def ray_pool(start: Callable[[], Make], tasks: list[Any], workers: int, gpu: bool = False) -> None:
    """Run tasks over Ray actors, of one CPU or one GPU each; never more than the cluster has.

    Raises:
        The first task's own error, unwrapped.
    """
    resource = "GPU" if gpu else "CPU"
    workers = min(workers, max(1, int(ray.cluster_resources().get(resource, 1))))
    each = {"num_gpus": 1} if gpu else {"num_cpus": 1}
    actors = [_Worker.options(**each).remote(start) for _ in range(workers)]
    try:
        pool = ActorPool(actors)
        unwrapped(
            lambda: list(pool.map_unordered(lambda actor, task: actor.work.remote(task), tasks))
        )
    finally:
        for actor in actors:
            ray.kill(actor)  # type: ignore[arg-type]


def local_pool(start: Callable[[], Make], tasks: list[Any], workers: int) -> None:
    """Run tasks one after the other in this process."""
    make = start()
    for task in tasks:
        make(task)


def make_shards(
    store: Store, tasks: Sequence[Task], start: Callable[[], Make], workers: int, pool: Pool
) -> list[Artifact]:
    """The tasks' artifacts in order; only those that are not there are made."""
    missing = [task for task in tasks if store.find(task.address) is None]
    if missing:
        pool(start, missing, min(workers, len(missing)))
    return [store.committed(task.address) for task in tasks]


def remove_shards(store: Store, shards: Iterable[Artifact]) -> None:
    """Remove shards whose content another artifact has taken over."""
    for shard in shards:
        store.remove(shard)
