"""Index, search and evaluate: embedding shards -> index shards -> top-k a shard -> one run file.

A search over many index shards is cut into pieces, each a task of its own whose hits are an artifact until the
run is there; merged on (score descending, id descending), they are those of one search over all.

index artifact      one shard: vectors (dense) or postings (sparse)
run artifact        run.trec.gz of one system on one split; seconds of the search and bytes of the
                    index in its manifest
measures artifact   measures.parquet: value of each measure for each query; in its manifest, how many
                    queries have no relevant passage and count 0
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.ingest import PASSAGES
from raylab.data.ingested import load_topics
from raylab.data.registry import Protocol, protocol
from raylab.data.texts import bm25_input
from raylab.evaluation.measures import binary_level, coverage, evaluate
from raylab.evaluation.runs import Run, drop_own_document, read_run, write_run
from raylab.experiment.measures import OwnMeasure
from raylab.index.bm25 import BM25Index
from raylab.index.dense import DenseIndex
from raylab.index.embeddings import VECTORS
from raylab.index.kernels.topk import merge_topk
from raylab.index.sparse import SparseIndex
from raylab.stages.profile import read_queries
from raylab.stages.shards import remove_shards
from raylab.storage.artifacts import Address, Artifact, DamagedArtifact
from raylab.storage.store import Store

INDEX, RUN, MEASURES = "index", "run", "measures"
_SHARDS_A_PIECE = 16


def index_address(shard: Artifact) -> Address:
    """Where the index of an embedding shard stands."""
    return Address(INDEX, shard.manifest["name"], {"format": 4}, {"shard": shard.fingerprint})


@dataclass(frozen=True)
class IndexTask:
    """The index of one embedding shard."""

    part: Artifact

    @property
    def address(self) -> Address:
        return index_address(self.part)


def bm25_address(collection: Artifact, part: str) -> Address:
    """Where the BM25 index of a collection's passages stands, for search and for mining."""
    inputs = {"collection": collection.fingerprint}
    return Address(INDEX, f"bm25-{part}", {"format": 4, "part": part}, inputs)


@dataclass(frozen=True)
class BM25Task:
    """The BM25 index of a collection's passages, which all its splits search."""

    collection: Artifact

    @property
    def address(self) -> Address:
        return bm25_address(self.collection, PASSAGES)


def build_bm25(store: Store, collection: Artifact, part: str) -> Artifact:
    """Commit the BM25 index of a collection's passages, unless it is there."""
    address = bm25_address(collection, part)
    if (index := store.find(address)) is not None:
        return index
    with store.draft(address) as draft:
        index = BM25Index.build(*bm25_input(store.local(collection), part))
        index.save(draft.path)
        draft.meta["rows"] = len(index)
    return store.committed(address)


def build_index(store: Store, shard: Artifact) -> None:
    """Commit the index of one embedding shard, unless it is there."""
    if store.find(index_address(shard)) is not None:
        return
    with store.draft(index_address(shard)) as draft:
        representation = shard.meta["representation"]
        if representation == "dense":
            DenseIndex.over(store.local(shard), draft.path)
        else:
            SparseIndex.build([store.local(shard)], draft.path)
        draft.meta.update(rows=shard.meta["rows"], representation=representation, shard=shard.path)


def open_index(store: Store, index: Artifact) -> DenseIndex | SparseIndex:
    """The index of one embedding shard, memory-mapped; a dense one reads the shard's own vectors.

    Raises:
        DamagedArtifact: the shard is not there.
    """
    folder = store.local(index)
    if index.meta["representation"] == "sparse":
        return SparseIndex.load(folder)
    (shard,) = store.find_all([index.meta["shard"]])
    if shard is None:
        store.discard(index.path)
        raise DamagedArtifact(index.path, "its embeddings are not there")
    return DenseIndex.load(folder, vectors=store.local(shard) / VECTORS)


