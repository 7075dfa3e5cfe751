"""Encoding on a pool of Ray actors: checkpoints and shards in, embedding shards in storage out.

Only addresses pass through Ray: an actor reads its checkpoint and passages from storage and commits
the embedding shard itself. A dead actor's shard is done again by another (`raylab.jobs.pool`), a
finished one never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray
import torch

from raylab.experiment.config import Execution
from raylab.jobs.pool import Feed, encoders, run_on_actors
from raylab.stages.encode import EncodeTask, ShardEncoder, commit_shard, next_for
from raylab.storage.store import Store


@ray.remote
class Encoder:
    """A `ShardEncoder` that commits what it encodes."""

    def __init__(self, store: Store, execution: Execution):
        torch.set_num_threads(1)
        self.store, self.encoder = store, ShardEncoder(store, execution)

    def ready(self) -> None:
        """Returns once the actor is up."""

    def encode(self, task: EncodeTask) -> str | None:
        """Commit one embedding shard; returns a warning when the representations collapsed."""
        return commit_shard(self.store, self.encoder, task)


def actor_resources(execution: Execution) -> dict[str, float]:
    """What Ray holds for one encoding actor."""
    return {"num_gpus": 1} if execution.use_gpu else {"num_cpus": execution.encoder_cpus}


def encode_all(
    store: Store,
    execution: Execution,
    tasks: Sequence[EncodeTask] | Feed[EncodeTask],
    finished: Callable[[EncodeTask, str | None], None],
    limit: Callable[[], int] | None = None,
) -> None:
    """Run all tasks over a pool of actors, tasks of one checkpoint in a row on one actor where possible.

    Args:
        finished: called on the driver after each task, with its warning.
        limit: how many actors there may be at most; None: as `encoders` says.

    Raises:
        The first task's own error, unwrapped.
    """
    resources = actor_resources(execution)
    run_on_actors(
        lambda: Encoder.options(**resources).remote(store, execution),
        tasks,
        limit or (lambda: encoders(execution)),
        lambda actor, task: actor.encode.remote(task),
        finished,
        next_for,
    )
