"""Writing facts to a storage, without ever being in the way of who tells them.

A thread of its own writes; who adds a fact waits for nothing, and what cannot be written is lost with one warning.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from raylab.live.facts import new_session, record
from raylab.storage.store import Store

log = logging.getLogger("raylab")
_LINES_A_PART = 200
_MOST_WAITING = 5_000  # lines that are not written yet; older ones are let go
_LONGEST_WAIT_S = 60.0


class FactWriter:
    """Adds facts to numbered parts below a folder of the storage.

    Args:
        folder: below the root of the storage.
        every_s: seconds between two writes.
        files: asked before each write for small files that are written again whole, by their paths.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        every_s: float = 5.0,
        files: Callable[[], Mapping[str, Any]] | None = None,
    ):
        self.store, self.folder, self.every_s = store, folder, every_s
        self.files = files or dict
        self.session = new_session()
        self.waiting: deque[str] = deque(maxlen=_MOST_WAITING)
        self.part: list[str] = []
        self.number, self.failures = 0, 0
        self._wake, self._closing = threading.Event(), False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write; what was added before is kept until then."""
        self._thread = threading.Thread(target=self._serve, name="facts", daemon=True)
        self._thread.start()

    def add(self, fact: Any) -> None:
        """Any thread may call it; it returns at once."""
        self.waiting.append(json.dumps(record(fact)))

    def flush(self) -> None:
        """Write soon; returns at once."""
        self._wake.set()

    def close(self, wait_s: float = 5.0) -> None:
        """Write what waits and end, or leave it after `wait_s` seconds."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=wait_s)

    def _serve(self) -> None:
        while True:
            closing = self._closing
            self._wake.clear()
            try:
                self._write()
                self.failures = 0
            except Exception as fault:  # a picture may have gaps; training must not
                if not self.failures:
                    log.warning("progress is not written to %s/live: %s", self.store.uri, fault)
                self.failures += 1
            if closing:
                return
            wait_s = min(self.every_s * 2 ** min(self.failures, 10), _LONGEST_WAIT_S)
            self._wake.wait(wait_s if self.failures else self.every_s)

    def _write(self) -> None:
        for path, fact in self.files().items():
            self.store.put_text(path, json.dumps(record(fact)))
        while self.waiting:
            room = _LINES_A_PART - len(self.part)
            fresh = [self.waiting[i] for i in range(min(room, len(self.waiting)))]
            lines = self.part + fresh
            name = f"{self.folder}/{self.session}-{self.number:06d}.jsonl"
            self.store.put_text(name, "\n".join(lines) + "\n")
            for _ in fresh:
                self.waiting.popleft()
            self.part = lines
            if len(lines) >= _LINES_A_PART:
                self.part, self.number = [], self.number + 1
