"""Copies of remote artifacts on a node's disk, shared by its processes; what was not used for longest goes first.

    FOLDER/STAGE/NAME-FINGERPRINT/ATTEMPT/    a copy; its own modification time says when it was last asked for
    FOLDER/.aside/                            being fetched or written
    FOLDER/.locks/, FOLDER/.usage             who fetches what; bytes that are held

A copy that was asked for within `GRACE_S` is never removed; files that are open or mapped stay readable
after their copy is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger("raylab")

GRACE_S = 600.0
_DEBRIS_S = 24 * 3600.0  # what a killed process left under .aside
_KEPT_FREE = 0.1  # of the disk
_DOWN_TO = 0.8  # of the limit, so that not every copy that comes removes another


class NodeCache:
    """A folder of copies.

    Args:
        folder: made when first needed.
        limit_bytes: of all copies; None: what leaves a tenth of the disk free, which holds in any case.
        grace_s: for so long after it was asked for a copy stays.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None, grace_s: float = GRACE_S):
        self.folder, self.limit_bytes, self.grace_s = folder, limit_bytes, grace_s

    def fetched(self, key: str, fetch: Callable[[Path], None]) -> Path:
        """The copy at ``key``; if there is none, `fetch` is given an empty folder to fill.

        One process of a node fetches a copy, others wait for it.
        """
        copy = self.folder / key
        if _touched(copy):
            return copy
        with self._locked(key):
            if _touched(copy):
                return copy
            with self.aside() as folder:
                fetch(folder)
                self.adopt(key, folder)
        return copy

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """A new folder on the cache's disk, removed when the block ends unless it was adopted."""
        folder = self.folder / ".aside" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def adopt(self, key: str, folder: Path) -> None:
        """Make a folder on the cache's disk the copy at ``key``, unless there is one."""
        copy, size = self.folder / key, _size(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(copy)
        except OSError:  # another process was first
            if not copy.exists():
                raise
            return
        _touched(copy)
        self._account(size)

    # ------------------------------------------------------------------ locks

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        place = self.folder / ".locks" / hashlib.sha256(key.encode()).hexdigest()[:2]
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --------------------------------------------------------------- eviction

    def _account(self, size: int) -> None:
        """Add to what is held, and make room where that is too much."""
        with open(self.folder / ".usage", "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            held = (int(text) if text.isdigit() else 0) + size
            if held > self._allowed(held):
                held = self._evict(held)
            file.seek(0)
            file.truncate()
            file.write(str(held))

    def _allowed(self, held: int) -> float:
        disk = shutil.disk_usage(self.folder)
        allowed = held + disk.free - _KEPT_FREE * disk.total
        return allowed if self.limit_bytes is None else min(self.limit_bytes, allowed)

    def _evict(self, held: int) -> int:
        """Remove copies, those first that were not asked for for longest; returns what is left, in bytes."""
        now = time.time()
        for debris in (self.folder / ".aside").glob("*"):
            with contextlib.suppress(OSError):
                if now - debris.stat().st_mtime > _DEBRIS_S:
                    shutil.rmtree(debris, ignore_errors=True)
        copies = []
        for copy in self.folder.glob("[!.]*/*/*"):
            with contextlib.suppress(OSError):
                copies.append((copy.stat().st_mtime, _size(copy), copy))
        held = sum(size for _, size, _ in copies)
        target = _DOWN_TO * self._allowed(held)
        for used, size, copy in sorted(copies):
            if held <= target or now - used < self.grace_s:
                break
            with self.aside() as aside, contextlib.suppress(OSError):
                copy.rename(aside / copy.name)
                held -= size
        if held > (allowed := self._allowed(held)):
            log.warning(
                "%s: %.3g GiB are held and in use, %.3g GiB are allowed; give the cache more room",
                *(self.folder, held / 2**30, max(allowed, 0.0) / 2**30),
            )
        return held


def _touched(copy: Path) -> bool:
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
