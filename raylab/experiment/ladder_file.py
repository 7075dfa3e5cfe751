"""Ladders in TOML files:

name = "mine"
recipe = "paper"                 # or "paper-as-run", "pico", "smollm2"
budget_flops = 1e15

[[size]]
name = "1b"
source = "models/Llama-3.2-1B"   # a folder (relative to this file), a hub id or package:NAME/FOLDER

[adaptation]                     # optional changes to the recipe, any field
steps = 100

[fine_tuning]                    # of all heads and objectives
batch_queries = 32
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylab.experiment.changes import (
    RECIPE_PARTS,
    changed,
    changed_recipe,
    check_known,
    from_toml,
    typed,
)
from raylab.experiment.config import Backbone, ConfigError
from raylab.experiment.grid import Ladder
from raylab.experiment.recipes import find_recipe

_KEYS = ("name", "recipe", "budget_flops", "size", "default", *RECIPE_PARTS)


def read_ladder(path: Path) -> Ladder:
    """The ladder that a TOML file describes; sources that are folders become absolute.

    Raises:
        ConfigError: a file that cannot be read or has a mistake; the message names file and key.
    """
    return from_toml(path, lambda table: _ladder(path, table))


def _ladder(path: Path, table: dict[str, Any]) -> Ladder:
    for key in table:
        check_known("the file", key, _KEYS)
    recipe_name = typed("recipe", table.get("recipe", "paper"), str)
    recipe = changed_recipe(find_recipe(recipe_name), table)
    sizes = table.get("size")
    if not isinstance(sizes, list) or not sizes or not all(isinstance(s, dict) for s in sizes):
        raise ConfigError("no [[size]]; a ladder has at least one")
    backbones = tuple(_backbone(path, size) for size in sizes)
    name = typed("name", table.get("name", path.stem), str)
    default = typed("default", table.get("default", ()), tuple[str, ...])
    return Ladder(name, backbones, recipe, default)


def _backbone(path: Path, size: dict[str, Any]) -> Backbone:
    for key in ("name", "source"):
        if key not in size:
            raise ConfigError(f"a [[size]] without {key!r}")
    name, source = (typed(f"size.{key}", size[key], str) for key in ("name", "source"))
    others = {key: value for key, value in size.items() if key not in ("name", "source")}
    return changed("size", Backbone(name, _source(path, name, source)), others)


def _source(path: Path, size: str, source: str) -> str:
    """The absolute path of a folder, which workers elsewhere can open; else the source as it is.

    Raises:
        ConfigError: a source that can only be a folder, and there is none.
    """
    if source.startswith("package:"):
        return source
    folder = (path.parent / Path(source).expanduser()).resolve()
    if folder.is_dir():
        return str(folder)
    if _is_path(path.parent, source):
        raise ConfigError(f"size {size!r}: source = {source!r}: there is no folder {folder}")
    return source


def _is_path(beside: Path, source: str) -> bool:
    """Whether a source can be nothing but a path: a hub id is NAME or ORGANISATION/NAME."""
    organisation, _, name = source.partition("/")
    return (
        source.startswith((".", "/", "~"))
        or "\\" in source
        or "/" in name
        or source.endswith("/")
        or ("/" in source and (beside / organisation).is_dir())
    )
