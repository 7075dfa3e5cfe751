"""Encode: a checkpoint and some passages, or the queries of a split, into an embedding shard."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylab.data.ingest import PASSAGES
from raylab.data.ingested import load_topics
from raylab.data.texts import Texts
from raylab.data.tokens import PassageStore
from raylab.experiment.config import Backbone, Encoding, identity
from raylab.experiment.execution import Execution
from raylab.experiment.heads import Head
from raylab.index.embeddings import Matrix, shards, write_shard
from raylab.models.backbone import torch_dtype
from raylab.models.opening import AnyRetriever, open_retriever
from raylab.models.retriever import Retriever, collapse
from raylab.planning.flops import Rows, Shape, encode_flops
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

EMBEDDINGS, PART, QUERIES = "embeddings", "embedding-part", "queries"
_PARTS = "parts.json"  # of an embeddings artifact: the addresses of its parts, in row order


@dataclass(frozen=True)
class System:
    """What is measured: a trained cell's checkpoint, or an untrained backbone under a head.

    Args:
        weights: fingerprint of the starting weights, or of the checkpoint.
        checkpoint: where a cell's retriever stands; None for an untrained backbone.
        source: of a checkpoint that is no artifact: its folder or hub id.
    """

    name: str
    head: Head
    backbone: Backbone
    weights: str
    checkpoint: Address | None
    source: str | None = None

    def identity(self, encoding: Encoding) -> dict[str, Any]:
        """What decides its representations, beside its weights and the texts."""
        facts = {"head": identity(self.head), "encoding": identity(encoding)}
        if self.source is None:
            return {**facts, "backbone": identity(self.backbone)}
        return {**facts, "compute_dtype": self.backbone.compute_dtype}


@dataclass(frozen=True)
class EncodeTask:
    """One file of representations: rows of a collection's passages, or the queries of one split.

    Args:
        source: tokens; the collection for queries, and for a model with a tokenizer of its own.
        part: "passages", or the split.
        rows: of the passages; None: queries.
    """

    address: Address
    system: System
    encoding: Encoding
    source: Address | Artifact
    part: str
    rows: range | None


@dataclass(frozen=True)
class Embeddings:
    """A system's representations of all passages: one artifact that names its parts.

    How many passages a part has is a matter of execution: the artifact's address does not know it, and
    parts that are there are used whatever their size.

    Args:
        source: as in `EncodeTask`.
        count: passages.
    """

    system: System
    encoding: Encoding
    source: Address | Artifact
    count: int

    @property
    def address(self) -> Address:
        inputs = {"weights": self.system.weights, "source": self.source.fingerprint}
        return Address(EMBEDDINGS, self.system.name, self.system.identity(self.encoding), inputs)

    def parts(self, passages: int) -> list[EncodeTask]:
        """The work, cut into parts of about so many passages."""
        return [self.part(rows) for rows in shards(self.count, passages)]

    def part(self, rows: range) -> EncodeTask:
        """The part of some rows."""
        whole = self.address
        name = f"{self.system.name}-{rows.start:09d}"
        facts = {"rows": [rows.start, rows.stop]}
        address = Address(PART, name, facts, {"embeddings": whole.fingerprint})
        return EncodeTask(address, self.system, self.encoding, self.source, PASSAGES, rows)

    def made_parts(self, store: Store) -> list[Artifact] | None:
        """The parts of the artifact, in row order; None where it, or one of them, is not there."""
        return all_made_parts(store, [self])[0]

    def commit(self, store: Store, tasks: Sequence[EncodeTask]) -> Artifact:
        """Commit the artifact that names the parts, all of which are there."""
        if (whole := store.find(self.address)) is not None:
            return whole
        parts = store.all_committed(task.address for task in tasks)
        with store.draft(self.address) as draft:
            (draft.path / _PARTS).write_text(json.dumps([part.path for part in parts], indent=1))
            draft.meta.update(
                rows=sum(part.meta["rows"] for part in parts),
                size_bytes=sum(part.size_bytes for part in parts),
            )
        return store.committed(self.address)


def all_made_parts(store: Store, embeddings: Sequence[Embeddings]) -> list[list[Artifact] | None]:
    """Of each its parts in row order; None where it, or one of them, is not there. Many at once cost few requests."""

    def named(whole: Artifact | None) -> list[str]:
        return [] if whole is None else json.loads((store.local(whole) / _PARTS).read_text())

    wholes = store.find_all(one.address for one in embeddings)
    paths = store.files.in_parallel(named, wholes)
    found = iter(store.find_all(path for of_whole in paths for path in of_whole))
    made: list[list[Artifact] | None] = []
    for whole, of_whole in zip(wholes, paths, strict=True):
        parts = [next(found) for _ in of_whole]
        if whole is not None and None in parts:
            store.discard(whole.path)
        complete = whole is not None and None not in parts
        made.append([part for part in parts if part is not None] if complete else None)
    return made


def query_task(
    system: System, encoding: Encoding, collection: Address | Artifact, split: str
) -> EncodeTask:
    """The representations of a split's queries."""
    facts = {**system.identity(encoding), "queries": split}
    inputs = {"weights": system.weights, "source": collection.fingerprint}
    address = Address(EMBEDDINGS, f"{system.name}-{split}", facts, inputs)
    return EncodeTask(address, system, encoding, collection, split, None)


