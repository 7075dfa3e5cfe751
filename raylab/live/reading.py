"""Reading what a grid tells of itself, again and again: only what is new is read.

Where every run stands is in the first and the last line of each of its sessions. A curve is read when somebody
looks at it, so that a laboratory of a thousand long runs is shown at once and in bounded memory.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TypeVar

from raylab.live.curves import Curve
from raylab.live.facts import DRIVER, EVENTS, PLAN, RUNS, DriverState, Event, LivePlan, Point, read
from raylab.live.history import History
from raylab.storage.store import Store

T = TypeVar("T")
_MOST_EVENTS = 2_000
_MOST_RUNS = 5_000
_MOST_CURVES = 64
_MOST_SESSIONS = 100  # of commands, whose history is known
# Points of a curve that are checked field by field; neighbours of a longer one are one.
_MOST_READ = 2_000


class Parts:
    """The numbered parts of a folder, as they grow: lines of text.

    A last line that is not whole JSON is left, since it may be whole the next time.
    """

    def __init__(self, store: Store, folder: str):
        self.store, self.folder = store, folder
        self.consumed: dict[str, int] = {}
        self.closed: set[str] = set()

    def fresh(self) -> Iterator[tuple[str, str]]:
        """(session, line) of everything that came since the last call, in order."""
        names = part_names(self.store, self.folder)
        for place, name in enumerate(names):
            if name in self.closed:
                continue
            last = place == len(names) - 1
            lines = part_lines(self.store, f"{self.folder}/{name}")
            if lines is None:
                continue
            if last and lines and not _is_json(lines[-1]):
                del lines[-1]
            for line in lines[self.consumed.get(name, 0) :]:
                yield name.rpartition("-")[0], line
            self.consumed[name] = len(lines)
            if not last:  # a session's parts are in order, and a newer one has taken its place
                self.closed.add(name)
                del self.consumed[name]


class RunFacts:
    """Where a run stands.

    Attributes:
        latest: its last point.
        lost_flops: that were done again after restarts.
        began_at: Unix time of the first point of the last session.
    """

    def __init__(self, store: Store, run: str):
        self.store, self.folder = store, f"{RUNS}/{run}"
        self.latest: Point | None = None
        self.lost_flops = self.began_at = 0.0
        self.sessions: list[str] = []

    @property
    def restarts(self) -> int:
        """How often the run's workers were started again."""
        return max(0, len(self.sessions) - 1)

    @property
    def share(self) -> float:
        """Of its steps, 0 to 1."""
        if self.latest is None:
            return 0.0
        return min(self.latest.step / max(self.latest.steps, 1), 1.0)

    def refresh(self) -> None:
        """Look at the last part, and at the ends of sessions that are new."""
        by_session: dict[str, list[str]] = {}
        for name in part_names(self.store, self.folder):
            by_session.setdefault(name.rpartition("-")[0], []).append(name)
        for session, names in by_session.items():
            if session in self.sessions[:-1]:
                continue
            before = self.latest
            if session not in self.sessions:
                if before is not None and session < self.sessions[-1]:
                    continue
                first = self._point(names[0], first=True)
                if first is None:
                    continue
                if before is not None and is_another(before, first):
                    self.sessions, self.lost_flops, before = [], 0.0, None
                self.sessions.append(session)
                self.began_at = first.at
                if before is not None:
                    self.lost_flops += max(0.0, before.flops - first.flops)
            self.latest = self._point(names[-1], first=False) or before

    def _point(self, name: str, first: bool) -> Point | None:
        lines = part_lines(self.store, f"{self.folder}/{name}") or []
        for line in lines if first else reversed(lines):
            if (point := parsed(Point, line)) is not None:
                return point
        return None


