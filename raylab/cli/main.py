"""`raylab`: small commands around a grid (`experiments/grid.py` runs one)."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from raylab.cli.data import app as data
from raylab.cli.data import fail, teach
from raylab.cli.evaluate import beir, compare, evaluate
from raylab.cli.fit import fit
from raylab.cli.search import encode, index, search
from raylab.experiment.config import ConfigError
from raylab.storage.artifacts import DamagedArtifact
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, RESULTS, read_table

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()


@app.command()
def report(storage: str = "lab") -> None:
    """Make tables, figures and the page again, from the results table alone."""
    from raylab.report import rebuild

    try:
        made = rebuild(storage)
    except FileNotFoundError:
        raise fail(
            ConfigError(
                f"{storage}: no {RESULTS} there; run experiments/grid.py --storage {storage}"
            )
        ) from None
    made.show(console)
    for label, path in made.paths.items():
        print(f"{label:>14}  {path}")


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def plan(context: typer.Context) -> None:
    """What the paper's grid would take, under the options of experiments/grid.py; nothing is run."""
    from raylab.cli.experiment import run_experiment
    from raylab.experiment.grid import Grid
    from raylab.experiment.ladders import PICO

    grid = Grid(PICO, "scifact")
    raise typer.Exit(run_experiment(plan.__doc__ or "", grid, [*context.args, "--dry-run"]))


@app.command()
def export(run: str, folder: Path, storage: str = "lab") -> None:
    """Copy a trained retriever, such as sparse-pico-1x96-cl-seed0, with its measures on its card.

    The folder is raylab's, peft's and sentence-transformers' alike.
    """
    from raylab.pipeline.export import export_retriever

    try:
        measures = export_retriever(storage, run, folder)
    except (ConfigError, DamagedArtifact) as error:
        raise fail(error) from None
    print(f"{run} with {measures} measures in {folder}")


@app.command()
def status(storage: str = "lab") -> None:
    """What a storage holds, by stage: artifacts, seconds, FLOPs, bytes."""
    try:
        ledger = read_table(Store(storage), LEDGER)
    except FileNotFoundError:
        raise fail(
            ConfigError(
                f"{storage}: no {LEDGER} there; run experiments/grid.py --storage {storage}"
            )
        ) from None
    sums = ledger.groupby("stage", sort=False).agg(
        artifacts=("name", "size"),
        seconds=("seconds", "sum"),
        flops=("flops", "sum"),
        size_bytes=("size_bytes", "sum"),
    )
    table = Table("stage", "artifacts", "seconds", "FLOPs", "MiB")
    for stage, (artifacts, seconds, flops, size) in zip(sums.index, sums.to_numpy(), strict=True):
        table.add_row(
            stage, f"{artifacts:.0f}", f"{seconds:.1f}", f"{flops:.3g}", f"{size / 2**20:.2f}"
        )
    console.print(table)


app.add_typer(data, name="data")
app.command()(teach)  # the shorter name of `data teach`
for command in (encode, index, search, evaluate, compare, beir, fit):
    app.command()(command)


if __name__ == "__main__":
    app()
