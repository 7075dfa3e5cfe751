"""Whether a storage can be what a run writes to, before anything is done that would be lost."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from raylab.experiment.config import ConfigError
from raylab.storage.store import Store

# Where Ray unpacks what `ray job submit --working-dir` sent, below a cluster's temporary folder.
_UNPACKED = "/runtime_resources/working_dir_files/"


def check_place(store: Store) -> None:
    """Raise `ConfigError` where a local storage would stand below a file."""
    if store.is_local and not _nearest(store).is_dir():
        raise _unwritable(store, os.strerror(errno.ENOTDIR))


def check_writable(store: Store) -> None:
    """Of a local storage; nothing is left there. An object storage is written to when its driver begins.

    Raises:
        ConfigError: it cannot be made or written to, or it would vanish with the job.
    """
    if not store.is_local:
        return
    if _UNPACKED in store.root:
        raise ConfigError(
            f"storage {os.path.basename(store.root)}: in a submitted job this folder is part of Ray's copy of "
            "--working-dir, which is removed; name an address such as s3://BUCKET/lab, or the absolute path of a "
            "folder that every node reaches"
        )
    check_place(store)
    try:
        with tempfile.TemporaryDirectory(dir=_nearest(store)):
            pass
    except OSError as error:
        raise _unwritable(store, error.strerror or str(error)) from None


def _nearest(store: Store) -> Path:
    """A local storage's folder, or the nearest above it that is there."""
    root = Path(store.root)
    return next(path for path in (root, *root.parents) if path.exists())


def _unwritable(store: Store, reason: str) -> ConfigError:
    return ConfigError(
        f"storage {store.root}: it cannot be written to ({reason}); name a folder or an address that can"
    )
