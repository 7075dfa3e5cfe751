"""Feeds loggers from a storage: what runs told, how they were set up, what was measured, and the report's files.

A point is told once: only those after the last step that a logger has. A run that was started again tells the
same steps again, which are left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from raylab.live.facts import EVENTS, PLAN, RUNS, Event, LivePlan, PlannedCell, Point, read
from raylab.live.reading import Parts, is_another, parsed
from raylab.live.results import Results
from raylab.live.sinks.sink import LoggedRun, Sink
from raylab.report.rows import TRAINED
from raylab.stages.stage import read_list
from raylab.stages.train import RETRIEVER, jobs_name
from raylab.storage.artifacts import Artifact, DamagedArtifact, path_of
from raylab.storage.store import Store
from raylab.storage.tables import CURVES, LEDGER, RESULTS

log = logging.getLogger("raylab")
_EVERY_S = 10.0
_POINTS_AT_ONCE = 500
_SAME_BUDGET = 0.05  # of the steps: a run may end before the last one that was planned
LABORATORY = LoggedRun("laboratory", "laboratory")  # what belongs to no run
_OF_CELL = ("size", "head", "objective", "seed", "variant", "planned_flops", "steps", "parameters")


@contextlib.contextmanager
def told(store: Store, sinks: Mapping[str, Sink]) -> Iterator[None]:
    """Feed the loggers in a thread while the block runs, and with all that there is when it has ended.

    A logger that fails is one warning: `raylab log` tells it the rest.
    """
    if not sinks:
        yield
        return
    stop = threading.Event()
    began = f"{time.time() * 1000:015.0f}"  # as sessions are named
    feeds = {name: Feed(store, sink, began) for name, sink in sinks.items()}
    warned: set[str] = set()

    def feed(last: bool) -> None:
        for name, one in feeds.items():
            try:
                one.finish() if last else one.refresh()
            except Exception as fault:  # training must not end by it
                if name not in warned:
                    warned.add(name)
                    text = " ".join(str(fault).split())[:300]
                    log.warning("%s is not told everything: %s", name, text)

    def serve() -> None:
        while not stop.wait(_EVERY_S):
            feed(last=False)

    thread = threading.Thread(target=serve, name="loggers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        feed(last=True)


class Feed:
    """What one logger is told of a storage.

    Args:
        since: session before which a plan is not that of the command which runs: runs wait until it is there.
    """

    def __init__(self, store: Store, sink: Sink, since: str = ""):
        self.store, self.sink, self.since = store, sink, since
        self.plan: LivePlan | None = None
        self.results = Results(store)
        self.curves: dict[str, CurveOfRun] = {}  # by the name of a run
        self.ended: set[tuple[str, str]] = set()  # session and run
        self.made: dict[str, str] = {}  # path of a cell's artifact, by the name of its run
        self.paths: dict[str, str] = {}  # of what a run made, or will make, by its key
        self.steps: dict[str, int] = {}  # the last that was told, by key
        self.open: dict[str, LoggedRun] = {}
        self.configured: set[str] = set()
        self.identified: set[str] = set()
        self.measured: dict[str, tuple[LoggedRun, dict[str, float], int]] = {}
        self.unmeasured: set[str] = set()  # keys whose measures are to be told
        self._events = Parts(store, EVENTS)

    def refresh(self) -> None:
        """Tell what is new.

        Raises:
            Whatever the logger or the storage does.
        """
        self._look()
        if self.plan is not None and self.plan.session >= self.since:
            for run in self.store.files.names(RUNS):
                curve = self.curves.setdefault(run, CurveOfRun(self.store, run))
                if not curve.over:
                    over = self._is_over(run)  # what it told last may come after its end was told
                    self._tell_points(run, curve)
                    curve.over, curve.ending = curve.ending and over, over
        for key in sorted(self.unmeasured):
            self._tell_measures(key)

    def finish(self) -> None:
        """Tell the rest, and the files of the report; end every run of the logger's.

        Raises:
            As `refresh`.
        """
        self.since = ""
        try:
            self.refresh()
            for run in list(self.open.values()):
                self._describe(run)
            for name, data in report_files(self.store):
                self.open.setdefault(LABORATORY.key, LABORATORY)
                self.sink.file(LABORATORY, name, data)
            for run in self.open.values():
                self.sink.end(run)
        finally:
            self.sink.close()

    # ------------------------------------------------------------------------------- what there is

    def _look(self) -> None:
        files = self.store.files
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.plan = read(LivePlan, json.loads(files.read(PLAN)))
        with contextlib.suppress(FileNotFoundError, DamagedArtifact):
            for row in read_list(self.store):
                if row["kind"] == "fine-tune":
                    self.made[row["name"]] = row["path"]
                elif row["kind"] == "adapt":
                    self.paths[jobs_name(row["path"])] = row["path"]
        for session, line in self._events.fresh():
            event = parsed(Event, line)
            if event is not None and event.kind in ("end", "died"):
                self.ended.add((session, event.name))
            elif event is not None and event.kind == "start":
                self.ended.discard((session, event.name))
        before = self.results.version
        self.results.refresh()
        if self.results.version != before:
            self._group_measures()

    def _group_measures(self) -> None:
        grouped: dict[str, tuple[LoggedRun, dict[str, float], int]] = {}
        for row in self.results.rows:
            if row.value is None or not math.isfinite(row.value):
                continue
            name = f"{row.collection}/{row.split}/{row.measure}"
            if row.kind == TRAINED and row.fingerprint:
                cell = f"{row.system}-seed{row.seed}"
                run = self._run(cell, path_of(RETRIEVER, cell, row.fingerprint))
            else:
                run, name = LABORATORY, f"{row.system}/{name}"
            values = grouped.setdefault(run.key, (run, {}, row.steps or 0))[1]
            values[name] = row.value
            if run is not LABORATORY and row.spent_flops is not None:
                values |= {"spent_flops": row.spent_flops, "seconds": row.seconds or 0.0}
        for key, values in grouped.items():
            if self.measured.get(key) != values:
                self.measured[key] = values
                self.unmeasured.add(key)

    # ------------------------------------------------------------------------------- what is told

    def _tell_points(self, run: str, curve: CurveOfRun) -> None:
        curve.refresh()
        if not self._is_of_plan(run, curve):
            return
        waiting, curve.waiting = curve.waiting, []
        by_target: dict[LoggedRun, list[Point]] = defaultdict(list)
        for point in waiting:
            by_target[self._target(run, point)].append(point)
        for target in [t for t, points in by_target.items() if self._is_other(t, points[-1])]:
            del by_target[target]
        for target, points in by_target.items():
            self._describe(target, self._cell(run, points[-1]))
            last = self.steps.setdefault(target.key, self.sink.last_step(target))
            fresh = []
            for point in points:  # a run that began again at a checkpoint goes back
                if point.step > last:
                    fresh.append(point)
                    last = point.step
            for start in range(0, len(fresh), _POINTS_AT_ONCE):
                batch = fresh[start : start + _POINTS_AT_ONCE]
                self.sink.points(target, batch)
                self.steps[target.key] = batch[-1].step

    def _is_over(self, run: str) -> bool:
        assert self.plan is not None
        planned = run in {one.run for one in self.plan.runs}
        return not planned or (self.plan.session, run) in self.ended

    def _is_of_plan(self, run: str, curve: CurveOfRun) -> bool:
        """False: what it told is of an earlier command, and may be of another budget under the same name."""
        plan = self.plan
        return self._is_over(run) or (plan is not None and curve.session > plan.session)

    def _cell(self, run: str, point: Point) -> PlannedCell | None:
        """The cell that a point is of, of those that one run makes: they differ in their steps."""
        cells = [cell for cell in (self.plan.cells if self.plan else ()) if cell.run == run]
        return min(cells, key=lambda cell: abs(cell.steps - point.steps), default=None)

    def _target(self, run: str, point: Point) -> LoggedRun:
        cell = self._cell(run, point)
        name = run if cell is None else cell.cell
        return LoggedRun(name, name) if name not in self.made else self._run(name, self.made[name])

    def _run(self, name: str, path: str) -> LoggedRun:
        """The run that makes the artifact at a path."""
        run = LoggedRun(name, path.rpartition("/")[2])
        self.paths[run.key] = path
        return run

    def _is_other(self, run: LoggedRun, point: Point) -> bool:
        """Whether it is of another budget than what stands there under that name."""
        artifact = self._artifact(run)
        steps = artifact.meta.get("steps") if artifact is not None else None
        return bool(steps) and abs(point.steps / steps - 1) > _SAME_BUDGET

    def _tell_measures(self, key: str) -> None:
        run, values, step = self.measured[key]
        cells = self.plan.cells if self.plan else ()
        self._describe(run, next((cell for cell in cells if cell.cell == run.name), None))
        self.sink.measures(run, values, step)
        self.unmeasured.discard(key)

    def _describe(self, run: LoggedRun, cell: PlannedCell | None = None) -> None:
        """Tell how it was set up: what the plan says, and all that makes its fingerprint once it is there."""
        self.open.setdefault(run.key, run)
        if run.key not in self.configured:
            self.configured.add(run.key)
            facts: dict[str, Any] = {"storage": self.store.uri}
            if self.plan is not None:
                facts["collection"] = self.plan.collection
            if cell is not None:
                facts |= {name: getattr(cell, name) for name in _OF_CELL}
            self.sink.config(run, facts)
        if run.key not in self.identified and (artifact := self._artifact(run)) is not None:
            self.identified.add(run.key)
            manifest = artifact.manifest
            identity = flat(manifest["identity"]) if isinstance(manifest["identity"], dict) else {}
            identity |= {f"input.{name}": value for name, value in manifest["inputs"].items()}
            self.sink.config(run, {"artifact.fingerprint": artifact.fingerprint, **identity})

    def _artifact(self, run: LoggedRun) -> Artifact | None:
        """What the run made; None: nothing yet, or nobody tells where it stands."""
        if run.key not in self.paths:
            return None
        stage, _, home = self.paths[run.key].partition("/")
        name, _, fingerprint = home.rpartition("-")
        try:
            return self.store.known(stage, name, fingerprint)
        except DamagedArtifact:
            return None


class CurveOfRun:
    """The points of a run that are to be told.

    Attributes:
        session: of the last one.
        ending, over: it has ended, and was read once, or twice, since.
    """

    def __init__(self, store: Store, run: str):
        self.parts = Parts(store, f"{RUNS}/{run}")
        self.session, self.ending, self.over = "", False, False
        self.latest: Point | None = None
        self.waiting: list[Point] = []

    def refresh(self) -> None:
        """Read what is new."""
        for session, line in self.parts.fresh():
            point = parsed(Point, line)
            if point is None:
                continue
            before = self.latest
            if session != self.session and before is not None and is_another(before, point):
                self.waiting.clear()
            self.session, self.latest = session, point
            self.waiting.append(point)


def report_files(store: Store) -> Iterator[tuple[str, bytes]]:
    """Tables and figures: name and content."""
    for name in store.files.names("report"):
        if name != "shown.json":
            yield f"report/{name}", store.files.read(f"report/{name}")
    for name in (RESULTS, LEDGER, CURVES):
        with contextlib.suppress(FileNotFoundError):
            yield name, store.files.read(name)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by names with dots between them; lists as JSON."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return found
