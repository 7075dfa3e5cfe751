"""Progress: a share of the plan that ends at 100 %, and a time left that is never negative."""

import re
import time

import pytest

from raylab.jobs.progress import Monitor, RunProgress
from raylab.planning.scheduling import Item


def running(run: str, step: int, steps: int, spent: float) -> RunProgress:
    return RunProgress(run, step, steps, spent, 1.0, time.time(), True, run)


def left(summary: str) -> str | None:
    found = re.search(r"training left (\S+)", summary)
    return found and found[1]


@pytest.fixture
def clock(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr("raylab.jobs.progress.time.time", lambda: now[0])
    return now


@pytest.mark.parametrize("took", [0.5, 1.0, 1.3])
def test_runs_that_took_more_or_less_than_planned_end_at_100_percent(took, clock):
    monitor = Monitor("off")
    monitor.enter("train", 2)
    monitor.planned = {"a": 1e9, "b": 3e9}
    monitor.cells_total = 2
    monitor.scheduled([Item("a", "train", 30.0), Item("b", "train", 90.0)], 1, 0.0)
    monitor.run_event("start", "b")
    shares = []
    for step in range(1, 11):
        clock[0] += 10
        told = monitor.summary({"b": running("b", step, 10, took * 3e8 * step)})
        shares.append(int(re.search(r"budget (\d+)% of 4e\+09", told)[1]))
        assert not (left(told) or "").startswith("-")
    assert shares == sorted(shares)
    assert shares[-1] == 75
    monitor.run_event("end", "b")
    monitor.run_event("start", "a")
    monitor.run_event("end", "a")
    monitor.spent = {"a": took * 1e9, "b": took * 3e9}
    assert "budget 100% of 4e+09 FLOPs" in monitor.summary({})
    assert left(monitor.summary({})) == "0:00"


def test_the_time_left_is_the_plan_corrected_by_what_was_measured(clock):
    monitor = Monitor("off")
    monitor.enter("train", 2)
    assert left(monitor.summary({})) is None
    monitor.scheduled([Item("a", "train", 100.0), Item("b", "train", 100.0)], 1, 0.0)
    assert left(monitor.summary({})) == "3:20"
    monitor.run_event("start", "a")
    clock[0] += 60
    # Twice as slow: 60 s for what was planned to take 30, so (5 + 60) / (5 + 30) of the plan for all runs,
    # drawn once more to what was measured for the kind, and once more for the run itself.
    overall = (5 + 60) / 35
    kind = (5 * overall + 60) / 35
    own = (5 * kind + 60) / 35
    minutes, seconds = divmod(int(own * 70 + kind * 100), 60)
    assert left(monitor.summary({"a": running("a", 3, 10, 3e8)})) == f"{minutes}:{seconds:02d}"


def test_a_run_that_began_again_gives_no_negative_time(clock):
    monitor = Monitor("off")
    monitor.enter("train", 1)
    monitor.scheduled([Item("a", "train", 100.0)], 1, 0.0)
    monitor.run_event("start", "a")
    clock[0] += 60
    monitor.summary({"a": running("a", 5, 10, 5e8)})
    clock[0] += 60
    minutes, seconds = map(int, left(monitor.summary({"a": running("a", 2, 10, 2e8)})).split(":"))
    assert 60 * minutes + seconds >= 80


def test_other_stages_go_by_their_own_pace(clock):
    monitor = Monitor("off")
    monitor.enter("measure", 10, 4)
    assert "left" not in monitor.summary({})
    clock[0] += 30
    monitor.advance()
    monitor.advance()
    assert "measure left 1:00" in monitor.summary({})
