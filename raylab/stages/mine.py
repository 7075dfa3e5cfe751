"""Mine on Ray: candidates for every training query from BM25, a retriever checkpoint, or a TREC run.

candidates artifact   candidates.parquet: (query_id, mined, random), by ascending query id
index artifacts       of the training passages, which the miners map into memory

Miners work in shards of queries; a killed run goes on from the finished ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.collections import TRAIN, VALIDATION
from raylab.data.faults import CollectionError, Quarantine
from raylab.data.ingest import PASSAGES
from raylab.data.ingested import load_passages, load_topics, training_part
from raylab.data.supervision.scores import LeftOut, scores_by_query
from raylab.data.supervision.teacher import (
    Candidates,
    TrainingQuery,
    asks_of_titles,
    asks_of_topics,
    draw_candidates,
)
from raylab.data.texts import TextHashes, passage_ids
from raylab.data.tokens import find_ids
from raylab.experiment.faults import fault_identity
from raylab.models.teachers import teacher_fingerprint
from raylab.stages.mining_index import BM25, Indexer, Searcher, index_tasks, open_searcher
from raylab.stages.shards import Pool, local_pool, make_shards, remove_shards
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.checksums import checksum
from raylab.storage.store import Store

# Validation queries are mined and scored too, for whoever tunes a distillation loss; never trained on.
TAUGHT = (TRAIN, VALIDATION)
_SHARD_QUERIES = 1_024
_SEARCHED = 256  # queries at once


@dataclass(frozen=True)
class Mining:
    """How candidates are found: the first `depth` passages of a source, and `random` ones drawn from all.

    Positives and their copies are never among them. `source`: "bm25", a retriever checkpoint (folder
    or hub id), or a TREC run file. `on_fault`: which faulty records of a run, or of a teacher's file, are
    left out (`raylab.experiment.faults.quarantined_kinds`).
    """

    depth: int = 20
    random: int = 12
    pseudo_queries: bool = True
    source: str = BM25
    on_fault: str = "error"

    @property
    def run(self) -> Path | None:
        """The run file, when the source is one."""
        path = Path(self.source)
        return path if self.source != BM25 and path.is_file() else None

    def identity(self, models_dir: str | None = None) -> dict[str, Any]:
        """What decides which candidates are found: contents, not places."""
        facts: dict[str, Any] = {
            "depth": self.depth,
            "random": self.random,
            "pseudo_queries": self.pseudo_queries,
        }
        if self.run is not None:
            facts["run"] = checksum(self.run)
            facts |= fault_identity(self.on_fault)
        elif self.source != BM25:
            facts["retriever"] = teacher_fingerprint(self.source, models_dir)
        return facts


def training_queries(
    folder: Path, part: str, mining: Mining, splits: tuple[str, ...] = (TRAIN,)
) -> list[TrainingQuery]:
    """The splits' queries whose positives are among the training passages, then the titles as pseudo-queries.

    Raises:
        CollectionError: the collection has no training split, or none of its positives is at hand.
    """
    topics = load_topics(folder)
    if TRAIN not in topics:
        raise CollectionError(
            f"the collection has no {TRAIN!r} split to train on; it has {', '.join(topics)}"
        )
    ids = passage_ids(folder, part)
    queries = []
    for split in splits:
        split_queries = asks_of_topics(topics[split]) if split in topics else []
        _, known = find_ids(ids, [p for query in split_queries for p in query.positives])
        at_hand = iter(known.tolist())
        for query in split_queries:
            positives = tuple(p for p in query.positives if next(at_hand))
            if positives:
                queries.append(TrainingQuery(query.query_id, query.text, positives))
    if not queries:
        raise CollectionError(
            "no training query has a relevant passage among the training passages"
        )
    if mining.pseudo_queries:
        for batch in load_passages(folder, part):
            columns = (batch["passage_id"], batch["title"], batch["text"])
            queries += asks_of_titles(zip(*columns, strict=True))
    return queries


_CANDIDATES = pa.schema(
    [("query_id", pa.string()), ("mined", pa.list_(pa.string())), ("random", pa.list_(pa.string()))]
)


class Drawer:
    """Turns a query's ranking into its candidates."""

    def __init__(self, folder: Path, part: str, mining: Mining):
        self.hashes, self.mining = TextHashes.of(folder, part), mining
        self.ids = self.hashes.ids

    def draw(self, query: TrainingQuery, ranked: Sequence[str]) -> Candidates:
        drawn = self._random(query.query_id)
        hashes = self.hashes.of_passages([*query.positives, *ranked, *drawn])
        return draw_candidates(query, ranked, drawn, hashes, self.mining.depth, self.mining.random)

    def _random(self, query_id: str) -> list[str]:
        """Passages in an order drawn by a hash of the query's id."""
        seed = int(hashlib.sha256(query_id.encode()).hexdigest()[:15], 16)
        count = 2 * (self.mining.depth + self.mining.random)
        places = np.random.default_rng(seed).integers(len(self.ids), size=count)
        return [one.decode() for one in self.ids[places].tolist()]


@dataclass(frozen=True)
class MineTask:
    """One shard: some of the queries."""

    address: Address
    queries: tuple[TrainingQuery, ...]


