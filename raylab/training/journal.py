"""How long a training run took, and what it lost to faults: one file in storage for each session, read at its end.

A session lasts from a start of the workers to their end. It notes how far it came; the next one begins at a
checkpoint, and what lies between was done twice.

    train/RUN/journal/SESSION.json    {"flops_before", "seconds_before", "flops", "seconds", "taken_at", "at"}
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from typing import Any

from raylab.storage.store import Store
from raylab.training.loop import Progress

_EVERY_S = 5.0


class Journal:
    """The sessions of one run. Only the writer (rank 0) touches storage.

    Args:
        taken_at: when the run was begun, by the driver that runs (Unix seconds). The time between two drivers is no
            part of a run; that from a fault to the next start of its workers is.
    """

    def __init__(self, store: Store, folder: str, writes: bool, taken_at: float):
        self.store, self.folder, self.writes = store, f"{folder}/journal", writes
        self.name = f"{time.time():017.6f}-{uuid.uuid4().hex[:8]}.json"
        self.taken_at = taken_at
        self.line: dict[str, float] | None = None
        self.reported: dict[str, float] = {}
        self.last = 0.0

    def note(self, progress: Progress) -> None:
        """How far the session is; written every few seconds."""
        if not self.writes:
            return
        if self.line is None:
            self.line = {
                "flops_before": progress.spent_flops,
                "seconds_before": progress.seconds,
                "taken_at": self.taken_at,
            }
        now = time.time()
        self.line |= {"flops": progress.spent_flops, "seconds": progress.seconds, "at": now}
        if now - self.last >= _EVERY_S:
            self.last = now
            self.store.put_text(f"{self.folder}/{self.name}", json.dumps(self.line))

    def took(self) -> dict[str, Any]:
        """Retries, FLOPs and seconds that had to be done again, and seconds from start to now, since the last call."""
        if not self.writes:
            return {}
        lines = [*self._earlier(), *([self.line] if self.line else [])]
        pairs = list(itertools.pairwise(lines))
        until = {line["taken_at"]: line["at"] for line in lines} | {self.taken_at: time.time()}
        took = {
            "retries": len(pairs),
            "elapsed_seconds": sum(end - start for start, end in until.items()),
            **{
                f"lost_{amount}": sum(max(0.0, a[amount] - b[f"{amount}_before"]) for a, b in pairs)
                for amount in ("flops", "seconds")
            },
        }
        fresh = {name: value - self.reported.get(name, 0) for name, value in took.items()}
        self.reported = took
        return fresh

    def _earlier(self) -> list[dict[str, float]]:
        """The lines of the sessions before this one, in their order."""
        files = self.store.files
        return [
            json.loads(files.read(f"{self.folder}/{name}"))
            for name in files.names(self.folder)
            if name.endswith(".json") and name < self.name
        ]
