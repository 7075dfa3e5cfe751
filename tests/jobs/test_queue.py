"""The queue of runs: which run a group of workers takes next, and when it ends."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from raylab.experiment.execution import Execution
from raylab.jobs.queue import GIVE_WAY, SHORT_S, RunQueue
from raylab.planning.scheduling import Item
from raylab.training.faults import TrainingError

TWO = Execution(concurrent_trials=2)


def queue_of(*items: Item, execution: Execution = TWO) -> RunQueue:
    jobs = {item.name: SimpleNamespace(name=item.name, board=None) for item in items}
    queue = RunQueue(items, jobs, execution)
    queue.room = lambda: 2  # type: ignore[method-assign]
    return queue


def kinds(queue: RunQueue) -> list[tuple[str, str]]:
    return [(event.kind, event.name) for event in queue.news().events]


@pytest.fixture
def queue() -> RunQueue:
    """Two sizes, each adapted and then tuned twice."""
    return queue_of(
        *(Item(f"mntp-{size}", "adapt", 30.0) for size in "ab"),
        *(
            Item(f"{size}{i}", "train", 20.0 + i, 1, (f"mntp-{size}",))
            for size in "ab"
            for i in (1, 2)
        ),
    )


def test_a_group_takes_run_after_run(queue):
    first, second = queue.start(), queue.start()
    assert {first, second} == {"mntp-a", "mntp-b"}
    assert queue.start() is None  # both devices are held
    assert queue.at_work(first) == first
    assert queue.job(first).name == first
    taken = [queue.following(first) for _ in range(3)]
    assert taken == ["a2", "a1", None], (
        "the longest first; what waits for the other group is not ready"
    )
    assert queue.at_work(first) is None, "it has ended"
    told = [("end", "a2"), ("start", "a1"), ("end", "a1")]
    assert kinds(queue)[-3:] == told


def test_all_is_told_and_all_is_done(queue):
    groups = [queue.start(), queue.start()]
    told = kinds(queue)
    while groups:
        group = groups.pop()
        queue.at_work(group)
        while queue.following(group):
            pass
        told += kinds(queue)
        while (name := queue.start()) is not None:
            groups.append(name)
    told += kinds(queue)
    runs = {"mntp-a", "mntp-b", "a1", "a2", "b1", "b2"}
    for kind in ("start", "end"):
        assert sorted(name for k, name in told if k == kind) == sorted(runs)
    news = queue.news()
    assert news.is_done
    assert news.free == 2
    assert queue.first_error() is None


def test_a_long_run_has_a_group_of_its_own():
    queue = queue_of(Item("short", "train", 1.0), Item("long", "train", SHORT_S + 1))
    queue.execution = Execution(concurrent_trials=1)
    assert queue.start() == "long", "the longest chain first"
    queue.at_work("long")
    assert queue.following("long") == "short"
    queue.at_work("long")
    queue = queue_of(Item("short", "adapt", 1.0), Item("long", "train", SHORT_S + 1, 1, ("short",)))
    assert queue.start() == "short"
    queue.at_work("short")
    assert queue.following("short") is None
    assert queue.start() == "long"


def test_workers_of_another_number_are_another_group():
    execution = Execution(concurrent_trials=2)
    queue = queue_of(
        Item("one", "adapt", 1.0), Item("two", "train", 1.0, 2, ("one",)), execution=execution
    )
    queue.at_work(queue.start())
    assert queue.following("one") is None
    assert queue.start() == "two"


def test_a_group_that_lost_workers_ends_with_the_run_it_was_at(queue):
    group = queue.start()
    queue.at_work(group)
    run = queue.following(group)
    assert queue.at_work(group) == run, "its workers start again, at the same run"
    assert queue.following(group) is None
    assert queue.start() is not None, "what is left is for other groups"


def test_a_run_that_fails_takes_what_waits_for_it_along(queue, monkeypatch):
    monkeypatch.setattr("raylab.jobs.queue.newest_checkpoint", lambda job: -1)
    queue.execution = Execution(max_failures=0)
    group = next(name for name in (queue.start(), queue.start()) if name == "mntp-a")
    queue.at_work(group)
    queue.failed(group, ValueError("no"))
    assert ("died", "mntp-a") in kinds(queue)
    assert isinstance(queue.first_error(), ValueError)
    queue.at_work("mntp-b")
    assert queue.following("mntp-b") == "b2"
    assert queue.following("mntp-b") == "b1"
    assert queue.following("mntp-b") is None
    assert queue.news().is_done, "a1 and a2 will not run"


def test_free_devices_and_a_wait_are_told_once():
    queue = queue_of(Item("a", "adapt", 9.0), Item("b", "train", 1.0, 1, ("a",)))
    assert queue.news().free == 2
    queue.start()
    assert queue.start() is None
    assert queue.start() is None
    news = queue.news()
    assert news.free == 1
    assert [event.kind for event in news.events] == ["start", "wait"]
    assert "1 free until it ends" in news.events[1].text


def test_workers_start_again_until_too_many_faults_in_a_row(queue, monkeypatch):
    kept = iter([-1, -1, 5, 5, 5, 5])
    monkeypatch.setattr("raylab.jobs.queue.newest_checkpoint", lambda job: next(kept))
    queue.execution = Execution(max_failures=2)
    group = queue.start()
    fault = RuntimeError("lost")
    assert [queue.failed(group, fault) for _ in range(5)] == [True, True, True, True, False]
    assert queue.first_error() is fault


def test_what_would_fail_again_is_not_started_again(queue, monkeypatch):
    monkeypatch.setattr("raylab.jobs.queue.newest_checkpoint", lambda job: -1)
    assert not queue.failed(queue.start(), TrainingError("the loss is nan at step 3"))


def test_a_group_that_has_ended_has_nothing_to_lose(queue):
    assert not queue.failed("no such group", RuntimeError("late"))
    assert queue.first_error() is None


def test_who_only_names_a_run_loads_no_model_library():
    """The queue's own process is small; trials and controllers load what Ray Train does, and no more."""
    for module, heavy in (
        ("raylab.jobs.queue", {"torch", "transformers", "tokenizers", "pandas"}),
        ("raylab.jobs.train", {"transformers", "tokenizers", "peft"}),
    ):
        code = f"import sys, {module}; print(sorted({heavy!r} & sys.modules.keys()))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]", module


def test_a_group_gives_way_to_measuring(queue):
    """One of two devices, until nothing is left to measure."""
    first, second = queue.start(), queue.start()
    for group in (first, second):
        queue.at_work(group)
    queue.news(measuring=GIVE_WAY - 1)
    assert queue.following(first) is not None, "too little waits"
    assert queue.news(measuring=GIVE_WAY).free == 0
    assert queue.following(first) is None
    assert queue.start() is None, "its device is lent"
    assert queue.news(measuring=GIVE_WAY).free == 1
    assert queue.following(second) is not None, "one at a time"
    assert queue.news(measuring=1).free == 1
    assert queue.start() is None
    assert queue.news(measuring=0).free == 1
    assert queue.start() is not None, "training goes on"


def test_no_group_gives_way_where_devices_are_free(queue):
    queue.room = lambda: 4
    first, _ = queue.start(), queue.start()
    queue.at_work(first)
    assert queue.news(measuring=10 * GIVE_WAY).free == 2
    assert queue.following(first) is not None
