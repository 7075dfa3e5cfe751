"""What the page shows, from the facts: one typed answer, made anew each time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from raylab.live.facts import Event, LivePlan, PlannedCell
from raylab.live.reading import LiveFacts
from raylab.planning.remaining import Remaining, Standing, remaining
from raylab.planning.scheduling import Item

SILENT_S = 60.0  # a driver tells that it is alive every 5 s
_MOST_LISTED = 100

RunPhase = Literal["waiting", "running", "stopped", "done", "failed"]
CellPhase = Literal["waiting", "running", "stopped", "done", "failed", "left out"]


@dataclass(frozen=True)
class DriverView:
    """How the driver is: `silent` since `at` where it told nothing for `SILENT_S`; `unknown`: nothing was told."""

    state: Literal["running", "silent", "ended", "failed", "unknown"]
    at: float | None  # Unix time, s, of what was told last
    began: float | None
    stage: str
    done: int
    total: int
    text: str


@dataclass(frozen=True)
class CellView:
    """A cell of the matrix."""

    cell: str
    run: str
    size: str
    head: str
    objective: str
    seed: int
    variant: str
    state: CellPhase
    share: float  # of its budget, 0 to 1
    planned_flops: float | None
    spent_flops: float | None
    left_s: float | None  # of its own run
    loss: float | None
    quality: str | None  # measured, such as nDCG@10 0.516


@dataclass(frozen=True)
class RunView:
    """A training run."""

    run: str
    kind: Literal["adapt", "train"]
    state: RunPhase
    step: int
    steps: int
    share: float
    flops: float
    loss: float | None
    learning_rate: float | None
    tokens_per_s: float | None
    peak_bytes: int | None
    restarts: int
    lost_flops: float
    left_s: float | None
    points: int  # number that the next point of its curve gets


@dataclass(frozen=True)
class State:
    """A laboratory at one moment."""

    storage: str
    collection: str
    driver: DriverView
    cells: tuple[CellView, ...]
    runs: tuple[RunView, ...]
    planned_flops: float
    spent_flops: float
    lost_flops: float
    left_s: float | None  # of training
    faults: tuple[Event, ...]
    events: tuple[Event, ...]
    torn: int  # lines that could not be read
    rows: int  # of the results table
    chart: str | None  # changes with the results
    report: bool


@dataclass(frozen=True)
class Measured:
    """What the tables know of a trained cell."""

    size: str
    head: str
    objective: str
    seed: int
    variant: str
    spent_flops: float | None
    quality: str | None


def state_of(
    facts: LiveFacts,
    now: float,
    storage: str,
    measured: dict[str, Measured],
    rows: int = 0,
    chart: str | None = None,
    report: bool = False,
) -> State:
    """The state, from the facts and from what was measured, by a cell's name in the tables (its run's name)."""
    driver = _driver(facts, now)
    plan = facts.plan
    began, ended, failed = _of_runs(facts, plan)
    alive = driver.state == "running"
    left = _left(plan, facts, began, ended | failed, now) if alive and plan is not None else None
    phases: dict[str, RunPhase] = {
        run: _phase(run, began, set(ended), set(failed), alive)
        for run in {*facts.curves, *(one.run for one in (plan.runs if plan else ()))}
    }
    runs = tuple(_run(run, phases[run], facts, left) for run in sorted(phases))
    cells = _cells(plan, phases, facts, measured, left)
    sent = [event for _, event in facts.events]
    restarts = [
        Event(curve.latest.at, "note", run, f"workers were started again {curve.restarts} time(s)")
        for run, curve in sorted(facts.curves.items())
        if curve.restarts and curve.latest is not None
    ]
    faults = [e for e in sent if e.kind == "died" or (e.kind == "note" and "WARNING" in e.text)]
    adapted = sum(run.flops for run in runs if run.kind == "adapt")
    return State(
        storage,
        plan.collection if plan else "",
        driver,
        cells,
        runs,
        sum(cell.planned_flops or 0.0 for cell in cells if cell.state != "left out"),
        sum(cell.spent_flops or 0.0 for cell in cells) + adapted,
        sum(curve.lost_flops for curve in facts.curves.values()),
        left.total_s if left else None,
        tuple((faults + restarts)[-_MOST_LISTED:]),
        tuple(sent[-_MOST_LISTED:]),
        facts.torn,
        rows,
        chart,
        report,
    )


def _driver(facts: LiveFacts, now: float) -> DriverView:
    told = facts.driver
    if told is None:
        return DriverView("unknown", None, None, "", 0, 0, "")
    silent = told.state == "running" and now - told.at > SILENT_S
    where = told.at, told.began, told.stage, told.done, told.total, told.text
    return DriverView("silent" if silent else told.state, *where)


def _of_runs(
    facts: LiveFacts, plan: LivePlan | None
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """When each run of the plan's session started, ended and failed."""
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    failed: dict[str, float] = {}
    into = {"start": began, "end": ended, "died": failed}
    for session, event in facts.events:
        if (plan is None or session == plan.session) and event.kind in into:
            into[event.kind][event.name] = event.at
    return began, ended, failed


