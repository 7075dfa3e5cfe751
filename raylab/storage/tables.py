"""The tables of a storage: one frozen dataclass a table says its columns, their types and their meaning.

    results.parquet     `Result`, a row a (system, seed, collection, split, measure)
    per_query.parquet   `QueryValue`, a row a query of each of them
    ledger.parquet      `LedgerRow`, a row an artifact: what making it took
    curves.parquet      `CurvePoint`, a row a point of a fine-tuning run: its loss, and what was held out

They are the only source of every figure and table. Nulls stand where a figure means nothing. They hold what
all commands on the storage made (`raylab.storage.merging`), one after the other.
"""

from __future__ import annotations

import dataclasses
import io
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.experiment.grid import Varied
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store

RESULTS, PER_QUERY, LEDGER = "results.parquet", "per_query.parquet", "ledger.parquet"
CURVES = "curves.parquet"
COMMAND = "command.txt"  # what made them

Kind = Literal["trained", "untrained", "baseline"]


def _doc(text: str, **default: Any) -> Any:
    return field(metadata={"doc": text}, **default)


@dataclass(frozen=True)
class Result:
    """One measure of one system on one split."""

    kind: Kind = field(metadata={"doc": "what the system is"})
    system: str = _doc("the cell's name, the untrained system's, or BM25")
    size: str | None = _doc("of the ladder")
    head: str | None = _doc("name of the head")
    objective: str | None = _doc("name of the objective")
    seed: int | None = _doc("of fine-tuning")
    collection: str = _doc("what was searched")
    split: str = _doc("of its queries")
    measure: str = _doc("such as nDCG@10")
    value: float | None = _doc("mean over the queries")
    ci_low: float | None = _doc("of its 95 % percentile bootstrap interval over queries")
    ci_high: float | None = _doc("of its 95 % percentile bootstrap interval over queries")
    queries: int | None = _doc("how many the mean is over")
    parameters: int | None = _doc("non-embedding parameters of the backbone")
    budget_flops: float | None = _doc("of fine-tuning; 0 where it is in epochs")
    spent_flops: float | None = _doc("of fine-tuning")
    steps: int | None = _doc("optimizer steps")
    seconds: float | None = _doc("of training")
    fingerprint: str | None = _doc("of the checkpoint (trained), else of the run")
    without_relevant: int | None = _doc(
        "queries that count 0 because no passage is relevant to them", default=None
    )
    query_postings: float | None = _doc("mean terms a query (sparse)", default=None)
    passage_postings: float | None = _doc("mean terms a passage (sparse)", default=None)
    retrieval_flops: float | None = _doc(
        "multiply-adds of one score: terms that a query and a passage share on average (sparse), or dimensions",
        default=None,
    )
    index_bytes: int | None = _doc("of the index that was searched", default=None)
    query_ms: float | None = _doc(
        "of the search that made the run: one core, all queries at once", default=None
    )
    variant: str = field(
        default="", metadata={"doc": "name of what an experiment changed; empty: nothing"}
    )
    varied: Varied = field(
        default="",
        metadata={"doc": "what the variant changes: nothing, the budget, or the recipe"},
    )
    compute_dtype: str | None = _doc("what weights and activations are computed in", default=None)
    tokens: float | None = _doc("without padding, that fine-tuning saw", default=None)
    examples: float | None = _doc(
        "training queries that it saw: steps x queries a batch", default=None
    )
    head_parameters: int | None = _doc(
        "of the vocabulary projection (sparse); 0 (dense)", default=None
    )
    epochs: float | None = _doc("where the budget was given in them", default=None)
    charged_flops: float | None = _doc(
        "of spent_flops, those of MNTP that the budget paid", default=None
    )
    corrupted_positives: float | None = _doc(
        "share of the training queries whose positive was made wrong", default=None
    )
    corrupted_scores: float | None = _doc("share of them whose teacher scores were", default=None)
    trained_on: str | None = _doc("collection whose queries fine-tuned it", default=None)
    tuning: str | None = _doc(
        "tuned: its hyper-parameters were chosen for this cell; transferred: for others; empty: not told",
        default=None,
    )
    run: str | None = _doc(
        "fingerprint of the run, or of the profile, as in the values per query", default=None
    )


