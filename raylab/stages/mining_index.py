"""Indexes of the training passages for mining: BM25, or a retriever's vectors or postings in shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from raylab.data.texts import Texts, passage_ids
from raylab.index.bm25 import BM25Index
from raylab.index.kernels.topk import merge_topk
from raylab.index.kinds import index_class
from raylab.models.retriever import Retriever
from raylab.models.teachers import teacher_fingerprint, teacher_source
from raylab.stages.search import INDEX, bm25_address, build_bm25
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

BM25 = "bm25"
_SHARD_PASSAGES = 65_536


class Searcher(Protocol):
    def search(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k passages of each text: (ids [Q, k] str, scores [Q, k] float32)."""
        ...


@dataclass(frozen=True)
class IndexTask:
    """One index: all training passages for BM25, some rows of them for a retriever."""

    address: Address
    collection: Artifact
    folder: Path
    part: str
    rows: range


def index_tasks(
    store: Store, collection: Artifact, part: str, source: str, models_dir: str | None
) -> list[IndexTask]:
    """The indexes that mining from `source` needs."""
    folder = store.local(collection)
    count = len(passage_ids(folder, part))
    if source == BM25:
        return [IndexTask(bm25_address(collection, part), collection, folder, part, range(count))]
    fingerprint = teacher_fingerprint(source, models_dir)
    tasks = []
    for start in range(0, count, _SHARD_PASSAGES):
        rows = range(start, min(start + _SHARD_PASSAGES, count))
        facts = {"miner": fingerprint, "part": part, "format": 3, "rows": [rows.start, rows.stop]}
        inputs = {"collection": collection.fingerprint}
        address = Address(INDEX, f"miner-{fingerprint[:8]}-{start:09d}", facts, inputs)
        tasks.append(IndexTask(address, collection, folder, part, rows))
    return tasks


@dataclass(frozen=True)
class Indexer:
    """Starts a worker that commits indexes."""

    store: Store
    source: str
    models_dir: str | None

    def __call__(self) -> Callable[[IndexTask], None]:
        retriever = None
        if self.source != BM25:
            retriever = Retriever.load(
                teacher_source(self.source, self.models_dir), self.models_dir
            )

        def make(task: IndexTask) -> None:
            if retriever is None:
                build_bm25(self.store, task.collection, task.part)
                return
            texts = Texts.read(task.folder, task.part, task.rows)
            kind = index_class(retriever.head.representation)
            shard = texts.ids, retriever.encode_passages(texts.texts)
            with self.store.draft(task.address) as draft:
                index = kind.build([shard])  # type: ignore[arg-type]
                index.save(draft.path)
                draft.meta["rows"] = len(index)

        return make


class _RetrieverSearcher:
    """Encodes queries and searches all index shards."""

    def __init__(self, retriever: Retriever, folders: Sequence[Path]):
        kind = index_class(retriever.head.representation)
        self.retriever, self.indexes = retriever, [kind.load(folder) for folder in folders]

    def search(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = self.retriever.encode_queries(texts)
        return merge_topk([index.search(queries, k) for index in self.indexes], k)  # type: ignore[arg-type]


def open_searcher(
    source: str, store: Store, indexes: Sequence[Artifact], models_dir: str | None
) -> Searcher:
    """What searches the indexes of `index_tasks`, memory-mapped."""
    folders = [store.local(index) for index in indexes]
    if source == BM25:
        return BM25Index.load(folders[0])
    return _RetrieverSearcher(
        Retriever.load(teacher_source(source, models_dir), models_dir), folders
    )
