"""`raylab`: run grids of retrievers, and search, measure, compare and fit what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from raylab import __version__
from raylab.cli.data import app as data
from raylab.cli.doctor import doctor
from raylab.cli.errors import LaboratoryGroup
from raylab.cli.evaluate import beir, compare, evaluate
from raylab.cli.experiment import plan, run
from raylab.cli.files import open_store, stored_table, writing
from raylab.cli.fit import fit
from raylab.cli.log import log
from raylab.cli.search import encode, index, search
from raylab.cli.shared import Storage
from raylab.cli.shared import console as wide_console
from raylab.cli.watch import PORT, follow
from raylab.cli.watch import watch as watch_storage
from raylab.experiment.config import ConfigError

app = typer.Typer(
    cls=LaboratoryGroup, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
console = wide_console()


def _print_version(asked: bool) -> None:
    if asked:
        print(f"raylab {__version__}")
        raise typer.Exit


@app.callback()
def raylab(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version and stop"
        ),
    ] = False,
) -> None:
    """Run grids of retrievers on Ray, and search, measure, compare and fit what they leave."""


app.command("run")(run)
app.command("plan")(plan)
app.command("watch")(watch_storage)
app.command("log")(log)


@app.command()
def status(
    storage: Storage = "lab",
    time: Annotated[
        bool, typer.Option("--time", help="where the time went, by kind of artifact")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="follow a page of `raylab watch`, a line a change")
    ] = False,
    page: Annotated[str, typer.Option(help="address of that page")] = f"http://127.0.0.1:{PORT}",
    token: Annotated[
        str | None, typer.Option(envvar="RAYLAB_WATCH_TOKEN", help="that the page asks for")
    ] = None,
) -> None:
    """How far the last experiment is, by kind of stage; and what a storage holds: seconds, FLOPs, bytes."""
    if watch:
        follow(page, token)
        return
    if time:
        _print_times(storage)
        return
    from raylab.pipeline.lab import Lab
    from raylab.storage.tables import LEDGER

    listed = Lab(open_store(storage).uri).stages()
    stages = Table("stage", "done", "of")
    for kind, rows in listed.groupby("kind", sort=False):
        stages.add_row(str(kind), str(sum(rows["done"])), str(len(rows)))
    console.print(stages)
    if not all(listed["done"]):
        console.print("the same command goes on where it stopped")
        return
    sums = stored_table(storage, LEDGER).groupby("stage", sort=False)
    held = Table("held", "artifacts", "seconds", "FLOPs", "MiB")
    for stage, rows in sums:
        seconds, flops, size = (rows[name].sum() for name in ("seconds", "flops", "size_bytes"))
        amounts = f"{seconds:.1f}", f"{flops:.3g}", f"{size / 2**20:.2f}"
        held.add_row(str(stage), str(len(rows)), *amounts)
    console.print(held)


def _print_times(storage: str) -> None:
    from raylab.report.times import times
    from raylab.storage.tables import LEDGER

    heads = "work", "held-out points", "done again", "start-up and waiting", "writing", "all"
    shown = Table("artifacts", "", *heads, title="seconds", title_justify="left")
    for row in times(stored_table(storage, LEDGER)):
        parts = row.work, row.measuring, row.again, row.waiting, row.writing, row.seconds
        shown.add_row(row.stage, f"{row.artifacts:,}", *(f"{part:,.1f}" for part in parts))
    console.print(shown)


@app.command()
def report(
    storage: Storage = "lab",
    cells: Annotated[
        str,
        typer.Option(
            help="trained systems to show: a filter such as 'sparse-*-cl'; several by commas"
        ),
    ] = "*",
) -> None:
    """Make tables, figures and the page again, from the results table alone."""
    from raylab.report import rebuild
    from raylab.storage.tables import LEDGER, RESULTS

    for name in (RESULTS, LEDGER):
        stored_table(storage, name)
    written = rebuild(storage, cells=cells)
    written.show(console)
    for label, path in written.paths.items():
        print(f"{label:>14}  {path}")


@app.command()
def check(storage: Storage = "lab") -> None:
    """Read every file of a storage and compare it with its checksum; what is damaged is named."""
    from raylab.storage.artifacts import DamagedArtifact

    store = open_store(storage)
    sound, damaged = 0, 0
    for artifact in store.artifacts():
        try:
            store.check(artifact, again=True)
            sound += 1
        except DamagedArtifact as damage:
            print(damage)
            damaged += 1
    print(f"{sound + damaged} artifacts, {damaged} of them damaged")
    if damaged:
        raise typer.Exit(1)


for command in (evaluate, compare, beir, search, encode, index, fit, doctor):
    app.command()(command)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="a trained run, such as sparse-pico-1x96-cl-seed0")],
    folder: Annotated[Path, typer.Argument(help="folder to write; it must be new, or empty")],
    storage: Storage = "lab",
) -> None:
    """Copy a trained retriever out of a storage, with its measures on its card.

    The folder is raylab's, peft's and sentence-transformers' alike.
    """
    from raylab.pipeline.export import export_retriever

    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"FOLDER {folder}: it is a file; it must be a folder that is new, or empty"
        )
    open_store(storage)
    with writing("FOLDER", folder):
        measures = export_retriever(storage, run, folder)
    print(f"{run} with {measures} measures in {folder}")


app.add_typer(data, name="data")


if __name__ == "__main__":
    app()
