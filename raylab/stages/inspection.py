"""What one node tells of itself before a long run: versions, GPUs, storage, models, memory, disk. Without Ray."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raylab.data.hub_fault import check_hub
from raylab.experiment.config import Backbone, ConfigError
from raylab.storage.store import Store

PACKAGES = ("raylab", "ray", "torch", "transformers", "deepspeed", "numpy", "pyarrow", "fsspec")
PROBES = "doctor"  # folder below a storage's root; nothing is left of it
_ASK_GPUS = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
_ASK_S = 30.0


@dataclass(frozen=True)
class Inspected:
    """Facts of a node; an error in the place of what could not be done.

    ``latency_ms``: of a write, a read and a listing in the storage. ``models``: by size, what keeps it from being
    had there; empty where nothing does.
    """

    host: str
    versions: dict[str, str]
    gpus: tuple[str, ...]
    sees_driver: bool
    storage: str
    latency_ms: dict[str, float]
    models: dict[str, str]
    shared_memory_bytes: int
    cache: str
    disk_free_bytes: int


def inspect_node(
    store: Store,
    mark: str,
    backbones: Sequence[Backbone] = (),
    models_dir: str | None = None,
    quick: bool = False,
) -> Inspected:
    """Look at the node that this runs on.

    Args:
        mark: path below the storage's root of a file that the driver wrote.
        backbones: whose models must be had here.
        quick: leave out what takes more than a second.
    """
    sees, storage, latency = _storage(store, mark, quick)
    cache = tempfile.gettempdir()
    return Inspected(
        host=socket.gethostname(),
        versions=versions(),
        gpus=() if quick else _gpus(),
        sees_driver=sees,
        storage=storage,
        latency_ms=latency,
        models={} if quick else {one.name: _model(one, models_dir) for one in backbones},
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        cache=cache,
        disk_free_bytes=shutil.disk_usage(cache).free,
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that must be equal on all nodes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _gpus() -> tuple[str, ...]:
    try:
        told = subprocess.run(_ASK_GPUS, capture_output=True, text=True, timeout=_ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in told.stdout.splitlines() if line.strip())


def _storage(store: Store, mark: str, quick: bool) -> tuple[bool, str, dict[str, float]]:
    """Whether the driver's file is there, what went wrong, and how long requests take."""
    latency: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments)
        latency[name] = (time.perf_counter() - started) * 1_000
        return result

    path = f"{PROBES}/{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        sees = store.files.exists(mark)
        if quick:
            return sees, "", latency
        timed("write", store.put_bytes, path, b"probe")
        try:
            if timed("read", store.files.read, path) != b"probe":
                return sees, "what was written is not what is read", latency
            if Path(path).name not in timed("list", store.files.names, PROBES):
                return sees, "what was written is not listed", latency
        finally:
            store.files.remove(path)
    except Exception as error:  # every storage has errors of its own: what it says is asked for
        return False, " ".join(str(error).split()) or type(error).__name__, latency
    return sees, "", latency


def _model(backbone: Backbone, models_dir: str | None) -> str:
    # Here, since they take seconds and a quick look does without.
    from raylab.models.backbone import resolve_source
    from raylab.models.whole import check_model

    try:
        source = resolve_source(backbone, models_dir)
        if Path(source).is_dir():
            check_model(Path(source), f"size {backbone.name!r}", models_dir=models_dir)
        elif source.startswith(("/", ".", "~")):
            return f"there is no folder {source}"
        else:
            check_hub(source)
    except (ConfigError, OSError) as error:
        return " ".join(str(error).split())
    return ""