@dataclass(frozen=True)
class QueryValue:
    """One measure of one system for one query."""

    fingerprint: str = _doc("of the run, or of the profile")
    system: str = _doc("as in the results")
    seed: int | None = _doc("of fine-tuning")
    collection: str = _doc("what was searched")
    split: str = _doc("of its queries")
    measure: str = _doc("such as nDCG@10")
    query_id: str = _doc("the query")
    value: float = _doc("of the measure")


@dataclass(frozen=True)
class LedgerRow:
    """What making one artifact took."""

    stage: str = _doc("folder of the artifact below the storage")
    name: str = _doc("of the artifact")
    fingerprint: str = _doc("of the artifact")
    planned_flops: float | None = _doc(
        "the budget (retriever), or the cost model's count before the run"
    )
    flops: float | None = _doc("what it took; what runs shared is in the first of them")
    spent_flops: float | None = _doc("what it stands for under its contract, shared parts included")
    seconds: float = _doc("of wall time, of its work")
    device_seconds: float | None = _doc("seconds x devices (GPUs, or cores)")
    tokens: float | None = _doc("without padding")
    retries: int | None = _doc("restarts of workers")
    lost_flops: float | None = _doc("that had to be done again")
    lost_seconds: float | None = _doc("that had to be done again")
    energy_j: float | None = _doc("of the devices, where they tell it")
    size_bytes: int = _doc("stored")
    unstored_bytes: int | None = _doc("of hits, what embeddings would take that were let go")
    measuring_flops: float | None = _doc(
        "of held-out curves (retriever); in none of the others", default=None
    )
    measuring_seconds: float | None = _doc("of held-out curves (retriever)", default=None)
    padded_tokens: float | None = _doc(
        "with padding, as training multiplied them (backbone, retriever)", default=None
    )
    writing_seconds: float | None = _doc(
        "of writing it into the storage, and of loading for it, where the work is known apart",
        default=None,
    )
    elapsed_seconds: float | None = _doc(
        "of a training run from its start, its workers' start, faults and restarts included",
        default=None,
    )
    effective_time: float | None = _doc(
        "share of the elapsed seconds in steps that were kept", default=None
    )

    @classmethod
    def of(cls, artifact: Artifact) -> LedgerRow:
        """From an artifact's manifest: what its stage noted of the work."""
        manifest, meta = artifact.manifest, artifact.meta
        # Writing an artifact is not all of making it: a stage says where it took longer.
        work = meta.get("train_seconds", meta.get("seconds"))
        spent = meta.get("spent_flops", meta.get("flops"))
        noted = (
            "planned_flops",
            "retries",
            "lost_flops",
            "lost_seconds",
            "elapsed_seconds",
            "energy_j",
            "unstored_bytes",
            "measuring_flops",
            "measuring_seconds",
        )
        return cls(
            stage=manifest["stage"],
            name=manifest["name"],
            fingerprint=artifact.fingerprint,
            flops=meta.get("own_flops", spent),
            spent_flops=spent,
            seconds=float(manifest["seconds"] if work is None else work),
            writing_seconds=None if work is None else _apart(float(manifest["seconds"]), work),
            device_seconds=meta.get("device_seconds"),
            tokens=meta.get("own_tokens", meta.get("tokens")),
            effective_time=_share(meta.get("train_seconds"), meta.get("elapsed_seconds")),
            padded_tokens=meta.get("own_padded_tokens", meta.get("padded_tokens")),
            size_bytes=artifact.size_bytes,
            **{name: meta.get(name) for name in noted},
        )


def _apart(drafted: float, work: float) -> float:
    """Of the time from draft to commit, what is not the work: all, where the work was done before."""
    return drafted - work if drafted >= work else drafted


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


