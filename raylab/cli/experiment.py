"""The command line of an experiment file: options, errors in one line, and what a run ends with."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raylab.data.faults import CollectionError
from raylab.data.sources import open_collection
from raylab.experiment.config import PRECISIONS, ConfigError, Execution
from raylab.experiment.grid import CHARGES, Grid
from raylab.experiment.ladders import LADDERS, find_ladder
from raylab.experiment.variants import budget_variants
from raylab.models.teachers import check_teacher
from raylab.planning.contract import Budget, parse_budget, parse_budgets, rounding
from raylab.planning.durations import Durations, Pace
from raylab.planning.flops import DEVICES
from raylab.planning.plan import named_device, plan_grid
from raylab.planning.plan_table import plan_rows
from raylab.storage.artifacts import StorageError
from raylab.storage.store import Store
from raylab.storage.tables import RESULTS

EXIT_BAD_INPUT, EXIT_STORAGE = 2, 1
EXIT_FAILED = 1


def parser(description: str, grid: Grid) -> argparse.ArgumentParser:
    """The options every experiment shares; defaults are the experiment's own."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    what = options.add_argument_group("what is computed")
    what.add_argument(
        "--ladder", default=grid.ladder.name, help=f"{', '.join(LADDERS)} or a TOML FILE"
    )
    what.add_argument(
        "--sizes",
        default=",".join(grid.sizes),
        help="sizes of the ladder, comma-separated; empty: its default",
    )
    what.add_argument(
        "--collection",
        default=grid.collection,
        help="scifact, or a folder in BEIR or MS MARCO layout",
    )
    what.add_argument(
        "--cells",
        default=grid.cells_filter,
        help="filter, such as 'sparse-*-cl'; several by commas",
    )
    what.add_argument(
        "--budget",
        default=None,
        help="of a cell: FLOPs (1e15), hours of a device (20h@h100), epochs (3epochs), 'epochs' for the "
        "recipe's; none: the ladder's",
    )
    what.add_argument(
        "--budgets",
        default=None,
        help="several budgets in FLOPs by commas: one run of a cell gives them all (experiments/isoflop.py)",
    )
    what.add_argument(
        "--mntp",
        choices=CHARGES,
        default=grid.adaptation_charge,
        help="MNTP's FLOPs: shared by the cells of a size, or charged to each cell's budget",
    )
    what.add_argument(
        "--total-budget",
        type=float,
        default=grid.total_budget_flops,
        help="FLOPs of the grid's training, MNTP included; no cell starts that it does not hold",
    )
    what.add_argument(
        "--seeds",
        default=",".join(map(str, grid.seeds)),
        help="a count, or seeds by commas such as 0,1,2",
    )
    what.add_argument(
        "--teacher",
        default=grid.teacher,
        help="model folder, hub id, package:NAME/FOLDER, or scores.parquet",
    )
    what.add_argument(
        "--on-fault",
        default=grid.on_fault,
        help="error: a faulty record ends the run; quarantine[:KIND,...]: it is left out, and told of in "
        "quarantine.jsonl",
    )
    pruning = "terms a {} keeps at inference (sparse); 0: all; none: the recipe's"
    what.add_argument("--top-k-query", type=int, default=None, help=pruning.format("query"))
    what.add_argument("--top-k-passage", type=int, default=None, help=pruning.format("passage"))
    what.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=None,
        help="of stored representations; none: the recipe's",
    )
    how = options.add_argument_group("where and how it runs (never changes a result)")
    how.add_argument("--storage", default="lab", help="a local folder or any fsspec address")
    how.add_argument("--models", default=None, help="folder with local copies of hub models")
    how.add_argument("--workers", type=int, default=1, help="train workers a cell")
    how.add_argument(
        "--zero", type=int, default=1, choices=(0, 1, 2, 3), help="DeepSpeed ZeRO stage"
    )
    how.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        metavar="TEXTS",
        help="texts a worker encodes with gradients at once; 0: its whole share of the batch",
    )
    how.add_argument("--concurrent", type=int, default=2, help="runs at once; 0: as many as fit")
    how.add_argument(
        "--encoders",
        type=int,
        default=2,
        help="encoding actors; 0: as many as the cluster takes, as it grows and shrinks",
    )
    how.add_argument(
        "--encoder-cpus",
        type=float,
        default=1.0,
        help="CPUs of the cluster an encoding actor holds",
    )
    how.add_argument(
        "--no-index",
        action="store_true",
        help="score passages as they are encoded; store neither embeddings nor indexes",
    )
    how.add_argument("--gpu", action="store_true", help="one GPU a worker, bf16")
    how.add_argument(
        "--plain", action="store_true", default=None, help="plain lines instead of a live display"
    )
    plan = options.add_argument_group("plan")
    plan.add_argument(
        "--dry-run", action="store_true", help="print the plan of every cell and stop"
    )
    plan.add_argument(
        "--device",
        default=None,
        help=f"what a worker runs on: {', '.join(DEVICES)}; none: a plan is for the ladder's usual one, and "
        "a run asks the cluster",
    )
    plan.add_argument(
        "--devices",
        type=int,
        default=None,
        help="devices of the cluster, for the predicted time; none: --concurrent times --workers",
    )
    plan.add_argument(
        "--efficiency",
        type=float,
        default=None,
        help="share of the device's peak that is reached; none: the device's own",
    )
    plan.add_argument("--gpu-hour-rate", type=float, default=2.0, help="price of one device hour")
    return options


