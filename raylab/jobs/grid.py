"""The whole chain for a grid of cells; what is finished is never done again.

    source files -> collection -> tokens -> groups -> adapted backbones -> retrievers
                 -> embedding shards -> index shards -> runs -> measures -> results, ledger, report
                                     -> profiles (contrastive entropy, postings) ---^

Every arrow is a stage whose artifacts are looked up first. The driver holds addresses and manifests
only. A damaged artifact that a stage meets is set aside and the chain is walked again from the start.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from raylab import report
from raylab.artifacts import DamagedArtifact, Store
from raylab.config import ConfigError, Execution, Grid
from raylab.data.files import CollectionError
from raylab.data.sources import Source, open_collection
from raylab.jobs.collect import collect
from raylab.jobs.monitor import Monitor
from raylab.jobs.teach import SHIPPED
from raylab.jobs.walk import Walk
from raylab.plan import plan_grid
from raylab.results import PER_QUERY, read_table

log = logging.getLogger("raylab")
_STAGES = (
    "collection",
    "tokens",
    "token-shards",
    "candidates",
    "scores",
    "groups",
    "arrays",
    "backbone",
    "retriever",
    "embeddings",
    "index",
    "run",
    "measures",
    "profile",
)
_DAMAGE_ROUNDS = 3


@dataclass(frozen=True)
class Outcome:
    """What a grid ends with."""

    results: pd.DataFrame
    report: report.Report
    nothing_to_do: bool
    untrained_cells: tuple[str, ...]  # selected cells that the total budget left out


def run_grid(grid: Grid, execution: Execution, plain: bool | None = None) -> Outcome:
    """Run (or go on with) a grid.

    Raises:
        ConfigError, CollectionError: bad input, before anything is trained.
        TrainingError: a cell's loss is not finite.
    """
    source = open_collection(grid.collection)
    teacher = choose_teacher(grid, source)
    plan_grid(grid, source, execution)  # refuses budgets, sizes and batches that cannot run
    store = Store(execution.storage)
    with sole_driver(store):
        for _ in range(_DAMAGE_ROUNDS):
            with contextlib.ExitStack() as stack:
                walk = Walk(grid, execution, source, teacher, store, Monitor(plain), stack)
                try:
                    walked = walk.run()
                    results, ledger = collect(store, source.name, walked, execution)
                except DamagedArtifact as damage:
                    log.warning("%s; it will be made again", damage)
                    store.discard(damage.path)
                    continue
            left_out = tuple(c.run_name for c in grid.cells() if c not in walked.trained)
            pages = report.write(store, results, ledger, read_table(store, PER_QUERY))
            return Outcome(results, pages, not walk.worked, left_out)
        raise RuntimeError(
            f"{store.uri}: artifacts were damaged again and again; check the storage"
        )


def choose_teacher(grid: Grid, source: Source) -> str | None:
    """The teacher to use: none when no cell distils, the shipped scores where there are some.

    Raises:
        ConfigError: a cell distils and no teacher is at hand.
    """
    if all(cell.objective == "cl" for cell in grid.cells()) and not source.embedded:
        return grid.teacher
    if grid.teacher is not None:
        return grid.teacher
    if source.embedded:
        return SHIPPED
    raise ConfigError(
        f"cells with KD need teacher scores, and collection {source.name!r} ships none: "
        "give --teacher (a model folder, a hub id or a Parquet file of scores), or --cells '*-cl'"
    )


@contextlib.contextmanager
def sole_driver(store: Store) -> Iterator[None]:
    """One driver a local storage; it also removes what killed writers left."""
    if not store.is_local:
        yield
        return
    fresh = not os.path.exists(store.root)
    os.makedirs(store.root, exist_ok=True)
    path = Path(store.root, "driver.lock")
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"--storage {store.uri}: another raylab driver is at work there"
            ) from None
        removed = store.sweep(_STAGES)
        if removed:
            log.warning("removed %d unfinished artifact(s) that a killed process left", removed)
        try:
            yield
        except (ConfigError, CollectionError):
            path.unlink()
            _remove_empty(Path(store.root), keep=not fresh)
            raise


def _remove_empty(folder: Path, keep: bool) -> None:
    """Remove the empty folders below `folder`, and itself when nothing is left and `keep` is false."""
    for child in folder.iterdir():
        if child.is_dir():
            _remove_empty(child, keep=False)
    if not keep:
        with contextlib.suppress(OSError):
            folder.rmdir()
