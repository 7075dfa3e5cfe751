"""What a run took: its sessions, what they did twice, and the time from its start."""

import math
from types import SimpleNamespace

import pytest

from raylab.storage.store import Store
from raylab.storage.tables import LedgerRow
from raylab.training import journal
from raylab.training.journal import Journal
from raylab.training.loop import Progress

FOLDER = "train/a-run"


@pytest.fixture
def clock(monkeypatch):
    """The time that a journal sees, to be set."""

    class Clock:
        now = 1_000.0

        def time(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(journal, "time", clock)
    return clock


def at(step: int) -> Progress:
    """A run of 10 FLOPs and 2 seconds a step."""
    return Progress(step, 10, 10.0 * step, 5.0 * step, 1.0, 2.0 * step)


def test_a_run_without_faults(tmp_path, clock):
    store = Store(str(tmp_path))
    run = Journal(store, FOLDER, True, taken_at=990.0)
    for step in range(1, 11):
        clock.now += 2.0
        run.note(at(step))
    clock.now += 3.0
    assert run.took() == {
        "retries": 0,
        "elapsed_seconds": 33.0,  # 10 until the first step, 20, 3
        "lost_flops": 0.0,
        "lost_seconds": 0.0,
    }


def test_a_worker_is_lost_and_then_the_driver(tmp_path, clock):
    store = Store(str(tmp_path))
    first = Journal(store, FOLDER, True, taken_at=1_000.0)
    clock.now = 1_010.0
    first.note(at(4))  # its newest checkpoint is that of step 3
    clock.now = 1_040.0
    again = Journal(store, FOLDER, True, taken_at=1_000.0)
    again.note(at(3))
    clock.now = 1_048.0
    again.note(at(6))  # the driver dies here, with a checkpoint of step 5
    clock.now = 9_000.0
    other = Journal(store, FOLDER, True, taken_at=8_990.0)
    other.note(at(5))
    clock.now = 9_010.0
    other.note(at(10))
    took = other.took()
    assert took["retries"] == 2
    assert took["lost_flops"] == 10.0 + 10.0
    assert took["lost_seconds"] == 2.0 + 2.0
    assert took["elapsed_seconds"] == 48.0 + 20.0  # not the time between the drivers
    clock.now = 9_015.0
    assert other.took() == {
        "retries": 0,
        "elapsed_seconds": 5.0,
        "lost_flops": 0.0,
        "lost_seconds": 0.0,
    }


def test_only_the_writer_tells(tmp_path):
    other = Journal(Store(str(tmp_path)), FOLDER, False, taken_at=0.0)
    other.note(at(1))
    assert other.took() == {}


@pytest.mark.parametrize(("elapsed", "share"), [(40.0, 0.5), (None, None), (0.0, None)])
def test_effective_time_in_the_ledger(elapsed, share):
    made = SimpleNamespace(
        manifest={"stage": "retriever", "name": "a", "seconds": 1.0},
        meta={"train_seconds": 20.0, "elapsed_seconds": elapsed},
        fingerprint="f",
        size_bytes=1,
    )
    row = LedgerRow.of(made)  # type: ignore[arg-type]
    assert row.elapsed_seconds == elapsed
    assert row.effective_time == share or math.isclose(row.effective_time, share)
