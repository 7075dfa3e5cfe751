"""`raylab encode | index | search`: any retriever checkpoint on any collection, each stage found again."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylab.cli.files import open_store, output_path, take_over, writing
from raylab.cli.shared import Gpu, Models, OnFault, Storage
from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.faults import quarantined_kinds
from raylab.experiment.paths import absolute

if TYPE_CHECKING:
    from raylab.pipeline.retrieval import Hit, Retrieval
    from raylab.storage.artifacts import Artifact

_TEXT_WIDTH = 160
_TERMS = 10

_Checkpoint = Annotated[
    str,
    typer.Argument(
        help="raylab's own, the paper's authors', or a sentence-transformers model: folder, hub id, "
        "package:NAME/FOLDER"
    ),
]
_Collection = Annotated[
    str, typer.Argument(help="scifact, or a folder in BEIR or MS MARCO layout, ... (data ingest)")
]
_Encoders = Annotated[int, typer.Option(help="encoding actors; 0: as many as the cluster takes")]
_ShardPassages = Annotated[
    int,
    typer.Option(
        help="passages a shard, what an actor that dies loses; shards of another size are other artifacts"
    ),
]
_QueryLength = Annotated[
    int | None, typer.Option(help="tokens a query; none: the checkpoint's own")
]
_PassageLength = Annotated[
    int | None, typer.Option(help="tokens a passage; none: the checkpoint's own")
]
_TopKQuery = Annotated[
    int | None,
    typer.Option(help="terms a query keeps (sparse); 0: all; none: the checkpoint's own"),
]
_TopKPassage = Annotated[
    int | None, typer.Option(help="terms a passage keeps, as --top-k-query says")
]
_Precision = Annotated[
    str | None, typer.Option(help="of stored representations: float16 or float32")
]


def encode(
    checkpoint: _Checkpoint,
    collection: _Collection,
    storage: Storage = "lab",
    models: Models = None,
    query_length: _QueryLength = None,
    passage_length: _PassageLength = None,
    top_k_query: _TopKQuery = None,
    top_k_passage: _TopKPassage = None,
    precision: _Precision = None,
    encoders: _Encoders = 2,
    shard_passages: _ShardPassages = Execution.shard_passages,
    gpu: Gpu = False,
    on_fault: OnFault = "error",
) -> None:
    """Encode a collection's passages into embedding shards in the storage."""
    encoding = (query_length, passage_length, top_k_query, top_k_passage, precision)
    how = {"encoding_actors": encoders, "shard_passages": shard_passages, "use_gpu": gpu}
    with _retrieval(checkpoint, collection, storage, models, encoding, on_fault, how) as retrieval:
        _show("embeddings", retrieval.parts)


def index(
    checkpoint: _Checkpoint,
    collection: _Collection,
    storage: Storage = "lab",
    models: Models = None,
    query_length: _QueryLength = None,
    passage_length: _PassageLength = None,
    top_k_query: _TopKQuery = None,
    top_k_passage: _TopKPassage = None,
    precision: _Precision = None,
    encoders: _Encoders = 2,
    shard_passages: _ShardPassages = Execution.shard_passages,
    gpu: Gpu = False,
    on_fault: OnFault = "error",
    ciff: Annotated[
        Path | None, typer.Option(help="all of them as one CIFF file, too (sparse; .gz)")
    ] = None,
    json_vectors: Annotated[
        Path | None, typer.Option(help="all of them as Anserini's JSON vectors, too (sparse; .gz)")
    ] = None,
    faiss: Annotated[
        Path | None,
        typer.Option(help="all of them as faiss' IndexFlatIP and docid, too: a folder (dense)"),
    ] = None,
) -> None:
    """Index a collection's passages, encoded first where they are not yet; export them where asked."""
    encoding = (query_length, passage_length, top_k_query, top_k_passage, precision)
    how = {"encoding_actors": encoders, "shard_passages": shard_passages, "use_gpu": gpu}
    exports = {"ciff": ciff, "json_vectors": json_vectors, "faiss": faiss}
    with _retrieval(checkpoint, collection, storage, models, encoding, on_fault, how) as retrieval:
        wanted = {form: out for form, out in exports.items() if out is not None}
        for form in wanted:
            needs = "dense" if form == "faiss" else "sparse"
            representation = retrieval.checkpoint.head.representation
            if representation != needs:
                option = form.replace("_", "-")
                raise ConfigError(
                    f"--{option}: it takes a {needs} retriever; {checkpoint} is {representation}"
                )
        _show("index", retrieval.indexes)
        names = ", ".join(f"--{form.replace('_', '-')}" for form in wanted)
        with writing(names, next(iter(wanted.values()), Path())):
            retrieval.export(wanted)
        for form, out in wanted.items():
            print(f"{form.replace('_', '-'):>14}  {out}")