class CurveFacts:
    """The curve of a run, read as far as it goes.

    Attributes:
        torn: lines that are no points.
    """

    def __init__(self, store: Store, run: str):
        self.parts, self.curve, self.torn = Parts(store, f"{RUNS}/{run}"), Curve(), 0

    def refresh(self) -> None:
        """Read what is new; of very much, neighbours become one point with the mean of their losses."""
        lines = list(self.parts.fresh())
        width = -(-len(lines) // _MOST_READ)
        start = 0
        for place, (session, line) in enumerate(lines):
            whole = place + 1 - start >= width or place + 1 == len(lines)
            if not (whole or lines[place + 1][0] != session or _is_measured(line)):
                continue
            self._add(session, [text for _, text in lines[start : place + 1]])
            start = place + 1

    def _add(self, session: str, lines: list[str]) -> None:
        points = [parsed(Point, lines[-1])]
        if points[0] is None and len(lines) > 1:
            points = [parsed(Point, line) for line in reversed(lines)]
        good = next((point for point in points if point is not None), None)
        self.torn += points.count(None)
        if good is None:
            return
        if len(lines) > 1:
            losses = [loss for line in lines if (loss := _loss(line)) is not None]
            good = dataclasses.replace(good, loss=sum(losses) / len(losses))
        self.curve.add(session, good)


class LiveFacts:
    """All facts of a storage; `lock` is held while they change, and by who reads several of them.

    Attributes:
        torn: lines and files that could not be read.
    """

    def __init__(self, store: Store):
        self.store = store
        self.lock = threading.RLock()
        self.plan: LivePlan | None = None
        self.driver: DriverState | None = None
        self.events: deque[tuple[str, Event]] = deque(maxlen=_MOST_EVENTS)
        self.runs: dict[str, RunFacts] = {}
        self.all_history = History()
        self._histories: OrderedDict[str, History] = OrderedDict()
        self._curves: OrderedDict[str, CurveFacts] = OrderedDict()
        self._of_events = Parts(store, EVENTS)
        self._torn_events = 0
        self._bad_files: set[str] = set()
        self._ending: set[str] = set()
        self._ended: set[str] = set()

    @property
    def torn(self) -> int:
        return (
            len(self._bad_files)
            + self._torn_events
            + sum(one.torn for one in self._curves.values())
        )

    def history(self, session: str) -> History:
        """Of one command."""
        return self._histories.get(session, History())

    def refresh(self) -> None:
        """Read what is new, but for curves.

        Raises:
            StorageError, OSError: the storage cannot be reached.
        """
        with self.lock:
            self.plan = self._whole(PLAN, LivePlan) or self.plan
            self.driver = self._whole(DRIVER, DriverState) or self.driver
            ended = self._new_events()
            for run in self.store.files.names(RUNS)[:_MOST_RUNS]:
                if run not in self._ended:
                    self.runs.setdefault(run, RunFacts(self.store, run)).refresh()
            # What a run told last may come after its end was told: it is read once more.
            self._ended |= self._ending
            self._ending = ended

    def curve(self, run: str) -> Curve | None:
        """The curve of a run, read as far as it goes; None: no such run, or it told nothing.

        Raises:
            StorageError, OSError: the storage cannot be reached.
        """
        with self.lock:
            if run not in self.runs or self.runs[run].latest is None:
                return None
            found = self._curves.setdefault(run, CurveFacts(self.store, run))
            self._curves.move_to_end(run)
            while len(self._curves) > _MOST_CURVES:
                self._curves.popitem(last=False)
            found.refresh()
            return found.curve

    def _new_events(self) -> set[str]:
        """Takes them in; returns the runs that ended."""
        ended = set()
        for session, line in self._of_events.fresh():
            event = parsed(Event, line)
            if event is None:
                self._torn_events += 1
                continue
            self.events.append((session, event))
            self.all_history.add(event)
            self._histories.setdefault(session, History()).add(event)
            while len(self._histories) > _MOST_SESSIONS:
                self._histories.popitem(last=False)
            if event.kind == "start":
                self._ended.discard(event.name)
                ended.discard(event.name)
            elif event.kind in ("end", "died"):
                ended.add(event.name)
        return ended

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


def is_another(before: Point, first: Point) -> bool:
    """Whether a session's first point is of another budget under the same name: nothing of it was done before."""
    return first.step <= 1 and first.steps != before.steps


def part_names(store: Store, folder: str) -> list[str]:
    """Of a folder's parts, in order."""
    return [name for name in store.files.names(folder) if name.endswith(".jsonl")]


def part_lines(store: Store, path: str) -> list[str] | None:
    """Of a part; None: it is not there any more."""
    try:
        return store.files.read(path).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None


def parsed(kind: type[T], line: str) -> T | None:
    """The fact of a line; None: it is no such fact."""
    try:
        return read(kind, json.loads(line))
    except (ValueError, RecursionError):
        return None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_measured(line: str) -> bool:
    """Whether a held-out point was measured there, which must not vanish among its neighbours."""
    return '"held_out": null' not in line and '"held_out"' in line


def _loss(line: str) -> float | None:
    try:
        loss = json.loads(line)["loss"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return float(loss) if isinstance(loss, int | float) and abs(loss) < 1e300 else None
