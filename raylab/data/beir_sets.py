"""BEIR's 13 sets by name, out of one folder that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fsspec

from raylab.data.files import below, is_local, name_of
from raylab.data.registry import BEIR_SETS
from raylab.experiment.config import ConfigError

BEIR = "beir"
"""Stands for all 13 sets where collections are named."""


def beir_sets(root: str, partial: bool = False) -> tuple[str, ...]:
    """Where the sets stand below ``root``: folders of their names, or, below a local one, `.zip` archives.

    Args:
        root: a local folder, or any fsspec address.
        partial: those that are there, if any, are enough.

    Raises:
        ConfigError: no such folder, or sets that it lacks; all are named.
    """
    found = _places(root)
    if found is None:
        raise ConfigError(f"{root}: there is no such folder of BEIR's sets")
    missing = [name for name in BEIR_SETS if name not in found]
    if not found or (missing and not partial):
        raise ConfigError(
            f"{root}: {len(missing)} of BEIR's {len(BEIR_SETS)} sets are missing, as folders or .zip archives: "
            f"{', '.join(missing)}"
        )
    return tuple(found.values())


def planned_beir_sets(root: str | None, partial: bool = False) -> tuple[str, ...]:
    """Where the sets will stand for a run, for a plan on a machine that need not have them.

    Args:
        root: the folder, or None: by their names alone.
        partial: those that are there, where any are.
    """
    if root is None:
        return BEIR_SETS
    found = _places(root) or {}
    if partial and found:
        return tuple(found.values())
    return tuple(found.get(name) or below(root, name) for name in BEIR_SETS)


def _places(root: str) -> dict[str, str] | None:
    """The sets that are below a root, by name, in BEIR's order; None where there is no such folder."""
    if not is_local(root):
        names = _names(root)
        return (
            None
            if names is None
            else {name: below(root, name) for name in BEIR_SETS if name in names}
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        return None
    places = {name: _place(folder, name) for name in BEIR_SETS}
    return {name: place for name, place in places.items() if place is not None}


def _names(root: str) -> set[str] | None:
    try:
        fs, path = fsspec.core.url_to_fs(root)
        return {name_of(entry) for entry in fs.ls(path, detail=False)}
    except Exception:  # every protocol has errors of its own, such as no network or no credentials
        return None


def _place(folder: Path, name: str) -> str | None:
    for place in (folder / name, folder / f"{name}.zip"):
        if place.exists():
            return str(place.resolve())
    return None


def named_collections(
    names: Sequence[str], root: str | None, partial: bool, planned: bool = False
) -> tuple[str, ...]:
    """Addresses of collections, with the 13 sets in place of the word `beir`.

    Args:
        planned: for a plan, which does not need them (`planned_beir_sets`).

    Raises:
        ConfigError: `beir` without a folder, or as `beir_sets`.
    """
    addresses: list[str] = []
    for name in names:
        if name != BEIR:
            addresses.append(name)
        elif planned:
            addresses += planned_beir_sets(root, partial)
        elif root is None:
            raise ConfigError("beir needs the folder that holds its sets")
        else:
            addresses += beir_sets(root, partial)
    return tuple(dict.fromkeys(addresses))
