"""The options of an experiment, declared once: for `raylab run`, `raylab plan` and `python FILE.py`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

from raylab.experiment.config import ComputeDtype, ConfigError, Precision
from raylab.experiment.execution import Execution
from raylab.experiment.grid import AdaptationCharge, Grid
from raylab.experiment.ladders import LADDERS
from raylab.experiment.recipes import RECIPES
from raylab.planning.devices import DEVICES

_RULE = "rule"


class Rule(NamedTuple):
    """What a number must be."""

    holds: Callable[[Any], bool]
    right: str


AT_LEAST_0 = Rule(lambda value: value >= 0, "0 or more")
AT_LEAST_1 = Rule(lambda value: value >= 1, "at least 1")
POSITIVE = Rule(lambda value: math.isfinite(value) and value > 0, "a positive number")
PRICE = Rule(lambda value: math.isfinite(value) and value >= 0, "a number of 0 or more")
SHARE = Rule(lambda value: 0 < value <= 1, "above 0 and at most 1")
ZERO_STAGE = Rule(lambda value: value in (0, 1, 2, 3), "0, 1, 2 or 3")


def _number(rule: Rule) -> Any:
    return dataclasses.field(default=None, metadata={_RULE: rule})


def _computed(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="What is computed", **more)


def _executed(help: str, *names: str, **more: Any) -> Any:
    panel = "Where and how it runs (never changes a result)"
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _planned(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Plan", **more)


def _points(text: str | int) -> int:
    """A number of points; off: 0."""
    if text == "off":
        return 0
    if not str(text).isdecimal():
        raise typer.BadParameter(f"{text}: it must be a number of points, or off")
    return int(text)


_KEPT = "terms a {} keeps at inference (sparse); 0: all; not given: the recipe's"


@dataclass(frozen=True)
class Options:
    """What is typed after an experiment; None: not given, and what the experiment's file says stays.

    Raises:
        ConfigError: a number that cannot be, by the name of its option.
    """

    ladder: Annotated[str | None, _computed(f"{', '.join(LADDERS)} or a TOML FILE")] = None
    recipe: Annotated[
        str | None,
        _computed(
            f"{', '.join(RECIPES)} or a TOML FILE of tuned cells; not given: the ladder's own"
        ),
    ] = None
    sizes: Annotated[
        str | None, _computed("sizes of the ladder, comma-separated; empty: its default")
    ] = None
    settings: Annotated[
        list[str] | None,
        _computed(
            "any field of the recipe, such as fine_tuning.learning_rate=2e-4, adaptation.steps=100, "
            "encoding.passage_length=256 or fine_tuning.lora=none; more than once for more",
            "--set",
            metavar="PATH=VALUE",
        ),
    ] = None
    collection: Annotated[
        str | None, _computed("scifact, or a folder in BEIR or MS MARCO layout")
    ] = None
    evaluate: Annotated[
        str | None,
        _computed(
            "further collections to measure every system on, by commas: folders, irds:NAME, or beir for the 13 "
            "sets in --beir-root, which a plan does without"
        ),
    ] = None
    beir_root: Annotated[
        str | None, _computed("folder of BEIR's sets, as folders or .zip archives of their names")
    ] = None
    partial: Annotated[
        bool | None,
        _computed("fewer than BEIR's 13 sets are wanted; the mean says over which", "--partial"),
    ] = None
    cells: Annotated[str | None, _computed("filter, such as 'sparse-*-cl'; several by commas")] = (
        None
    )
    budget: Annotated[
        str | None,
        _computed(
            "of a cell: FLOPs (1e15), hours of a device (20h@h100), epochs (3epochs), 'epochs' for the "
            "recipe's; not given: the ladder's"
        ),
    ] = None
    budgets: Annotated[
        str | None,
        _computed(
            "several budgets in FLOPs by commas: one run of a cell gives them all "
            "(experiments/isoflop.py)"
        ),
    ] = None
    mntp: Annotated[
        AdaptationCharge | None,
        _computed("MNTP's FLOPs: shared by the cells of a size, or charged to each cell's budget"),
    ] = None
    total_budget: Annotated[
        float | None,
        _computed(
            "FLOPs of the grid's training, MNTP included; no cell starts that it does not hold"
        ),
    ] = _number(POSITIVE)
    seeds: Annotated[str | None, _computed("a count, or seeds by commas such as 0,1,2")] = None
    teacher: Annotated[
        str | None, _computed("model folder, hub id, package:NAME/FOLDER, or scores.parquet")
    ] = None
    on_fault: Annotated[
        str | None,
        _computed(
            "error: a faulty record ends the run; quarantine, or quarantine:KIND,...: it is left out, and "
            "told of in quarantine.jsonl"
        ),
    ] = None
    top_k_query: Annotated[int | None, _computed(_KEPT.format("query"))] = _number(AT_LEAST_0)
    top_k_passage: Annotated[int | None, _computed(_KEPT.format("passage"))] = _number(AT_LEAST_0)
    precision: Annotated[
        Precision | None, _computed("of stored representations; not given: the recipe's")
    ] = None
    teacher_dtype: Annotated[
        ComputeDtype | None, _computed("of a teacher that is a model, when it scores")
    ] = None
    compute_dtype: Annotated[
        ComputeDtype | None,
        _computed("of weights and activations, in training and encoding; not given: the ladder's"),
    ] = None

    storage: Annotated[str | None, _executed("a local folder or any fsspec address")] = None
    models: Annotated[str | None, _executed("folder with local copies of hub models")] = None
    workers: Annotated[int | None, _executed("train workers a cell")] = _number(AT_LEAST_1)
    zero: Annotated[int | None, _executed("DeepSpeed ZeRO stage, 0 to 3")] = _number(ZERO_STAGE)
    micro_batch: Annotated[
        int | None,
        _executed(
            "texts a worker encodes with gradients at once; 0: its whole share of the batch",
            metavar="TEXTS",
        ),
    ] = _number(AT_LEAST_0)
    concurrent: Annotated[int | None, _executed("runs at once; 0: as many as fit")] = _number(
        AT_LEAST_0
    )
    encoders: Annotated[
        int | None,
        _executed("encoding actors; 0: as many as the cluster takes, as it grows and shrinks"),
    ] = _number(AT_LEAST_0)
    encoder_cpus: Annotated[
        float | None, _executed("CPUs of the cluster an encoding actor holds")
    ] = _number(POSITIVE)
    cache_gib: Annotated[
        float | None,
        _executed(
            "GiB of a node's disk for copies from object storage; not given: all but a tenth"
        ),
    ] = _number(POSITIVE)
    validate: Annotated[
        int | None,
        _executed(
            "points of a run at which held-out queries are scored, or off; fewer where they would take more than "
            "3 % of its FLOPs",
            metavar="N|off",
            parser=_points,
        ),
    ] = None
    checkpoint_minutes: Annotated[
        float | None,
        _executed("between two checkpoints of a run; not given: by --fault-hours, else 10"),
    ] = _number(AT_LEAST_0)
    fault_hours: Annotated[
        float | None,
        _executed("mean time between faults of a run: with what a checkpoint costs, how often"),
    ] = _number(POSITIVE)
    max_failures: Annotated[
        int | None,
        _executed("faults of a run that are met by a new start, since its last new checkpoint"),
    ] = _number(AT_LEAST_0)
    max_devices: Annotated[
        int | None,
        _executed("devices that a growing cluster is asked for; not given: all that could be used"),
    ] = _number(AT_LEAST_1)
    no_index: Annotated[
        bool | None,
        _executed(
            "score passages as they are encoded; store neither embeddings nor indexes",
            "--no-index/--index",
        ),
    ] = None
    gpu: Annotated[bool | None, _executed("one GPU a worker", "--gpu/--no-gpu")] = None
    watch: Annotated[
        bool | None,
        _executed("show it in the browser too, as `raylab watch` does", "--watch"),
    ] = None
    log: Annotated[
        str | None,
        _executed(
            "loggers that are told: tensorboard, mlflow, wandb, several by commas; NAME=WHERE: a folder, a "
            "tracking server or a project (needs raylab[NAME])",
            metavar="NAMES",
        ),
    ] = None
    plain: Annotated[bool | None, _executed("plain lines instead of a live display", "--plain")] = (
        None
    )

    dry_run: Annotated[
        bool | None, _planned("print the plan of every cell and stop", "--dry-run")
    ] = None
    device: Annotated[
        str | None,
        _planned(
            f"what a worker runs on: {', '.join(DEVICES)}; not given: a plan is for the ladder's usual one, "
            "and a run asks the cluster"
        ),
    ] = None
    devices: Annotated[
        int | None,
        _planned(
            "devices of the cluster, for the predicted time; not given: --concurrent times --workers"
        ),
    ] = _number(AT_LEAST_1)
    efficiency: Annotated[
        float | None,
        _planned("share of the device's peak that is reached; not given: the device's own"),
    ] = _number(SHARE)
    gpu_hour_rate: Annotated[
        float | None,
        _planned(
            "price of one device hour; of a run, for its metrics", show_default="2.0 in a plan"
        ),
    ] = _number(PRICE)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            rule, value = field.metadata.get(_RULE), getattr(self, field.name)
            if rule is not None and value is not None and not rule.holds(value):
                option = "--" + field.name.replace("_", "-")
                raise ConfigError(f"{option} {value}: it must be {rule.right}")
        if self.device is not None and self.device not in DEVICES:
            known = ", ".join(DEVICES)
            raise ConfigError(f"--device {self.device!r}: it must be one of {known}")

    def given(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """The options that were given, by the field that each of them names."""
        values = {field: getattr(self, option) for option, field in fields.items()}
        return {field: value for field, value in values.items() if value is not None}


# The field that an option names, where its value is the field's.
GRID_FIELDS = {
    "collection": "collection",
    "cells": "cells_filter",
    "mntp": "adaptation_charge",
    "total_budget": "total_budget_flops",
    "teacher": "teacher",
    "on_fault": "on_fault",
    "compute_dtype": "compute_dtype",
    "teacher_dtype": "teacher_dtype",
}
EXECUTION_FIELDS = {
    "storage": "storage",
    "models": "models_dir",
    "workers": "workers",
    "zero": "zero_stage",
    "micro_batch": "micro_batch_texts",
    "concurrent": "concurrent_trials",
    "encoders": "encoding_actors",
    "encoder_cpus": "encoder_cpus",
    "cache_gib": "cache_gib",
    "validate": "validate",
    "checkpoint_minutes": "checkpoint_minutes",
    "fault_hours": "fault_hours",
    "max_failures": "max_failures",
    "max_devices": "max_devices",
    "no_index": "no_index",
    "gpu": "use_gpu",
    "device": "device",
    "gpu_hour_rate": "device_hour_price",
}


def shown_defaults(grid: Grid, execution: Execution) -> dict[str, str]:
    """What the help shows as the default of an option: what the experiment itself says."""
    values = {option: getattr(grid, field) for option, field in GRID_FIELDS.items()}
    values |= {option: getattr(execution, field) for option, field in EXECUTION_FIELDS.items()}
    values |= {
        "ladder": grid.ladder.name,
        "sizes": ",".join(grid.sizes),
        "seeds": ",".join(map(str, grid.seeds)),
    }
    flags = ("no_index", "gpu")
    return {
        option: str(value)
        for option, value in values.items()
        if value not in (None, "") and (option not in flags or value)
    }


def with_options(
    function: Callable[..., None],
    defaults: Mapping[str, str],
    leading: Sequence[inspect.Parameter] = (),
) -> Callable[..., None]:
    """A command for typer that takes the options of an experiment.

    Args:
        function: of the leading parameters, and of the `Options`.
        defaults: what the help shows as an option's default (`shown_defaults`).
        leading: parameters of the command before its options.
    """
    hints = get_type_hints(Options, include_extras=True)

    def command(**values: Any) -> None:
        others = {parameter.name: values.pop(parameter.name) for parameter in leading}
        function(**others, options=Options(**values))

    def parameter(name: str) -> inspect.Parameter:
        kind, option = get_args(hints[name])
        if name in defaults:
            option = copy.copy(option)
            option.show_default = defaults[name]
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind, option])

    names = [field.name for field in dataclasses.fields(Options)]
    signature = inspect.Signature([*leading, *map(parameter, names)])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    return command
