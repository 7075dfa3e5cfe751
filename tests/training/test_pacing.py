"""When a checkpoint is kept: by time, by Young's formula, and at once where a machine is taken away."""

import math

import pytest

from raylab.training import pacing
from raylab.training.pacing import UNKNOWN_S, Clock, Pacing
from tests.workers import in_workers


@pytest.mark.parametrize(
    ("pacing", "cost_s", "right"),
    [
        (Pacing(), None, UNKNOWN_S),
        (Pacing(), 30.0, UNKNOWN_S),  # nothing is known of faults
        (Pacing(fault_hours=1.0), None, UNKNOWN_S),  # nor of what one costs
        (Pacing(fault_hours=1.0), 2.0, 120.0),  # sqrt(2 x 2 x 3600)
        (Pacing(fault_hours=0.0001), 10.0, 10.0),  # never more often than one takes
        (Pacing(minutes=3.0, fault_hours=1.0), 2.0, 180.0),
        (Pacing(minutes=0.0), 2.0, 0.0),
    ],
)
def test_how_long_a_run_goes_on(pacing, cost_s, right):
    assert pacing.seconds(cost_s) == pytest.approx(right)


def test_young_loses_least():
    """Lost by checkpoints and by what is done twice, T/2 a fault: least where the formula says."""
    cost_s, hours = 7.0, 2.0
    best = Pacing(fault_hours=hours).seconds(cost_s)

    def lost(interval_s: float) -> float:
        return cost_s / interval_s + interval_s / 2 / (3600 * hours)

    for other in (0.5, 0.9, 1.1, 2.0):
        assert lost(best) < lost(best * other)
    assert lost(best) == pytest.approx(math.sqrt(2 * cost_s / (3600 * hours)))


class Time:
    """A clock that a test moves; of this process alone."""

    def __init__(self, patch):
        self.now = 100.0
        patch.setattr(pacing.time, "monotonic", lambda: self.now)

    def due(self, clock: Clock, seconds: list[float]) -> list[int]:
        """The steps, of steps of so many seconds, after which one was due and kept, in half a second."""
        kept = []
        for step, took in enumerate(seconds):
            self.now += took
            if clock.is_due():
                self.now += 0.5
                clock.kept(0.5)
                kept.append(step)
        return kept


@pytest.fixture
def time(monkeypatch) -> Time:
    return Time(monkeypatch)


def test_by_time_and_not_by_steps(time):
    assert time.due(Clock(Pacing(minutes=0.5)), [10.0] * 9) == [2, 5, 8]
    assert time.due(Clock(Pacing(minutes=0.5)), [1.0] * 29) == []
    assert time.due(Clock(Pacing(minutes=0.0)), [1.0] * 3) == [0, 1, 2]


def test_a_notice_is_answered_once_at_once(time):
    notices = iter([False, False, True, True, True])
    clock = Clock(Pacing(minutes=60.0), lambda: next(notices))
    assert time.due(clock, [3.0] * 8) == [2]


def test_short_steps_are_not_asked_about_one_by_one(time):
    asked = []
    clock = Clock(Pacing(minutes=60.0), lambda: bool(asked.append(time.now)))
    time.due(clock, [0.01] * 1_000)
    assert 4 <= len(asked) <= 12, "every two seconds of ten"


def agreed(_folder: str) -> list[int]:
    """Of 40 steps of a worker, those after which a checkpoint was due; every worker has a clock of its own."""
    import time as clock_time

    clock = Clock(Pacing(minutes=0.05 / 60))
    kept = []
    for step in range(40):
        clock_time.sleep(0.01)
        if clock.is_due():
            clock.kept(0.0)
            kept.append(step)
    return kept


@pytest.mark.long
def test_workers_agree():
    first, second = in_workers(2, agreed, "")
    assert first == second
    assert 3 <= len(first) <= 9
