"""One driver a local storage, and what it finds left by killed ones."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.jobs.cluster import connect, connected
from raylab.storage.artifacts import StorageError
from raylab.storage.store import Store

log = logging.getLogger("raylab")
_STAGES = (
    "collection",
    "tokens",
    "candidates",
    "scores",
    "groups",
    "arrays",
    "backbone",
    "retriever",
    "embeddings",
    "embedding-part",
    "index",
    "hits",
    "run",
    "measures",
    "profile",
)

_HELD: set[str] = set()  # roots of the storages whose driver this process is


@contextlib.contextmanager
def sole_driver(store: Store) -> Iterator[None]:
    """One driver a local storage; it also removes what killed writers left.

    Raises:
        ConfigError: another process is at work there.
        StorageError: the storage cannot be written to.
    """
    if not store.is_local:
        yield
        return
    fresh = not os.path.exists(store.root)
    path = Path(store.root, "driver.lock")
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(store.root, exist_ok=True)
            lock = stack.enter_context(open(path, "w"))
        except OSError as error:
            raise StorageError(store.root, error.strerror or str(error)) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"storage {store.uri}: another raylab driver is at work there"
            ) from None
        removed = store.sweep(_STAGES)
        if removed:
            log.warning("removed %d unfinished artifact(s) that a killed process left", removed)
        _HELD.add(store.root)
        try:
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            _remove_empty(Path(store.root), keep=not fresh)
            raise
        finally:
            _HELD.discard(store.root)


def take_over(
    stack: contextlib.ExitStack, store: Store, execution: Execution | None = None
) -> None:
    """Be the storage's driver and connect to Ray until `stack` ends, unless that was done."""
    if not store.is_local or store.root not in _HELD:
        stack.enter_context(sole_driver(store))
    if not connected():
        stack.enter_context(connect(execution or Execution(storage=store.uri)))


def _remove_empty(folder: Path, keep: bool) -> None:
    """Remove the empty folders below `folder`, and itself when nothing is left and `keep` is false."""
    for child in folder.iterdir():
        if child.is_dir():
            _remove_empty(child, keep=False)
    if not keep:
        with contextlib.suppress(OSError):
            folder.rmdir()
