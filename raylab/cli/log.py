"""`raylab log`: tell a logger what a storage holds; and the same beside a driver, for `--log`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from raylab.cli.files import open_store
from raylab.cli.shared import Storage
from raylab.experiment.config import ConfigError

if TYPE_CHECKING:
    from raylab.storage.store import Store

NAMES = (
    "tensorboard, mlflow or wandb, several by commas; NAME=WHERE: a folder, a tracking server or a "
    "project (needs raylab[NAME])"
)


def log(
    to: Annotated[str, typer.Option(help=NAMES)],
    storage: Storage = "lab",
) -> None:
    """Tell loggers what a storage holds: set-ups, curves, measures, tables and figures.

    What they already have stays as it is, and no point is told twice.
    """
    from raylab.live.facts import LIVE
    from raylab.live.sinks.sink import chosen_loggers, open_sinks
    from raylab.storage.tables import RESULTS

    loggers = chosen_loggers("--to", to)
    store = open_store(storage)
    if not (store.files.exists(RESULTS) or store.files.names(LIVE)):
        raise ConfigError(f"--storage {storage}: no experiment was run there")
    from raylab.pipeline.loggers import Feed

    for name, sink in open_sinks("--to", loggers, store).items():
        feed = Feed(store, sink)
        try:
            feed.finish()
        except (OSError, ValueError, ConfigError):
            raise
        except Exception as fault:  # each logger has errors of its own
            raise ConfigError(f"--to {name}: {fault}") from fault
        print(f"{name}: {len(feed.open)} runs")


def chosen(text: str | None) -> dict[str, str | None]:
    """The loggers of `--log`, and where they write; before anything is done.

    Raises:
        ConfigError: one that is not known, or not installed.
    """
    if text is None:
        return {}
    from raylab.live.sinks.sink import chosen_loggers

    return chosen_loggers("--log", text)


@contextmanager
def telling(store: Store, loggers: Mapping[str, str | None]) -> Iterator[None]:
    """Loggers are told of a laboratory while the block runs.

    Raises:
        ConfigError: one has no place to write to, or nobody is logged in there.
    """
    if not loggers:
        yield
        return
    from raylab.live.sinks.sink import open_sinks
    from raylab.pipeline.loggers import told

    with told(store, open_sinks("--log", loggers, store)):
        yield
