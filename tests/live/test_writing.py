"""Facts in a storage: parts that are whole, a writer that is in nobody's way, logs that are read back as told."""

import json
import logging
import time
from dataclasses import asdict

import pytest

from raylab.live.facts import DRIVER, EVENTS, PLAN, RUNS, DriverState, Event, LivePlan, Point, read
from raylab.live.logs import DriverLog, RunLog
from raylab.live.writing import FactWriter
from raylab.planning.scheduling import Item
from raylab.storage.store import Store


def lines(store: Store, folder: str) -> list[dict]:
    names = store.files.names(folder)
    texts = [store.files.read(f"{folder}/{name}").decode() for name in names]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_what_is_told_is_read_back_in_order_over_several_parts(tmp_path):
    store = Store(str(tmp_path))
    writer = FactWriter(store, EVENTS, every_s=0.02)
    writer.start()
    told = [Event(float(i), "note", f"stage-{i}", "text") for i in range(950)]
    for i, event in enumerate(told):
        writer.add(event)
        if i % 100 == 0:
            time.sleep(0.03)
    writer.close()
    assert [read(Event, line) for line in lines(store, EVENTS)] == told
    names = store.files.names(EVENTS)
    assert len(names) == 5
    assert all(len(store.files.read(f"{EVENTS}/{name}")) < 50_000 for name in names)


def test_a_storage_that_cannot_be_written_costs_one_warning_and_no_time(tmp_path, caplog):
    (tmp_path / "live").write_text("a file where a folder must be")
    store = Store(str(tmp_path))
    writer = FactWriter(store, EVENTS, every_s=0.01)
    with caplog.at_level(logging.WARNING, "raylab"):
        writer.start()
        began = time.perf_counter()
        for i in range(20_000):
            writer.add(Event(float(i), "note", "stage"))
        assert (time.perf_counter() - began) / 20_000 < 1e-3
        time.sleep(0.2)
        writer.flush()
        writer.close()
    assert len(writer.waiting) <= 5_000
    assert len([r for r in caplog.records if "progress is not written" in r.getMessage()]) == 1


def test_a_driver_that_was_refused_leaves_nothing_behind(tmp_path):
    log = DriverLog(Store(str(tmp_path)))
    log.event("stage", "ingest", "1 to do")
    log.close(ValueError("bad input"))
    assert list(tmp_path.iterdir()) == []


def test_a_driver_tells_its_plan_and_how_it_ended(tmp_path):
    store = Store(str(tmp_path))
    log = DriverLog(store)
    log.event("stage", "train", "2 to do")
    log.begin()
    log.stands("train", 1, 2)
    items = [Item("mntp", "adapt", 10.0), Item("a", "train", 20.0, 1, ("mntp",))]
    log.planned("scifact", [], items, 2, "cpu-core", 5.0)
    log.close(RuntimeError("no more\nlines"))
    plan = read(LivePlan, json.loads(store.files.read(PLAN)))
    assert [(run.run, run.start_s, run.end_s) for run in plan.runs] == [
        ("mntp", 0.0, 10.0),
        ("a", 10.0, 30.0),
    ]
    state = read(DriverState, json.loads(store.files.read(DRIVER)))
    assert (state.state, state.stage, state.done, state.total) == ("failed", "train", 1, 2)
    assert state.text == "RuntimeError: no more"
    assert state.session == plan.session
    assert [line["kind"] for line in lines(store, EVENTS)] == ["stage"]


def test_a_run_tells_its_first_and_its_last_step_and_the_mean_loss_between(tmp_path):
    store = Store(str(tmp_path))
    log = RunLog(store, "a", gpu=False)
    for step in range(1, 101):
        log.note(step, 100, 1e6 * step, 50.0 * step, float(step), 1e-4, 0.5 * step)
    log.writer.close()
    points = [read(Point, line) for line in lines(store, f"{RUNS}/a")]
    assert (points[0].step, points[-1].step) == (1, 100)
    assert points[-1].flops == 1e8
    assert points[-1].tokens_per_s == pytest.approx(100.0)
    assert (points[-1].peak_bytes or 0) > 1e6
    weighted = sum(p.loss * (p.step - before) for before, p in pairs(points))
    assert weighted == pytest.approx(sum(range(1, 101)))


def test_a_run_that_its_budget_ends_early_tells_its_last_step(tmp_path):
    store = Store(str(tmp_path))
    log = RunLog(store, "a", gpu=False)
    for step in range(1, 8):
        log.note(step, 11, 1e6 * step, 50.0 * step, float(step), 1e-4, 0.5 * step)
    log.close()
    log.writer.close()  # waits for the thread that `close` leaves to itself
    assert read(Point, lines(store, f"{RUNS}/a")[-1]).step == 7


def pairs(points: list[Point]) -> list[tuple[int, Point]]:
    return list(zip([0, *(point.step for point in points)], points, strict=False))


@pytest.mark.parametrize(
    "change",
    [{"step": "1"}, {"loss": float("nan")}, {"at": None}, {"step": True}, {"loss": None}],
)
def test_what_is_no_fact_is_refused(change):
    point = Point(1.0, 1, 2, 1.0, 1.0, None, 1.0, None, 1.0, None)
    assert read(Point, asdict(point)) == point
    with pytest.raises(ValueError, match="is not what it must be"):
        read(Point, asdict(point) | change)
    with pytest.raises(ValueError, match="without loss"):
        read(Point, {k: v for k, v in asdict(point).items() if k != "loss"})
