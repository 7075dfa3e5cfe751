"""Where the time of a laboratory went, by stage, from its ledger."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class StageTime:
    """Seconds of all artifacts of a stage, each made by one process (or group of workers) at a time.

    ``work``: steps of training, encoding, searching; ``measuring``: held-out points of training; ``again``: lost to
    faults; ``waiting``: of training runs, until their first step, between their last and their end, and for restarts;
    ``writing``: into the storage, where it is known apart from the work.
    """

    stage: str
    artifacts: int
    work: float
    measuring: float
    again: float
    waiting: float
    writing: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.work + self.measuring + self.again + self.waiting + self.writing


def times(ledger: pd.DataFrame) -> list[StageTime]:
    """A row a stage, in the ledger's order, and their sum as the stage "all"."""
    rows = [_of_stage(str(stage), own) for stage, own in ledger.groupby("stage", sort=False)]
    amounts = [f.name for f in fields(StageTime) if f.name != "stage"]
    totals = {name: sum(getattr(row, name) for row in rows) for name in amounts}
    return [*rows, StageTime("all", **totals)]


def _of_stage(stage: str, rows: pd.DataFrame) -> StageTime:
    def known(name: str) -> np.ndarray:
        """0 where it is not told."""
        told = rows[name] if name in rows else [None] * len(rows)
        return np.nan_to_num(np.array(told, float))

    work, measuring, again = (
        known(name) for name in ("seconds", "measuring_seconds", "lost_seconds")
    )
    writing, elapsed = known("writing_seconds"), known("elapsed_seconds")
    waiting = np.maximum(elapsed - work - measuring - again - writing, 0.0)
    sums = (float(part.sum()) for part in (work, measuring, again, waiting, writing))
    return StageTime(stage, len(rows), *sums)
