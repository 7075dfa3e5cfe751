"""Encode: a checkpoint and some passages, or the queries of a split, into an embedding shard."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylab.data.ingest import PASSAGES
from raylab.data.ingested import load_topics
from raylab.data.texts import Texts
from raylab.data.tokens import PassageStore
from raylab.experiment.config import Backbone, Encoding, Execution, identity
from raylab.experiment.heads import Head
from raylab.index.embeddings import Matrix, write_shard
from raylab.models.backbone import torch_dtype
from raylab.models.opening import AnyRetriever, open_retriever
from raylab.models.retriever import Retriever, collapse
from raylab.planning.flops import Rows, Shape, encode_flops
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

EMBEDDINGS = "embeddings"
QUERIES = "queries"


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a trained cell's checkpoint, or an untrained backbone under a head."""

    name: str
    head: Head
    backbone: Backbone
    weights: str  # checksum of the starting weights, or fingerprint of the checkpoint
    checkpoint: Artifact | None
    source: str | None = None  # of a checkpoint that is no artifact: its folder or hub id


@dataclass(frozen=True)
class EncodeTask:
    """One embedding shard: rows of the passage store, or the queries of one split."""

    address: Address
    subject: Subject
    encoding: Encoding
    source: (
        Artifact  # tokens; the collection for queries, and for a model with a tokenizer of its own
    )
    part: str  # "passages", or the split
    rows: range | None  # None: queries


def passage_task(subject: Subject, encoding: Encoding, tokens: Artifact, rows: range) -> EncodeTask:
    address = _address(
        subject, encoding, tokens, {"rows": [rows.start, rows.stop]}, f"{rows.start:09d}"
    )
    return EncodeTask(address, subject, encoding, tokens, PASSAGES, rows)


def query_task(
    subject: Subject, encoding: Encoding, collection: Artifact, split: str
) -> EncodeTask:
    address = _address(subject, encoding, collection, {"queries": split}, split)
    return EncodeTask(address, subject, encoding, collection, split, None)


def _address(
    subject: Subject, encoding: Encoding, source: Artifact, what: dict, suffix: str
) -> Address:
    who = {"head": identity(subject.head), "encoding": identity(encoding), **what}
    if subject.source is None:
        who["backbone"] = identity(subject.backbone)
    else:
        who["compute_dtype"] = subject.backbone.compute_dtype
    inputs = {"weights": subject.weights, "source": source.fingerprint}
    return Address(EMBEDDINGS, f"{subject.name}-{suffix}", who, inputs)


def encode_rows(
    retriever: Retriever, store: PassageStore, rows: range, batch_tokens: int | None
) -> Matrix:
    """Representations of the store's passages `rows`, in row order."""
    limit, tokenizer = retriever.encoding.passage_length, retriever.tokenizer
    texts = [tokenizer.framed(store.tokens(row, limit), "passage", limit) for row in rows]
    return retriever.encode_tokens(texts, retriever.encoding.top_k_passage, batch_tokens)


class ShardEncoder:
    """Encodes in this process; keeps the retriever of the last checkpoint it was asked for."""

    def __init__(self, store: Store, execution: Execution):
        self.store, self.execution = store, execution
        self.loaded: tuple[str, AnyRetriever] | None = None
        self.folders: dict[str, Path] = {}

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
            tokens = retriever.tokenizer.encode_framed(texts, "query", task.encoding.query_length)
            matrix = retriever.encode_tokens(tokens, task.encoding.top_k_query, limit)
            return ids, matrix, np.array([len(own) for own in tokens])
        if not isinstance(retriever, Retriever):
            passages = Texts.read(folder, task.part, task.rows)
            return passages.ids, retriever.encode_passages(passages.texts, limit), None
        store = PassageStore(folder / task.part)
        ids = store.passage_ids(slice(task.rows.start, task.rows.stop))
        lengths = store.lengths(np.asarray(task.rows), task.encoding.passage_length)
        matrix = encode_rows(retriever, store, task.rows, limit)
        return ids, matrix, lengths

    def local(self, artifact: Artifact) -> Path:
        """Its files' checksums are checked once an actor, not once a shard."""
        key = f"{artifact.path}/{artifact.manifest['attempt']}"
        if key not in self.folders:
            self.folders[key] = self.store.local(artifact)
        return self.folders[key]

    def _retriever(self, task: EncodeTask) -> AnyRetriever:
        subject = task.subject
        key = f"{subject.weights}-{subject.head.name}"
        if self.loaded is None or self.loaded[0] != key:
            models_dir = self.execution.models_dir
            compute_dtype = subject.backbone.compute_dtype
            device = "cuda" if self.execution.use_gpu else "cpu"
            if subject.source is not None:
                retriever = open_retriever(
                    subject.source, task.encoding, models_dir, device, compute_dtype
                )
            elif subject.checkpoint is not None:
                folder = self.store.local(subject.checkpoint)
                retriever = Retriever.load(folder, models_dir, device, torch_dtype(compute_dtype))
            else:
                retriever = Retriever.untrained(
                    subject.backbone, subject.head, task.encoding, models_dir, device
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
        draft.meta.update(rows=len(ids), representation=task.subject.head.representation, **cost)
    return collapse(matrix) if task.rows is not None and task.rows.start == 0 else None


def next_for(last: EncodeTask | None, queue: list[EncodeTask]) -> EncodeTask:
    """The first task of the same checkpoint, which the actor has loaded, else the first of all."""
    if last is None:
        return queue.pop(0)
    same = next((i for i, t in enumerate(queue) if t.subject.weights == last.subject.weights), 0)
    return queue.pop(same)