def chosen(options: argparse.Namespace, grid: Grid) -> tuple[Grid, Execution]:
    """The experiment under the given options.

    Raises:
        ConfigError: an option that cannot be.
    """
    ladder = find_ladder(options.ladder)
    encoding = ladder.recipe.encoding.changed(
        top_k_query=options.top_k_query,
        top_k_passage=options.top_k_passage,
        precision=options.precision,
    )
    recipe = dataclasses.replace(ladder.recipe, encoding=encoding)
    budget = parse_budget(options.budget, options.efficiency)
    if options.budget is None:
        budget = Budget(grid.budget_flops, grid.epochs)
    if options.budgets is not None:
        grid = dataclasses.replace(grid, variants=budget_variants(parse_budgets(options.budgets)))
    grid = dataclasses.replace(
        grid,
        ladder=dataclasses.replace(ladder, recipe=recipe),
        sizes=tuple(s for s in options.sizes.split(",") if s),
        collection=options.collection,
        cells_filter=options.cells,
        budget_flops=budget.flops,
        epochs=budget.epochs,
        adaptation_charge=options.mntp,
        total_budget_flops=options.total_budget,
        seeds=parse_seeds(options.seeds),
        teacher=options.teacher,
        on_fault=options.on_fault,
    )
    execution = Execution(
        storage=options.storage,
        workers=options.workers,
        zero_stage=options.zero,
        micro_batch_texts=options.micro_batch,
        concurrent_trials=options.concurrent,
        encoding_actors=options.encoders,
        encoder_cpus=options.encoder_cpus,
        no_index=options.no_index,
        use_gpu=options.gpu,
        models_dir=options.models,
        device=options.device and named_device(options.device).name,
    )
    return grid, execution


def parse_seeds(text: str) -> tuple[int, ...]:
    """`3` is seeds 0, 1, 2; `5,7` is these two; a single seed 0 is `0`.

    Raises:
        ConfigError: not whole numbers.
    """
    try:
        numbers = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise ConfigError(
            f"--seeds {text!r}: it must be a count or whole numbers by commas"
        ) from None
    if len(numbers) == 1 and "," not in text and numbers[0] > 0:
        return tuple(range(numbers[0]))
    return numbers


def show_plan(
    grid: Grid, execution: Execution, options: argparse.Namespace, console: Console
) -> None:
    """Print the plan of every cell, and how long the whole would take."""
    name = options.device or ("cpu-core" if grid.ladder.name == "pico" else "a100-80gb")
    device = named_device(name, options.efficiency)
    plan = plan_grid(grid, open_collection(grid.collection), execution)
    encoders = execution.encoding_actors or None
    rows = plan_rows(plan, device, options.gpu_hour_rate, execution.workers, encoders)
    table = Table(
        title=f"{len(plan.cells)} cells on {device.name} at {device.efficiency:.0%} of {device.peak_flops:.3g} FLOP/s"
    )
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "cell" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    hours = sum(float(row["device hours"]) for row in rows)
    console.print(
        f"in all {plan.flops:.3g} FLOPs, {hours:.3g} device hours, {hours * options.gpu_hour_rate:,.2f} "
        f"at {options.gpu_hour_rate} an hour"
    )
    if (coarse := rounding(grid, plan)) is not None:
        console.print(coarse)
    devices = options.devices or (execution.concurrent_trials or 1) * execution.workers
    pace = None if name == "cpu-core" and options.efficiency is None else Pace.of(device)
    found = Durations(plan, execution, pace).simulated(grid, devices)
    console.print(
        f"on {devices} of them: {found.makespan_s / 3600:.3g} h, of which {found.trained_s / 3600:.3g} h "
        f"until the last run is trained; {found.utilisation:.0%} of the devices' time used"
    )


def typed(arguments: Sequence[str] | None) -> str:
    """The command line, as one would type it from the project's root."""
    script = Path(sys.argv[0])
    own = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", f"{script.parent.name}/{script.name}", *own])


def run_experiment(description: str, grid: Grid, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and end with the table, the plot and where everything is.

    Returns the exit status: 0, 2 for bad input (one clear line, nothing left behind), 1 for a storage
    that cannot be written to (one line; the same command goes on).
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    options = parser(description, grid).parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    started = time.time()
    try:
        grid, execution = chosen(options, grid)
        if options.dry_run:
            show_plan(grid, execution, options, console)
            return 0
        if grid.teacher is not None:
            check_teacher(grid.teacher, execution.models_dir)
        from raylab.pipeline.grid import run_grid  # here, since Ray takes seconds to import

        outcome = run_grid(grid, execution, options.plain, typed(arguments))
    except (ConfigError, CollectionError) as error:
        # The libraries' own explanations run over several lines.
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return EXIT_BAD_INPUT
    except StorageError as error:
        print("error:", error, file=sys.stderr)
        return EXIT_STORAGE
    outcome.report.show(console)
    for label, path in outcome.report.paths.items():
        print(f"{label:>14}  {path}")
    print(f"{'results':>14}  {Store(execution.storage).uri}/{RESULTS}")
    if outcome.untrained_cells:
        print(f"not trained, the total budget is spent: {', '.join(outcome.untrained_cells)}")
    done = "everything was done already" if outcome.nothing_to_do else "done"
    print(f"{done} in {time.time() - started:.0f} s")
    return 0
