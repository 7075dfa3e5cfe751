"""One driver a storage, and what it finds left by killed ones."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.jobs.cluster import connect, connected
from raylab.storage.lease import leased
from raylab.storage.store import Store
from raylab.storage.writable import check_writable

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

_HELD: set[str] = set()  # addresses of the storages whose driver this process is


@contextlib.contextmanager
def sole_driver(store: Store) -> Iterator[None]:
    """One driver a storage; in a folder it also removes what killed writers left.

    Raises:
        ConfigError: another process is at work there, or the storage cannot be written to.
    """
    check_writable(store)
    with contextlib.ExitStack() as stack:
        if store.is_local:
            stack.enter_context(_locked_folder(Path(store.root)))
        stack.enter_context(leased(store.files, alone=store.is_local))
        if store.is_local and (removed := store.sweep(_STAGES)):
            log.warning("removed %d unfinished artifact(s) that a killed process left", removed)
        _HELD.add(store.uri)
        stack.callback(_HELD.discard, store.uri)
        yield


@contextlib.contextmanager
def _locked_folder(root: Path) -> Iterator[None]:
    """A lock that ends with its process, however that ends; after an error nothing empty stays in the folder."""
    fresh, path = not root.exists(), root / "driver.lock"
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path, "w"))
        except OSError as error:
            raise ConfigError(
                f"storage {root}: it cannot be written to ({error.strerror or error})"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"storage {root}: another raylab driver is at work there") from None
        try:
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            _remove_empty(root, keep=not fresh)
            raise


def take_over(
    stack: contextlib.ExitStack, store: Store, execution: Execution | None = None
) -> None:
    """Be the storage's driver and connect to Ray until `stack` ends, unless that was done."""
    if store.uri not in _HELD:
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
