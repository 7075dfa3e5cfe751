"""Work in shards: each is an artifact of its own, so that a killed job goes on from the finished ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from raylab.stages.stage import missing
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store


class Task(Protocol):
    """One shard's work; small, since it travels to the worker."""

    @property
    def address(self) -> Address: ...


Make = Callable[[Any], Any]  # commits a task's shard
# Runs (function that makes a worker's `Make`, tasks, how many workers)
Pool = Callable[[Callable[[], Make], list[Any], int], None]


def local_pool(start: Callable[[], Make], tasks: list[Any], workers: int) -> None:
    """Run tasks one after the other in this process."""
    make = start()
    for task in tasks:
        make(task)


def make_shards(
    store: Store,
    tasks: Sequence[Task],
    start: Callable[[], Make],
    pool: Pool,
    workers: int | None = None,
) -> list[Artifact]:
    """The tasks' artifacts in order; only those that are not there are made, by at most `workers`."""
    absent = missing(store, tasks)
    if absent:
        pool(start, absent, min(workers or len(absent), len(absent)))
    return store.all_committed(task.address for task in tasks)


def remove_shards(store: Store, shards: Iterable[Artifact]) -> None:
    """Remove shards whose content another artifact has taken over."""
    for shard in shards:
        store.remove(shard)
