"""Stages and runs of a command in time, as planned and as they were, and the devices that runs held."""

from __future__ import annotations

from collections.abc import Iterable

from raylab.live.history import History
from raylab.live.reading import LiveFacts
from raylab.live.views import Held, Span, Timeline

_MOST_SPANS = 2_000


def timeline(facts: LiveFacts, now: float, alive: bool) -> Timeline:
    """Of the plan's command.

    Args:
        alive: whether the driver is; else what goes on ended when the driver told something last.
    """
    plan = facts.plan
    if plan is None:
        return Timeline((), (), 0)
    last = now if alive or facts.driver is None else min(now, facts.driver.at)
    own = facts.history(plan.session)
    planned = [
        Span(one.run, "run", "planned", plan.at + one.start_s, plan.at + one.end_s, one.devices, "")
        for one in plan.runs
    ]
    real = []
    for one in plan.runs:
        if (began := own.began.get(one.run)) is not None:
            over = own.over_at(one.run)
            end = max(last if over is None else over, began)
            state = own.phase(one.run, alive)
            real.append(Span(one.run, "run", "real", began, end, one.devices, state))
    ended = facts.driver is not None and facts.driver.state == "ended"
    going = "running" if alive else "done" if ended else "stopped"
    spans = [*_stages(own, last, going), *planned, *real][:_MOST_SPANS]
    return Timeline(tuple(spans), (*_held(planned), *_held(real)), plan.devices)


def _stages(own: History, last: float, going: str) -> list[Span]:
    return [
        Span(
            name,
            "stage",
            "real",
            began,
            max(began, last) if ended is None else ended,
            0,
            going if ended is None else "done",
        )
        for name, began, ended in own.stages
    ]


def _held(spans: Iterable[Span]) -> list[Held]:
    """How many devices are held, at every time that this changes."""
    spans = list(spans)
    changes: dict[float, int] = {}
    for span in spans:
        changes[span.begin] = changes.get(span.begin, 0) + span.devices
        changes[span.end] = changes.get(span.end, 0) - span.devices
    rows, devices = [], 0
    for at in sorted(changes):
        devices += changes[at]
        rows.append(Held(spans[0].what, at, devices))
    return rows
