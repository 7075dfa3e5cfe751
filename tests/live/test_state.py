"""What is read and shown of a laboratory: running, dead, finished, torn; in bounded memory."""

import itertools
import json
import time

import pytest

from raylab.live import facts
from raylab.live.curves import MOST_POINTS, Curve
from raylab.live.facts import Point
from raylab.live.reading import LiveFacts
from raylab.live.results import Results
from raylab.live.state import state_of
from raylab.storage.store import Store
from tests.live.conftest import DONE, FLOPS, RUNNING, SESSION, WAITING, half_way


def seen(store: Store, now: float):
    known = LiveFacts(store)
    known.refresh()
    return state_of(known, now, store.uri, {})


def test_a_running_laboratory(tmp_path):
    now = time.time()
    state = seen(half_way(tmp_path, now).store, now)
    assert state.driver.state == "running"
    cells = {cell.cell: cell for cell in state.cells}
    assert {name: cell.state for name, cell in cells.items()} == {
        DONE: "done",
        RUNNING: "running",
        WAITING: "waiting",
    }
    assert cells[RUNNING].share == pytest.approx(0.4)
    assert state.planned_flops == 3 * FLOPS
    assert state.spent_flops == pytest.approx(1.4 * FLOPS)
    # 170 s for 20 + 0.4 * 100 planned ones: both go on side by side, and the one that has not begun is longer.
    assert 120 < (cells[RUNNING].left_s or 0) < 200
    assert state.left_s == pytest.approx(
        max(cells[RUNNING].left_s, cells[WAITING].left_s), rel=1e-6
    )


def test_a_driver_that_tells_nothing_is_silent_and_its_runs_have_stopped(tmp_path):
    now = time.time()
    store = half_way(tmp_path, now).store
    state = seen(store, now + 3_600)
    assert (state.driver.state, state.driver.at) == ("silent", pytest.approx(now))
    assert {cell.cell: cell.state for cell in state.cells}[RUNNING] == "stopped"
    assert state.left_s is None


def test_only_what_is_new_is_read(tmp_path):
    now = time.time()
    recorded = half_way(tmp_path, now)
    known = LiveFacts(recorded.store)
    known.refresh()
    before = known.curves[RUNNING].added
    recorded.point(RUNNING, now, 41)
    known.refresh()
    known.refresh()
    assert known.curves[RUNNING].added == before + 1
    assert len(known.events) == 5


def test_torn_lines_and_files_are_passed_over_and_counted(tmp_path):
    now = time.time()
    recorded = half_way(tmp_path, now)
    path = f"{facts.RUNS}/{RUNNING}/{SESSION}-000000.jsonl"
    lines = recorded.parts[path]
    lines[3], lines[7] = lines[3][:20], json.dumps({"step": "one"})
    recorded.store.put_text(path, "\n".join([*lines, lines[0][:30]]))
    recorded.store.put_text(facts.PLAN, '{"session": "cut')
    state = seen(recorded.store, now)
    assert state.torn == 3  # two lines and the plan; the last line may yet become whole
    assert {run.run: run.points for run in state.runs}[RUNNING] == 38


def test_a_run_that_began_again_forgets_what_was_done_twice_and_counts_it(tmp_path):
    now = time.time()
    recorded = half_way(tmp_path, now)
    for step in range(31, 51):
        recorded.point(RUNNING, now + step, step, "001795999999999-0000001aaaaaa")
    known = LiveFacts(recorded.store)
    known.refresh()
    curve = known.curves[RUNNING]
    assert [row["step"] for row in curve.rows()] == list(range(1, 51))
    assert curve.restarts == 1
    assert curve.lost_flops == pytest.approx(0.09 * FLOPS)  # told at step 40, and again from 31 on
    state = state_of(known, now, "lab", {})
    assert [fault.name for fault in state.faults] == [RUNNING]


def test_a_failed_run_is_a_fault(tmp_path):
    now = time.time()
    recorded = half_way(tmp_path, now)
    recorded.event(now, "died", RUNNING, "a loss that is not finite")
    state = seen(recorded.store, now)
    assert {cell.cell: cell.state for cell in state.cells}[RUNNING] == "failed"
    assert [fault.text for fault in state.faults] == ["a loss that is not finite"]


def test_a_finished_laboratory_without_any_fact_is_shown_from_its_tables(finished):
    store = Store(str(finished))
    results = Results(store)
    results.refresh()
    known = LiveFacts(store)
    known.refresh()
    state = state_of(known, time.time(), store.uri, results.measured, len(results.rows))
    assert state.driver.state == "unknown"
    assert state.cells
    assert {cell.state for cell in state.cells} == {"done"}
    assert all(cell.quality.startswith("nDCG@10 0.") for cell in state.cells)
    chart = results.chart()
    of_report = json.loads((finished / "report/scaling.json").read_text())
    assert of_report.pop("usermeta")["note"] == chart["note"]
    assert json.loads(json.dumps(chart["spec"])) == of_report


@pytest.mark.parametrize("points", [MOST_POINTS, 100_000])
def test_a_long_curve_keeps_its_shape_in_bounded_memory(points):
    curve = Curve()
    for step in range(1, points + 1):
        curve.add("s", Point(step, step, points, 1.0 * step, float(step), None, 1, None, 1, None))
    rows = curve.rows()
    assert len(rows) < 2 * MOST_POINTS
    assert rows[-1]["step"] == points
    assert [row["n"] for row in rows] == sorted(row["n"] for row in rows)
    # The loss is the step itself here: the mean of a point is that of the steps since the point before.
    for before, row in itertools.pairwise(rows):
        assert row["step"] - before["step"] <= 4 * points / len(rows)
        assert row["loss"] == pytest.approx((before["step"] + 1 + row["step"]) / 2)
    assert curve.rows(after=rows[-2]["n"]) == rows[-1:]
    assert rows[0]["learning_rate"] is None
