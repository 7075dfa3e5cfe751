"""Index and search on Ray tasks: embedding shards -> index shards -> top-k a shard -> one run file.

index artifact      one shard: vectors (dense) or postings (sparse)
run artifact        run.trec.gz of one subject on one split; seconds of the search and bytes of the
                    index in its manifest
measures artifact   measures.parquet: value of each measure for each query; in its manifest, how many
                    queries have no relevant passage and count 0
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raylab.artifacts import Address, Artifact, Store
from raylab.config import HeadKind
from raylab.data.registry import Protocol, protocol
from raylab.encoding import read_shard
from raylab.evaluation.measures import binary_level, coverage, evaluate
from raylab.evaluation.runs import Run, drop_own_document, read_run, write_run
from raylab.index.bm25 import BM25Index
from raylab.index.dense import DenseIndex
from raylab.index.sparse import SparseIndex
from raylab.index.topk import merge_topk
from raylab.jobs.cluster import unwrapped
from raylab.jobs.ingest import PASSAGES, load_topics
from raylab.jobs.texts import bm25_input

INDEX, RUN, MEASURES = "index", "run", "measures"


def index_class(head: HeadKind) -> type[DenseIndex] | type[SparseIndex]:
    return DenseIndex if head == "dense" else SparseIndex


def index_address(shard: Artifact | Address) -> Address:
    name = shard.name if isinstance(shard, Address) else shard.manifest["name"]
    return Address(INDEX, name, {"format": 2}, {"shard": shard.fingerprint})


@ray.remote(num_cpus=1, max_retries=5)
def build_index(store: Store, shard: Artifact) -> None:
    """Commit the index of one embedding shard."""
    with store.draft(index_address(shard)) as draft:
        index_class(shard.meta["head"]).build([store.local(shard)], draft.path)
        draft.meta.update(rows=shard.meta["rows"], head=shard.meta["head"])


@dataclass(frozen=True)
class Evaluation:
    """One subject on one split: query embeddings against index shards; BM25 has neither.

    Where passages were scored as they were encoded (`raylab.jobs.scan`), ``hits`` has the answer, and
    ``indexes`` the addresses of index shards that never were: the run is the same, at the same address.
    """

    name: str
    collection: Artifact
    split: str
    queries: Artifact | None
    indexes: tuple[Artifact | Address, ...]
    hits: Artifact | None = None

    @property
    def protocol(self) -> Protocol:
        return protocol(self.collection.meta["name"], self.split)

    @property
    def run_address(self) -> Address:
        depth = {"depth": self.protocol.run_depth, "drop_own": self.protocol.drop_own_document}
        inputs = {f"index-{i:05d}": a.fingerprint for i, a in enumerate(self.indexes)}
        inputs["collection"] = self.collection.fingerprint
        if self.queries is not None:
            inputs["queries"] = self.queries.fingerprint
        return Address(
            RUN,
            f"{self.name}-{self.split}",
            {"split": self.split, "system": self.name, **depth},
            inputs,
        )

    def measures_address(self, run: Artifact) -> Address:
        return Address(
            MEASURES,
            f"{self.name}-{self.split}",
            {"protocol": asdict(self.protocol), "split": self.split},
            {"run": run.fingerprint, "collection": self.collection.fingerprint},
        )


@ray.remote(num_cpus=1, max_retries=5)
def search_and_evaluate(store: Store, evaluation: Evaluation) -> None:
    """Commit the run and the measures of one subject on one split."""
    address = evaluation.run_address
    run = store.find(address)
    if run is None:
        if evaluation.hits is not None:
            query_ids, ids, scores = read_hits(store.local(evaluation.hits), evaluation.split)
            cost: dict[str, float] = {}
        elif evaluation.queries is None:
            query_ids, ids, scores, cost = _search_bm25(store, evaluation)
        else:
            query_ids, ids, scores, cost = _search(store, evaluation)
        with store.draft(address) as draft:
            ranked = Run.from_topk(query_ids, ids, scores)
            if evaluation.protocol.drop_own_document:
                ranked = drop_own_document(ranked)
            write_run(ranked, draft.path / "run.trec.gz", evaluation.name)
            draft.meta.update(queries=len(query_ids), system=evaluation.name, **cost)
        run = store.committed(address)
    topics = load_topics(store.local(evaluation.collection))[evaluation.split]
    names, ranked = list(evaluation.protocol.measures), read_run(store.local(run) / "run.trec.gz")
    values = evaluate(ranked, topics.qrels, names)
    zeros = {
        n: len(coverage(ranked, topics.qrels, binary_level([n])).without_relevant) for n in names
    }
    rows = [
        {"measure": measure, "query_id": query_id, "value": value}
        for measure, by_query in values.items()
        for query_id, value in sorted(by_query.items())
    ]
    with store.draft(evaluation.measures_address(run)) as draft:
        pq.write_table(pa.Table.from_pylist(rows), draft.path / "measures.parquet")
        draft.meta.update(measures=names, queries=len(topics.queries), without_relevant=zeros)


def write_hits(
    folder: Path, split: str, query_ids: Sequence[str], ids: np.ndarray, scores: np.ndarray
) -> None:
    """Keep the hits of a split's queries: query_ids [Q], ids [Q, k] str, scores [Q, k] float32."""
    arrays = {
        "query_ids": np.strings.encode(np.array(query_ids, np.str_), "utf-8"),
        "ids": np.strings.encode(np.asarray(ids, np.str_), "utf-8"),
        "scores": np.asarray(scores, np.float32),
    }
    for name, array in arrays.items():
        np.save(folder / f"{split}.{name}.npy", array)


