"""Checksums computed once: size and modification time of a local file decide whether again.

Large inputs (a collection, a model's weights) are named by their content in every fingerprint, and a grid
asks for it at every start. What was computed is kept below the user's cache folder, a small file a
path; removing them costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# A file written so short a time ago may be written again within the clock's grain: its sum is not kept.
_SETTLED_NS = 2 * 10**9
_BLOCK_BYTES = 2**20


def cache_folder() -> Path:
    """Where sums are kept: `RAYLAB_CACHE`, or `raylab` below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RAYLAB_CACHE") or Path(home, "raylab")) / "checksums"


def checksum(path: str | Path, algorithm: str = "sha256") -> str:
    """The checksum (hex) of a local file.

    Args:
        algorithm: one of hashlib's.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path).resolve()
    facts = _facts(path)

    def read() -> str:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def settled() -> bool:
        return time.time_ns() - facts["modified_ns"] > _SETTLED_NS and _facts(path) == facts

    return remembered(f"{algorithm} {path}", facts, read, settled)


def remembered(
    key: str,
    facts: Mapping[str, Any],
    read: Callable[[], str],
    settled: Callable[[], bool] = lambda: True,
) -> str:
    """What `read` returns, or returned before under the same key and facts.

    Args:
        facts: JSON that changes whenever what is read does.
        settled: asked after reading whether the facts can be trusted; else nothing is kept.
    """
    kept = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError):
        entry = json.loads(kept.read_text())
        if entry["facts"] == facts:
            return entry["checksum"]
    value = read()
    if settled():
        _keep(kept, {"key": key, "facts": facts, "checksum": value})
    return value


def _facts(path: Path) -> dict[str, int]:
    status = path.stat()
    return {
        "size": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def _keep(path: Path, entry: dict[str, Any]) -> None:
    """Atomically, and in silence where the cache cannot be written."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            json.dump(entry, file)
        os.replace(aside, path)