def encode_rows(
    retriever: Retriever, store: PassageStore, rows: range, batch_tokens: int | None
) -> Matrix:
    """Representations of the store's passages `rows`, in row order."""
    limit, tokenizer = retriever.encoding.passage_limit, retriever.tokenizer
    texts = [tokenizer.framed(store.tokens(row, limit), "passage", limit) for row in rows]
    return retriever.encode_tokens(texts, retriever.encoding.top_k_passage, batch_tokens)


class ShardEncoder:
    """Encodes in this process; keeps the retriever of the last checkpoint that it encoded with."""

    def __init__(self, store: Store, execution: Execution):
        self.store, self.execution = store, execution
        self.loaded: tuple[str, AnyRetriever] | None = None
        self.sources: dict[str, Artifact] = {}

    def encode(self, task: EncodeTask) -> tuple[list[str], Matrix, dict[str, float]]:
        """Ids, representations, and what they took: seconds, FLOPs, parameters where they are known."""
        retriever = self._retriever(task)
        started = time.time()
        ids, matrix, lengths = self._encoded(task, retriever)
        seconds = time.time() - started
        return ids, matrix, {**_cost(retriever, lengths), "seconds": seconds}

    def _encoded(
        self, task: EncodeTask, retriever: AnyRetriever
    ) -> tuple[list[str], Matrix, np.ndarray | None]:
        """Ids, representations, and how many tokens each text has; None of another's retriever."""
        folder, limit = self.local(task.source), self.execution.encode_batch_tokens
        if task.rows is None:
            topics = load_topics(folder)[task.part]
            ids, texts = list(topics.queries), list(topics.queries.values())
            if not isinstance(retriever, Retriever):
                return ids, retriever.encode_queries(texts, limit), None
            tokens = retriever.tokenizer.encode_framed(texts, "query", task.encoding.query_limit)
            matrix = retriever.encode_tokens(tokens, task.encoding.top_k_query, limit)
            return ids, matrix, np.array([len(ids_of_text) for ids_of_text in tokens])
        if not isinstance(retriever, Retriever):
            passages = Texts.read(folder, task.part, task.rows)
            return passages.ids, retriever.encode_passages(passages.texts, limit), None
        store = PassageStore(folder / task.part)
        ids = store.passage_ids(slice(task.rows.start, task.rows.stop))
        lengths = store.lengths(np.asarray(task.rows), task.encoding.passage_limit)
        matrix = encode_rows(retriever, store, task.rows, limit)
        return ids, matrix, lengths

    def local(self, place: Address | Artifact) -> Path:
        """Its manifest is read once an actor, not once a shard."""
        if place.path not in self.sources:
            self.sources[place.path] = self.store.committed(place)
        return self.store.local(self.sources[place.path])

    def _retriever(self, task: EncodeTask) -> AnyRetriever:
        system = task.system
        key = f"{system.weights}-{system.head.name}"
        if self.loaded is None or self.loaded[0] != key:
            models_dir = self.execution.models_dir
            compute_dtype = system.backbone.compute_dtype
            device = "cuda" if self.execution.use_gpu else "cpu"
            if system.source is not None:
                retriever = open_retriever(
                    system.source, task.encoding, models_dir, device, compute_dtype
                )
            elif system.checkpoint is not None:
                folder = self.store.local(self.store.committed(system.checkpoint))
                retriever = Retriever.load(folder, models_dir, device, torch_dtype(compute_dtype))
            else:
                retriever = Retriever.untrained(
                    system.backbone, system.head, task.encoding, models_dir, device
                )
            self.loaded = (key, retriever)
        # What the address says, whatever the checkpoint's own settings are.
        self.loaded[1].encoding = task.encoding
        return self.loaded[1]


def _cost(retriever: AnyRetriever, lengths: np.ndarray | None) -> dict[str, float | int]:
    if lengths is None or not isinstance(retriever, Retriever):
        return {}
    shape = Shape.of(retriever.model.config)
    flops = sum(
        encode_flops(shape, Rows(int(count), int(length)), retriever.head)
        for length, count in zip(*np.unique(lengths, return_counts=True), strict=True)
    )
    return {"flops": flops, "parameters": shape.parameters}


def commit_shard(store: Store, encoder: ShardEncoder, task: EncodeTask) -> str | None:
    """Commit one embedding shard, unless it is there; returns a warning of a collapse."""
    if store.find(task.address) is not None:  # an actor died after it had committed
        return None
    with store.draft(task.address) as draft:
        ids, matrix, cost = encoder.encode(task)
        write_shard(draft.path, ids, matrix, task.encoding.precision)
        draft.meta.update(rows=len(ids), representation=task.system.head.representation, **cost)
    return collapse(matrix) if task.rows is not None and task.rows.start == 0 else None
