"""What is read and shown of a laboratory: running, dead, finished, torn; in bounded memory."""

import itertools
import json
import time

import pytest

from raylab.live import facts
from raylab.live.curves import MOST_POINTS, Curve
from raylab.live.facts import Point, record
from raylab.live.reading import LiveFacts
from raylab.live.results import Results
from raylab.live.state import state_of
from raylab.live.timeline import timeline
from raylab.live.views import Measured
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
    assert state.compute.planned_flops == 3 * FLOPS
    assert state.compute.spent_flops == pytest.approx(1.4 * FLOPS)
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
    before = known.curve(RUNNING).added
    recorded.point(RUNNING, now, 41)
    known.refresh()
    known.refresh()
    assert known.runs[RUNNING].latest.step == 41
    assert known.curve(RUNNING).added == before + 1
    assert known.curve(RUNNING).added == before + 1
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
    assert state.torn == 1  # the plan
    assert {run.run: run.step for run in state.runs}[RUNNING] == 40
    known = LiveFacts(recorded.store)
    known.refresh()
    assert len(known.curve(RUNNING).rows()) == 38
    assert known.torn == 3  # two lines of the curve, too; the last line may yet become whole


def test_a_run_that_began_again_forgets_what_was_done_twice_and_counts_it(tmp_path):
    now = time.time()
    recorded = half_way(tmp_path, now)
    for step in range(31, 51):
        recorded.point(RUNNING, now + step, step, "001795999999999-0000001aaaaaa")
    known = LiveFacts(recorded.store)
    known.refresh()
    curve = known.curve(RUNNING)
    assert known.runs[RUNNING].restarts == 1
    # Told at step 40, and again from 31 on.
    assert known.runs[RUNNING].lost_flops == pytest.approx(0.09 * FLOPS)
    assert [row["step"] for row in curve.rows()] == list(range(1, 51))
    assert len(curve.sessions) == 2
    state = state_of(known, now, "lab", {})
    assert [fault.name for fault in state.faults] == [RUNNING]


def test_what_a_run_is_comes_from_the_plan_and_not_from_its_name(tmp_path):
    now = time.time()
    name = "mntp-like-cl-seed0"
    recorded = half_way(tmp_path, now, (DONE, name, WAITING))
    recorded.point("of-an-earlier-command", now - 900, 100, "001700000000000-0000001aaaaaa")
    recorded.event(now - 900, "start", "of-an-earlier-command")
    recorded.event(now - 800, "end", "of-an-earlier-command")
    runs = {run.run: run for run in seen(recorded.store, now).runs}
    assert (runs[name].kind, runs["mntp-small"].kind) == ("train", "adapt")
    earlier = runs["of-an-earlier-command"]
    assert (earlier.kind, earlier.state) == (None, "done")


def test_a_value_of_another_budget_is_not_that_of_the_cell_in_training(tmp_path):
    now = time.time()
    recorded = half_way(tmp_path, now)
    known = LiveFacts(recorded.store)
    known.refresh()
    about = "small", "dense", "cl", 0, ""
    measured = {
        DONE: Measured(*about, FLOPS * 1.001, "nDCG@10 0.5", "retriever/done"),
        RUNNING: Measured(*about, FLOPS / 10, "nDCG@10 0.1", "retriever/before"),
    }
    cells = {cell.cell: cell for cell in state_of(known, now, "lab", measured).cells}
    assert (cells[DONE].quality, cells[DONE].artifact) == ("nDCG@10 0.5", "retriever/done")
    assert (cells[RUNNING].quality, cells[RUNNING].artifact) == (None, None)


def test_hours_and_their_price_are_of_the_devices_that_runs_hold(tmp_path):
    now = time.time()
    known = LiveFacts(half_way(tmp_path, now).store)
    known.refresh()
    compute = state_of(known, now, "lab", {}, hour_price=3.6).compute
    seconds = 30 + 120 + 170  # MNTP, the run that is done, and the one that goes on
    assert compute.spent_hours == pytest.approx(seconds / 3600, rel=1e-3)
    assert compute.spent_price == pytest.approx(3.6 * compute.spent_hours)
    assert compute.planned_hours == pytest.approx((30 + 3 * 120) / 3600)
    assert compute.left_price == pytest.approx(3.6 * compute.left_hours)
    # 1e12 FLOPs in 100 s and 0.4e12 in 40 s, on a core of 76e9 FLOP/s each.
    assert compute.peak_share == pytest.approx(1e10 / 76e9)
    assert state_of(known, now, "lab", {}).compute.spent_price is None


def test_the_timeline_has_what_was_planned_beside_what_was(tmp_path):
    now = time.time()
    recorded = half_way(tmp_path, now)
    recorded.event(now - 210, "stage", "train")
    known = LiveFacts(recorded.store)
    known.refresh()
    told = timeline(known, now, alive=True)
    spans = {(span.name, span.what): span for span in told.spans}
    assert spans[RUNNING, "real"].end == now
    assert spans[RUNNING, "planned"].end - spans[RUNNING, "planned"].begin == pytest.approx(120)
    assert (WAITING, "real") not in spans
    assert spans["train", "real"].state == "running"
    real = [one.devices for one in told.held if one.what == "real"]
    assert max(real) == told.devices == 2
    assert real[-1] == 0
    dead = {span.name: span for span in timeline(known, now + 3_600, alive=False).spans}
    assert dead["train"].end == pytest.approx(now)  # when the driver told something last


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


def test_a_long_run_is_known_by_its_ends_and_its_curve_keeps_what_was_measured(tmp_path):
    store, steps = Store(str(tmp_path)), 50_000
    lines = [
        json.dumps(
            record(
                Point(
                    i,
                    i,
                    steps,
                    i,
                    float(i),
                    None,
                    i,
                    None,
                    i,
                    None,
                    None,
                    7.0 if i == 777 else None,
                )
            )
        )
        for i in range(1, steps + 1)
    ]
    for part in range(0, steps, 200):
        name = f"{facts.RUNS}/long/{SESSION}-{part // 200:06d}.jsonl"
        store.put_text(name, "\n".join(lines[part : part + 200]) + "\n")
    known = LiveFacts(store)
    began = time.perf_counter()
    known.refresh()
    assert time.perf_counter() - began < 0.5
    assert known.runs["long"].latest.step == steps
    rows = known.curve("long").rows()
    assert len(rows) < 2 * MOST_POINTS
    assert [row["held_out"] for row in rows if row["held_out"] is not None] == [7.0]
    assert rows[-1]["step"] == steps
    steps_of = [0, *(row["step"] for row in rows)]
    for before, row in itertools.pairwise(steps_of):
        assert row > before
    assert rows[10]["loss"] == pytest.approx((rows[9]["step"] + 1 + rows[10]["step"]) / 2, rel=0.1)
