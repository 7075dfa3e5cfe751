"""`raylab doctor`: is the cluster fit for a long run?"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated

import typer
from rich.table import Table

from raylab.cli.files import open_store
from raylab.cli.shared import Models, Storage
from raylab.cli.shared import console as wide_console
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import LADDERS, find_ladder
from raylab.experiment.paths import with_absolute_paths


def doctor(
    storage: Storage = "lab",
    ladder: Annotated[
        str, typer.Option(help=f"whose models must be had: {', '.join(LADDERS)} or a TOML file")
    ] = "pico",
    sizes: Annotated[str, typer.Option(help="of the ladder, by commas; empty: its default")] = "",
    models: Models = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="a run is to use GPUs")] = False,
    devices: Annotated[
        int,
        typer.Option(
            min=0,
            help="ask a cluster that may grow for so many GPUs (or CPUs) first, and let them go",
        ),
    ] = 0,
    wait_minutes: Annotated[float, typer.Option(min=0, help="to wait for them")] = 15.0,
    disk_gib: Annotated[float, typer.Option(min=0, help="that must be free on every node")] = 20.0,
) -> None:
    """Check, on every node of the cluster, what a long run needs; a table of what passed and what to do.

    Versions, GPUs and driver, an all-reduce between all GPUs (or nodes) with its bandwidth, the storage with its
    latency, the models, shared memory, disk, clocks. Ends with status 1 where something failed.
    """
    from raylab.jobs.cluster import connect
    from raylab.jobs.doctor import add_up, grown, look_at
    from raylab.pipeline.checkup import checks, gpus_check, sum_check
    from raylab.storage.writable import check_writable

    store = open_store(storage)
    check_writable(store)
    chosen = tuple(name.strip() for name in sizes.split(",") if name.strip())
    execution = Execution(storage=store.uri, use_gpu=gpu, models_dir=models)
    grid, execution = with_absolute_paths(
        Grid(find_ladder(ladder), "scifact", sizes=chosen), execution
    )
    console = wide_console()
    with ExitStack() as stack:
        stack.enter_context(connect(replace(execution, use_gpu=False)))
        stack.enter_context(grown(devices, gpu, wait_minutes, console.print))
        reports = look_at(store, grid.ladder.select(grid.sizes), execution.models_dir)
        found = checks(reports, disk_gib, gpu, store.is_local)
        if gpu:
            found.append(gpus_check(reports))
        found.append(sum_check(add_up(gpu)))
    table = Table("check", "where", "", "seen", "what to do")
    for check in found:
        mark = "[green]pass[/]" if check.passed else "[red]FAIL[/]"
        table.add_row(
            check.name, check.where, mark, check.seen, "" if check.passed else check.remedy
        )
    console.print(table)
    failed = sum(not check.passed for check in found)
    print(f"{len(found)} checks on {len(reports)} nodes, {failed} failed")
    if failed:
        raise typer.Exit(1)
