"""`raylab data`: read a collection, bring candidates and teacher scores to it."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raylab.data.faults import QUARANTINE, CollectionError
from raylab.data.ingest import collection_address
from raylab.data.registry import BENCHMARKS
from raylab.data.sources import open_collection
from raylab.experiment.config import FAULTS, Backbone, ConfigError, Execution, quarantined_kinds
from raylab.experiment.ladders import LADDERS, find_ladder
from raylab.storage.artifacts import Artifact, StorageError
from raylab.storage.store import Store

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()

_Collection = Annotated[str, typer.Option(help="scifact, or a folder in BEIR or MS MARCO layout")]
_Storage = Annotated[str, typer.Option(help="a local folder or any fsspec address")]
_Source = Annotated[str, typer.Option(help="bm25, a retriever checkpoint, or a TREC run file")]
_Depth = Annotated[int, typer.Option(min=1, help="candidates a query, best first")]
_Random = Annotated[int, typer.Option(min=0, help="passages drawn at random beside them")]
_Titles = Annotated[bool, typer.Option(help="passages' titles ask for their bodies, too")]
_Actors = Annotated[int, typer.Option(min=1, help="worker processes")]
_Models = Annotated[str | None, typer.Option(help="folder with local copies of hub models")]
_Gpu = Annotated[bool, typer.Option("--gpu", help="one GPU a worker")]
_OnFault = Annotated[
    str,
    typer.Option(
        help="error: the first faulty record ends it; quarantine, or quarantine:KIND,...: it is set "
        f"aside; kinds: {', '.join(FAULTS)}"
    ),
]
_TEACHER = (
    "cross-encoder, sparse or dense encoder, or retriever: folder, hub id, package:NAME/FOLDER"
)


def fail(error: Exception) -> typer.Exit:
    """Say it in one line; bad input ends with status 2, a storage that fails with 1."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return typer.Exit(1 if isinstance(error, StorageError) else 2)


@app.command("list")
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


@app.command("ingest")
def ingest_collection(
    collection: Annotated[
        str,
        typer.Argument(
            help="scifact; a folder, .zip or fsspec address in BEIR, MS MARCO or Parquet layout; "
            "irds:NAME"
        ),
    ],
    storage: _Storage = "lab",
    on_fault: _OnFault = "error",
    ladder: Annotated[
        str, typer.Option(help=f"whose tokenizers: {', '.join(LADDERS)} or a TOML file")
    ] = "pico",
    tokens: Annotated[bool, typer.Option(help="write the passage store, too")] = True,
    models: _Models = None,
) -> None:
    """Validate a collection into Parquet shards in id order and the passage store of their tokens.

    What is finished is kept: killed, the same command goes on.
    """
    store = Store(storage)
    try:
        source = open_collection(collection)
        address = collection_address(source, on_fault)
        backbones = find_ladder(ladder).backbones if tokens else ()
        with ExitStack() as stack:
            made = store.find(address)
            if made is None:
                from raylab.jobs.ingest import ingest
                from raylab.pipeline.driver import take_over

                take_over(stack, store)
                made = ingest(store, source, on_fault)
            stores = _tokenised(stack, store, made, backbones, models)
    except (ConfigError, CollectionError, StorageError, OSError) as error:
        raise fail(error) from None
    _show_collection(store, made)
    for one in stores:
        print(f"{'tokens':>14}  {_folder(store, one)}")


def _tokenised(
    stack: ExitStack,
    store: Store,
    collection: Artifact,
    backbones: Sequence[Backbone],
    models: str | None,
) -> list[Artifact]:
    """The passage stores of a collection, one a tokenizer."""
    if not backbones:
        return []
    from raylab.jobs.pools import data_pool
    from raylab.models.hub import load_tokenizer
    from raylab.pipeline.driver import take_over
    from raylab.stages.tokenise import tokenise, tokens_address

    made: dict[str, Artifact] = {}
    for backbone in backbones:
        tokenizer = load_tokenizer(backbone, models)
        address = tokens_address(collection, tokenizer)
        if address.path not in made:
            found = store.find(address)
            if found is None:
                take_over(stack, store)
                found = tokenise(store, collection, tokenizer, data_pool)
            made[address.path] = found
    return list(made.values())


def _show_collection(store: Store, made: Artifact) -> None:
    meta = made.meta
    kept_apart = f", {meta['train_passages']:,} for training" if meta["train_passages"] else ""
    print(f"{meta['passages']:,} passages{kept_apart}")
    for split, queries in meta["splits"].items():
        print(f"{split:>14}  {queries:,} judged queries")
    print(f"{'verified':>14}  {', '.join(meta.get('verified', [])) or 'no published checksum'}")
    _show_quarantined(store, made)
    print(f"{'collection':>14}  {_folder(store, made)}")


def _folder(store: Store, made: Artifact) -> str:
    return f"{store.uri}/{made.path}/{made.manifest['attempt']}"


def _show_quarantined(store: Store, made: Artifact) -> None:
    for kind, count in made.meta.get("quarantined", {}).items():
        print(f"{'quarantined':>14}  {count:,} x {kind}")
    if made.meta.get("quarantined"):
        print(f"{'reasons':>14}  {_folder(store, made)}/{QUARANTINE}")


