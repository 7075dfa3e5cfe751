"""What a grid writes of itself while it runs: one frozen dataclass a kind of fact says its fields and their units.

    live/plan.json                      `LivePlan`: what is to be made, written once a command
    live/driver.json                    `DriverState`: rewritten every few seconds; when it stops, the driver is dead
    live/events/SESSION-NUMBER.jsonl    `Event`, a line each
    live/runs/RUN/SESSION-NUMBER.jsonl  `Point`, a line each; a session is one start of the run's workers

A session is named after the time it began, so that parts are in order by their names. Parts are small and written
whole; only the last of a session is ever written again, when it has grown. None of this is read by the laboratory
itself: a part that is lost is a gap in a picture.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
import types
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

LIVE = "live"
PLAN, DRIVER = f"{LIVE}/plan.json", f"{LIVE}/driver.json"
EVENTS, RUNS = f"{LIVE}/events", f"{LIVE}/runs"

EventKind = Literal[
    "stage",  # a stage begins
    "stage-end",
    "made",  # an artifact of the stage is there
    "start",  # a run starts
    "end",  # a run is done
    "died",  # a run failed, whatever restarts its workers had
    "wait",  # devices are free, and nothing can start before a run that goes on has ended
    "note",  # what the driver said
]
T = TypeVar("T")


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the grid."""

    cell: str  # its run's name in every table
    run: str  # that makes it; several budgets of a cell may come from one
    size: str
    head: str
    objective: str
    seed: int
    variant: str
    planned_flops: float
    steps: int
    parameters: int
    state: Literal["planned", "done", "left out"] = "planned"  # when the plan was made


@dataclass(frozen=True)
class PlannedRun:
    """A training run that the command will start."""

    run: str
    kind: Literal["adapt", "train"]
    seconds: float  # predicted
    devices: int
    after: tuple[str, ...]  # runs that must have ended
    start_s: float  # predicted, from the plan's time on
    end_s: float


@dataclass(frozen=True)
class LivePlan:
    """What the command will do."""

    session: str
    at: float  # Unix time, s
    collection: str
    cells: tuple[PlannedCell, ...]
    runs: tuple[PlannedRun, ...]
    devices: int  # that training may hold at once
    device: str | None  # by its name in a plan; None: not known
    overhead_s: float  # of `PlannedRun.seconds`, what is not steps


@dataclass(frozen=True)
class DriverState:
    """Where the driver is."""

    session: str
    began: float  # Unix time, s
    at: float  # Unix time, s, of this line
    state: Literal["running", "ended", "failed"]
    stage: str
    done: int  # artifacts of the stage
    total: int
    text: str = ""  # how it ended


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    at: float  # Unix time, s
    kind: EventKind
    name: str  # of the stage or the run
    text: str = ""


@dataclass(frozen=True)
class Point:
    """Where a training run stands."""

    at: float  # Unix time, s
    step: int
    steps: int  # of the run whose learning rate is followed
    flops: float  # spent since the run's first step
    loss: float  # mean over the steps since the point before
    learning_rate: float | None
    tokens: float  # without padding, since the first step
    tokens_per_s: float | None  # since the point before
    seconds: float  # of steps alone
    peak_bytes: int | None  # of rank 0: of its GPU, or of its process
    gradient_norm: float | None = None  # of the step, before it is clipped
    held_out: float | None = (
        None  # contrastive entropy of held-out queries, nats; None: not measured here
    )
    active_terms: float | None = None  # of a held-out passage, mean (sparse)
    collapse: float | None = None  # mean cosine of two held-out passages: 1, all are alike


HELD_OUT = ("held_out", "active_terms", "collapse")  # of `Point`, what few of them have


def new_session() -> str:
    """A name for a session: in order of time, and no two alike."""
    return f"{time.time() * 1000:015.0f}-{os.getpid():07d}{uuid.uuid4().hex[:6]}"


def record(fact: Any) -> dict[str, Any]:
    """A fact as a JSON object."""
    return dataclasses.asdict(fact)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def read(kind: type[T], values: Any) -> T:
    """A fact of a JSON object; fields that it does not know are let go.

    Raises:
        ValueError: no such fact: a field is missing, or of another type, or not finite.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"not a {kind.__name__}")
    hints = _hints(kind)
    found = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            found[field.name] = _value(hints[field.name], values[field.name])
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{kind.__name__} without {field.name}")
    return kind(**found)


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
    elif get_origin(hint) is tuple:
        if isinstance(value, list):
            return tuple(_value(get_args(hint)[0], one) for one in value)
    elif dataclasses.is_dataclass(hint):
        return read(hint, value)  # type: ignore[arg-type]
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif isinstance(value, hint) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is not what it must be")
