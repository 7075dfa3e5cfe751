"""Progress: a share of the plan that ends at 100 %, and a time left that is never negative."""

import re
import time

import pytest

from raylab.jobs.progress import Monitor, RunProgress


def running(run: str, step: int, steps: int, spent: float) -> RunProgress:
    return RunProgress(run, step, steps, spent, 1.0, time.time(), True)


def left(summary: str) -> str | None:
    found = re.search(r"training left (\S+)", summary)
    return found and found[1]


@pytest.mark.parametrize("took", [0.5, 1.0, 1.3])
def test_runs_that_took_more_or_less_than_planned_end_at_100_percent(took, monkeypatch):
    monitor = Monitor("off")
    monitor.enter("train", 2)
    monitor.planned = {"a": 1e9, "b": 3e9}
    monitor.cells_total = 2
    clock = [time.time()]
    monkeypatch.setattr("raylab.jobs.progress.time.time", lambda: clock[0])
    shares = []
    for step in range(1, 11):
        clock[0] += 10
        told = monitor.summary({"b": running("b", step, 10, took * 3e8 * step)})
        shares.append(int(re.search(r"budget (\d+)% of 4e\+09", told)[1]))
        assert not (left(told) or "").startswith("-")
    assert shares == sorted(shares)
    assert shares[-1] == 75
    monitor.spent = {"a": took * 1e9, "b": took * 3e9}
    assert "budget 100% of 4e+09 FLOPs" in monitor.summary({})
    assert left(monitor.summary({})) == "0:00"


def test_the_time_left_goes_with_the_steps_that_are_left(monkeypatch):
    monitor = Monitor("off")
    monitor.enter("train", 1)
    monitor.planned = {"a": 1e9}
    clock = [1_000.0]
    monkeypatch.setattr("raylab.jobs.progress.time.time", lambda: clock[0])
    assert left(monitor.summary({"a": running("a", 0, 10, 0)})) is None
    clock[0] += 60
    assert left(monitor.summary({"a": running("a", 6, 10, 9e8)})) == "0:40"


def test_a_run_that_began_again_gives_no_negative_time(monkeypatch):
    monitor = Monitor("off")
    monitor.enter("train", 1)
    monitor.planned = {"a": 1e9}
    clock = [1_000.0]
    monkeypatch.setattr("raylab.jobs.progress.time.time", lambda: clock[0])
    monitor.summary({"a": running("a", 5, 10, 5e8)})
    clock[0] += 60
    assert left(monitor.summary({"a": running("a", 2, 10, 2e8)})) is None
