"""Changes to configurations as they are typed: tables of a ladder file, and `--set PATH=VALUE`.

Both name fields of frozen dataclasses, nested as these are. A value must be of its field's type; "none"
empties a field that may be empty.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from raylab.experiment.config import ConfigError
from raylab.experiment.grid import Recipe

D = TypeVar("D")
T = TypeVar("T")

# The parts of a recipe that a table or `--set` may change, beside its budget.
RECIPE_PARTS = ("adaptation", "fine_tuning", "encoding")


def from_toml(path: Path, make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of the table in a TOML file.

    Raises:
        ConfigError: a file that cannot be read, or has a mistake; the message names file and key.
    """
    try:
        return make(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read ({error.strerror})") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def changed(where: str, config: D, changes: Any) -> D:
    """A dataclass with the fields of a table in place of its own.

    Args:
        where: the path of the dataclass, for errors.
        changes: values by the names of fields; a table for a field that is a dataclass itself.

    Raises:
        ConfigError: not a table, an unknown field, or a value that cannot be; in one line.
    """
    if not isinstance(changes, Mapping):
        raise ConfigError(f"{where} = {changes!r}: it must be a table")
    hints = get_type_hints(type(config))
    values = {}
    for name, value in changes.items():
        check_known(where, name, hints)
        values[name] = _value(f"{where}.{name}", value, hints[name], getattr(config, name))
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with changes to its parts; those of `fine_tuning` hold for all heads and objectives.

    They hold for all sizes and in runs of several budgets, too, in place of what the recipe says of these.

    Raises:
        ConfigError: as `changed`.
    """
    tuning_changes = changes.get("fine_tuning", {})
    return dataclasses.replace(
        recipe,
        adaptation=changed("adaptation", recipe.adaptation, changes.get("adaptation", {})),
        fine_tuning={
            cell: changed("fine_tuning", tuning, tuning_changes)
            for cell, tuning in recipe.fine_tuning.items()
        },
        encoding=changed("encoding", recipe.encoding, changes.get("encoding", {})),
        budget_flops=typed("budget_flops", changes.get("budget_flops", recipe.budget_flops), float),
        by_size={key: _without(fields, tuning_changes) for key, fields in recipe.by_size.items()},
        by_cell={key: _without(fields, tuning_changes) for key, fields in recipe.by_cell.items()},
        stable=_without(recipe.stable, tuning_changes),
    )


def _without(fields: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def parse_setting(text: str) -> dict[str, Any]:
    """The table that `PATH=VALUE` stands for: `adaptation.steps=100` is `{"adaptation": {"steps": 100}}`.

    A value is written as in TOML; what is not TOML is a text.

    Raises:
        ConfigError: another form, or a path into something else than a recipe.
    """
    path, equals, written = text.partition("=")
    names = [name.strip() for name in path.split(".")]
    if not equals or not all(names):
        raise ConfigError("it must be PATH=VALUE, such as fine_tuning.learning_rate=2e-4")
    if names == ["budget_flops"]:
        raise ConfigError("a budget is given by --budget")
    check_known("the recipe", names[0], RECIPE_PARTS)
    value = _toml_value(written.strip())
    for name in reversed(names):
        value = {name: value}
    return value


def _toml_value(written: str) -> Any:
    try:
        table = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return written
    return table["value"] if len(table) == 1 else written


def check_known(where: str, name: str, known: Collection[str]) -> None:
    """Raise `ConfigError` unless `name` is among `known`; it suggests a name that is close to it."""
    if name in known:
        return
    close = difflib.get_close_matches(name, known, 1)
    suggestion = f" (did you mean {close[0]!r}?)" if close else ""
    names = ", ".join(sorted(known))
    raise ConfigError(f"{where}: unknown key {name!r}{suggestion}; known are {names}")


def typed(where: str, value: Any, hint: Any) -> Any:
    """The value as its field holds it: a list as a tuple, a whole number as a fraction.

    Raises:
        ConfigError: a value of another type than the field's.
    """
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        raise ConfigError(f"{where} = {value!r}: it must be {_described(hint)}")
    if isinstance(value, int) and not isinstance(value, bool) and float in _kinds(hint):
        return float(value)
    return value


def _value(where: str, value: Any, hint: Any, before: Any) -> Any:
    """The new value of a field; a table changes the dataclass that the field held `before`."""
    kinds = _kinds(hint)
    table: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    if NoneType in kinds and (value == "none" or (table is not None and value is False)):
        return None
    if table is None:
        return typed(where, value, hint)
    if NoneType in kinds and not isinstance(value, Mapping):
        raise ConfigError(f"{where} = {value!r}: it must be a table, or false for none")
    return changed(where, table() if before is None else before, value)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint)
    if kind is Literal:
        return value in get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _described(hint: Any) -> str:
    """What a field takes: `int or none`, `'linear' or 'wsd'`."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_described(get_args(hint)[0])}"
    if len(_kinds(hint)) > 1:
        return " or ".join(map(_described, _kinds(hint)))
    return "none" if hint is NoneType else hint.__name__