@dataclass(frozen=True)
class CurvePoint:
    """Where a fine-tuning run stood after a step."""

    fingerprint: str = _doc("of the checkpoint that the run ended with")
    system: str = _doc("the cell's name")
    seed: int = _doc("of fine-tuning")
    size: str = _doc("of the ladder")
    head: str = _doc("name of the head")
    objective: str = _doc("name of the objective")
    variant: str = _doc("name of what an experiment changed; empty: nothing")
    varied: Varied = _doc(  # noqa: RUF009
        "what the variant changes: nothing, the budget, or the recipe"
    )
    collection: str = _doc("that trained it, and whose held-out queries were scored")
    parameters: int = _doc("non-embedding parameters of the backbone")
    budget_flops: float = _doc("of fine-tuning; 0 where it is in epochs")
    step: int = _doc("optimizer steps taken")
    steps: int = _doc("of the whole run")
    flops: float = _doc("spent since the first step")
    tokens: float | None = _doc("without padding, since the first step")
    loss: float | None = _doc("of the step's batch")
    learning_rate: float | None = _doc("of the step")
    gradient_norm: float | None = _doc("of the step, before it is clipped")
    held_out: float | None = _doc(
        "contrastive entropy of held-out queries, nats, against 256 passages that are the same for all"
    )
    active_terms: float | None = _doc("of a held-out passage, mean (sparse)")
    collapse: float | None = _doc("mean cosine of two held-out passages: 1, all are alike")


# ------------------------------------------------------------------------ dataclass to Arrow

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def column_types(row: type) -> dict[str, type]:
    """The plain type (str, int or float) of every column of a table's dataclass."""
    return {name: _plain(hint) for name, hint in get_type_hints(row).items()}


def _plain(hint: Any) -> type:
    if get_origin(hint) is Literal:
        return str
    if isinstance(hint, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def schema_of(row: type) -> pa.Schema:
    """The Arrow schema of a table, with each column's meaning in its metadata."""
    kinds = column_types(row)
    return pa.schema(
        [
            pa.field(f.name, _ARROW[kinds[f.name]], metadata={"doc": f.metadata["doc"]})
            for f in dataclasses.fields(row)
        ]
    )


def table_of(rows: Iterable[Any], row: type) -> pa.Table:
    """Rows of dataclass `row` as an Arrow table."""
    columns: dict[str, list] = {f.name: [] for f in dataclasses.fields(row)}
    for one in rows:
        for name, values in columns.items():
            values.append(getattr(one, name))
    return pa.table(columns, schema=schema_of(row))


def write_table(store: Store, path: str, rows: Iterable[Any], row: type) -> pd.DataFrame:
    """Write rows (of dataclass `row`) at the root of the storage, atomically, and return them."""
    table = table_of(rows, row)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.put_bytes(path, buffer.getvalue())
    return table.to_pandas()


class DamagedTable(ValueError):
    """A table that cannot be read; the message names it and what to do."""

    def __init__(self, store: Store, path: str, reason: str):
        super().__init__(
            f"{store.uri}/{path}: not a whole table ({reason}); delete it and run the experiment again: what is "
            "finished is not done anew"
        )


def read_table(store: Store, path: str) -> pd.DataFrame:
    """A table from the root of the storage.

    Raises:
        FileNotFoundError: nothing was written there yet.
        DamagedTable: it is cut short or damaged, or lacks columns.
    """
    data = store.files.read(path)
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedTable(store, path, reason) from None
    for field_ in dataclasses.fields(_ROWS[path]) if path in _ROWS else ():
        if field_.default is dataclasses.MISSING and field_.name not in table.column_names:
            raise DamagedTable(store, path, f"it has no column {field_.name!r}")
    return table.to_pandas()


_ROWS: dict[str, type] = {
    RESULTS: Result,
    PER_QUERY: QueryValue,
    LEDGER: LedgerRow,
    CURVES: CurvePoint,
}
