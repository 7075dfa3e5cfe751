"""Reading what a grid tells of itself, again and again: only what is new is read."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from raylab.live.curves import Curve
from raylab.live.facts import DRIVER, EVENTS, PLAN, RUNS, DriverState, Event, LivePlan, Point, read
from raylab.storage.store import Store

T = TypeVar("T")
_MOST_EVENTS = 5_000
_MOST_RUNS = 5_000


class Parts(Generic[T]):
    """The numbered parts of a folder, as they grow.

    `torn`: lines that are no such fact, which are passed over.
    """

    def __init__(self, store: Store, folder: str, kind: type[T]):
        self.store, self.folder, self.kind = store, folder, kind
        self.consumed: dict[str, int] = {}
        self.closed: set[str] = set()
        self.torn = 0

    def fresh(self) -> Iterator[tuple[str, T]]:
        """(session, fact) of everything that came since the last call, in order."""
        names = [n for n in self.store.files.names(self.folder) if n.endswith(".jsonl")]
        for place, name in enumerate(names):
            if name in self.closed:
                continue
            last = place == len(names) - 1
            try:
                data = self.store.files.read(f"{self.folder}/{name}")
            except FileNotFoundError:
                continue
            yield from self._new_lines(name, data.decode(errors="replace").splitlines(), last)
            if not last:  # a session's parts are in order, and a newer one has taken its place
                self.closed.add(name)
                self.consumed.pop(name, None)

    def _new_lines(self, name: str, lines: list[str], last: bool) -> Iterator[tuple[str, T]]:
        session = name.rpartition("-")[0]
        for number in range(self.consumed.get(name, 0), len(lines)):
            try:
                fact = read(self.kind, json.loads(lines[number]))
            except (ValueError, RecursionError):
                if last and number == len(lines) - 1:
                    return  # it may be whole the next time
                self.torn += 1
            else:
                yield session, fact
            self.consumed[name] = number + 1


class LiveFacts:
    """All facts of a storage.

    Attributes:
        torn: lines and files that could not be read.
    """

    def __init__(self, store: Store):
        self.store = store
        self.plan: LivePlan | None = None
        self.driver: DriverState | None = None
        self.events: deque[tuple[str, Event]] = deque(maxlen=_MOST_EVENTS)
        self.curves: dict[str, Curve] = {}
        self._of_events = Parts(store, EVENTS, Event)
        self._of_runs: dict[str, Parts[Point]] = {}
        self._bad_files: set[str] = set()
        self._ending: set[str] = set()
        self._ended: set[str] = set()

    @property
    def torn(self) -> int:
        parts = (self._of_events, *self._of_runs.values())
        return len(self._bad_files) + sum(one.torn for one in parts)

    def refresh(self) -> None:
        """Read what is new.

        Raises:
            StorageError, OSError: the storage cannot be reached.
        """
        self.plan = self._whole(PLAN, LivePlan) or self.plan
        self.driver = self._whole(DRIVER, DriverState) or self.driver
        ended = set()
        for session, event in self._of_events.fresh():
            self.events.append((session, event))
            if event.kind == "start":
                self._ended.discard(event.name)
            elif event.kind in ("end", "died"):
                ended.add(event.name)
        for run in self.store.files.names(RUNS)[:_MOST_RUNS]:
            if run in self._ended:
                continue
            parts = self._of_runs.setdefault(run, Parts(self.store, f"{RUNS}/{run}", Point))
            for session, point in parts.fresh():
                self.curves.setdefault(run, Curve()).add(session, point)
        # What a run told last may come after its end was told: it is read once more.
        self._ended |= self._ending
        self._ending = ended

    def _whole(self, path: str, kind: type[T]) -> T | None:
        try:
            fact = read(kind, json.loads(self.store.files.read(path)))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            self._bad_files.add(path)
            return None
        self._bad_files.discard(path)
        return fact
