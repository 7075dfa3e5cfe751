"""The files of an index: written whole or not at all, opened memory-mapped."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def made_files(directory: Path, names: Sequence[str]) -> Iterator[None]:
    """The directory, made if need be; on an error the files of these names are taken away again."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for name in names:
            (directory / name).unlink(missing_ok=True)
        raise


def described(directory: Path, form: str, kind: str) -> dict[str, Any]:
    """What ``index.json`` says of an index, less its format, which must be `form`.

    Raises FileNotFoundError, or ValueError for another format and for what is no JSON object.
    """
    path = directory / "index.json"
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    stated = description.pop("format", None) if isinstance(description, dict) else None
    if stated != form:
        raise ValueError(f"{path}: format is {stated!r}; {kind} has {form!r}")
    return description


def open_array(path: Path) -> np.ndarray:
    """An array of a .npy file, mapped and read-only.

    Raises FileNotFoundError, or ValueError for a file that is cut short or no array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing from the index")
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a whole array: {error}") from error
