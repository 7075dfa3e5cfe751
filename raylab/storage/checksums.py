"""Checksums of local files, computed once: size and modification time decide whether again.

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
    key = hashlib.sha256(f"{algorithm} {path}".encode()).hexdigest()
    kept = cache_folder() / f"{key}.json"
    with suppress(OSError, ValueError, KeyError):
        entry = json.loads(kept.read_text())
        if entry["facts"] == facts:
            return entry["checksum"]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    value = digest.hexdigest()
    settled = time.time_ns() - facts["modified_ns"] > _SETTLED_NS
    if settled and _facts(path) == facts:
        _keep(kept, {"path": str(path), "facts": facts, "checksum": value})
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
