"""Time left: the plan's durations, corrected by what was measured."""

import pytest

from raylab.planning.remaining import PRIOR_S, Standing, remaining
from raylab.planning.scheduling import Item


def grid(runs: int = 8, seconds: float = 120.0) -> list[Item]:
    """MNTP of 60 s, then runs that start from it."""
    return [Item("mntp", "adapt", 60.0)] + [
        Item(f"run-{i}", "train", seconds, 1, ("mntp",)) for i in range(runs)
    ]


def test_before_anything_has_started_it_is_the_plan():
    left = remaining(grid(), {}, devices=2)
    assert left.total_s == 60 + 4 * 120
    assert left.runs["run-3"] == 120


def test_a_run_that_goes_on_holds_its_device():
    """Ten seconds of `short` are left; the device that it holds takes the last run then."""
    items = [Item("short", "train", 100.0), Item("b", "train", 100.0), Item("c", "train", 90.0)]
    exact = {"short": Standing(90.0, 0.9)}
    assert remaining(items, exact, devices=2).total_s == pytest.approx(100.0)


def test_everything_that_has_ended_leaves_nothing():
    ended = {item.name: Standing(1.0, 1.0, True) for item in grid()}
    left = remaining(grid(), ended, devices=2)
    assert left.total_s == 0
    assert set(left.runs.values()) == {0.0}


@pytest.mark.parametrize("slower", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_what_is_left_is_within_a_quarter_from_the_first_minute_on(slower):
    """One device, runs that all take `slower` times what was planned: told each second, on the real clock."""
    items = grid()
    lengths = [item.seconds * slower for item in items]
    whole, at = sum(lengths), 60.0
    while at < whole:
        standing, begun = {}, 0.0
        for item, length in zip(items, lengths, strict=True):
            if at >= begun + length:
                standing[item.name] = Standing(length, 1.0, True)
            elif at > begun:
                standing[item.name] = Standing(at - begun, (at - begun) / length)
            begun += length
        told = remaining(items, standing, devices=1).total_s
        assert told == pytest.approx(whole - at, rel=0.25, abs=PRIOR_S / 4)
        at += 7.0


def test_a_run_that_still_loads_is_not_taken_for_slow():
    """Before the first step the plan's overhead passes; only what goes beyond it counts as slower."""
    items = [Item("a", "train", 100.0)]
    assert remaining(items, {"a": Standing(15.0)}, 1, overhead_s=20.0).total_s == 85.0
    late = remaining(items, {"a": Standing(40.0)}, 1, overhead_s=20.0).total_s
    assert 80.0 < late < 160.0


def test_it_is_never_negative_nor_without_an_end():
    items = grid(2)
    for share in (0.0, 0.01, 0.5, 1.0):
        left = remaining(items, {"mntp": Standing(10_000.0, share)}, 2, overhead_s=20.0)
        assert 0 <= left.total_s < float("inf")
        assert all(seconds >= 0 for seconds in left.runs.values())
