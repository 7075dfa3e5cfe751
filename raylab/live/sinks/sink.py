"""What a logger must be able to do, and which there are."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raylab.experiment.config import ConfigError
from raylab.live.facts import Point
from raylab.storage.store import Store


@dataclass(frozen=True)
class LoggedRun:
    """A run of the logger's.

    Args:
        key: what it is, the same for the same run of the same laboratory: with its fingerprint, where it has one.
    """

    name: str
    key: str


class Sink(Protocol):
    """A logger. What it is told again, and has, it does not write again: whoever feeds it may begin anew."""

    def last_step(self, run: LoggedRun) -> int:
        """The last step of which it has a point; 0: none."""
        ...

    def config(self, run: LoggedRun, values: Mapping[str, Any]) -> None:
        """What the run is; later values are added to earlier ones."""
        ...

    def points(self, run: LoggedRun, points: Sequence[Point]) -> None:
        """Points of its curve, in order, all after `last_step`."""
        ...

    def measures(self, run: LoggedRun, values: Mapping[str, float], step: int) -> None:
        """What was measured of what it made, which took so many steps."""
        ...

    def file(self, run: LoggedRun, name: str, data: bytes) -> None:
        """A table or a figure; a later one takes the place of an earlier one of its name."""
        ...

    def end(self, run: LoggedRun) -> None:
        """No points will follow."""
        ...

    def close(self) -> None:
        """Nothing will follow, and what was told is written."""
        ...


@dataclass(frozen=True)
class Logger:
    """A kind of sink: the module that makes it, by `open_sink(store, where)`, and the packages that it needs.

    `where`: what stands after its name and `=`: a folder, an address or a project.
    """

    module: str
    packages: tuple[str, ...]


LOGGERS = {
    "tensorboard": Logger("raylab.live.sinks.tensorboard_sink", ("tensorboardX", "tensorboard")),
    "mlflow": Logger("raylab.live.sinks.mlflow_sink", ("mlflow", "sqlalchemy", "alembic")),
    "wandb": Logger("raylab.live.sinks.wandb_sink", ("wandb",)),
}

STEP_VALUES = (
    "loss",
    "learning_rate",
    "gradient_norm",
    "flops",
    "tokens",
    "tokens_per_s",
    "peak_bytes",
    "held_out",
    "active_terms",
    "collapse",
)


def values_of(point: Point) -> dict[str, float]:
    """What is logged of a point, without what is not known."""
    values = {name: getattr(point, name) for name in STEP_VALUES}
    return {name: float(value) for name, value in values.items() if value is not None}


def chosen_loggers(option: str, text: str) -> dict[str, str | None]:
    """Names of loggers and where they write, of `tensorboard,mlflow=http://host:5000`.

    Args:
        option: how a message calls it.

    Raises:
        ConfigError: an unknown logger, one that stands there twice, or one whose package is not installed.
    """
    found: dict[str, str | None] = {}
    for part in (part.strip() for part in text.split(",")):
        name, _, where = part.partition("=")
        if name not in LOGGERS or name in found:
            known = ", ".join(LOGGERS)
            raise ConfigError(f"{option} {text!r}: it must name some of {known}, each once")
        for package in LOGGERS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"{option} {name}: the package {package} is not installed; pip install 'raylab[{name}]'"
                )
        found[name] = where or None
    return found


def open_sinks(option: str, chosen: Mapping[str, str | None], store: Store) -> dict[str, Sink]:
    """The loggers by their names; they write nothing yet.

    Raises:
        ConfigError: one has no place to write to, or nobody is logged in there.
    """
    sinks = {}
    for name, where in chosen.items():
        module = importlib.import_module(LOGGERS[name].module)
        try:
            sinks[name] = module.open_sink(store, where)
        except ConfigError as error:
            raise ConfigError(f"{option} {name}: {error}") from None
    return sinks


def own_folder(store: Store, name: str) -> str:
    """Where a logger writes into when nobody says where: a folder of a local storage.

    Raises:
        ConfigError: the storage is not a folder.
    """
    if not store.is_local:
        raise ConfigError(f"the storage is no folder; say where it writes to: {name}=FOLDER")
    return f"{store.root}/loggers/{name}"
