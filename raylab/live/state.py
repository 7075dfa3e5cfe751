"""What the page shows, from the facts: one typed answer, made anew each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raylab.live.compute import compute_of, peak_share, planned_device
from raylab.live.facts import Event, LivePlan, PlannedCell, PlannedRun
from raylab.live.history import History
from raylab.live.reading import LiveFacts
from raylab.live.views import CellPhase, CellView, DriverView, Measured, RunPhase, RunView, State
from raylab.planning.remaining import Remaining, Standing, remaining
from raylab.planning.scheduling import Item

SILENT_S = 60.0  # a driver tells that it is alive every 5 s
_MOST_LISTED = 100
_SAME_BUDGET = 0.05


def state_of(
    facts: LiveFacts,
    now: float,
    storage: str,
    measured: Mapping[str, Measured],
    rows: int = 0,
    chart: str | None = None,
    report: bool = False,
    hour_price: float | None = None,
) -> State:
    """The state, from the facts and from what was measured, by a cell's name in the tables (its run's name).

    Args:
        now: Unix time.
        hour_price: of one device.
    """
    with facts.lock:
        driver, plan = driver_of(facts, now), facts.plan
        alive = driver.state == "running"
        own = facts.history(plan.session) if plan else History()
        left = _left(plan, facts, own, now) if alive and plan is not None else None
        planned = {one.run: one for one in plan.runs} if plan else {}
        runs = tuple(
            _run(run, planned.get(run), facts, own, left, alive)
            for run in sorted({*facts.runs, *planned})
        )
        phases: dict[str, RunPhase] = {run.run: run.state for run in runs}
        cells = _cells(plan, phases, facts, measured, left)
        made = {cell.run for cell in cells}
        others = sum(run.flops for run in runs if run.run not in made)
        until = now if alive or facts.driver is None else min(now, facts.driver.at)
        sent = [event for _, event in facts.events]
        return State(
            storage,
            plan.collection if plan else "",
            driver,
            cells,
            runs,
            compute_of(facts, cells, others, own, left, until, hour_price),
            left.total_s if left else None,
            tuple(_faults(facts, sent)[-_MOST_LISTED:]),
            tuple(sent[-_MOST_LISTED:]),
            facts.torn,
            rows,
            chart,
            report,
        )


def driver_of(facts: LiveFacts, now: float) -> DriverView:
    """How the driver is at a time."""
    told = facts.driver
    if told is None:
        return DriverView("unknown", None, None, "", 0, 0, "")
    silent = told.state == "running" and now - told.at > SILENT_S
    where = told.at, told.began, told.stage, told.done, told.total, told.text
    return DriverView("silent" if silent else told.state, *where)


def _faults(facts: LiveFacts, sent: Iterable[Event]) -> list[Event]:
    """What died, what was warned of, and restarts, in order of time."""
    found = [e for e in sent if e.kind == "died" or (e.kind == "note" and "WARNING" in e.text)]
    for run, one in facts.runs.items():
        if one.restarts and one.latest is not None:
            text = f"workers were started again {one.restarts} time(s)"
            found.append(Event(one.began_at, "note", run, text))
    return sorted(found, key=lambda event: event.at)


def _left(plan: LivePlan, facts: LiveFacts, own: History, now: float) -> Remaining:
    items = [Item(one.run, one.kind, one.seconds, one.devices, one.after) for one in plan.runs]
    standing = {}
    for run, began in own.began.items():
        over = own.over_at(run)
        share = facts.runs[run].share if run in facts.runs else 0.0
        elapsed_s = max(0.0, (now if over is None else over) - began)
        standing[run] = Standing(elapsed_s, share if over is None else 1.0, over is not None)
    return remaining(items, standing, plan.devices, plan.overhead_s)


def _run(
    run: str,
    planned: PlannedRun | None,
    facts: LiveFacts,
    own: History,
    left: Remaining | None,
    alive: bool,
) -> RunView:
    # Runs of earlier commands are as their last events said.
    phase = own.phase(run, alive) if planned else facts.all_history.phase(run, False)
    one = facts.runs.get(run)
    point = one.latest if one is not None else None
    devices = planned.devices if planned else None
    return RunView(
        run,
        planned.kind if planned else None,
        phase,
        point.step if point else 0,
        point.steps if point else 0,
        1.0 if phase == "done" else one.share if one else 0.0,
        point.flops if point else 0.0,
        point.loss if point else None,
        point.learning_rate if point else None,
        point.tokens_per_s if point else None,
        peak_share(point, devices, planned_device(facts.plan)),
        point.peak_bytes if point else None,
        one.restarts if one else 0,
        one.lost_flops if one else 0.0,
        left.runs.get(run) if left and phase in ("waiting", "running") else None,
        point is not None,
    )


def _cells(
    plan: LivePlan | None,
    phases: Mapping[str, RunPhase],
    facts: LiveFacts,
    measured: Mapping[str, Measured],
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
            end = None, None, one.quality, one.artifact
            views.append(CellView(name, name, *about, "done", 1.0, spent, spent, *end))
    return tuple(views)


def _is_its_own(measured: Measured | None, cell: PlannedCell) -> bool:
    """Whether what was measured is of this budget, and not of an earlier one under the same name."""
    spent = measured.spent_flops if measured else None
    if spent is None or cell.planned_flops <= 0:
        return False
    return abs(spent / cell.planned_flops - 1) < _SAME_BUDGET


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
    one = facts.runs.get(cell.run)
    point = one.latest if one is not None else None
    spent = min(point.flops, cell.planned_flops * 1.02) if point else 0.0
    if state == "done":
        spent = cell.planned_flops
        if measured and measured.spent_flops and _is_its_own(measured, cell):
            spent = measured.spent_flops
    share = min(spent / cell.planned_flops, 1.0) if cell.planned_flops > 0 else 0.0
    own = measured if state == "done" and _is_its_own(measured, cell) else None
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
        1.0 if state == "done" else share,
        cell.planned_flops,
        spent,
        left.runs.get(cell.run) if going and left else None,
        point.loss if point else None,
        own.quality if own else None,
        own.artifact if own else None,
    )
