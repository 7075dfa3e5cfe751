"""`raylab run | plan`, and the command line of a file in experiments/: what a file says, and options, is what runs."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from raylab.cli.errors import LaboratoryCommand
from raylab.cli.files import open_store
from raylab.cli.log import chosen as chosen_loggers
from raylab.cli.log import telling
from raylab.cli.options import EXECUTION_FIELDS, GRID_FIELDS, Options, shown_defaults, with_options
from raylab.cli.shared import console as wide_console
from raylab.cli.watch import beside
from raylab.data.beir_sets import BEIR, named_collections
from raylab.experiment.changes import changed_recipe, parse_setting
from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid, Ladder, Recipe, Variant
from raylab.experiment.ladders import PICO, find_ladder
from raylab.experiment.paths import with_absolute_paths
from raylab.experiment.recipes import find_recipe
from raylab.experiment.variants import with_budgets

if TYPE_CHECKING:
    from raylab.pipeline.grid import Outcome

DEFAULT_GRID = Grid(PICO, "scifact")


# ------------------------------------------------------------------------------- what is chosen


def chosen(
    options: Options, grid: Grid, execution: Execution | None = None
) -> tuple[Grid, Execution]:
    """The experiment of a file under the options that were given; they change what they name, and no more.

    Raises:
        ConfigError: an option that cannot be, or that would change nothing.
    """
    changes = options.given(GRID_FIELDS)
    changes["ladder"] = _ladder(options, grid)
    changes["sizes"] = _sizes(options, grid, changes["ladder"])
    if options.evaluate is not None:
        changes["evaluation"] = _evaluation(options.evaluate, options)
    elif options.beir_root is not None or options.partial:
        raise ConfigError("--beir-root and --partial: they need --evaluate beir")
    if options.seeds is not None:
        changes["seeds"] = parse_seeds(options.seeds)
    if options.budgets is not None:
        from raylab.planning.contract import parse_budgets

        changes["variants"] = with_budgets(grid.variants, parse_budgets(options.budgets))
    if options.budget is not None:
        from raylab.planning.contract import parse_budget

        budget = parse_budget(options.budget, options.efficiency)
        variants = changes.get("variants", grid.variants)
        if all(variant.budget_flops is not None for variant in variants):
            raise ConfigError(
                f"--budget {options.budget}: the cells' budgets are those of --budgets"
            )
        changes |= {"budget_flops": budget.flops, "epochs": budget.epochs}
    execution = replace(execution or Execution(), **options.given(EXECUTION_FIELDS))
    return with_absolute_paths(replace(grid, **changes), execution)


def _evaluation(text: str, options: Options) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    planned = bool(options.dry_run)
    if options.beir_root is None and BEIR in names and not planned:
        raise ConfigError("--evaluate beir: it needs --beir-root, the folder that holds its sets")
    try:
        return named_collections(names, options.beir_root, bool(options.partial), planned)
    except ConfigError as error:
        raise ConfigError(f"--beir-root {error}") from None


def _ladder(options: Options, grid: Grid) -> Ladder:
    ladder = grid.ladder if options.ladder is None else find_ladder(options.ladder)
    recipe = ladder.recipe if options.recipe is None else find_recipe(options.recipe)
    for setting in options.settings or ():
        try:
            recipe = _with_setting(recipe, setting, grid.variants)
        except ConfigError as error:
            raise ConfigError(f"--set {setting}: {error}") from None
    encoding = recipe.encoding.changed(
        top_k_query=options.top_k_query,
        top_k_passage=options.top_k_passage,
        precision=options.precision,
    )
    return replace(ladder, recipe=replace(recipe, encoding=encoding))


def _with_setting(recipe: Recipe, setting: str, variants: Sequence[Variant]) -> Recipe:
    table = parse_setting(setting)
    changed = changed_recipe(recipe, table)
    for part, fields in table.items():
        for field in fields:
            if all(field in getattr(variant, part, {}) for variant in variants):
                names = ", ".join(variant.name for variant in variants)
                raise ConfigError(f"the experiment's variants ({names}) all set it themselves")
    return changed


def _sizes(options: Options, grid: Grid, ladder: Ladder) -> tuple[str, ...]:
    """Those of the experiment, unless other ones are named, or a ladder that does not have them."""
    if options.sizes is not None:
        return tuple(size.strip() for size in options.sizes.split(",") if size.strip())
    known = {backbone.name for backbone in ladder.backbones}
    return grid.sizes if options.ladder is None or set(grid.sizes) <= known else ()


def parse_seeds(text: str) -> tuple[int, ...]:
    """`3` is seeds 0, 1, 2; `5,7` is these two; a single seed 0 is `0`.

    Raises:
        ConfigError: not whole numbers of 0 or more, or one of them twice.
    """
    try:
        numbers = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        numbers = ()
    if not numbers:
        raise ConfigError(f"--seeds {text!r}: it must be a count or whole numbers by commas")
    if min(numbers) < 0:
        raise ConfigError(f"--seeds {text!r}: seeds must be 0 or more")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--seeds {text!r}: seeds must be distinct")
    if len(numbers) == 1 and "," not in text and numbers[0] > 0:
        return tuple(range(numbers[0]))
    return numbers


# --------------------------------------------------------------------------- what is carried out


def execute(grid: Grid, execution: Execution, options: Options, command: str) -> None:
    """Run an experiment, or print its plan; end with the table, the plot and where everything is.

    Args:
        command: what a user typed, which the report tells.

    Raises:
        ConfigError, CollectionError: bad input, before anything is trained.
        StorageError: the storage became full or cannot be reached; the same command goes on.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    started = time.time()
    loggers = chosen_loggers(options.log)
    grid, execution = chosen(options, grid, execution)
    store = open_store(execution.storage)
    if not options.dry_run:
        from raylab.storage.writable import check_writable

        check_writable(store)
    if grid.teacher is not None:
        from raylab.models.teachers import check_teacher

        check_teacher(grid.teacher, execution.models_dir)
    console = wide_console()
    if options.dry_run:
        from raylab.cli.plan_view import show_plan

        show_plan(grid, execution, options, console)
        return
    from raylab.pipeline.grid import run_grid  # here, since Ray takes seconds to import

    page = beside(execution.storage, options.gpu_hour_rate) if options.watch else nullcontext()
    with telling(store, loggers), page:
        outcome = run_grid(grid, execution, "lines" if options.plain else "auto", command)
    _show(outcome, execution, console)
    done = "everything was done already" if outcome.nothing_to_do else "done"
    print(f"{done} in {time.time() - started:.0f} s")