def read_hits(folder: Path, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What `write_hits` wrote."""
    query_ids, ids, scores = (
        np.load(folder / f"{split}.{name}.npy") for name in ("query_ids", "ids", "scores")
    )
    return np.strings.decode(query_ids, "utf-8").tolist(), np.strings.decode(ids, "utf-8"), scores


Found: TypeAlias = tuple[list[str], Any, Any, dict[str, float]]
"""Query ids, hits' ids, their scores; and `search_seconds` (wall time of one process for all queries
at once, after one query that loads and compiles) and `index_bytes`."""


def _search(store: Store, evaluation: Evaluation) -> Found:
    assert evaluation.queries is not None
    query_ids, matrix = read_shard(store.local(evaluation.queries))
    kind = index_class(evaluation.queries.meta["head"])
    depth = evaluation.protocol.search_depth
    parts, seconds = [], 0.0
    shards = [shard for shard in evaluation.indexes if isinstance(shard, Artifact)]
    for shard in shards:
        index = kind.load(store.local(shard))
        index.search(matrix[:1], depth)  # type: ignore[arg-type]
        started = time.perf_counter()
        parts.append(index.search(matrix, depth))  # type: ignore[arg-type]
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    ids, scores = merge_topk(parts, depth)
    seconds += time.perf_counter() - started
    size = sum(shard.size_bytes for shard in shards)
    return query_ids, ids, scores, {"search_seconds": seconds, "index_bytes": size}


def _search_bm25(store: Store, evaluation: Evaluation) -> Found:
    folder = store.local(evaluation.collection)
    topics = load_topics(folder)[evaluation.split]
    index = BM25Index.build(*bm25_input(folder, PASSAGES))
    texts_of_queries, depth = list(topics.queries.values()), evaluation.protocol.search_depth
    index.search(texts_of_queries[:1], depth)
    started = time.perf_counter()
    ids, scores = index.search(texts_of_queries, depth)
    cost = {
        "search_seconds": time.perf_counter() - started,
        "index_bytes": index.postings.size_bytes,
        "passage_postings": index.postings.n_postings / len(index),
    }
    return list(topics.queries), ids, scores, cost


def run_all(calls: Sequence[tuple[Any, tuple]], limit: int, finished: Callable[[], None]) -> None:
    """Run remote functions, at most `limit` at a time.

    Raises:
        The first one's own error, unwrapped.
    """
    queue, running = list(calls), []
    while queue or running:
        while queue and len(running) < limit:
            function, arguments = queue.pop(0)
            running.append(function.remote(*arguments))
        (ready,), running = ray.wait(running, num_returns=1)
        unwrapped(ray.get, ready)
        finished()