@dataclass(frozen=True)
class Evaluation:
    """One system on one split: query embeddings against the index; or BM25.

    Args:
        queries: their representations, or where they will stand; None for BM25.
        passages: where the passages' embeddings stand, or would; of BM25, its index.
        indexes: of the parts of the embeddings, in row order; of BM25, its index.
        hits: the answer, where passages were scored as they were encoded (`raylab.stages.scan`) and nothing
            was stored: the run is the same, at the same address.
        own: measures beside those of the split's protocol.
    """

    name: str
    collection: Artifact
    split: str
    queries: Artifact | Address | None
    passages: Address
    indexes: tuple[Artifact, ...] = ()
    hits: Artifact | None = None
    own: tuple[OwnMeasure, ...] = ()

    @property
    def protocol(self) -> Protocol:
        return protocol(self.collection.meta["name"], self.split)

    @property
    def run_address(self) -> Address:
        depth = {"depth": self.protocol.run_depth, "drop_own": self.protocol.drop_own_document}
        inputs = {
            "passages": self.passages.fingerprint,
            "collection": self.collection.fingerprint,
        }
        if self.queries is not None:
            inputs["queries"] = self.queries.fingerprint
        return Address(
            RUN,
            f"{self.name}-{self.split}",
            {"format": 2, "split": self.split, "system": self.name, **depth},
            inputs,
        )

    @property
    def address(self) -> Address:
        """Where the measures stand."""
        own = {"own": [asdict(measure) for measure in self.own]} if self.own else {}
        return Address(
            MEASURES,
            f"{self.name}-{self.split}",
            {"protocol": asdict(self.protocol), "split": self.split, **own},
            {"run": self.run_address.fingerprint, "collection": self.collection.fingerprint},
        )

    @property
    def shards(self) -> tuple[Artifact, ...]:
        """The index shards to search: none for BM25, nor where the hits are given."""
        return () if self.hits is not None or self.queries is None else self.indexes

    def pieces(self) -> list[SearchPiece]:
        """The search as tasks of some shards each; none where one task does it all."""
        shards, size = self.shards, _SHARDS_A_PIECE
        if len(shards) <= size:
            return []
        cut = [shards[start : start + size] for start in range(0, len(shards), size)]
        return [
            SearchPiece(self.run_address.shard(n, {"first": part[0].path}), self, part)
            for n, part in enumerate(cut)
        ]


@dataclass(frozen=True)
class SearchPiece:
    """A search over some of an evaluation's index shards."""

    address: Address
    evaluation: Evaluation
    shards: tuple[Artifact, ...]


def search_piece(store: Store, piece: SearchPiece, device: str | None = None) -> None:
    """Commit the hits of one piece, unless they are there."""
    if store.find(piece.address) is not None:
        return
    query_ids, ids, scores, cost = _search(store, piece.evaluation, piece.shards, device)
    with store.draft(piece.address) as draft:
        write_hits(draft.path, piece.evaluation.split, query_ids, ids, scores)
        draft.meta.update(cost)