def _show(outcome: Outcome, execution: Execution, console: Console) -> None:
    from raylab.storage.tables import RESULTS

    outcome.report.show(console)
    for label, path in outcome.report.paths.items():
        print(f"{label:>14}  {path}")
    print(f"{'results':>14}  {open_store(execution.storage).uri}/{RESULTS}")
    if outcome.untrained_cells:
        print(f"not trained, the total budget is spent: {', '.join(outcome.untrained_cells)}")


# ------------------------------------------------------------------------------- an experiment's file


def read_experiment(path: Path | None) -> tuple[Grid, Execution]:
    """GRID and EXECUTION of a Python file; the default grid where no file is named.

    Raises:
        ConfigError: no such file, or it does not define them; and what the file itself raises.
    """
    if path is None:
        return DEFAULT_GRID, Execution()
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"{path}: it must be a Python file that defines GRID")
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)  # as Python does, for modules beside the file, and for workers
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *_python_path()])
    name = f"raylab_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    grid, execution = getattr(module, "GRID", None), getattr(module, "EXECUTION", Execution())
    if not isinstance(grid, Grid):
        raise ConfigError(f"{path}: GRID must be a raylab.experiment.grid.Grid")
    if not isinstance(execution, Execution):
        raise ConfigError(f"{path}: EXECUTION must be a raylab.experiment.execution.Execution")
    return grid, execution


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def run_experiment(
    description: str,
    grid: Grid,
    arguments: Sequence[str] | None = None,
    execution: Execution | None = None,
) -> int:
    """The command line of a file in experiments/.

    Returns the exit status: 0, 2 for bad input (one clear line, nothing left behind), 1 for a storage
    that cannot be written to (one line; the same command goes on).
    """
    execution = execution or Execution()
    typed = sys.argv[1:] if arguments is None else list(arguments)
    script = Path(sys.argv[0])
    command = shlex.join(["python", f"{script.parent.name}/{script.name}", *typed])

    def experiment(options: Options) -> None:
        execute(grid, execution, options, command)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    with_help = with_options(experiment, shown_defaults(grid, execution))
    app.command(cls=LaboratoryCommand, help=description)(with_help)
    try:
        app(typed, prog_name=script.name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


# ------------------------------------------------------------------------------- the two commands

_FILE = inspect.Parameter(
    "file",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE.py",
            help="Python file that defines GRID, and EXECUTION if it likes; not given: the paper's grid, "
            "whose defaults are shown below",
            show_default=False,
        ),
    ],
)


def _typed() -> str:
    return shlex.join(["raylab", *sys.argv[1:]])


def _run(file: Path | None, options: Options) -> None:
    """Run an experiment, or go on with it: what a FILE says, changed where an option says otherwise.

    What is finished is never done again. It ends with tables, a report and where they are.
    """
    execute(*read_experiment(file), options, _typed())


def _plan(file: Path | None, options: Options) -> None:
    """What an experiment would take: steps, FLOPs, memory, hours and price of every cell, and bytes; nothing is run.

    Named ladders and benchmarks (MS MARCO, BEIR's sets) need neither network, weights nor data on this machine.
    """
    execute(*read_experiment(file), replace(options, dry_run=True), _typed())


_DEFAULTS = shown_defaults(DEFAULT_GRID, Execution())
run = with_options(_run, _DEFAULTS, [_FILE])
plan = with_options(_plan, _DEFAULTS, [_FILE])
