"""Who tells facts: the driver of a grid, and rank 0 of each training run."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from raylab.live.facts import (
    DRIVER,
    EVENTS,
    HELD_OUT,
    PLAN,
    RUNS,
    DriverState,
    Event,
    EventKind,
    LivePlan,
    PlannedCell,
    PlannedRun,
    Point,
)
from raylab.live.writing import FactWriter
from raylab.planning.scheduling import Item, Kind, simulate
from raylab.storage.store import Store

_BEAT_S = 5.0
_EVERY_S = 5.0
_POINTS_A_TIME = 50  # a short run has points closer than `_EVERY_S`
_FIRST_S = 0.5


class DriverLog:
    """What the driver tells: its plan, what happens, and that it is alive.

    Nothing is written before `begin`, so that a command that is refused leaves nothing behind.
    """

    def __init__(self, store: Store):
        self.writer = FactWriter(store, EVENTS, _BEAT_S, self._files)
        self.began = time.time()
        self.state = ("running", "start", 0, 0, "")
        self.plan: LivePlan | None = None
        self._begun = False

    def _files(self) -> dict[str, DriverState | LivePlan]:
        status, stage, done, total, text = self.state
        session = self.writer.session
        files: dict[str, DriverState | LivePlan] = {} if self.plan is None else {PLAN: self.plan}
        files[DRIVER] = DriverState(
            session,
            self.began,
            time.time(),
            status,  # type: ignore[arg-type]
            stage,
            done,
            total,
            text,
        )
        self.plan = None  # once
        return files

    def begin(self) -> None:
        """Write from now on; again, it does nothing."""
        if not self._begun:
            self._begun = True
            self.writer.start()

    def event(self, kind: EventKind, name: str, text: str = "") -> None:
        """Tell of something that happened."""
        self.writer.add(Event(time.time(), kind, name, text[:500]))

    def stands(self, stage: str, done: int, total: int) -> None:
        """Tell where the driver is."""
        self.state = ("running", stage, done, total, "")

    def planned(
        self,
        collection: str,
        cells: Sequence[PlannedCell],
        items: Sequence[Item],
        devices: int,
        device: str | None,
        overhead_s: float,
    ) -> None:
        """Tell what the command will do; its schedule is a simulation of the queue."""
        runs = planned_runs(items, devices)
        head = self.writer.session, time.time(), collection
        self.plan = LivePlan(*head, tuple(cells), runs, devices, device, overhead_s)
        self.writer.flush()

    def close(self, error: BaseException | None = None) -> None:
        """Say how it ended."""
        _, stage, done, total, _ = self.state
        said = "" if error is None else f"{type(error).__name__}: {error}".splitlines()[0][:500]
        if isinstance(error, KeyboardInterrupt):
            said = "it was asked to stop; the same command goes on"
        self.state = ("ended" if error is None else "failed", stage, done, total, said)
        if self._begun:
            self.writer.close()


def planned_runs(items: Sequence[Item], devices: int) -> tuple[PlannedRun, ...]:
    """The training runs among the items, with their predicted times, in order of the items."""
    if not items:
        return ()
    ends = simulate(items, max(devices, *(item.devices for item in items))).ends
    kinds: dict[Kind, str] = {"adapt": "adapt", "train": "train"}
    return tuple(
        PlannedRun(
            item.name,
            kinds[item.kind],  # type: ignore[arg-type]
            item.seconds,
            item.devices,
            item.after,
            ends[item.name] - item.seconds,
            ends[item.name],
        )
        for item in items
        if item.kind in kinds
    )


class RunLog:
    """What rank 0 of a training run tells: points, closer in the first minutes.

    Args:
        run: name of the run, in the plan.
        gpu: whether memory is that of this process' GPU.
    """

    def __init__(self, store: Store, run: str, gpu: bool):
        self.writer = FactWriter(store, f"{RUNS}/{run}", _EVERY_S)
        self.gpu = gpu
        self.began = self.last = time.time()
        self.losses: list[float] = []
        self.latest: tuple[int, int, float, float, float | None, float] = (
            0,
            0,
            0.0,
            0.0,
            None,
            0.0,
        )
        self.gradient_norm: float | None = None
        self.before: tuple[float, float] | None = None  # tokens and seconds of the point before
        self.writer.start()

    def note(
        self,
        step: int,
        steps: int,
        flops: float,
        tokens: float,
        loss: float,
        learning_rate: float | None,
        seconds: float,
        gradient_norm: float | None = None,
        measures: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """After each step; a point now and then, and always at the first step, the last and where it was measured.

        `measures`: `held_out`, `active_terms` and `collapse` as in `Point`, where they are known.
        """
        now = time.time()
        self.gradient_norm = gradient_norm
        self.losses.append(loss)
        self.latest = step, steps, flops, tokens, learning_rate, seconds
        every_s = min(_EVERY_S, max(_FIRST_S, (now - self.began) / _POINTS_A_TIME))
        if self.before is not None and now - self.last < every_s and step < steps and not measures:
            return
        self._add(now, measures)
        if step >= steps:
            self.writer.flush()

    def close(self) -> None:
        """The run has ended, at its last step or before it where its budget was spent; returns at once."""
        if self.losses:
            self._add(time.time())
        self.writer.close(wait_s=0.0)

    def _add(self, now: float, measures: Mapping[str, float] = MappingProxyType({})) -> None:
        step, steps, flops, tokens, learning_rate, seconds = self.latest
        speed = None
        if self.before is not None and seconds > self.before[1]:
            speed = (tokens - self.before[0]) / (seconds - self.before[1])
        mean = math.fsum(self.losses) / len(self.losses)
        first, self.losses = self.before is None, []
        self.before, self.last = (tokens, seconds), now
        memory = self._peak_bytes()
        point = Point(now, step, steps, flops, mean, learning_rate, tokens, speed, seconds, memory)
        known = {name: measures[name] for name in HELD_OUT if name in measures}
        self.writer.add(replace(point, gradient_norm=self.gradient_norm, **known))
        if first:
            self.writer.flush()

    def _peak_bytes(self) -> int:
        if self.gpu:
            import torch  # only a worker that has it comes here

            return torch.cuda.max_memory_allocated()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
