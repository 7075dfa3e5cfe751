"""Files and storages that a user names: what goes wrong with them is told with the option's name."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution

if TYPE_CHECKING:
    import pandas as pd

    from raylab.storage.store import Store


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """A block that writes a file (or folder) of the user's.

    Raises:
        ConfigError: it cannot be written; names the option and the file.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{option} {path}: it cannot be written ({reason})") from None


@contextmanager
def output_stream(option: str, path: Path) -> Iterator[io.BufferedIOBase]:
    """A binary stream of a file that appears whole or not at all; gzip if its name ends in `.gz`.

    Raises:
        ConfigError: as `writing`; or a form of compression that is only read.
    """
    from raylab.evaluation.runs import atomic_writer

    if path.suffix == ".zst":
        raise ConfigError(f"{option} {path}: written are plain files and .gz")
    with writing(option, path), atomic_writer(path) as stream:
        yield stream


@contextmanager
def output_path(option: str, path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its name when the block ends without an error.

    Raises:
        ConfigError: as `writing`.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(option, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def open_store(storage: str) -> Store:
    """The storage of `--storage`; nothing is made there.

    Raises:
        ConfigError: no such kind of address, one whose package is not installed, or it would stand below a file.
    """
    from raylab.storage.store import Store
    from raylab.storage.writable import check_place

    store = Store(storage)
    check_place(store)
    return store


def take_over(stack: ExitStack, store: Store, execution: Execution | None = None) -> None:
    """Be the storage's driver and connect to Ray, until `stack` ends.

    Raises:
        ConfigError: the storage cannot be written to, or another driver is at work there.
    """
    from raylab.pipeline import driver

    driver.take_over(stack, store, execution)


def stored_table(storage: str, name: str) -> pd.DataFrame:
    """A table that grids left in a storage; of a cell that was run again, the last run.

    Raises:
        ConfigError: none there, or not a whole one.
    """
    import pyarrow as pa

    from raylab.storage.merging import read_current

    store = open_store(storage)
    try:
        return read_current(store, name)
    except FileNotFoundError:
        raise ConfigError(
            f"{storage}: no {name} there; run experiments/grid.py --storage {storage}"
        ) from None
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{storage}/{name}: not a whole table ({error})") from None