def _left(
    plan: LivePlan,
    facts: LiveFacts,
    began: dict[str, float],
    ended: dict[str, float],
    now: float,
) -> Remaining:
    items = [Item(one.run, one.kind, one.seconds, one.devices, one.after) for one in plan.runs]
    standing = {}
    for run, at in began.items():
        curve = facts.curves.get(run)
        share = curve.share if curve is not None else 0.0
        over = run in ended
        elapsed_s = max(0.0, (ended[run] if over else now) - at)
        standing[run] = Standing(elapsed_s, 1.0 if over else share, over)
    return remaining(items, standing, plan.devices, plan.overhead_s)


def _phase(
    run: str, began: Iterable[str], ended: set[str], failed: set[str], alive: bool
) -> RunPhase:
    if run in failed:
        return "failed"
    if run in ended:
        return "done"
    if run in began:
        return "running" if alive else "stopped"
    return "waiting" if alive else "stopped"


def _run(run: str, phase: RunPhase, facts: LiveFacts, left: Remaining | None) -> RunView:
    curve = facts.curves.get(run)
    point = curve.latest if curve is not None else None
    kind: Literal["adapt", "train"] = "adapt" if run.startswith("mntp-") else "train"
    return RunView(
        run,
        kind,
        phase,
        point.step if point else 0,
        point.steps if point else 0,
        1.0 if phase == "done" else curve.share if curve else 0.0,
        point.flops if point else 0.0,
        point.loss if point else None,
        point.learning_rate if point else None,
        point.tokens_per_s if point else None,
        point.peak_bytes if point else None,
        curve.restarts if curve else 0,
        curve.lost_flops if curve else 0.0,
        left.runs.get(run) if left and phase in ("waiting", "running") else None,
        curve.added if curve else 0,
    )


def _cells(
    plan: LivePlan | None,
    phases: dict[str, RunPhase],
    facts: LiveFacts,
    measured: dict[str, Measured],
    left: Remaining | None,
) -> tuple[CellView, ...]:
    planned = plan.cells if plan else ()
    views = [
        _cell(cell, phases.get(cell.run), facts, measured.get(cell.cell), left) for cell in planned
    ]
    known = {cell.cell for cell in planned}
    for name, one in measured.items():  # of experiments before the plan's
        if name not in known:
            about = one.size, one.head, one.objective, one.seed, one.variant
            spent = one.spent_flops
            views.append(
                CellView(name, name, *about, "done", 1.0, spent, spent, None, None, one.quality)
            )
    return tuple(views)


def _is_its_own(measured: Measured | None, cell: PlannedCell) -> bool:
    """Whether what was measured is of this budget, and not of an earlier one under the same name."""
    spent = measured.spent_flops if measured else None
    return spent is not None and abs(spent / cell.planned_flops - 1) < 0.05


def _cell(
    cell: PlannedCell,
    phase: RunPhase | None,
    facts: LiveFacts,
    measured: Measured | None,
    left: Remaining | None,
) -> CellView:
    state: CellPhase = phase or "waiting"
    if cell.state == "left out":
        state = "left out"
    elif cell.state == "done" or (state == "stopped" and _is_its_own(measured, cell)):
        state = "done"
    curve = facts.curves.get(cell.run)
    point = curve.latest if curve is not None else None
    spent = min(point.flops, cell.planned_flops * 1.02) if point else 0.0
    if state == "done":
        spent = measured.spent_flops if measured and measured.spent_flops else cell.planned_flops
    share = 1.0 if state == "done" else min(spent / cell.planned_flops, 1.0)
    going = left is not None and state in ("waiting", "running")
    return CellView(
        cell.cell,
        cell.run,
        cell.size,
        cell.head,
        cell.objective,
        cell.seed,
        cell.variant,
        state,
        share,
        cell.planned_flops,
        spent,
        left.runs.get(cell.run) if going and left else None,
        point.loss if point else None,
        measured.quality if measured else None,
    )
