"""The queue and its simulator: order, packing, backfilling, and bounds that any schedule keeps."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.planning.scheduling import Item, Queue, simulate


def test_longest_chains_go_first():
    """The short MNTP of a size with long cells goes before a longer one that little waits for."""
    items = [
        Item("mntp-a", "adapt", 5),
        Item("mntp-b", "adapt", 2),
        Item("a", "train", 1, after=("mntp-a",)),
        Item("b", "train", 10, after=("mntp-b",)),
    ]
    queue = Queue(items)
    assert [i.name for i in queue.start(1, 0.0)] == ["mntp-b"]
    queue.finish("mntp-b")
    assert [i.name for i in queue.start(2, 2.0)] == ["b", "mntp-a"]
    assert not queue.start(0, 2.0)


def test_mntp_does_not_hold_other_sizes_back():
    """With two devices a size trains while the other is being adapted."""
    items = [Item("mntp-a", "adapt", 10), Item("mntp-b", "adapt", 1)]
    items += [Item(f"b{i}", "train", 3, after=("mntp-b",)) for i in range(3)]
    items += [Item("a", "train", 3, after=("mntp-a",))]
    assert simulate(items, 2).makespan_s == 13  # a staged run takes 10 + 6


def test_encoding_fills_what_is_left_and_delays_nobody():
    runs = [Item("long", "train", 10), Item("short", "train", 4)]
    shards = [Item(f"short-{i}", "encode", 1, after=("short",)) for i in range(6)]
    done = simulate(runs + shards, 2)
    assert done.makespan_s == done.trained_s == 10
    assert done.utilisation == 1.0


def test_a_run_of_many_workers_is_not_passed_for_ever():
    """Only what ends before its devices are free may pass it."""
    items = [
        Item("first", "train", 4, devices=3),
        Item("wide", "train", 3, devices=4),
        Item("small", "train", 3.9, devices=1),
        Item("late", "train", 2.5, devices=1),
    ]
    queue = Queue(items)
    started = queue.start(4, 0.0)
    assert [i.name for i in started] == ["first", "small"]  # ends before the first does
    queue.finish("small")
    assert not queue.start(1, 3.9)  # "late" would hold "wide" back
    queue.finish("first")
    assert [i.name for i in queue.start(4, 4.0)] == ["wide"]


def test_what_waits_for_a_failed_run_is_dropped_and_the_rest_goes_on():
    items = [Item("m", "adapt", 1), Item("a", "train", 1, after=("m",)), Item("b", "train", 1)]
    items += [Item("a-0", "encode", 1, after=("a",))]
    queue = Queue(items)
    assert [i.name for i in queue.start(2, 0.0)] == ["m", "b"]
    queue.drop("m")
    assert not queue.start(1, 1.0)
    queue.finish("b")
    assert queue.done


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([Item("a", "train", 1), Item("a", "train", 1)], "one name"),
        ([Item("a", "train", 1, after=("b",))], "waits for b"),
        ([Item("a", "train", 1, after=("b",)), Item("b", "train", 1, after=("a",))], "each other"),
    ],
)
def test_items_that_cannot_be_are_refused(items, told):
    with pytest.raises(ValueError, match=told):
        Queue(items)


def test_an_item_that_never_fits_is_refused():
    with pytest.raises(ValueError, match="a needs 8 devices, and there are 4"):
        simulate([Item("a", "train", 1, devices=8)], 4)


@st.composite
def grids(draw):
    sizes = draw(st.integers(1, 4))
    seconds = st.floats(0.1, 50)
    items = [Item(f"m{s}", "adapt", draw(seconds), draw(st.integers(1, 4))) for s in range(sizes)]
    for s, c in itertools.product(range(sizes), range(draw(st.integers(1, 4)))):
        run = Item(f"r{s}{c}", "train", draw(seconds), draw(st.integers(1, 4)), (f"m{s}",))
        shards = draw(st.integers(0, 3))
        items += [
            run,
            *(Item(f"{run.name}-{i}", "encode", 1, 1, (run.name,)) for i in range(shards)),
        ]
    return items, draw(st.integers(4, 8))


@settings(max_examples=200, deadline=None)
@given(grids())
def test_any_schedule_is_sound(case):
    """Everything is done once, after what it waits for, never on more devices than there are, and within
    the bounds of list scheduling: no shorter than the work or the longest chain, no longer than both."""
    items, devices = case
    done = simulate(items, devices)
    by_name = {item.name: item for item in items}
    assert set(done.ends) == set(by_name)
    spans = {n: (end - by_name[n].seconds, end) for n, end in done.ends.items()}
    for name, (start, _) in spans.items():
        assert all(done.ends[a] <= start + 1e-9 for a in by_name[name].after)
    for moment in [start for start, _ in spans.values()]:
        held = [by_name[n].devices for n, (a, b) in spans.items() if a <= moment < b - 1e-9]
        assert sum(held) <= devices
    work = sum(item.seconds * item.devices for item in items)
    chain = max(Queue(items).ranks.values())
    assert done.makespan_s >= max(work / devices, chain) - 1e-6
    assert done.busy_device_s == pytest.approx(work)
    assert 0 < done.utilisation <= 1 + 1e-9
