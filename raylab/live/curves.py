"""The curve of a training run, in bounded memory: a longer one has fewer, wider points."""

from __future__ import annotations

from array import array
from typing import Any

from raylab.live.facts import HELD_OUT, Point

MOST_POINTS = 500
_TOLD = "step flops loss learning_rate tokens tokens_per_s seconds at gradient_norm"
_NUMBERS = (*_TOLD.split(), *HELD_OUT)


class Curve:
    """Points of one run, in order: fewer than 2 x `MOST_POINTS`; then neighbours, and those to come, become one.

    The loss of such a point is the mean, all else is the last one's; of what is told of a few points alone, the
    last that was told. Where a run began again from a checkpoint, the points that were taken again are let go.
    """

    def __init__(self) -> None:
        self.columns = {name: array("d") for name in _NUMBERS}
        self.numbers = array("q")  # a point's own, which only grow
        self.added = 0
        self.width = 1  # told points that become one
        self.losses: list[float] = []  # of the point that is not whole yet
        self.held_out: dict[str, float] = {}  # as well
        self.sessions: list[str] = []

    def add(self, session: str, point: Point) -> None:
        """The next point of a session."""
        if session not in self.sessions:
            self.sessions.append(session)
            self._forget_from(point.step)
        self.losses.append(point.loss)
        values = {name: getattr(point, name) for name in HELD_OUT}
        self.held_out |= {name: value for name, value in values.items() if value is not None}
        if len(self.losses) >= self.width or point.step >= point.steps:
            self._append(point)

    def _append(self, point: Point) -> None:
        for name, values in self.columns.items():
            value = self.held_out.get(name) if name in HELD_OUT else getattr(point, name)
            values.append(float("nan") if value is None else value)
        self.columns["loss"][-1] = sum(self.losses) / len(self.losses)
        self.losses, self.held_out = [], {}
        self.numbers.append(self.added)
        self.added += 1
        if len(self.numbers) >= 2 * MOST_POINTS:
            self._thin()

    def _forget_from(self, step: int) -> None:
        self.losses, self.held_out = [], {}
        keep = sum(1 for one in self.columns["step"] if one < step)
        for values in (*self.columns.values(), self.numbers):
            del values[keep:]

    def _thin(self) -> None:
        for name, values in self.columns.items():
            if name == "loss":
                pairs = zip(values[::2], values[1::2], strict=True)
                self.columns[name] = array("d", [(a + b) / 2 for a, b in pairs])
            elif name in HELD_OUT:
                pairs = zip(values[::2], values[1::2], strict=True)
                self.columns[name] = array("d", [b if b == b else a for a, b in pairs])
            else:
                self.columns[name] = values[1::2]
        self.numbers = self.numbers[1::2]
        self.width *= 2

    def rows(self, after: int = -1) -> list[dict[str, Any]]:
        """Points whose number is above `after`, as JSON objects; a number that is not known is null."""
        return [
            {"n": number}
            | {
                name: None if values[i] != values[i] else values[i]
                for name, values in self.columns.items()
            }
            for i, number in enumerate(self.numbers)
            if number > after
        ]
