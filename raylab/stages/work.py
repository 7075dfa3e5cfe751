"""What measuring systems is made of, task by task, and a worker that does tasks one after the other.

Every task commits an artifact of its own, or finds that it is there: an actor died after it had committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from raylab.data.ingest import PASSAGES
from raylab.experiment.execution import Execution
from raylab.stages.encode import EncodeTask, ShardEncoder, commit_shard
from raylab.stages.profile import Profile, make_profile
from raylab.stages.scan import Piece, Scan, Scanner, make_scanned_profile
from raylab.stages.search import (
    BM25Task,
    Evaluation,
    IndexTask,
    SearchPiece,
    build_bm25,
    build_index,
    search_and_evaluate,
    search_piece,
)
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store


@dataclass(frozen=True)
class ScannedProfile:
    """A profile from the hits of a scan, where no embeddings are stored."""

    scan: Scan
    hits: Artifact

    @property
    def address(self) -> Address:
        assert self.scan.profile is not None
        return self.scan.profile.address


Task: TypeAlias = (
    EncodeTask | Piece | IndexTask | BM25Task | SearchPiece | Evaluation | Profile | ScannedProfile
)


def model_of(task: Task) -> str | None:
    """What a worker must have loaded for a task: the fingerprint of the weights, None where it needs none."""
    return task.system.weights if isinstance(task, EncodeTask | Piece) else None


def takes_a_gpu(task: Task) -> bool:
    """Whether a GPU does it, where there are some: encoding, and the products of dense search."""
    if isinstance(task, SearchPiece):
        return _is_dense(task.shards)
    if isinstance(task, Evaluation):
        return not task.pieces() and _is_dense(task.shards)
    return model_of(task) is not None


def _is_dense(shards: tuple[Artifact, ...]) -> bool:
    return bool(shards) and shards[0].meta["representation"] == "dense"


def following(last: Task | None, queue: list[Task]) -> Task:
    """The task to do after another: one that needs no model, else one of the loaded model, else the first."""
    loaded = None if last is None else model_of(last)
    wanted = (None, loaded) if loaded is not None else (None,)
    for model in wanted:
        place = next((i for i, task in enumerate(queue) if model_of(task) == model), None)
        if place is not None:
            return queue.pop(place)
    return queue.pop(0)


class Worker:
    """Does tasks in this process; keeps the model of the last task that needed one."""

    def __init__(self, store: Store, execution: Execution):
        self.store, self.gpu = store, execution.use_gpu
        self.encoder = ShardEncoder(store, execution)
        self.scanner = Scanner(store, execution, self.encoder)

    def work(self, task: Task) -> str | None:
        """Commit a task's artifact; returns a warning, if there is one."""
        store = self.store
        device = "cuda" if self.gpu and takes_a_gpu(task) else None
        if isinstance(task, EncodeTask):
            return commit_shard(store, self.encoder, task)
        if isinstance(task, Piece):
            self.scanner.scan(task)
        elif isinstance(task, IndexTask):
            build_index(store, task.part)
        elif isinstance(task, BM25Task):
            build_bm25(store, task.collection, PASSAGES)
        elif isinstance(task, SearchPiece):
            search_piece(store, task, device)
        elif isinstance(task, Evaluation):
            search_and_evaluate(store, task, device)
        elif isinstance(task, Profile):
            make_profile(store, task)
        else:
            make_scanned_profile(store, task.scan, task.hits)
        return None
