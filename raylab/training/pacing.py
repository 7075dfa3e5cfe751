"""When a run keeps a checkpoint: by time, so that a fault costs minutes whatever a run's length."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from raylab.training.distributed import from_first

UNKNOWN_S = 600.0  # between two checkpoints, where nothing is known of faults
_LOOK_S = 2.0  # how often the workers agree on whether one is due


@dataclass(frozen=True)
class Pacing:
    """How long a run goes on without a checkpoint.

    ``minutes``: given; None: by Young's formula, sqrt(2 x cost of a checkpoint x time between faults)
    (doi 10.1145/361147.361115), from what the last one cost. ``fault_hours``: mean time between faults of a run;
    None: not known, and then ten minutes.
    """

    minutes: float | None = None
    fault_hours: float | None = None

    def seconds(self, cost_s: float | None) -> float:
        """From one to the next, where the last one took `cost_s`; None: none was kept yet."""
        if self.minutes is not None:
            return 60 * self.minutes
        if self.fault_hours is None or cost_s is None:
            return UNKNOWN_S
        return max(cost_s, math.sqrt(2 * cost_s * 3600 * self.fault_hours))


class Clock:
    """Says after every step whether a checkpoint is due: rank 0 decides, and all workers hear it.

    Args:
        noticed: whether a machine of this run is about to be taken away: then one is due at once. It is called
            on all workers alike.
    """

    def __init__(self, pacing: Pacing, noticed: Callable[[], bool] = lambda: False):
        self.pacing, self.noticed = pacing, noticed
        self.cost_s: float | None = None
        self.answered = False  # a notice, by a checkpoint
        self.kept_at = self.asked_at = time.monotonic()
        self.apart = self.until_asked = 1  # steps from one question to the next, and left of them

    def is_due(self) -> bool:
        """Call after every step, on all workers."""
        self.until_asked -= 1
        if self.until_asked > 0:
            return False
        noticed = not self.answered and self.noticed()
        now = time.monotonic()
        interval_s = self.pacing.seconds(self.cost_s)
        step_s = max((now - self.asked_at) / self.apart, 1e-6)
        apart = max(1, int(min(_LOOK_S, interval_s) / step_s))
        due, self.apart = from_first((noticed or now - self.kept_at >= interval_s, apart))
        self.answered |= noticed
        self.asked_at, self.until_asked = now, self.apart
        return due

    def kept(self, cost_s: float) -> None:
        """A checkpoint was kept, and took so long."""
        self.cost_s, self.kept_at = cost_s, time.monotonic()