def search(
    checkpoint: _Checkpoint,
    collection: _Collection,
    query: Annotated[str | None, typer.Argument(help="text of a query; or give --split")] = None,
    k: Annotated[int, typer.Option("--k", help="passages to print")] = 10,
    split: Annotated[
        str | None, typer.Option(help="all queries of a split, in place of one")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="TREC run of the split to write (.gz)")] = None,
    no_index: Annotated[
        bool,
        typer.Option(
            "--no-index",
            help="with --split: score passages as they are encoded, and store no embedding",
        ),
    ] = False,
    storage: Storage = "lab",
    models: Models = None,
    query_length: _QueryLength = None,
    passage_length: _PassageLength = None,
    top_k_query: _TopKQuery = None,
    top_k_passage: _TopKPassage = None,
    precision: _Precision = None,
    encoders: _Encoders = 2,
    shard_passages: _ShardPassages = Execution.shard_passages,
    gpu: Gpu = False,
    on_fault: OnFault = "error",
) -> None:
    """Search a collection with a checkpoint: the best passages for a text, or the run of a split.

    Passages are encoded and indexed once into the storage. Of a sparse retriever, every hit says which
    terms matched: query weight x passage weight.
    """
    encoding = (query_length, passage_length, top_k_query, top_k_passage, precision)
    how = {"encoding_actors": encoders, "shard_passages": shard_passages, "use_gpu": gpu}
    how["no_index"] = no_index
    _check(query, k, split, out)
    if no_index and split is None:
        raise ConfigError("--no-index: it needs --split, whose queries are known beforehand")
    with _retrieval(checkpoint, collection, storage, models, encoding, on_fault, how) as retrieval:
        if split is None:
            assert query is not None
            started = time.time()
            hits = retrieval.search(query, k)
            _print_hits(hits)
            print(f"{len(hits)} passage(s) in {time.time() - started:.2f} s", file=sys.stderr)
            return
        if split not in retrieval.splits:
            known = ", ".join(retrieval.splits)
            raise ConfigError(f"--split {split}: {collection} has no such split; it has {known}")
        run, measures = retrieval.run(split)
        if out is not None:
            ranked = retrieval.store.local(run) / "run.trec.gz"
            with output_path("--out", out) as aside:
                shutil.copyfile(ranked, aside)
            print(f"{'run':>14}  {out}")
        for name, value in retrieval.means(measures).items():
            print(f"{name:>14}  {value:.4f}")


def _check(query: str | None, k: int, split: str | None, out: Path | None) -> None:
    if (query is None) == (split is None):
        raise ConfigError("search needs the text of a query, or --split: one of them")
    if query is not None and not query.strip():
        raise ConfigError("the query is empty")
    if k < 1:
        raise ConfigError(f"--k {k}: it must be at least 1")
    if out is not None and split is None:
        raise ConfigError(f"--out {out}: it needs --split, whose run it takes")
    if out is not None and not out.name.endswith(".gz"):
        raise ConfigError(f"--out {out}: its name must end in .gz, as the run is compressed")


@contextmanager
def _retrieval(
    checkpoint: str,
    collection: str,
    storage: str,
    models: str | None,
    encoding: tuple,
    on_fault: str,
    how: dict[str, Any],
) -> Iterator[Retrieval]:
    """The stages, for as long as the block runs."""
    from raylab.data.sources import open_collection

    names = ("query_length", "passage_length", "top_k_query", "top_k_passage", "precision")
    quarantined_kinds(on_fault)
    models = None if models is None else absolute(models)
    execution = Execution(storage=storage, models_dir=models, **how)
    source = open_collection(collection)
    store = open_store(storage)
    from transformers.utils.logging import disable_progress_bar

    from raylab.models.opening import find_retriever

    disable_progress_bar()
    checkpoint_files = find_retriever(checkpoint, models)
    wanted = checkpoint_files.encoding.changed(**dict(zip(names, encoding, strict=True)))
    with ExitStack() as stack:
        from raylab.pipeline.retrieval import Retrieval

        yield Retrieval(
            store,
            execution,
            source,
            on_fault,
            checkpoint_files,
            wanted,
            lambda: take_over(stack, store, execution),
            lambda text: print(text, file=sys.stderr),
        )


def _show(stage: str, shards: Sequence[Artifact]) -> None:
    rows, size = sum(a.meta["rows"] for a in shards), sum(a.size_bytes for a in shards)
    print(f"{rows:,} passages in {len(shards)} shard(s), {size:,} bytes")
    for shard in shards:
        print(f"{stage:>14}  {shard.path}")


def _print_hits(hits: list[Hit]) -> None:
    if not hits:
        print("no passage shares a term with the query")
    for rank, hit in enumerate(hits, 1):
        text = " ".join(hit.text.split())
        short = text if len(text) <= _TEXT_WIDTH else text[: _TEXT_WIDTH - 3] + "..."
        print(f"{rank:>3}  {hit.passage_id}  {hit.score:.4f}  {short}")
        terms = [f"{name!r} {a * b:.3f} = {a:.3f} x {b:.3f}" for name, a, b in hit.terms[:_TERMS]]
        if terms:
            left = len(hit.terms) - _TERMS
            print("     " + ", ".join(terms) + (f", and {left} more" if left > 0 else ""))
