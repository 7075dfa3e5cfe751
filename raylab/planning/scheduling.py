"""Which run starts next: the one that most work waits for, where devices are free; and how long all runs take.

A grid is a set of items: the MNTP of a backbone, then the runs that start from it, then the encoding of
what they made. `Queue` decides, both for the driver while a grid runs and for `simulate`, which uses
predicted durations. Nothing here knows Ray.

    priority     seconds of the longest chain that begins with an item (critical path): so the MNTP of the
                 size whose cells take longest goes first, and a size's MNTP never holds the grid back
    packing      an item starts when as many devices as it has workers are free, on whatever nodes
    backfill     where the first item in line does not fit, later ones may start that end before the
                 devices it waits for are free (EASY backfilling)
    filling      encoding, cut into shards of one device each, takes what is left and waits for nobody
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["adapt", "train", "encode"]


@dataclass(frozen=True)
class Item:
    """Something to run: predicted seconds on so many devices, once all of `after` is done."""

    name: str
    kind: Kind
    seconds: float
    devices: int = 1
    after: tuple[str, ...] = ()


class Queue:
    """What waits, what runs, and what starts next.

    Raises:
        ValueError: names that are not distinct, or an item that waits for an unknown one or itself.
    """

    def __init__(self, items: Sequence[Item]):
        self.items = {item.name: item for item in items}
        if len(self.items) != len(items):
            raise ValueError("items of one name")
        self.ranks = _longest_chains(items)
        self.left = {item.name: set(item.after) for item in items}
        self.dependents: dict[str, list[str]] = {}
        for item in items:
            for name in item.after:
                self.dependents.setdefault(name, []).append(item.name)
        self.ready: list[tuple[bool, float, str]] = []
        for item in items:
            if not item.after:
                self._make_ready(item.name)
        self.running: dict[str, float] = {}  # predicted end by name

    def _make_ready(self, name: str) -> None:
        item = self.items[name]
        heapq.heappush(self.ready, (item.kind == "encode", -self.ranks[name], name))

    @property
    def done(self) -> bool:
        return not self.running and not self.ready and not any(self.left.values())

    @property
    def busy(self) -> int:
        """Devices that running items hold."""
        return sum(self.items[name].devices for name in self.running)

    def start(self, free: int, now: float) -> list[Item]:
        """The items to start now, in order; they count as running from here on."""
        started: list[Item] = []
        passed: list[tuple[bool, float, str]] = []
        deadline, spare = float("inf"), free
        while self.ready and free > 0:
            entry = heapq.heappop(self.ready)
            item = self.items[entry[2]]
            short = now + item.seconds <= deadline
            if item.devices <= free and (short or item.devices <= spare):
                free -= item.devices
                spare -= 0 if short else item.devices
                self.running[item.name] = now + item.seconds
                started.append(item)
                continue
            passed.append(entry)
            if deadline == float("inf") and item.kind != "encode":
                deadline, spare = self._when(item.devices, free)
        for entry in passed:
            heapq.heappush(self.ready, entry)
        return started

    def _when(self, devices: int, free: int) -> tuple[float, int]:
        """(when so many devices will be free, how many more will be then)."""
        for end, name in sorted((end, name) for name, end in self.running.items()):
            free += self.items[name].devices
            if free >= devices:
                return end, free - devices
        return float("inf"), 0

    def resume(self, name: str, end: float) -> None:
        """An item that waits for nothing has started already, and is predicted to end then."""
        self.ready = [entry for entry in self.ready if entry[2] != name]
        heapq.heapify(self.ready)
        self.running[name] = end

    def finish(self, name: str) -> None:
        """The item is done: what waited for it may start."""
        del self.running[name]
        for other in self.dependents.get(name, ()):
            left = self.left.get(other)
            if left is not None:
                left.discard(name)
                if not left:
                    self._make_ready(other)

    def drop(self, name: str) -> None:
        """The item failed: whatever waits for it will not run."""
        del self.running[name]
        lost = [name]
        while lost:
            for other in self.dependents.get(lost.pop(), ()):
                if self.left.pop(other, None) is not None:
                    lost.append(other)


def _longest_chains(items: Iterable[Item]) -> dict[str, float]:
    """Seconds of the longest chain that begins with each item."""
    by_name = {item.name: item for item in items}
    waiting = dict.fromkeys(by_name, 0)  # how many wait for it
    for item in by_name.values():
        for name in item.after:
            if name not in by_name:
                raise ValueError(f"{item.name} waits for {name}, which is not there")
            waiting[name] += 1
    ranks = {name: item.seconds for name, item in by_name.items()}
    last = [name for name, count in waiting.items() if not count]
    seen = 0
    while last:
        item = by_name[last.pop()]
        seen += 1
        for name in item.after:
            ranks[name] = max(ranks[name], by_name[name].seconds + ranks[item.name])
            waiting[name] -= 1
            if not waiting[name]:
                last.append(name)
    if seen != len(by_name):
        raise ValueError("items that wait for each other")
    return ranks


@dataclass(frozen=True)
class Simulated:
    """What a schedule comes to."""

    makespan_s: float
    busy_device_s: float
    devices: int
    ends: dict[str, float]  # by item
    trained_s: float  # when the last run ended; what follows is encoding alone

    @property
    def utilisation(self) -> float:
        return self.busy_device_s / (self.makespan_s * self.devices) if self.makespan_s else 1.0


def simulate(
    items: Sequence[Item], devices: int, running: Collection[str] = frozenset()
) -> Simulated:
    """Run the queue against a clock that jumps from end to end.

    Args:
        running: items that have started already; they hold their devices from the start.

    Raises:
        ValueError: an item needs more devices than there are.
    """
    largest = max(items, key=lambda item: item.devices)
    if largest.devices > devices:
        raise ValueError(f"{largest.name} needs {largest.devices} devices, and there are {devices}")
    queue, now, busy = Queue(items), 0.0, 0.0
    events: list[tuple[float, str]] = []
    for item in items:
        if item.name in running:
            queue.resume(item.name, item.seconds)
            events.append((item.seconds, item.name))
            busy += item.seconds * item.devices
    heapq.heapify(events)
    ends: dict[str, float] = {}
    while not queue.done:
        for item in queue.start(devices - queue.busy, now):
            heapq.heappush(events, (now + item.seconds, item.name))
            busy += item.seconds * item.devices
        now, name = heapq.heappop(events)
        queue.finish(name)
        ends[name] = now
    trained = [end for name, end in ends.items() if queue.items[name].kind != "encode"]
    return Simulated(now, busy, devices, ends, max(trained, default=0.0))
