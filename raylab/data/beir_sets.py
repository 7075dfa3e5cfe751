"""BEIR's 13 sets by name, out of one folder that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raylab.data.registry import BEIR_SETS
from raylab.experiment.config import ConfigError

BEIR = "beir"
"""Stands for all 13 sets where collections are named."""


def beir_sets(root: str, partial: bool = False) -> tuple[str, ...]:
    """Where the sets stand below ``root``: folders or `.zip` archives of their names.

    Args:
        partial: those that are there, if any, are enough.

    Raises:
        ConfigError: no such folder, or sets that it lacks; all are named.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{root}: there is no such folder of BEIR's sets")
    found = {name: _place(folder, name) for name in BEIR_SETS}
    missing = [name for name, place in found.items() if place is None]
    if len(missing) == len(found) or (missing and not partial):
        raise ConfigError(
            f"{root}: {len(missing)} of BEIR's {len(BEIR_SETS)} sets are missing, as folders or .zip archives: "
            f"{', '.join(missing)}"
        )
    return tuple(place for place in found.values() if place is not None)


def _place(folder: Path, name: str) -> str | None:
    for place in (folder / name, folder / f"{name}.zip"):
        if place.exists():
            return str(place.resolve())
    return None


def named_collections(names: Sequence[str], root: str | None, partial: bool) -> tuple[str, ...]:
    """Addresses of collections, with the 13 sets in place of the word `beir`.

    Raises:
        ConfigError: `beir` without a folder, or as `beir_sets`.
    """
    addresses: list[str] = []
    for name in names:
        if name != BEIR:
            addresses.append(name)
        elif root is None:
            raise ConfigError("beir needs the folder that holds its sets")
        else:
            addresses += beir_sets(root, partial)
    return tuple(dict.fromkeys(addresses))