def search_and_evaluate(store: Store, evaluation: Evaluation, device: str | None = None) -> None:
    """Commit the run and the measures of one system on one split; its pieces are there.

    ``device``: a torch device that does the dense products, or None for this processor.
    """
    address = evaluation.run_address
    run, pieces = store.find(address), evaluation.pieces()
    if run is None:
        if evaluation.hits is not None:
            query_ids, ids, scores = read_hits(store.local(evaluation.hits), evaluation.split)
            cost: dict[str, float] = {}
        elif evaluation.queries is None:
            query_ids, ids, scores, cost = _search_bm25(store, evaluation)
        elif pieces:
            query_ids, ids, scores, cost = _merged(store, evaluation, pieces)
        else:
            query_ids, ids, scores, cost = _search(store, evaluation, evaluation.shards, device)
        with store.draft(address) as draft:
            ranked = Run.from_topk(query_ids, ids, scores)
            if evaluation.protocol.drop_own_document:
                ranked = drop_own_document(ranked)
            write_run(ranked, draft.path / "run.trec.gz", evaluation.name)
            draft.meta.update(queries=len(query_ids), system=evaluation.name, **cost)
        run = store.committed(address)
    topics = load_topics(store.local(evaluation.collection))[evaluation.split]
    names, ranked = list(evaluation.protocol.measures), read_run(store.local(run) / "run.trec.gz")
    values = evaluate(ranked, topics.qrels, [*names, *evaluation.own])
    levels = {name: binary_level([name]) for name in names} | dict.fromkeys(
        values.keys() - names, 1
    )
    zeros = {
        n: len(coverage(ranked, topics.qrels, level).without_relevant)
        for n, level in levels.items()
    }
    rows = [
        {"measure": measure, "query_id": query_id, "value": value}
        for measure, by_query in values.items()
        for query_id, value in sorted(by_query.items())
    ]
    with store.draft(evaluation.address) as draft:
        pq.write_table(pa.Table.from_pylist(rows), draft.path / "measures.parquet")
        draft.meta.update(
            measures=list(values), queries=len(topics.queries), without_relevant=zeros
        )
    done = store.find_all(piece.address for piece in pieces)
    remove_shards(store, [piece for piece in done if piece is not None])


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


def merged_hits(
    folders: Sequence[Path], split: str, depth: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The best of what `write_hits` wrote in several folders, one of which is in memory at a time."""
    query_ids, ids, scores = read_hits(folders[0], split)
    for folder in folders[1:]:
        _, *more = read_hits(folder, split)
        ids, scores = merge_topk([(ids, scores), (more[0], more[1])], depth)
    return query_ids, ids, scores


Hits: TypeAlias = tuple[list[str], Any, Any, dict[str, float]]
"""Query ids, hits' ids, their scores; and `search_seconds` (wall time of one process for all queries
at once, after one query that loads and compiles) and `index_bytes`."""


def search_index(
    index: DenseIndex | SparseIndex, queries: Any, k: int, device: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Hits of all queries; a dense index's products on `device`."""
    if isinstance(index, DenseIndex):
        return index.search(queries, k, device=device)
    return index.search(queries, k)


def _search(
    store: Store, evaluation: Evaluation, shards: Sequence[Artifact], device: str | None
) -> Hits:
    assert evaluation.queries is not None
    (query_ids, matrix) = read_queries(store, {"": evaluation.queries})[""]
    depth = evaluation.protocol.search_depth
    parts, seconds, size = [], 0.0, 0
    for shard in shards:
        index = open_index(store, shard)
        size += shard.size_bytes + (index.size_bytes if isinstance(index, DenseIndex) else 0)
        search_index(index, matrix[:1], depth, device)
        started = time.perf_counter()
        parts.append(search_index(index, matrix, depth, device))
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    ids, scores = merge_topk(parts, depth)
    seconds += time.perf_counter() - started
    return query_ids, ids, scores, {"search_seconds": seconds, "index_bytes": size}


def _merged(store: Store, evaluation: Evaluation, pieces: Sequence[SearchPiece]) -> Hits:
    """The hits of all pieces; seconds and bytes are their sums."""
    depth = evaluation.protocol.search_depth
    artifacts = store.all_committed(piece.address for piece in pieces)
    folders = [store.local(piece) for piece in artifacts]
    started = time.perf_counter()
    query_ids, ids, scores = merged_hits(folders, evaluation.split, depth)
    seconds = (
        time.perf_counter() - started + sum(piece.meta["search_seconds"] for piece in artifacts)
    )
    size = sum(piece.meta["index_bytes"] for piece in artifacts)
    return query_ids, ids, scores, {"search_seconds": seconds, "index_bytes": size}


def _search_bm25(store: Store, evaluation: Evaluation) -> Hits:
    folder = store.local(evaluation.collection)
    topics = load_topics(folder)[evaluation.split]
    index = BM25Index.load(store.local(build_bm25(store, evaluation.collection, PASSAGES)))
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
