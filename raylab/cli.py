"""`raylab`: small commands around a grid (`experiments/grid.py` runs one)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from raylab.artifacts import Artifact, DamagedArtifact, Store
from raylab.config import ON_FAULT, ConfigError, Execution
from raylab.data.files import CollectionError
from raylab.data.ingest import QUARANTINE, collection_address
from raylab.data.registry import BENCHMARKS
from raylab.data.sources import open_collection
from raylab.results import LEDGER, RESULTS, read_table

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
data = typer.Typer(
    help="Collections: what is known by name, and bringing one in.", no_args_is_help=True
)
app.add_typer(data, name="data")
console = Console()


def _fail(error: Exception) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(2)


@app.command()
def report(storage: str = "lab") -> None:
    """Make tables, figures and the page again, from the results table alone."""
    from raylab.report import rebuild

    try:
        made = rebuild(storage)
    except FileNotFoundError:
        raise _fail(
            ConfigError(
                f"{storage}: no {RESULTS} there; run experiments/grid.py --storage {storage}"
            )
        ) from None
    made.show(console)
    for label, path in made.paths.items():
        print(f"{label:>14}  {path}")


@app.command()
def export(run: str, folder: Path, storage: str = "lab") -> None:
    """Copy a trained retriever, such as sparse-pico-1x96-cl-seed0, with its measures on its card.

    The folder is raylab's, peft's and sentence-transformers' alike.
    """
    from raylab.export import export_retriever

    try:
        measures = export_retriever(storage, run, folder)
    except (ConfigError, DamagedArtifact) as error:
        raise _fail(error) from None
    print(f"{run} with {measures} measures in {folder}")


@app.command()
def status(storage: str = "lab") -> None:
    """What a storage holds, by stage: artifacts, seconds, FLOPs, bytes."""
    try:
        ledger = read_table(Store(storage), LEDGER)
    except FileNotFoundError:
        raise _fail(
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


@app.command()
def teach(
    teacher: Annotated[str, typer.Option(help="model folder, hub id or package:NAME/FOLDER")],
    out: Annotated[Path, typer.Option(help="Parquet file to write")],
    collection: str = "scifact",
    storage: str = "lab",
    depth: int = 20,
    random: int = 12,
    actors: int = 2,
) -> None:
    """Mine BM25 candidates for every training query and title, and score them with a teacher."""
    from raylab.jobs.cluster import connect
    from raylab.jobs.ingest import ingest
    from raylab.jobs.mine import Mining, mine
    from raylab.jobs.teach import Teaching
    from raylab.jobs.teach import teach as score

    store = Store(storage)
    try:
        source = open_collection(collection)
        with connect(Execution(storage=storage)):
            found = store.find(collection_address(source)) or ingest(store, source)
            teaching = Teaching(
                store, found, Mining(depth=depth, random=random), teacher, None, actors
            )
            scores = score(teaching, mine(store, found, teaching.mining, actors))
    except (ConfigError, CollectionError) as error:
        raise _fail(error) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes((store.local(scores) / "scores.parquet").read_bytes())
    print(f"{scores.meta['pairs']} scores in {out}")


@data.command("list")
def list_benchmarks() -> None:
    """The benchmarks known by name: splits, measures, run depth, quirks."""
    table = Table("collection", "split", "ir_datasets", "measures", "depth", "notes")
    for benchmark in BENCHMARKS.values():
        for name, split in benchmark.splits.items():
            rules = split.protocol
            notes = [
                "graded" if split.graded else "",
                f"binary from {rules.binary_level}" if rules.binary_level > 1 else "",
                "queries are documents" if rules.drop_own_document else "",
                "embedded" if benchmark.embedded else "",
            ]
            table.add_row(
                benchmark.name,
                name,
                split.ir_datasets or "",
                " ".join(rules.measures),
                str(rules.run_depth),
                ", ".join(filter(None, notes)),
            )
    console.print(table)


@data.command("ingest")
def ingest_collection(
    collection: Annotated[
        str,
        typer.Argument(
            help="scifact; a folder, .zip or fsspec address in BEIR, MS MARCO or Parquet layout; "
            "irds:NAME"
        ),
    ],
    storage: Annotated[str, typer.Option(help="a local folder or any fsspec address")] = "lab",
    on_fault: Annotated[
        str, typer.Option(help="error: stop at the first faulty record; quarantine: set it aside")
    ] = "error",
) -> None:
    """Read, validate and write a collection as Parquet shards in id order; finished work is kept."""
    store = Store(storage)
    try:
        if on_fault not in ON_FAULT:
            raise ConfigError(f"--on-fault {on_fault!r}: it must be one of {', '.join(ON_FAULT)}")
        source = open_collection(collection)
        address = collection_address(source, on_fault)
        made = store.find(address)
        if made is None:
            from raylab.jobs.cluster import connect
            from raylab.jobs.grid import sole_driver
            from raylab.jobs.ingest import ingest

            with sole_driver(store), connect(Execution(storage=storage)):
                made = ingest(store, source, on_fault)
    except (ConfigError, CollectionError, OSError) as error:
        raise _fail(error) from None
    _show_collection(store, made)


def _show_collection(store: Store, made: Artifact) -> None:
    meta = made.meta
    kept_apart = f", {meta['train_passages']:,} for training" if meta["train_passages"] else ""
    print(f"{meta['passages']:,} passages{kept_apart}")
    for split, queries in meta["splits"].items():
        print(f"{split:>14}  {queries:,} judged queries")
    print(f"{'verified':>14}  {', '.join(meta.get('verified', [])) or 'no published checksum'}")
    for kind, count in meta.get("quarantined", {}).items():
        print(f"{'quarantined':>14}  {count:,} x {kind}")
    folder = f"{store.uri}/{made.path}/{made.manifest['attempt']}"
    if meta.get("quarantined"):
        print(f"{'reasons':>14}  {folder}/{QUARANTINE}")
    print(f"{'collection':>14}  {folder}")


if __name__ == "__main__":
    app()
