"""How a command ends: the laboratory's errors in one line, a programming error with its traceback."""

from __future__ import annotations

import sys
from typing import Any

from typer.core import TyperCommand, TyperGroup

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2

# By name, since some of their modules take seconds to import.
EXIT_CODES = {
    "raylab.experiment.config.ConfigError": EXIT_BAD_INPUT,
    "raylab.data.faults.CollectionError": EXIT_BAD_INPUT,
    "raylab.storage.artifacts.StorageError": EXIT_FAILED,
    "raylab.storage.artifacts.DamagedArtifact": EXIT_FAILED,
    "raylab.training.loop.TrainingError": EXIT_FAILED,
}


def exit_code(error: BaseException) -> int | None:
    """The status that a command ends with; None for what is no error of the laboratory."""
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return next((EXIT_CODES[name] for name in names if name in EXIT_CODES), None)


class _OneLineErrors:
    """Of a command or group: an error of the laboratory becomes one line on stderr and a status."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)  # type: ignore[misc]
        except Exception as error:
            status = exit_code(error)
            if status is None:
                raise
            # The libraries' own explanations run over several lines.
            print("error:", " ".join(str(error).split()), file=sys.stderr)
            sys.exit(status)


class LaboratoryCommand(_OneLineErrors, TyperCommand):
    """A command that stands alone (an experiment's file)."""


class LaboratoryGroup(_OneLineErrors, TyperGroup):
    """`raylab` and what stands below it."""
