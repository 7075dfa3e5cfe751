"""Laboratories as they stand in a storage: a running one, a dead one, a finished one."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from raylab.live import facts
from raylab.live.facts import DriverState, Event, LivePlan, PlannedCell, PlannedRun, Point, record
from raylab.live.logs import planned_runs
from raylab.planning.scheduling import Item
from raylab.storage.store import Store

ROOT = Path(__file__).resolve().parents[2]
SESSION = "001795921205299-000653425f256"
RUNNING, WAITING, DONE = "sparse-small-cl-seed0", "dense-small-kd-seed0", "dense-small-cl-seed0"
NAMES = (DONE, RUNNING, WAITING)
FLOPS = 1e12


class Recorded:
    """Writes facts as a driver and its workers would, at the times it is told."""

    def __init__(self, root: Path, names: tuple[str, ...] = NAMES):
        self.store = Store(str(root))
        self.names = names
        self.parts: dict[str, list[str]] = {}

    def driver(self, at: float, state: str = "running", text: str = "", began: float = 100) -> None:
        told = DriverState(SESSION, at - began, at, state, "train", 1, 4, text)  # type: ignore[arg-type]
        self.store.put_text(facts.DRIVER, json.dumps(record(told)))

    def plan(self, at: float, more: tuple[PlannedCell, ...] = ()) -> None:
        cells = (*(self._cell(name) for name in self.names), *more)
        items = [Item("mntp-small", "adapt", 30.0)]
        items += [Item(name, "train", 120.0, 1, ("mntp-small",)) for name in self.names]
        runs: tuple[PlannedRun, ...] = planned_runs(items, 2)
        plan = LivePlan(SESSION, at, "scifact", cells, runs, 2, "cpu-core", 20.0)
        self.store.put_text(facts.PLAN, json.dumps(record(plan)))

    @staticmethod
    def _cell(name: str) -> PlannedCell:
        head, size, objective = (
            name.split("-")[:3] if name.count("-") > 1 else ("sparse", "small", "cl")
        )
        return PlannedCell(name, name, size, head, objective, 0, "", FLOPS, 100, 92_448)

    def event(self, at: float, kind: str, name: str, text: str = "") -> None:
        self._add(f"{facts.EVENTS}/{SESSION}-000000.jsonl", record(Event(at, kind, name, text)))

    def point(self, run: str, at: float, step: int, session: str = SESSION) -> None:
        point = Point(
            at, step, 100, FLOPS * step / 100, 4 / step**0.5, 1e-3, 1e4 * step, 1e4, step, 2**30
        )
        self._add(f"{facts.RUNS}/{run}/{session}-000000.jsonl", record(point))

    def _add(self, path: str, line: dict) -> None:
        lines = self.parts.setdefault(path, [])
        lines.append(json.dumps(line))
        self.store.put_text(path, "\n".join(lines) + "\n")


def half_way(root: Path, now: float, names: tuple[str, ...] = NAMES) -> Recorded:
    """One cell is done, one is at 40 of 100 steps, one waits."""
    recorded = Recorded(root, names)
    recorded.driver(now)
    recorded.plan(now - 200)
    for run, began, ended in (("mntp-small", 200, 170), (names[0], 170, 50), (names[1], 170, None)):
        recorded.event(now - began, "start", run)
        if ended is not None:
            recorded.event(now - ended, "end", run)
    for step in range(1, 41):
        recorded.point(names[1], now - 150 + step, step)
    for step in range(1, 101, 3):
        recorded.point(names[0], now - 150 + step, step)
    return recorded


@pytest.fixture
def running(tmp_path) -> Recorded:
    return half_way(tmp_path / "lab", time.time())


@pytest.fixture
def finished(tmp_path) -> Path:
    """Tables and report of a real experiment, from before laboratories told of themselves."""
    return Path(shutil.copytree(ROOT / "docs/results/seeds", tmp_path / "finished"))
