"""FLOPs, share of peak, device hours and their price, of a running laboratory."""

from __future__ import annotations

from collections.abc import Sequence

from raylab.live.facts import LivePlan, Point
from raylab.live.history import History
from raylab.live.reading import LiveFacts
from raylab.live.views import CellView, Compute
from raylab.planning.devices import DEVICES, Device
from raylab.planning.remaining import Remaining


def planned_device(plan: LivePlan | None) -> Device | None:
    """The device that the plan is for, where its peak is known."""
    return None if plan is None or plan.device is None else DEVICES.get(plan.device)


def peak_share(point: Point | None, devices: int | None, device: Device | None) -> float | None:
    """FLOPs a second of a run's steps over the peak of the devices that it holds."""
    if point is None or not devices or device is None or point.seconds <= 0:
        return None
    return point.flops / point.seconds / (devices * device.peak_flops)


def compute_of(
    facts: LiveFacts,
    cells: Sequence[CellView],
    other_flops: float,
    own: History,
    left: Remaining | None,
    now: float,
    hour_price: float | None,
) -> Compute:
    """What the command takes.

    Args:
        other_flops: of runs that make no cell, such as MNTP.
        own: of the plan's command.
        now: until when runs that go on count, Unix time.
        hour_price: of one device.
    """
    plan, device = facts.plan, planned_device(facts.plan)
    planned_hours = spent_hours = left_hours = None
    share = None
    if plan is not None and plan.runs:
        planned_hours = sum(one.seconds * one.devices for one in plan.runs) / 3600
        spent_hours = _spent_hours(plan, own, now)
        if left is not None:
            left_hours = sum(left.runs.get(one.run, 0.0) * one.devices for one in plan.runs) / 3600
        share = _peak_share_of_all(plan, facts, device)

    def price(hours: float | None) -> float | None:
        return None if hours is None or hour_price is None else hours * hour_price

    return Compute(
        sum(cell.planned_flops or 0.0 for cell in cells if cell.state != "left out"),
        sum(cell.spent_flops or 0.0 for cell in cells) + other_flops,
        sum(one.lost_flops for one in facts.runs.values()),
        plan.device if plan else None,
        device.peak_flops if device else None,
        share,
        planned_hours,
        spent_hours,
        left_hours,
        hour_price,
        price(spent_hours),
        price(left_hours),
    )


def _spent_hours(plan: LivePlan, own: History, now: float) -> float:
    seconds = 0.0
    for one in plan.runs:
        if (began := own.began.get(one.run)) is not None:
            over = own.over_at(one.run)
            seconds += max(0.0, (now if over is None else over) - began) * one.devices
    return seconds / 3600


def _peak_share_of_all(plan: LivePlan, facts: LiveFacts, device: Device | None) -> float | None:
    flops = device_seconds = 0.0
    for one in plan.runs:
        told = facts.runs.get(one.run)
        if told is not None and told.latest is not None:
            flops += told.latest.flops
            device_seconds += told.latest.seconds * one.devices
    if device is None or device_seconds <= 0:
        return None
    return flops / device_seconds / device.peak_flops
