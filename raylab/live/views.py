"""What the page is told, as frozen dataclasses: the schema of `/api/state` and `/api/timeline`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raylab.live.facts import Event

RunPhase = Literal["waiting", "running", "stopped", "done", "failed"]
CellPhase = Literal["waiting", "running", "stopped", "done", "failed", "left out"]
RunKind = Literal["adapt", "train"]


@dataclass(frozen=True)
class DriverView:
    """How the driver is: `silent` since `at` where it told nothing for a minute; `unknown`: nothing was told."""

    state: Literal["running", "silent", "ended", "failed", "unknown"]
    at: float | None  # Unix time, s, of what was told last
    began: float | None
    stage: str
    done: int
    total: int
    text: str


@dataclass(frozen=True)
class CellView:
    """A cell of the matrix."""

    cell: str
    run: str
    size: str
    head: str
    objective: str
    seed: int
    variant: str
    state: CellPhase
    share: float  # of its budget, 0 to 1
    planned_flops: float | None
    spent_flops: float | None
    left_s: float | None  # of its own run
    loss: float | None
    quality: str | None  # measured, such as nDCG@10 0.516
    artifact: str | None  # path of its retriever below the root of the storage


@dataclass(frozen=True)
class RunView:
    """A training run."""

    run: str
    kind: RunKind | None  # None: of an earlier command, whose plan is gone
    state: RunPhase
    step: int
    steps: int
    share: float
    flops: float
    loss: float | None
    learning_rate: float | None
    tokens_per_s: float | None
    peak_share: (
        float | None
    )  # FLOPs a second over the peak of its devices; None: the device is not known
    peak_bytes: int | None
    restarts: int
    lost_flops: float
    left_s: float | None
    told: bool  # whether it has a curve


@dataclass(frozen=True)
class Compute:
    """What the command takes; hours are of devices that runs hold, and of the plan's command alone."""

    planned_flops: float
    spent_flops: float
    lost_flops: float
    device: str | None
    peak_flops: float | None  # of one device
    peak_share: float | None  # of runs together, by the seconds of their steps
    planned_hours: float | None
    spent_hours: float | None
    left_hours: float | None
    hour_price: float | None  # of one device, where it was given
    spent_price: float | None
    left_price: float | None


@dataclass(frozen=True)
class State:
    """A laboratory at one moment."""

    storage: str
    collection: str
    driver: DriverView
    cells: tuple[CellView, ...]
    runs: tuple[RunView, ...]
    compute: Compute
    left_s: float | None  # of training
    faults: tuple[Event, ...]
    events: tuple[Event, ...]
    torn: int  # lines that could not be read
    rows: int  # of the results table
    chart: str | None  # changes with the results
    report: bool


@dataclass(frozen=True)
class Measured:
    """What the tables know of a trained cell."""

    size: str
    head: str
    objective: str
    seed: int
    variant: str
    spent_flops: float | None
    quality: str | None
    artifact: str | None


@dataclass(frozen=True)
class Span:
    """A stage or a run in time, as planned or as it was."""

    name: str
    kind: Literal["stage", "run"]
    what: Literal["planned", "real"]
    begin: float  # Unix time, s
    end: float  # of what goes on: now
    devices: int
    state: str


@dataclass(frozen=True)
class Held:
    """From `at` on, so many devices are held by runs."""

    what: Literal["planned", "real"]
    at: float  # Unix time, s
    devices: int


@dataclass(frozen=True)
class Timeline:
    """Of the plan's command; `devices`: that training may hold at once."""

    spans: tuple[Span, ...]
    held: tuple[Held, ...]
    devices: int
