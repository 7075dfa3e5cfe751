"""What `raylab plan` and `--dry-run` print."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from raylab.cli.options import Options
from raylab.data.known_sizes import KnownCollection, open_or_known
from raylab.data.sources import EMBEDDED
from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.planning.contract import rounding
from raylab.planning.durations import Durations, Pace
from raylab.planning.plan import GridPlan, named_device, plan_grid
from raylab.planning.plan_table import node_notes, plan_rows, storage_notes, stored_rows

_PRICE = 2.0  # of a device hour
_EMBEDDED = "package:raylab/"


def show_plan(grid: Grid, execution: Execution, options: Options, console: Console) -> None:
    """Print the plan of every cell, and how long the whole would take.

    Raises:
        ConfigError, CollectionError: what a run would refuse.
    """
    at_once = (execution.concurrent_trials or 1) * execution.workers
    devices = at_once if options.devices is None else options.devices
    if devices < execution.workers:
        raise ConfigError(
            f"--devices {devices}: it must be at least the {execution.workers} workers of a cell"
        )
    name = execution.device or _usual_device(grid)
    device = named_device(name, options.efficiency)
    price = _PRICE if options.gpu_hour_rate is None else options.gpu_hour_rate
    plan = _planned(grid, execution)
    rows = plan_rows(plan, device, price, execution.workers, execution.encoding_actors or None)
    console.print(
        _table(
            f"{len(plan.cells)} cells on {device.name} at {device.efficiency:.0%} of {device.peak_flops:.3g} FLOP/s",
            rows,
        )
    )
    hours = sum(float(row["device hours"]) for row in rows)
    told = f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
    console.print(
        f"in all {plan.flops:.3g} FLOPs, {told} device hours, {hours * price:,.2f} at {price} an hour"
    )
    if any(cell.estimated for cell in plan.cells):
        console.print(
            "~: an estimate; how long an epoch is, is known once the storage holds the training groups"
        )
    if (coarse := rounding(grid, plan)) is not None:
        console.print(coarse)
    pace = None if name == "cpu-core" and options.efficiency is None else Pace.of(device)
    predicted = Durations(plan, execution, pace).simulated(grid, devices)
    console.print(
        f"on {devices} of them: {predicted.makespan_s / 3600:.3g} h, of which {predicted.trained_s / 3600:.3g} h "
        f"until the last run is trained; {predicted.utilisation:.0%} of the devices' time used"
    )
    if plan.storage is not None and plan.node is not None:
        console.print(_table("what is stored", stored_rows(plan.storage)))
        for note in (*storage_notes(plan.storage), *node_notes(plan.node)):
            console.print(note)
    if plan.known:
        console.print(f"not on this machine, and planned from known sizes: {', '.join(plan.known)}")
    if grid.teacher is None and grid.collection not in EMBEDDED and _distils(grid):
        console.print(
            "a run needs --teacher (a model, or a file of scores) for the cells with KD, or --cells '*-cl' without them"
        )


def _distils(grid: Grid) -> bool:
    return any(cell.objective.needs_teacher for cell in grid.cells())


def _planned(grid: Grid, execution: Execution) -> GridPlan:
    source = open_or_known(grid.collection)
    if isinstance(source, KnownCollection):
        return plan_grid(grid, source, execution, from_tables=True)
    # Here, since it takes seconds to import, and only data that are there need it.
    from raylab.pipeline.real_plan import plan_with_data

    return plan_with_data(grid, source, execution)


def _table(title: str, rows: list[dict[str, str]]) -> Table:
    table = Table(title=title)
    first = next(iter(rows[0]))
    for column in rows[0]:
        table.add_column(column, justify="left" if column == first else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def _usual_device(grid: Grid) -> str:
    """A core for the embedded models, whose default grid runs on a laptop; else a common GPU."""
    sources = [backbone.source for backbone in grid.ladder.backbones]
    embedded = all(source.startswith(_EMBEDDED) for source in sources)
    return "cpu-core" if embedded else "a100-80gb"
