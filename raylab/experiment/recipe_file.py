"""Recipes in TOML files: one of the package's, and what was tuned of it cell by cell.

recipe = "pico"

[[cell]]                         # as experiments/tune.py writes it; any field of fine_tuning may stand here
size = "pico-1x96"
head = "dense"
objective = "cl"
learning_rate = 2e-3
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylab.experiment.changes import changed, check_known, from_toml, typed
from raylab.experiment.config import ConfigError, FineTuning
from raylab.experiment.grid import Recipe

_NAMES = ("size", "head", "objective")


@dataclass(frozen=True)
class TunedCell:
    """Fields of `fine_tuning` that were chosen for one cell; `about` says how, in a comment."""

    size: str
    head: str
    objective: str
    fields: Mapping[str, Any]
    about: str = ""


def read_recipe(path: Path, known: Callable[[str], Recipe], names: Collection[str]) -> Recipe:
    """The recipe that a TOML file describes.

    Args:
        known: a recipe of the package by its name, of `names`.

    Raises:
        ConfigError: a file that cannot be read or has a mistake; the message names file and key.
    """
    return from_toml(path, lambda table: _recipe(table, known, names))


def _recipe(
    table: dict[str, Any], known: Callable[[str], Recipe], names: Collection[str]
) -> Recipe:
    for key in table:
        check_known("the file", key, ("recipe", "cell"))
    name = typed("recipe", table.get("recipe"), str)
    check_known("recipe", name, names)
    recipe, by_cell = known(name), {}
    cells = table.get("cell", [])
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ConfigError("cell: it must be [[cell]] tables")
    for cell in cells:
        for key in _NAMES:
            if key not in cell:
                raise ConfigError(f"a [[cell]] without {key!r}")
        size, head, objective = (typed(f"cell.{key}", cell[key], str) for key in _NAMES)
        if (size, head, objective) in by_cell:
            raise ConfigError(f"two [[cell]] of {size}, {head} and {objective}")
        changes = {key: value for key, value in cell.items() if key not in _NAMES}
        plain = recipe.fine_tuning.get((head, objective))
        if plain is None:
            raise ConfigError(f"a [[cell]] of {head} and {objective}: recipe {name!r} has none")
        tuned = changed("cell", plain, changes)
        by_cell[size, head, objective] = {key: getattr(tuned, key) for key in changes}
    return dataclasses.replace(recipe, by_cell=by_cell)


def recipe_text(recipe_name: str, cells: Sequence[TunedCell], about: str) -> str:
    """The TOML of a recipe file; `about` and the cells' own are comments.

    Raises:
        ConfigError: a field that is not one of `fine_tuning`, or not a number, a text or a truth value.
    """
    known = {field.name for field in dataclasses.fields(FineTuning)}
    lines = [f"# {line}" for line in about.splitlines()]
    lines.append(f"recipe = {_toml(recipe_name)}")
    for cell in cells:
        lines += ["", "[[cell]]", *(f"{key} = {_toml(getattr(cell, key))}" for key in _NAMES)]
        for key, value in cell.fields.items():
            check_known("cell", key, known)
            lines.append(f"{key} = {_toml(value)}")
        lines += [f"# {line}" for line in cell.about.splitlines()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str) and value.isprintable() and not set(value) & {'"', "\\"}:
        return f'"{value}"'
    raise ConfigError(f"cell: {value!r} cannot be written")
