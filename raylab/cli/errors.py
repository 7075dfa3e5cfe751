"""How a command ends: the laboratory's errors in one line, a programming error with its traceback."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from typer.core import TyperCommand, TyperGroup

from raylab.cli.interruption import exit_status, interruptible

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2

# By name, since some of their modules take seconds to import.
EXIT_CODES = {
    "raylab.experiment.config.ConfigError": EXIT_BAD_INPUT,
    "raylab.data.faults.CollectionError": EXIT_BAD_INPUT,
    "raylab.storage.artifacts.StorageError": EXIT_FAILED,
    "raylab.storage.artifacts.DamagedArtifact": EXIT_FAILED,
    "raylab.training.faults.TrainingError": EXIT_FAILED,
    "raylab.storage.tables.DamagedTable": EXIT_BAD_INPUT,
    "raylab.jobs.starting.ClusterError": EXIT_BAD_INPUT,
}


def exit_code(error: BaseException) -> int | None:
    """The status that a command ends with; None for what is no error of the laboratory."""
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return next((EXIT_CODES[name] for name in names if name in EXIT_CODES), None)


# What a message calls a field, and a command its option.
OPTION_OF_FIELD = {
    "adaptation_charge": "--mntp",
    "budget": "--budget",
    "budgets": "--budgets",
    "cache_gib": "--cache-gib",
    "cells_filter": "--cells",
    "concurrent": "--concurrent",
    "device": "--device",
    "encoder_cpus": "--encoder-cpus",
    "encoders": "--encoders",
    "encoding.passage_length": "--passage-length",
    "encoding.precision": "--precision",
    "encoding.query_length": "--query-length",
    "encoding.top_k_passage": "--top-k-passage",
    "encoding.top_k_query": "--top-k-query",
    "epochs": "--budget epochs",
    "ladder": "--ladder",
    "on_fault": "--on-fault",
    "micro_batch_texts": "--micro-batch",
    "seeds": "--seeds",
    "shard_passages": "--shard-passages",
    "storage": "--storage",
    "teacher": "--teacher",
    "total_budget_flops": "--total-budget",
    "workers": "--workers",
    "zero": "--zero",
}


def one_line(error: BaseException) -> str:
    """An error's message, with the option's name where it begins with a field's.

    The libraries' own explanations run over several lines.
    """
    message = " ".join(str(error).split())
    field = re.match(r"([\w.]+)(?= =|:| )", message)
    if field is None or field[1] not in OPTION_OF_FIELD:
        return message
    return OPTION_OF_FIELD[field[1]] + message[field.end() :]


class _OneLineErrors:
    """Of a command or group: an error of the laboratory becomes one line on stderr and a status."""

    def main(self, *args: Any, **options: Any) -> Any:
        # The hub's client tells of every attempt; what it ends with becomes the one line.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        try:
            with interruptible():
                return super().main(*args, **options)  # type: ignore[misc]
        except Exception as error:
            status = exit_code(error)
            if status is None:
                raise
            print("error:", one_line(error), file=sys.stderr)
            sys.exit(status)

    def invoke(self, ctx: Any) -> Any:
        # Click would end with status 1, whatever the signal.
        try:
            return super().invoke(ctx)  # type: ignore[misc]
        except KeyboardInterrupt:
            sys.exit(exit_status())


class LaboratoryCommand(_OneLineErrors, TyperCommand):
    """A command that stands alone (an experiment's file)."""


class LaboratoryGroup(_OneLineErrors, TyperGroup):
    """`raylab` and what stands below it."""
