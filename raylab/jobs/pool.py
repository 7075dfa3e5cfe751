"""A pool of Ray actors that follows the cluster: grows when there is room, shrinks when nodes go.

Only an actor that is up is given a task, so that none waits on a machine that never comes; what a dead
actor had in hand is put back at the head of the queue, and another actor takes its place. So it is with actors on a
node that is about to be taken away, before it is: Ray says so minutes ahead of a spot node's end.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import ray
import ray._private.state
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

from raylab.experiment.execution import Execution
from raylab.jobs.cluster import core, unwrapped

log = logging.getLogger("raylab")
T = TypeVar("T")
_DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)
_DEATHS_A_TASK = 5  # a task that takes so many actors with it is at fault itself
_IDLE_S = 0.1
_KEPT_IDLE_S = 30.0  # an actor without a task, while a feed is open
_LEAVING_S = 1.0  # how often it is asked which nodes are about to be taken away
_LOOK_S = 5.0  # how often the cluster's size is looked at while nothing happens


class Feed(Generic[T]):
    """Tasks that come while others are done, until it is closed. Any thread may add and close."""

    def __init__(self) -> None:
        self.queue: list[T] = []
        self.closed = False

    def add(self, tasks: Iterable[T], first: bool = False) -> None:
        """To do; ``first``: before what waits."""
        if self.closed:
            return
        if first:
            self.queue[:0] = tasks
        else:
            self.queue += tasks

    def close(self) -> None:
        """No more tasks come, and those that wait are let go."""
        self.closed = True
        self.queue.clear()


def run_on_actors(
    start: Callable[[], Any],
    tasks: Sequence[T] | Feed[T],
    limit: Callable[[], int],
    do: Callable[[Any, T], ray.ObjectRef],
    finished: Callable[[T, Any], None],
    following: Callable[[T | None, list[T]], T] = lambda last, queue: queue.pop(0),
) -> None:
    """Run tasks over actors, never more than `limit()` of them nor than there are tasks.

    Args:
        start: makes an actor; its method `ready` returns the id of its node.
        tasks: all of them, or a feed, which is served until it is closed.
        limit: how many actors there may be, 0 or more; asked again and again.
        do: calls an actor's method on a task.
        finished: called on the driver after each task, with what it returned.
        following: takes the next task off the queue, given the one the actor did last.

    Raises:
        The first task's own error, unwrapped; RuntimeError for a task that actors keep dying of.
    """
    feed = tasks if isinstance(tasks, Feed) else None
    queue = list(tasks) if not isinstance(tasks, Feed) else tasks.queue
    starting: dict[ray.ObjectRef, Any] = {}
    working: dict[ray.ObjectRef, tuple[Any, T]] = {}
    idle: list[tuple[Any, T | None, float]] = []  # with what they did last, and since when
    nodes: dict[Any, str] = {}  # of the actors that are up
    leaving, asked = set[str](), time.monotonic()
    deaths: Counter[int] = Counter()
    try:
        while queue or working or (feed is not None and not feed.closed):
            most, now = limit(), time.monotonic()
            if now - asked > _LEAVING_S:
                asked, leaving = now, leaving_nodes()
            for ref, (actor, task) in list(working.items()):
                if nodes[actor] in leaving:
                    ray.kill(actor)
                    del working[ref]
                    queue.insert(0, task)
                    log.warning("a node is about to be taken away; what it was at goes elsewhere")
            for entry in [entry for entry in idle if nodes[entry[0]] in leaving]:
                ray.kill(entry[0])
                idle.remove(entry)
            while idle and queue and len(working) < most:
                actor, last, _ = idle.pop()
                chosen = following(last, queue)
                working[do(actor, chosen)] = actor, chosen
            # Only a feed may still have tasks for those that have none.
            kept = most - len(working) if feed is not None else 0
            while idle and (len(idle) > kept or now - idle[0][2] > _KEPT_IDLE_S):
                ray.kill(idle.pop(0)[0])
            while len(starting) < min(most - len(working) - len(idle), len(queue)):
                actor = start()
                starting[actor.ready.remote()] = actor
            if not starting and not working:  # no task yet, or no room
                time.sleep(_IDLE_S)
                continue
            look_s = _LOOK_S if feed is None else _IDLE_S
            ready, _ = ray.wait([*starting, *working], num_returns=1, timeout=look_s)
            for ref in ready:
                actor, task = (starting.pop(ref), None) if ref in starting else working.pop(ref)
                try:
                    result: Any = unwrapped(ray.get, ref)
                except _DEATHS as death:
                    ray.kill(actor)
                    deaths[id(task)] += 1
                    if task is not None:
                        queue.insert(0, task)
                        log.warning(
                            "an actor died at work; another does its task: %s", _line(death)
                        )
                    if deaths[id(task)] >= _DEATHS_A_TASK:
                        reason = "before they were up" if task is None else "of the same task"
                        message = f"{_DEATHS_A_TASK} actors died {reason}: {_line(death)}"
                        raise RuntimeError(message) from None
                    continue
                deaths[id(None)] = 0
                if task is None:
                    nodes[actor] = result
                idle.append((actor, task, time.monotonic()))
                if task is not None:
                    finished(task, result)
    finally:
        at_work = [actor for actor, _ in working.values()]
        for actor in [*starting.values(), *at_work, *(actor for actor, _, _ in idle)]:
            ray.kill(actor)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def leaving_nodes() -> set[str]:
    """Ids of nodes that are about to be taken away: preempted by the cloud, or not needed."""
    return set(ray._private.state.state.get_draining_nodes())  # as Ray Train asks


def room(resource: str, each: float) -> int:
    """How many actors that hold `each` of a resource the cluster takes now; at least one."""
    return max(1, int(ray.cluster_resources().get(resource, 0) / each))


def encoders(execution: Execution) -> int:
    """How many encoding actors there may be: so many as are asked for, or (0) as the cluster takes now."""
    resource, each = ("GPU", 1.0) if execution.use_gpu else ("CPU", execution.encoder_cpus)
    return execution.encoding_actors or room(resource, each)


def devices_there(execution: Execution) -> int:
    """Devices that the cluster has now: GPUs, or cores."""
    return room("GPU", 1.0) if execution.use_gpu else room("CPU", core())


def training_devices(execution: Execution) -> int:
    """Devices that training may hold now: of `concurrent_trials` runs, or (0) all that the cluster has."""
    most = execution.max_devices
    if execution.concurrent_trials:
        devices = execution.concurrent_trials * execution.workers
    else:
        devices = devices_there(execution)
    return devices if most is None else min(devices, most)
