"""What a training run lost to faults: one file in storage for each session, read when the run is committed.

A session lasts from a start of the workers to their end. It notes how far it came; the next one begins at a
checkpoint, and what lies between was done twice.

    train/RUN/journal/SESSION.json    {"flops_before", "seconds_before", "flops", "seconds"}
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
    """The sessions of one run. Only the writer (rank 0) touches storage."""

    def __init__(self, store: Store, folder: str, writes: bool):
        self.store, self.folder, self.writes = store, f"{folder}/journal", writes
        self.name = f"{time.time():017.6f}-{uuid.uuid4().hex[:8]}.json"
        self.line: dict[str, float] | None = None
        self.reported: dict[str, float] = {}
        self.last = 0.0

    def note(self, progress: Progress) -> None:
        """How far the session is; written every few seconds."""
        if not self.writes:
            return
        if self.line is None:
            self.line = {"flops_before": progress.spent_flops, "seconds_before": progress.seconds}
        now = time.time()
        self.line |= {"flops": progress.spent_flops, "seconds": progress.seconds}
        if now - self.last >= _EVERY_S:
            self.last = now
            self.store.put_text(f"{self.folder}/{self.name}", json.dumps(self.line))

    def lost(self) -> dict[str, Any]:
        """Retries, and the FLOPs and seconds that had to be done again, since the last call."""
        if not self.writes:
            return {}
        lines = [*self._earlier(), *([self.line] if self.line else [])]
        pairs = list(itertools.pairwise(lines))
        lost = {
            "retries": len(pairs),
            **{
                f"lost_{amount}": sum(max(0.0, a[amount] - b[f"{amount}_before"]) for a, b in pairs)
                for amount in ("flops", "seconds")
            },
        }
        fresh = {name: value - self.reported.get(name, 0) for name, value in lost.items()}
        self.reported = lost
        return fresh

    def _earlier(self) -> list[dict[str, float]]:
        """The lines of the sessions before this one, in their order."""
        files = self.store.files
        return [
            json.loads(files.read(f"{self.folder}/{name}"))
            for name in files.names(self.folder)
            if name.endswith(".json") and name < self.name
        ]
