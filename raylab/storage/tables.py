"""The results table and the ledger: typed rows, the only source of every figure and table (rule 6).

`results.parquet`, a row a (system, seed, collection, split, measure):

    kind          trained | untrained | baseline
    system        the cell's name, or BM25
    size, head, objective, seed        null where they mean nothing
    collection, split, measure
    value, ci_low, ci_high             mean over queries and its 95 % bootstrap interval
    queries                            how many queries the mean is over
    parameters                         non-embedding parameters
    budget_flops, spent_flops          of fine-tuning
    steps                              optimizer steps
    seconds                            of training
    without_relevant                   queries that count 0 because no passage is relevant to them
    query_postings, passage_postings   mean terms a text (sparse)
    retrieval_flops                    terms that a query and a passage share on average (sparse), or
                                       dimensions (dense): the multiply-adds of one score
    index_bytes, query_ms              of the search that made the run: one core, all queries at once
    fingerprint                        of the checkpoint (trained), else of the run
    variant                            what an experiment changed; empty: nothing
    tokens                             real ones, without padding, that fine-tuning saw
    examples                           training queries that it saw: steps x queries a batch
    head_parameters                    of the vocabulary projection (sparse); 0 (dense)
    epochs                             where the budget was given in them
    charged_flops                      of spent_flops, those of MNTP that the budget paid
    corrupted_positives                share of the training queries whose positive was made wrong
    corrupted_scores                   share of them whose teacher scores were

`per_query.parquet`: fingerprint of the run, system, seed, collection, split, measure, query_id, value.
`ledger.parquet`, a row an artifact, nulls where a figure means nothing:

    stage, name, fingerprint
    planned_flops                      the budget (retriever), or the cost model's count before the run
    flops, tokens, seconds             what making it took; what runs shared is in the first of them
    spent_flops                        what it stands for under its contract, shared parts included
    device_seconds                     seconds x devices (GPUs, or cores)
    retries, lost_flops, lost_seconds  restarts of workers, and what had to be done again
    energy_j                           of the devices, where they tell it
    size_bytes, unstored_bytes         stored; of hits, what embeddings would take that were let go
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store

RESULTS_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("system", pa.string()),
        ("size", pa.string()),
        ("head", pa.string()),
        ("objective", pa.string()),
        ("seed", pa.int64()),
        ("collection", pa.string()),
        ("split", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("queries", pa.int64()),
        ("parameters", pa.int64()),
        ("budget_flops", pa.float64()),
        ("spent_flops", pa.float64()),
        ("steps", pa.int64()),
        ("seconds", pa.float64()),
        ("without_relevant", pa.int64()),
        ("query_postings", pa.float64()),
        ("passage_postings", pa.float64()),
        ("retrieval_flops", pa.float64()),
        ("index_bytes", pa.int64()),
        ("query_ms", pa.float64()),
        ("fingerprint", pa.string()),
        ("variant", pa.string()),
        ("tokens", pa.float64()),
        ("examples", pa.float64()),
        ("head_parameters", pa.int64()),
        ("epochs", pa.float64()),
        ("charged_flops", pa.float64()),
        ("corrupted_positives", pa.float64()),
        ("corrupted_scores", pa.float64()),
    ]
)
PER_QUERY_SCHEMA = pa.schema(
    [
        ("fingerprint", pa.string()),
        ("system", pa.string()),
        ("seed", pa.int64()),
        ("collection", pa.string()),
        ("split", pa.string()),
        ("measure", pa.string()),
        ("query_id", pa.string()),
        ("value", pa.float64()),
    ]
)
LEDGER_SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("name", pa.string()),
        ("fingerprint", pa.string()),
        ("planned_flops", pa.float64()),
        ("flops", pa.float64()),
        ("spent_flops", pa.float64()),
        ("seconds", pa.float64()),
        ("device_seconds", pa.float64()),
        ("tokens", pa.float64()),
        ("retries", pa.int64()),
        ("lost_flops", pa.float64()),
        ("lost_seconds", pa.float64()),
        ("energy_j", pa.float64()),
        ("size_bytes", pa.int64()),
        ("unstored_bytes", pa.int64()),
    ]
)
RESULTS, PER_QUERY, LEDGER = "results.parquet", "per_query.parquet", "ledger.parquet"
COMMAND = "command.txt"  # what made them


def write_table(
    store: Store, path: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema
) -> pd.DataFrame:
    """Write rows at the root of the storage, atomically, and return them."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.put_bytes(path, buffer.getvalue())
    return table.to_pandas()


def read_table(store: Store, path: str) -> pd.DataFrame:
    """A table from the root of the storage.

    Raises:
        FileNotFoundError: nothing was written there yet.
    """
    with store.fs.open(f"{store.root}/{path}", "rb") as file:
        return pq.read_table(file).to_pandas()


def ledger_row(artifact: Artifact) -> dict[str, Any]:
    """What an artifact took."""
    manifest, meta = artifact.manifest, artifact.meta
    # Writing an artifact is not all of making it: a stage says where it took longer.
    seconds = meta.get("train_seconds", meta.get("seconds", manifest["seconds"]))
    spent = meta.get("spent_flops", meta.get("flops"))
    told = ("planned_flops", "retries", "lost_flops", "lost_seconds", "energy_j", "unstored_bytes")
    return {
        "stage": manifest["stage"],
        "name": manifest["name"],
        "fingerprint": artifact.fingerprint,
        "flops": meta.get("own_flops", spent),
        "spent_flops": spent,
        "seconds": float(seconds),
        "device_seconds": meta.get("device_seconds"),
        "tokens": meta.get("own_tokens", meta.get("tokens")),
        "size_bytes": artifact.size_bytes,
        **{name: meta.get(name) for name in told},
    }
