"""Encoding on a pool of Ray actors: checkpoints and shards in, embedding shards in storage out.

Only addresses pass through Ray: an actor reads its checkpoint and passages from storage and commits
the embedding shard itself. A dead actor is restarted by Ray and its shard done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from raylab.artifacts import Address, Artifact, Store
from raylab.budget import Rows, Shape, encode_flops
from raylab.config import Backbone, Encoding, Execution, HeadKind, identity
from raylab.data.tokens import PassageStore
from raylab.encoding import encode_rows, write_shard
from raylab.jobs.cluster import unwrapped
from raylab.jobs.ingest import PASSAGES, load_topics
from raylab.models.retriever import Retriever, collapse

EMBEDDINGS = "embeddings"
QUERIES = "queries"


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a trained cell's checkpoint, or an untrained backbone under a head."""

    name: str
    head: HeadKind
    backbone: Backbone
    weights: str  # checksum of the starting weights, or fingerprint of the checkpoint
    checkpoint: Artifact | None


@dataclass(frozen=True)
class EncodeTask:
    """One embedding shard: rows of the passage store, or the queries of one split."""

    address: Address
    subject: Subject
    encoding: Encoding
    source: Artifact  # tokens (passages) or collection (queries)
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
    who = {
        "backbone": identity(subject.backbone),
        "head": subject.head,
        "encoding": identity(encoding),
        **what,
    }
    inputs = {"weights": subject.weights, "source": source.fingerprint}
    return Address(EMBEDDINGS, f"{subject.name}-{suffix}", who, inputs)


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Encoder:
    """Encodes shard after shard; keeps the retriever of the last checkpoint it was asked for."""

    def __init__(self, store: Store, execution: Execution):
        torch.set_num_threads(1)
        self.store, self.execution = store, execution
        self.loaded: tuple[str, Retriever] | None = None

    def encode(self, task: EncodeTask) -> str | None:
        """Commit one embedding shard; returns a warning when the representations collapsed."""
        retriever = self._retriever(task)
        folder = self.store.local(task.source)
        batch_tokens = self.execution.encode_batch_tokens
        started = time.time()
        if task.rows is not None:
            store = PassageStore(folder / task.part)
            ids = store.passage_ids(slice(task.rows.start, task.rows.stop))
            matrix = encode_rows(retriever, store, task.rows, batch_tokens)
            rows = Rows(
                len(ids),
                float(
                    store.lengths(
                        np.arange(task.rows.start, task.rows.stop), task.encoding.passage_length
                    ).mean()
                ),
            )
        else:
            topics = load_topics(folder)[task.part]
            ids = list(topics.queries)
            matrix = retriever.encode_queries(list(topics.queries.values()), batch_tokens)
            rows = Rows(len(ids), task.encoding.query_length / 2)
        shape = Shape.of(retriever.model.config)
        with self.store.draft(task.address) as draft:
            write_shard(draft.path, ids, matrix)
            draft.meta.update(
                rows=len(ids),
                head=retriever.head,
                flops=encode_flops(shape, rows, retriever.head),
                parameters=shape.parameters,
                seconds=time.time() - started,
            )
        return collapse(matrix) if task.rows is not None and task.rows.start == 0 else None

    def _retriever(self, task: EncodeTask) -> Retriever:
        subject = task.subject
        key = f"{subject.weights}-{subject.head}"
        if self.loaded is None or self.loaded[0] != key:
            models_dir = self.execution.models_dir
            device = "cuda" if self.execution.use_gpu else "cpu"
            if subject.checkpoint is not None:
                folder = self.store.local(subject.checkpoint)
                retriever = Retriever.load(folder, models_dir, device)
            else:
                retriever = Retriever.untrained(
                    subject.backbone, subject.head, task.encoding, models_dir, device
                )
            self.loaded = (key, retriever)
        return self.loaded[1]


def encode_all(
    store: Store,
    execution: Execution,
    tasks: Sequence[EncodeTask],
    finished: Callable[[EncodeTask, str | None], None],
) -> None:
    """Run all tasks over a pool of actors, tasks of one checkpoint in a row on one actor where possible.

    Args:
        finished: called on the driver after each task, with its warning.

    Raises:
        The first task's own error, unwrapped.
    """
    if not tasks:
        return
    size = min(execution.encoding_actors, len(tasks))
    resources = {"num_gpus": 1} if execution.use_gpu else {"num_cpus": 1}
    actors = [Encoder.options(**resources).remote(store, execution) for _ in range(size)]
    queue = list(tasks)
    running: dict[ray.ObjectRef, tuple[Any, EncodeTask]] = {}
    try:
        for actor in actors:
            if queue:
                task = queue.pop(0)
                running[actor.encode.remote(task)] = (actor, task)
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            actor, task = running.pop(ready)
            finished(task, unwrapped(ray.get, ready))
            if queue:
                following = _next_for(task, queue)
                running[actor.encode.remote(following)] = (actor, following)
    finally:
        for actor in actors:
            ray.kill(actor)  # type: ignore[arg-type]


def _next_for(last: EncodeTask, queue: list[EncodeTask]) -> EncodeTask:
    """The first task of the same checkpoint, which the actor has loaded, else the first of all."""
    same = next((i for i, t in enumerate(queue) if t.subject.weights == last.subject.weights), 0)
    return queue.pop(same)
