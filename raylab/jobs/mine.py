"""Mine on Ray Data: an actor pool of BM25 searchers finds candidates for every training query.

candidates artifact   (query_id, mined, random)
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made at run time)

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from raylab.artifacts import Address, Artifact, Store
from raylab.data.collections import TRAIN, VALIDATION, CollectionError
from raylab.data.teacher import Ask, Candidates, asks_of_titles, asks_of_topics, draw_candidates
from raylab.index.bm25 import BM25Index
from raylab.jobs.cluster import unwrapped
from raylab.jobs.ingest import load_passages, load_topics, training_part

# Validation queries are mined and scored too, for whoever tunes a distillation loss; never trained on.
TAUGHT = (TRAIN, VALIDATION)


@dataclass(frozen=True)
class Mining:
    """How candidates are found: BM25's first `depth` passages, and `random` ones drawn from all.

    Positives and their copies are never among them.
    """

    depth: int = 20
    random: int = 12
    pseudo_queries: bool = True


@dataclass(frozen=True)
class Texts:
    """The training passages of a collection: ids, texts under the protocol (title, space, body), bodies."""

    ids: list[str]
    texts: list[str]
    titles: list[str]
    bodies: list[str]

    @classmethod
    def load(cls, folder: Path, part: str) -> Texts:
        ids, titles, bodies = [], [], []
        for batch in load_passages(folder, part):
            ids += batch["passage_id"]
            titles += batch["title"]
            bodies += batch["text"]
        texts = [f"{t} {b}".strip() for t, b in zip(titles, bodies, strict=True)]
        return cls(ids, texts, titles, bodies)


def training_asks(
    folder: Path, part: str, mining: Mining, splits: tuple[str, ...] = (TRAIN,)
) -> list[Ask]:
    """The splits' queries whose positives are among the training passages, then the titles as pseudo-queries.

    Raises:
        CollectionError: the collection has no training split, or none of its positives is at hand.
    """
    topics = load_topics(folder)
    if TRAIN not in topics:
        raise CollectionError(
            f"the collection has no {TRAIN!r} split to train on; it has {', '.join(topics)}"
        )
    texts = Texts.load(folder, part)
    known = set(texts.ids)
    asks = []
    for split in splits:
        for ask in asks_of_topics(topics[split]) if split in topics else []:
            positives = tuple(p for p in ask.positives if p in known)
            if positives:
                asks.append(Ask(ask.query_id, ask.text, positives))
    if not asks:
        raise CollectionError(
            "no training query has a relevant passage among the training passages"
        )
    if mining.pseudo_queries:
        asks += asks_of_titles(zip(texts.ids, texts.titles, texts.bodies, strict=True))
    return asks


_CANDIDATES = pa.schema(
    [("query_id", pa.string()), ("mined", pa.list_(pa.string())), ("random", pa.list_(pa.string()))]
)


class _Miner:
    """Ray Data actor: ranks the training passages for batches of queries."""

    def __init__(self, folder: str, part: str, mining: Mining):
        texts = Texts.load(Path(folder), part)
        self.mining, self.ids = mining, texts.ids
        self.index = BM25Index.build(texts.ids, texts.texts)
        pairs = zip(texts.ids, texts.bodies, strict=True)
        self.hashes = {i: int(hashlib.sha256(t.encode()).hexdigest()[:15], 16) for i, t in pairs}

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        queries = [str(q) for q in batch["query"]]
        positives = [tuple(str(p) for p in row) for row in batch["positives"]]
        # Room for the positives and their copies, which are dropped.
        found, _ = self.index.search(queries, self.mining.depth + 10)
        names = [str(i) for i in batch["query_id"]]
        candidates = [
            draw_candidates(
                Ask(name, query, own),
                [str(p) for p in ranked],
                self._random(name),
                self.hashes,
                self.mining.depth,
                self.mining.random,
            )
            for name, query, own, ranked in zip(names, queries, positives, found, strict=True)
        ]
        columns = [names, [list(c.mined) for c in candidates], [list(c.random) for c in candidates]]
        return pa.table(columns, schema=_CANDIDATES)

    def _random(self, query_id: str) -> list[str]:
        """Passages in an order drawn by a hash of the query's id."""
        seed = int(hashlib.sha256(query_id.encode()).hexdigest()[:15], 16)
        count = 2 * (self.mining.depth + self.mining.random)
        return [
            self.ids[i] for i in np.random.default_rng(seed).integers(len(self.ids), size=count)
        ]


def candidates_address(collection: Artifact, mining: Mining) -> Address:
    return Address(
        "candidates",
        collection.manifest["name"],
        vars(mining),
        {"collection": collection.fingerprint},
    )


def mine(store: Store, collection: Artifact, mining: Mining, actors: int) -> Artifact:
    """Commit BM25 candidates for every training query.

    Raises:
        CollectionError: see `training_asks`; also a query without any candidate.
    """
    part = training_part(collection)
    address = candidates_address(collection, mining)
    if (done := store.find(address)) is not None:
        return done
    folder = store.local(collection)
    asks = training_asks(folder, part, mining, TAUGHT)
    with store.draft(address) as draft:
        rows = [
            {"query_id": a.query_id, "query": a.text, "positives": list(a.positives)} for a in asks
        ]
        dataset = ray.data.from_items(rows, override_num_blocks=4 * actors).map_batches(
            _Miner,
            fn_constructor_args=(str(folder), part, mining),
            compute=ActorPoolStrategy(size=actors),
            batch_size=256,
            num_cpus=1,
        )
        batches = unwrapped(lambda: list(dataset.iter_batches(batch_format="pyarrow")))
        table = pa.concat_tables(batches).sort_by("query_id")
        bare = table.filter(pc.equal(pc.list_value_length(table["mined"]), 0))
        if len(bare):
            raise CollectionError(
                f"query {bare['query_id'][0].as_py()!r}: the collection has no other passage"
            )
        pq.write_table(table, draft.path / "candidates.parquet")
        draft.meta["queries"] = len(table)
    return store.committed(address)


def read_candidates(folder: Path) -> dict[str, Candidates]:
    """Of a candidates artifact, by query."""
    rows = pq.read_table(folder / "candidates.parquet").to_pylist()
    return {row["query_id"]: Candidates(tuple(row["mined"]), tuple(row["random"])) for row in rows}