@dataclass(frozen=True)
class _Miner:
    """Starts a worker that commits shards of candidates."""

    store: Store
    folder: Path
    part: str
    mining: Mining
    indexes: tuple[Artifact, ...]
    models_dir: str | None

    def __call__(self) -> Callable[[MineTask], None]:
        drawer = Drawer(self.folder, self.part, self.mining)
        searcher = open_searcher(self.mining.source, self.store, self.indexes, self.models_dir)

        def make(task: MineTask) -> None:
            with self.store.draft(task.address) as draft:
                candidates = search_and_draw(task.queries, searcher, drawer, self.mining.depth)
                count = write_candidates(candidates, draft.path / "candidates.parquet")
                draft.meta["queries"] = count

        return make


def search_and_draw(
    queries: Sequence[TrainingQuery], searcher: Searcher, drawer: Drawer, depth: int
) -> Iterator[tuple[str, Candidates]]:
    """The candidates of each query."""
    for start in range(0, len(queries), _SEARCHED):
        batch = queries[start : start + _SEARCHED]
        # Room for the positives and their copies, which are dropped.
        room = depth + 10 + max(len(query.positives) for query in batch)
        ranked_ids, _ = searcher.search([query.text for query in batch], room)
        for query, ranked in zip(batch, ranked_ids.tolist(), strict=True):
            yield query.query_id, drawer.draw(query, ranked)


def write_candidates(candidates: Iterable[tuple[str, Candidates]], path: Path) -> int:
    """Write candidates by ascending query id; returns for how many queries.

    Raises:
        CollectionError: a query without any.
    """
    count = 0
    with pq.ParquetWriter(path, _CANDIDATES) as writer:
        rows: list[dict[str, Any]] = []
        for query_id, drawn in candidates:
            if not drawn.mined:
                raise CollectionError(f"query {query_id!r}: the collection has no other passage")
            rows.append(
                {"query_id": query_id, "mined": list(drawn.mined), "random": list(drawn.random)}
            )
            count += 1
            if len(rows) == _SHARD_QUERIES:
                writer.write_table(pa.Table.from_pylist(rows, schema=_CANDIDATES))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=_CANDIDATES))
    return count


def candidates_address(
    collection: Artifact, mining: Mining, models_dir: str | None = None
) -> Address:
    return Address(
        "candidates",
        collection.manifest["name"],
        mining.identity(models_dir),
        {"collection": collection.fingerprint},
    )


def mine(
    store: Store,
    collection: Artifact,
    mining: Mining,
    actors: int | None,
    models_dir: str | None = None,
    pool: Pool = local_pool,
) -> Artifact:
    """Commit candidates for every training query (from a run: for every one that it has).

    Raises:
        CollectionError: see `training_queries`; also a query without any candidate, and a fault in the run.
        ConfigError: no retriever there.
    """
    address = candidates_address(collection, mining, models_dir)
    if (done := store.find(address)) is not None:
        return done
    folder, part = store.local(collection), training_part(collection)
    queries = sorted(
        training_queries(folder, part, mining, TAUGHT), key=lambda query: query.query_id
    )
    if mining.run is not None:
        return _mine_run(store, address, folder, part, mining, queries)
    tasks = index_tasks(store, collection, part, mining.source, models_dir)
    indexes = make_shards(store, tasks, Indexer(store, mining.source, models_dir), pool, actors)
    shards = make_shards(
        store,
        list(_tasks(address, queries)),
        _Miner(store, folder, part, mining, tuple(indexes), models_dir),
        pool,
        actors,
    )
    with store.draft(address) as draft:
        candidates = (one for shard in shards for one in candidates_by_query(store.local(shard)))
        draft.meta["queries"] = write_candidates(candidates, draft.path / "candidates.parquet")
    remove_shards(store, shards)
    return store.committed(address)


def _tasks(address: Address, queries: Sequence[TrainingQuery]) -> Iterator[MineTask]:
    for start in range(0, len(queries), _SHARD_QUERIES):
        part = tuple(queries[start : start + _SHARD_QUERIES])
        facts = {"queries": [start, start + len(part)]}
        yield MineTask(address.shard(start // _SHARD_QUERIES, facts), part)


def _mine_run(
    store: Store,
    address: Address,
    folder: Path,
    part: str,
    mining: Mining,
    queries: list[TrainingQuery],
) -> Artifact:
    """Candidates from a run's own rankings; equal scores by passage id descending, as in trec_eval."""
    assert mining.run is not None
    drawer, left = Drawer(folder, part, mining), LeftOut()
    by_id = {query.query_id: query for query in queries}
    apart = None if part == PASSAGES else passage_ids(folder, PASSAGES)
    with store.draft(address) as draft, Quarantine(draft.path, mining.on_fault) as quarantine:
        ranked = scores_by_query(mining.run, list(by_id), drawer.ids, apart, left, quarantine)
        candidates = ((q, drawer.draw(by_id[q], _ranking(scores))) for q, scores in ranked)
        count = write_candidates(candidates, draft.path / "candidates.parquet")
        if not count:
            raise CollectionError(
                f"{mining.run}: it has none of the {len(queries)} training queries"
            )
        draft.meta.update(
            queries=count,
            hits_on_evaluation_passages=left.other_passages,
            quarantined=quarantine.facts(),
        )
    return store.committed(address)


def _ranking(scores) -> list[str]:
    ordered = sorted(scores, reverse=True)
    return sorted(ordered, key=lambda passage: -scores[passage][0])


def candidates_by_query(folder: Path) -> Iterator[tuple[str, Candidates]]:
    """Of a candidates artifact, in ascending order of query id."""
    for batch in pq.ParquetFile(folder / "candidates.parquet").iter_batches(_SHARD_QUERIES):
        for row in batch.to_pylist():
            yield row["query_id"], Candidates(tuple(row["mined"]), tuple(row["random"]))
