"""Whether a training step fits a device, and what would make it fit (`raylab.planning.memory` says what it needs)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raylab.experiment.config import ConfigError
from raylab.planning.memory import Load

USABLE = 0.9  # of a device's memory: the rest is for what the framework itself takes
_GIB = 2**30


@dataclass(frozen=True)
class Fitting:
    """Whether a step fits a device, and if not, what would do.

    `proposal` is the cheapest changed load that fits; without one, `workers` is how many under ZeRO 3,
    with everything else that helps, would (None: no number of them that shares the batch evenly).
    """

    load: Load
    needed_bytes: float
    device_bytes: float
    proposal: Load | None = None
    workers: int | None = None

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= USABLE * self.device_bytes

    @property
    def options(self) -> str:
        """The proposal as what to type, checkpointing as the recipe's field; empty where it fits or nothing does."""
        if self.fits:
            return ""
        if self.proposal is None:
            return "" if self.workers is None else f"--workers {self.workers} --zero 3"
        changed = []
        if self.proposal.micro_batch != self.load.micro_batch:
            changed.append(f"--micro-batch {self.proposal.micro_batch}")
        if self.proposal.zero_stage != self.load.zero_stage:
            changed.append(f"--zero {self.proposal.zero_stage}")
        if self.proposal.checkpointing != self.load.checkpointing:
            kind = "adaptation" if self.load.head is None else "fine_tuning"
            changed.append(f"{kind}.checkpointing = true")
        return " ".join(changed)


def fit(load: Load, device_bytes: float) -> Fitting:
    """Whether a step fits, or the cheapest change with which it does.

    In this order: smaller micro-batches (one more forward pass; the largest that fit), checkpointing
    (one more forward pass of the blocks, and another cost of a step in the account), a higher ZeRO
    stage (more communication), and two or all of them.
    """
    limit = USABLE * device_bytes
    needed = load.memory().total
    if needed <= limit:
        return Fitting(load, needed, device_bytes)

    def first(candidates: Iterator[Load]) -> Load | None:
        return next((c for c in candidates if c.memory().total <= limit), None)

    proposal = first(_changes(load))
    if proposal is not None:
        return Fitting(load, needed, device_bytes, proposal)
    least = dataclasses.replace(
        load, checkpointing=True, zero_stage=3, micro_batch=0 if load.head is None else 1
    )
    shared = load.shared or int(min(rows.count for rows in load.rows))
    counts = [w for w in range(load.workers + 1, shared + 1) if shared % w == 0]
    more = first(dataclasses.replace(least, workers=w) for w in counts)
    return Fitting(load, needed, device_bytes, None, more.workers if more else None)


def _changes(load: Load) -> Iterator[Load]:
    """What may be changed of how a step is executed, cheapest first."""
    parts: list[dict[str, Any]] = []
    if load.head is not None:
        size = 1 << max(0, int(load.micro_batch or load.texts) - 1).bit_length()
        while size > 1:
            size //= 2
            if size < (load.micro_batch or load.texts):
                parts.append({"micro_batch": size})
    checkpoint: list[dict[str, Any]] = [] if load.checkpointing else [{"checkpointing": True}]
    stages = range(load.zero_stage + 1, 4) if load.workers > 1 else ()
    zero: list[dict[str, Any]] = [{"zero_stage": stage} for stage in stages]
    kinds = (parts, checkpoint, zero)
    for count in (1, 2, 3):
        for chosen in itertools.combinations(kinds, count):
            for changes in itertools.product(*chosen[::-1]):
                merged = {key: value for change in changes for key, value in change.items()}
                yield dataclasses.replace(load, **merged)


def check_memory(name: str, fitting: Fitting) -> None:
    """Refuse what does not fit.

    Args:
        name: of the cell, or of what else trains.

    Raises:
        ConfigError: it needs more than the device has; the message says what would do.
    """
    if fitting.fits:
        return
    needed, device = fitting.needed_bytes / _GIB, fitting.device_bytes / _GIB
    if fitting.proposal is not None:
        then = fitting.proposal.memory().total / _GIB
        remedy = f"{fitting.options} needs {then:.2f} GiB"
    elif fitting.workers is not None:
        remedy = f"it takes {fitting.options}, with micro-batches of 1 and checkpointing"
    else:
        remedy = "no micro-batch, ZeRO stage or number of workers makes it fit"
    raise ConfigError(
        f"{name} needs {needed:.2f} GiB a worker, and of {device:.2f} GiB of the device "
        f"{USABLE:.0%} may be planned for: {remedy}"
    )
