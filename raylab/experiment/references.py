"""References to functions by name, so that a configuration stays plain data: `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from raylab.experiment.config import ConfigError, check


def check_reference(where: str, reference: str) -> None:
    """Raise `ConfigError` unless `reference` has the form `package.module:function`."""
    module, colon, name = reference.partition(":")
    parts = [*module.split("."), name]
    right = "of the form package.module:function"
    check(bool(colon) and all(map(str.isidentifier, parts)), where, reference, right)


@cache
def load_reference(reference: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Raises:
        ConfigError: no such module, or no such function in it.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"{reference!r} cannot be loaded ({error}); the module must be importable where workers run"
        ) from None
