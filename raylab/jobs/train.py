"""Training on Ray Train + DeepSpeed: MNTP once a size, fine-tuning once a cell.

What a worker does is in `raylab.jobs.workers`, imported on the worker alone: this module is also
loaded by each run's Tune trial and Train controller, which need no model library (4 s each).
A run is named after its fingerprint, so the same run started again (after a killed worker, or a
killed driver) resumes from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from raylab.artifacts import Address, Artifact, Store
from raylab.config import Adaptation, Backbone, Cell, Encoding, Execution, identity
from raylab.jobs.cluster import arrow_filesystem, root_cause

_RUNS = "train"  # folder of Ray Train's own state and checkpoints below the storage root
BACKBONE, RETRIEVER = "backbone", "retriever"


# --------------------------------------------------------------------------------- addresses


def adaptation_address(
    backbone: Backbone, weights: str, adaptation: Adaptation, tokens: Artifact
) -> Address:
    """Where a size's adapted backbone stands; `weights` is the checksum of the weights it starts from."""
    what = {"backbone": identity(backbone), "weights": weights, "adaptation": identity(adaptation)}
    return Address(BACKBONE, backbone.name, what, {"tokens": tokens.fingerprint})


def cell_address(cell: Cell, adapted: Artifact, tokens: Artifact, groups: Artifact) -> Address:
    """Where a cell's retriever stands."""
    inputs = {
        "backbone": adapted.fingerprint,
        "tokens": tokens.fingerprint,
        "groups": groups.fingerprint,
    }
    return Address(RETRIEVER, cell.run_name, identity(cell), inputs)


# -------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class AdaptationJob:
    """All a worker needs to adapt one size."""

    address: Address
    backbone: Backbone
    adaptation: Adaptation
    tokens: Artifact
    store: Store
    execution: Execution
    board: Any

    @property
    def run_name(self) -> str:
        return f"mntp-{self.backbone.name}"


@dataclass(frozen=True)
class CellJob:
    """All a worker needs to fine-tune one cell."""

    address: Address
    cell: Cell
    encoding: Encoding
    adapted: Artifact
    tokens: Artifact
    groups: Artifact
    collection: str
    training_part: str
    store: Store
    execution: Execution
    board: Any
    arrays: Artifact | None = (
        None  # the groups as workers map them; made when something is to train
    )

    @property
    def run_name(self) -> str:
        return self.cell.run_name


def _work(config: dict[str, Any]) -> None:
    """Runs on every worker."""
    from raylab.jobs import workers  # see the top of this module

    workers.work(config["job"])


def train(job: AdaptationJob | CellJob, callbacks: list | None = None) -> None:
    """Run one training job to its committed artifact; its checkpoints are removed afterwards.

    Raises:
        The worker's own error, unwrapped, once `max_failures` restarts did not help.
    """
    execution, store = job.execution, job.store
    # A checkpoint of sharded state resumes only with the same sharding; results do not depend on it.
    name = f"{job.address.path.replace('/', '-')}-workers{execution.workers}-zero{execution.zero_stage}"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if execution.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=execution.workers,
            use_gpu=execution.use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if execution.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{store.root}/{_RUNS}",
            storage_filesystem=None if store.is_local else arrow_filesystem(store),
            failure_config=ray.train.FailureConfig(max_failures=execution.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=callbacks or [],
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise root_cause(error) from None
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm(f"{store.root}/{_RUNS}/{name}", recursive=True)
