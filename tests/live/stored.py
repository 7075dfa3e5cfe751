"""A storage with two small cells on one collection as a grid leaves it, made without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq

from raylab.data.tokens import write_store
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.execution import Execution
from raylab.experiment.heads import HEADS
from raylab.index.embeddings import shards
from raylab.models.hub import load_tokenizer
from raylab.stages.encode import Embeddings, ShardEncoder, System, commit_shard, query_task
from raylab.stages.search import Evaluation, build_index, index_address, search_and_evaluate
from raylab.stages.tokenise import tokens_address
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store
from raylab.storage.tables import PER_QUERY, RESULTS, QueryValue, Result, write_table
from tests.stages.collections import committed

CELLS = {head: f"{head}-tiny-cl-seed0" for head in ("sparse", "dense")}
ENCODING = Encoding(query_length=32, passage_length=48)
_ROWS = shards(120, 50)


def laboratory(root: Path, collection_folder: Path, model_folder: Path, folders: dict) -> Store:
    """Checkpoints, representations, indexes, runs, and the tables of results and values per query."""
    store = Store(str(root))
    collection = committed(store, collection_folder)
    tokens = _tokens(store, collection, model_folder)
    encoder = ShardEncoder(store, Execution(encode_batch_tokens=512))
    results, values = [], []
    for head, name in CELLS.items():
        address = Address("retriever", name, {"head": head})
        with store.draft(address) as draft:
            shutil.copytree(folders[head], draft.path, dirs_exist_ok=True)
        checkpoint = store.committed(address)
        backbone = Backbone("tiny", str(model_folder))
        system = System(name, HEADS[head], backbone, checkpoint.fingerprint, address)
        run, measures = _measured(store, encoder, system, collection, tokens)
        for measure, own in measures.items():
            mean = sum(own.values()) / len(own)
            about = collection.meta["name"], "test", measure
            results.append(_result(head, checkpoint, run, about, mean, len(own)))
            for query, value in own.items():
                facts = run.fingerprint, f"{head}-tiny-cl", 0, *about
                values.append(QueryValue(*facts, query, value))
    write_table(store, RESULTS, results, Result)
    write_table(store, PER_QUERY, values, QueryValue)
    return store


def _tokens(store: Store, collection: Artifact, model_folder: Path) -> Artifact:
    tokenizer = load_tokenizer(Backbone("tiny", str(model_folder)), None)
    rows = pq.read_table(store.local(collection) / "passages").sort_by("passage_id").to_pylist()
    texts = [f"{row['title']} {row['text']}" for row in rows]
    address = tokens_address(collection, tokenizer)
    with store.draft(address) as draft:
        own = [row["passage_id"] for row in rows], tokenizer.encode(texts), [4] * len(rows)
        draft.meta["passages"] = write_store(draft.path / "passages", [own], tokenizer.dtype)
    return store.committed(address)


def _measured(
    store: Store, encoder: ShardEncoder, system: System, collection: Artifact, tokens: Artifact
) -> tuple[Artifact, dict[str, dict[str, float]]]:
    """(run, values by measure and query) of a system on the test queries."""
    queries = query_task(system, ENCODING, collection, "test")
    whole = Embeddings(system, ENCODING, tokens, 120)
    tasks = [whole.part(rows) for rows in _ROWS]
    indexes = []
    for task in (queries, *tasks):
        commit_shard(store, encoder, task)
    for task in tasks:
        part = store.committed(task.address)
        build_index(store, part)
        indexes.append(store.committed(index_address(part)))
    whole.commit(store, tasks)
    of_queries = store.committed(queries.address)
    evaluation = Evaluation(
        system.name, collection, "test", of_queries, whole.address, tuple(indexes)
    )
    search_and_evaluate(store, evaluation)
    table = pq.read_table(store.local(store.committed(evaluation.address)) / "measures.parquet")
    values: dict[str, dict[str, float]] = {}
    for row in table.to_pylist():
        values.setdefault(row["measure"], {})[row["query_id"]] = row["value"]
    return store.committed(evaluation.run_address), values


def _result(
    head: str,
    checkpoint: Artifact,
    run: Artifact,
    about: tuple[str, str, str],
    mean: float,
    queries: int,
) -> Result:
    collection, split, measure = about
    return Result(
        kind="trained",
        system=f"{head}-tiny-cl",
        size="tiny",
        head=head,
        objective="cl",
        seed=0,
        collection=collection,
        split=split,
        measure=measure,
        value=mean,
        ci_low=None,
        ci_high=None,
        queries=queries,
        parameters=1_000,
        budget_flops=1e10,
        spent_flops=1e10,
        steps=10,
        seconds=1.0,
        fingerprint=checkpoint.fingerprint,
        run=run.fingerprint,
        trained_on=collection,
    )
