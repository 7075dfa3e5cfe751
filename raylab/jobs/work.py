"""Measuring on pools of Ray actors: tasks in, artifacts in storage out.

Only addresses pass through Ray: an actor reads what it needs from storage and commits the artifact itself. A dead
actor's task is done again by another (`raylab.jobs.pool`), a finished one never.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator

import ray
import torch

from raylab.experiment.execution import Execution
from raylab.jobs.demand import Demand
from raylab.jobs.pool import Feed, encoders, room, run_on_actors
from raylab.stages.work import Task, Worker, following, takes_a_gpu
from raylab.storage.store import Store

log = logging.getLogger("raylab")
Finished = Callable[[Task, str | None], Iterable[Task]]
"""Called after each task, with its warning; returns the tasks that can be done now."""
Add = Callable[[Iterable[Task]], None]
_TASKS_AN_ENCODER = 4  # that need no GPU, at once


@ray.remote
class WorkActor:
    """A `Worker`, in a process of its own."""

    def __init__(self, store: Store, execution: Execution):
        torch.set_num_threads(1)
        self.worker = Worker(store, execution)

    def ready(self) -> str:
        """The id of its node, once the actor is up."""
        return ray.get_runtime_context().get_node_id()

    def work(self, task: Task) -> str | None:
        return self.worker.work(task)


class _Pools:
    """One pool of actors; where GPUs encode, a second one of CPUs for what needs no GPU.

    Args:
        limit: how many of the first there may be.
        spare_cpus: how many of the second, at most.
    """

    def __init__(
        self,
        store: Store,
        execution: Execution,
        finished: Finished,
        demand: Demand,
        limit: Callable[[], int],
        spare_cpus: Callable[[], int],
    ):
        self.store, self.execution, self.finished, self.demand = store, execution, finished, demand
        self.lock, self.left = threading.Lock(), 0
        self.faults: list[BaseException] = []
        first = {"num_gpus": 1} if execution.use_gpu else {"num_cpus": execution.encoder_cpus}
        self.feeds: list[Feed[Task]] = [Feed()]
        pools = [(first, limit)]
        if execution.use_gpu:
            self.feeds.append(Feed())
            pools.append(({"num_cpus": 1.0}, spare_cpus))
        self.threads = [
            threading.Thread(target=self._serve, args=(feed, *pool), daemon=True)
            for feed, pool in zip(self.feeds, pools, strict=True)
        ]
        for thread in self.threads:
            thread.start()

    def add(self, tasks: Iterable[Task], first: bool = False) -> None:
        """To do; ``first``: before what waits."""
        tasks = list(tasks)
        self._count(len(tasks))
        for task in tasks[::-1] if first else tasks:
            feed = self.feeds[-1 if self.execution.use_gpu and not takes_a_gpu(task) else 0]
            feed.add([task], first)

    def _count(self, more: int) -> None:
        with self.lock:
            self.left += more
            self.demand.tasks = self.left

    def _serve(self, feed: Feed[Task], resources: dict[str, float], limit: Callable) -> None:
        def done(task: Task, warning: str | None) -> None:
            self.add(self.finished(task, warning), first=True)
            self._count(-1)

        try:
            run_on_actors(
                lambda: WorkActor.options(**resources).remote(self.store, self.execution),
                feed,
                limit,
                lambda actor, task: actor.work.remote(task),
                done,
                following,
            )
        except BaseException as fault:
            self.faults.append(fault)
            self.close()

    def close(self) -> None:
        """What waits is let go."""
        for feed in self.feeds:
            feed.close()
        self.demand.tasks = 0

    def join(self) -> None:
        """Wait until what is at work is done, after `close`.

        Raises:
            The first fault.
        """
        for thread in self.threads:
            thread.join()
        if self.faults:
            raise self.faults[0]

    def finish(self) -> None:
        """Wait until everything is done.

        Raises:
            The first task's own error, unwrapped.
        """
        while any(thread.is_alive() for thread in self.threads):
            with self.lock:
                left = self.left
            if not left:
                break
            self.threads[0].join(0.05)
        self.close()
        self.join()


def work_all(
    store: Store,
    execution: Execution,
    tasks: Iterable[Task],
    finished: Finished,
    say: Callable[[str], None],
) -> None:
    """Do all tasks, and all that become possible by them; a wait for room is said.

    Raises:
        The first task's own error, unwrapped.
    """
    with Demand(execution, say).asking() as demand:
        pools = _Pools(
            store,
            execution,
            finished,
            demand,
            lambda: encoders(execution),
            lambda: min(_TASKS_AN_ENCODER * encoders(execution), room("CPU", 1.0)),
        )
        try:
            pools.add(tasks)
            pools.finish()
        except BaseException:
            pools.close()
            raise


@contextlib.contextmanager
def filling(
    store: Store,
    execution: Execution,
    demand: Demand,
    free: Callable[[], int],
    finished: Finished,
) -> Iterator[Add]:
    """While the block runs, do what is added, on as many actors as there are free devices.

    A task that fails is told of and left to whoever does what is missing afterwards: it meets the same fault where
    it can be dealt with. When the block ends, what is at work is waited for; not where the process was asked to stop.
    """

    def limit() -> int:
        return min(free(), encoders(execution))

    def spare_cpus() -> int:
        """A train worker holds a CPU beside its GPU."""
        return max(0, room("CPU", 1.0) - max(0, room("GPU", 1.0) - free()))

    pools = _Pools(store, execution, finished, demand, limit, spare_cpus)
    stopped = False
    try:
        yield pools.add
    except BaseException as fault:
        stopped = not isinstance(fault, Exception)
        raise
    finally:
        pools.close()
        try:
            if not stopped:
                pools.join()
        except Exception as fault:
            log.warning("work beside training ended, and is left for later: %s", fault)