@app.command()
def mine(
    out: Annotated[Path, typer.Option(help="Parquet file of training groups to write")],
    collection: _Collection = "scifact",
    storage: _Storage = "lab",
    source: _Source = "bm25",
    depth: _Depth = 20,
    random: _Random = 12,
    titles: _Titles = True,
    teacher: Annotated[str | None, typer.Option(help=f"scores the candidates: {_TEACHER}")] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="leave out negatives scored above the positive minus this"),
    ] = None,
    actors: _Actors = 2,
    models: _Models = None,
    gpu: _Gpu = False,
    on_fault: _OnFault = "error",
) -> None:
    """Mine candidates for every training query: training groups, as `--teacher FILE` of a grid takes them.

    Positives and copies of them are never among the candidates, nor are passages kept for evaluation.
    """
    try:
        if margin is not None and teacher is None:
            raise ConfigError("--margin: it needs --teacher, whose scores it compares")
        _check(source, teacher, models, on_fault)
        with _teaching(
            collection, storage, source, depth, random, titles, actors, models, gpu, on_fault
        ) as make:
            from raylab.stages.teach import make_groups

            teaching = make(teacher, margin)
            groups = make_groups(teaching)
            _write_groups(teaching.store, groups, out)
    except (ConfigError, CollectionError, StorageError, OSError) as error:
        raise fail(error) from None
    left_out = groups.meta.get("groups_without_negatives_left", 0)
    told = f", {left_out} left out for want of a negative below the margin" if left_out else ""
    print(f"{groups.meta['groups']} groups in {out}{told}")
    _show_quarantined(teaching.store, groups)


@app.command()
def teach(
    teacher: Annotated[str, typer.Option(help=_TEACHER)],
    out: Annotated[Path, typer.Option(help="Parquet file of scores to write")],
    collection: _Collection = "scifact",
    storage: _Storage = "lab",
    source: _Source = "bm25",
    depth: _Depth = 20,
    random: _Random = 12,
    titles: _Titles = True,
    actors: _Actors = 2,
    models: _Models = None,
    gpu: _Gpu = False,
    on_fault: _OnFault = "error",
) -> None:
    """Mine candidates for every training query and title, and score them with a teacher.

    What is killed goes on from its finished shards when it is run again.
    """
    try:
        _check(source, teacher, models, on_fault)
        with _teaching(
            collection, storage, source, depth, random, titles, actors, models, gpu, on_fault
        ) as make:
            from raylab.stages.mine import mine as find
            from raylab.stages.teach import teach as score

            teaching = make(teacher, None)
            store, found = teaching.store, teaching.collection
            scores = score(
                teaching, find(store, found, teaching.mining, actors, models, teaching.pool)
            )
            with whole(out) as aside:
                shutil.copyfile(store.local(scores) / "scores.parquet", aside)
    except (ConfigError, CollectionError, StorageError, OSError) as error:
        raise fail(error) from None
    print(f"{scores.meta['pairs']} scores in {out}")


def _check(source: str, teacher: str | None, models: str | None, on_fault: str) -> None:
    """Find what is asked for before anything is done.

    Raises:
        ConfigError, CollectionError: it is not there, or no such thing.
    """
    quarantined_kinds(on_fault)
    from raylab.data.supervision.published import form_of
    from raylab.models.teachers import check_retriever, check_teacher

    if Path(source).is_file():
        if form_of(Path(source)) != "scores":
            raise ConfigError(f"--source {source}: it holds training groups, not a ranking")
    elif source != "bm25":
        check_retriever("--source", source, models)
    if teacher is not None:
        if Path(teacher).is_file():
            raise ConfigError(
                f"--teacher {teacher}: candidates are scored by a model, not by a file"
            )
        check_teacher(teacher, models)


@contextmanager
def _teaching(
    collection: str,
    storage: str,
    source: str,
    depth: int,
    random: int,
    titles: bool,
    actors: int,
    models: str | None,
    gpu: bool,
    on_fault: str,
) -> Iterator[Any]:
    """On Ray, with the collection ingested: a function (teacher, margin) -> `Teaching`."""
    found = open_collection(collection)
    from raylab.jobs.ingest import ingest
    from raylab.jobs.pools import ray_pool
    from raylab.pipeline.driver import take_over
    from raylab.stages.mine import Mining
    from raylab.stages.teach import Teaching

    store, pool = Store(storage), functools.partial(ray_pool, gpu=gpu)
    execution = Execution(storage=storage, models_dir=models, use_gpu=gpu)
    with ExitStack() as stack:
        take_over(stack, store, execution)
        ingested = store.find(collection_address(found, on_fault)) or ingest(store, found, on_fault)
        mining = Mining(depth, random, titles, source, on_fault)
        yield lambda teacher, margin: Teaching(
            store, ingested, mining, teacher, models, actors, margin=margin, pool=pool
        )


def _write_groups(store: Store, groups: Artifact, out: Path) -> None:
    import pyarrow.parquet as pq

    from raylab.data.supervision.teacher import GROUP_SCHEMA

    with whole(out) as aside, pq.ParquetWriter(aside, GROUP_SCHEMA, compression="zstd") as writer:
        for shard in sorted(store.local(groups).glob("*.parquet")):
            for batch in pq.ParquetFile(shard).iter_batches(1_024):
                writer.write_batch(batch.cast(GROUP_SCHEMA))


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A file beside `out` that takes its name when the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield aside
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
