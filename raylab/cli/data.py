"""Read a collection; bring candidates and teacher scores to it."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from raylab.cli.errors import LaboratoryGroup
from raylab.cli.files import open_store, output_path, take_over
from raylab.cli.shared import Gpu, Models, OnFault, Storage
from raylab.cli.shared import console as wide_console
from raylab.data.faults import QUARANTINE
from raylab.data.registry import BENCHMARKS
from raylab.experiment.config import Backbone, ComputeDtype, ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.faults import FAULTS, quarantined_kinds
from raylab.experiment.ladders import LADDERS, find_ladder
from raylab.experiment.paths import absolute

if TYPE_CHECKING:
    from raylab.storage.artifacts import Artifact
    from raylab.storage.store import Store

app = typer.Typer(
    cls=LaboratoryGroup, help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False
)
console = wide_console()

_Collection = Annotated[str, typer.Option(help="scifact, or a folder in BEIR or MS MARCO layout")]
_Source = Annotated[str, typer.Option(help="bm25, a retriever checkpoint, or a TREC run file")]
_Depth = Annotated[int, typer.Option(min=1, help="candidates a query, best first")]
_Random = Annotated[int, typer.Option(min=0, help="passages drawn at random beside them")]
_Titles = Annotated[bool, typer.Option(help="passages' titles ask for their bodies, too")]
_TeacherDtype = Annotated[
    ComputeDtype, typer.Option(help="what the teacher computes in: part of what the scores are")
]
_Actors = Annotated[int, typer.Option(min=1, help="worker processes")]
_TEACHER = (
    "cross-encoder, sparse or dense encoder, or retriever: folder, hub id, package:NAME/FOLDER"
)


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
    storage: Storage = "lab",
    on_fault: Annotated[
        str,
        typer.Option(
            help="error: the first faulty record ends it; quarantine, or quarantine:KIND,...: it is set "
            f"aside; kinds: {', '.join(FAULTS)}"
        ),
    ] = "error",
    ladder: Annotated[
        str, typer.Option(help=f"whose tokenizers: {', '.join(LADDERS)} or a TOML file")
    ] = "pico",
    tokens: Annotated[bool, typer.Option(help="write the passage store, too")] = True,
    models: Models = None,
) -> None:
    """Validate a collection into Parquet shards in id order and the passage store of their tokens.

    What is finished is kept: killed, the same command goes on.
    """
    from raylab.data.ingest import collection_address, first_faults
    from raylab.data.sources import open_collection

    quarantined_kinds(on_fault)
    store = open_store(storage)
    backbones = find_ladder(ladder).backbones if tokens else ()
    source = open_collection(collection)
    with ExitStack() as stack:
        ingested = store.find(collection_address(source, on_fault))
        if ingested is None:
            first_faults(source, on_fault)
            from raylab.jobs.ingest import ingest

            take_over(stack, store)
            ingested = ingest(store, source, on_fault)
        token_stores = _tokenised(stack, store, ingested, backbones, models)
    _show_collection(store, ingested)
    for token_store in token_stores:
        print(f"{'tokens':>14}  {_folder(store, token_store)}")


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
    from raylab.stages.tokenise import tokenise, tokens_address

    token_stores: dict[str, Artifact] = {}
    for backbone in backbones:
        tokenizer = load_tokenizer(backbone, models)
        address = tokens_address(collection, tokenizer)
        if address.path in token_stores:
            continue
        token_store = store.find(address)
        if token_store is None:
            take_over(stack, store)
            token_store = tokenise(store, collection, tokenizer, data_pool)
        token_stores[address.path] = token_store
    return list(token_stores.values())


def _show_collection(store: Store, collection: Artifact) -> None:
    from raylab.data.ingest import gaps

    meta = collection.meta
    kept_apart = f", {meta['train_passages']:,} for training" if meta["train_passages"] else ""
    print(f"{meta['passages']:,} passages{kept_apart}")
    for split, queries in meta["splits"].items():
        print(f"{split:>14}  {queries:,} judged queries")
    print(f"{'verified':>14}  {', '.join(meta.get('verified', [])) or 'no published checksum'}")
    for gap in gaps({**meta, "quarantined": {}}):
        print(f"{'gap':>14}  {gap}")
    _show_quarantined(store, collection)
    print(f"{'collection':>14}  {_folder(store, collection)}")


def _folder(store: Store, artifact: Artifact) -> str:
    return f"{store.uri}/{artifact.path}/{artifact.manifest['attempt']}"


def _show_quarantined(store: Store, artifact: Artifact) -> None:
    for kind, count in artifact.meta.get("quarantined", {}).items():
        print(f"{'quarantined':>14}  {count:,} x {kind}")
    if artifact.meta.get("quarantined"):
        print(f"{'reasons':>14}  {_folder(store, artifact)}/{QUARANTINE}")


@app.command()
def mine(
    out: Annotated[Path, typer.Option(help="Parquet file of training groups to write")],
    collection: _Collection = "scifact",
    storage: Storage = "lab",
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
    models: Models = None,
    gpu: Gpu = False,
    on_fault: OnFault = "error",
) -> None:
    """Mine candidates for every training query: training groups, as `--teacher FILE` of a grid takes them.

    Positives and copies of them are never among the candidates, nor are passages kept for evaluation.
    """
    if margin is not None and teacher is None:
        raise ConfigError("--margin: it needs --teacher, whose scores it compares")
    if margin is not None and not math.isfinite(margin):
        raise ConfigError(f"--margin {margin}: it must be a finite number")
    _check(source, teacher, models, on_fault)
    with _teaching(
        collection, storage, source, depth, random, titles, actors, models, gpu, on_fault
    ) as make:
        from raylab.stages.teach import make_groups

        teaching = make(teacher, margin)
        groups = make_groups(teaching)
        _write_groups(teaching.store, groups, out)
    left_out = groups.meta.get("groups_without_negatives_left", 0)
    note = f", {left_out} left out for want of a negative below the margin" if left_out else ""
    print(f"{groups.meta['groups']} groups in {out}{note}")
    _show_quarantined(teaching.store, groups)


@app.command()
def teach(
    teacher: Annotated[str, typer.Option(help=_TEACHER)],
    out: Annotated[Path, typer.Option(help="Parquet file of scores to write")],
    collection: _Collection = "scifact",
    storage: Storage = "lab",
    source: _Source = "bm25",
    depth: _Depth = 20,
    random: _Random = 12,
    titles: _Titles = True,
    actors: _Actors = 2,
    models: Models = None,
    gpu: Gpu = False,
    teacher_dtype: _TeacherDtype = "float32",
    on_fault: OnFault = "error",
) -> None:
    """Mine candidates for every training query and title, and score them with a teacher.

    What is killed goes on from its finished shards when it is run again.
    """
    _check(source, teacher, models, on_fault)
    with _teaching(
        collection, storage, source, depth, random, titles, actors, models, gpu, on_fault
    ) as make:
        from raylab.stages.mine import mine as mine_candidates
        from raylab.stages.score import teach as score_candidates

        teaching = replace(make(teacher, None), compute_dtype=teacher_dtype)
        store, pool = teaching.store, teaching.pool
        mined = mine_candidates(store, teaching.collection, teaching.mining, actors, models, pool)
        scores = score_candidates(teaching, mined)
        scored = store.local(scores) / "scores.parquet"
        with output_path("--out", out) as aside:
            shutil.copyfile(scored, aside)
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
    from raylab.data.ingest import collection_address, first_faults
    from raylab.data.sources import open_collection

    source_files = open_collection(collection)
    store = open_store(storage)
    first_faults(source_files, on_fault)
    from raylab.jobs.ingest import ingest
    from raylab.jobs.pools import ray_pool
    from raylab.stages.mine import Mining
    from raylab.stages.teaching import Teaching

    pool = functools.partial(ray_pool, gpu=gpu)
    source = source if source == "bm25" else absolute(source)
    models = None if models is None else absolute(models)
    execution = Execution(storage=storage, models_dir=models, use_gpu=gpu)
    with ExitStack() as stack:
        take_over(stack, store, execution)
        address = collection_address(source_files, on_fault)
        ingested = store.find(address) or ingest(store, source_files, on_fault)
        mining = Mining(depth, random, titles, source, on_fault)

        def make(teacher: str | None, margin: float | None) -> Teaching:
            teacher = None if teacher is None else absolute(teacher)
            return Teaching(
                store, ingested, mining, teacher, models, actors, margin=margin, pool=pool
            )

        yield make


def _write_groups(store: Store, groups: Artifact, out: Path) -> None:
    import pyarrow.parquet as pq

    from raylab.data.supervision.teacher import GROUP_SCHEMA

    shards = sorted(store.local(groups).glob("*.parquet"))
    with (
        output_path("--out", out) as aside,
        pq.ParquetWriter(aside, GROUP_SCHEMA, compression="zstd") as writer,
    ):
        for shard in shards:
            for batch in pq.ParquetFile(shard).iter_batches(1_024):
                writer.write_batch(batch.cast(GROUP_SCHEMA))
