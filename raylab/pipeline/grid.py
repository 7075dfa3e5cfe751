"""The whole chain for a grid of cells; what is finished is never done again.

    source files -> collection -> tokens -> groups -> adapted backbones -> retrievers
                 -> embedding shards -> index shards -> runs -> measures -> results, ledger, report
                                     -> profiles (contrastive entropy, postings) ---^

Every arrow is a stage whose artifacts are looked up first. The driver holds addresses and manifests
only. A damaged artifact that a stage meets is set aside and the chain is walked again from the start.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

import pandas as pd

from raylab import report
from raylab.data.sources import Source, open_collection
from raylab.experiment.config import ConfigError, Execution
from raylab.experiment.grid import Grid
from raylab.jobs.progress import Monitor
from raylab.pipeline.collect import collect
from raylab.pipeline.driver import sole_driver
from raylab.pipeline.walk import Walk
from raylab.planning.flops import DEVICES
from raylab.planning.plan import check_plan, plan_grid
from raylab.stages.teaching import SHIPPED
from raylab.storage.artifacts import DamagedArtifact
from raylab.storage.store import Store
from raylab.storage.tables import PER_QUERY, read_table

log = logging.getLogger("raylab")
_DAMAGE_ROUNDS = 3


@dataclass(frozen=True)
class Outcome:
    """What a grid ends with."""

    results: pd.DataFrame
    report: report.Report
    nothing_to_do: bool
    untrained_cells: tuple[str, ...]  # selected cells that the total budget left out


def run_grid(
    grid: Grid, execution: Execution, plain: bool | None = None, command: str | None = None
) -> Outcome:
    """Run (or go on with) a grid.

    Args:
        command: what a user typed: kept in the storage, and told by the report.

    Raises:
        ConfigError, CollectionError: bad input, before anything is trained.
        TrainingError: a cell's loss is not finite.
    """
    source = open_collection(grid.collection)
    teacher = choose_teacher(grid, source)
    plan = plan_grid(grid, source, execution, evaluation=False)  # refuses what cannot run
    if execution.device is not None:  # else the cluster is asked, once it is there
        check_plan(plan, DEVICES[execution.device].memory_bytes)
    store = Store(execution.storage)
    with sole_driver(store):
        for _ in range(_DAMAGE_ROUNDS):
            with contextlib.ExitStack() as stack:
                walk = Walk(grid, execution, source, teacher, plan, store, Monitor(plain), stack)
                try:
                    walked = walk.run()
                    results, ledger = collect(store, source.name, walked, execution)
                except DamagedArtifact as damage:
                    log.warning("%s; it will be made again", damage)
                    store.discard(damage.path)
                    continue
            left_out = tuple(c.run_name for c in grid.cells() if c not in walked.trained)
            per_query = read_table(store, PER_QUERY)
            pages = report.write(store, results, ledger, per_query, command)
            return Outcome(results, pages, not walk.worked, left_out)
        raise RuntimeError(
            f"{store.uri}: artifacts were damaged again and again; check the storage"
        )


def choose_teacher(grid: Grid, source: Source) -> str | None:
    """The teacher to use: none when no cell distils, the shipped scores where there are some.

    Raises:
        ConfigError: a cell distils and no teacher is at hand.
    """
    if not any(cell.objective.needs_teacher for cell in grid.cells()) and not source.embedded:
        return grid.teacher
    if grid.teacher is not None:
        return grid.teacher
    if source.embedded:
        return SHIPPED
    raise ConfigError(
        f"cells with KD need teacher scores, and collection {source.name!r} ships none: "
        "give --teacher (a model folder, a hub id or a Parquet file of scores), or --cells '*-cl'"
    )
