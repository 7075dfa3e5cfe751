"""Training on Ray Train + DeepSpeed: MNTP once a size, fine-tuning once a cell.

What a worker does is in `raylab.jobs.workers`, imported on the worker alone: this module is also
loaded by each run's Tune trial and Train controller, which need no model library (4 s each).
A run is named after its fingerprint, so the same run started again (after a killed worker, or a
killed driver) resumes from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from raylab.artifacts import Address, Artifact, Store
from raylab.config import COST_MODEL, Adaptation, Backbone, Encoding, Execution, identity
from raylab.grid import Cell
from raylab.jobs.cluster import arrow_filesystem, root_cause
from raylab.jobs.pool import room

RUNS = "train"  # folder of Ray Train's own state and checkpoints below the storage root
BACKBONE, RETRIEVER, FAMILY = "backbone", "retriever", "family"


# --------------------------------------------------------------------------------- addresses


def adaptation_address(
    backbone: Backbone, weights: str, adaptation: Adaptation, tokens: Artifact
) -> Address:
    """Where a size's adapted backbone stands; `weights` is the checksum of the weights it starts from."""
    what = {"backbone": identity(backbone), "weights": weights, "adaptation": identity(adaptation)}
    return Address(BACKBONE, backbone.name, what, {"tokens": tokens.fingerprint})


def cell_address(cell: Cell, adapted: Address, tokens: Artifact, groups: Artifact) -> Address:
    """Where a cell's retriever stands; the cost model says how many steps its budget is."""
    inputs = {
        "backbone": adapted.fingerprint,
        "tokens": tokens.fingerprint,
        "groups": groups.fingerprint,
    }
    what = {**identity(cell), "cost_model": COST_MODEL}
    return Address(RETRIEVER, cell.run_name, what, inputs)


def family_key(addresses: Sequence[Address]) -> Address:
    """Stands for a family: the address itself where there is one."""
    if len(addresses) == 1:
        return addresses[0]
    largest = addresses[-1]
    return Address(FAMILY, largest.name, [address.fingerprint for address in addresses])


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
        return jobs_name(self.address)


@dataclass(frozen=True)
class FineTuningJob:
    """All a worker needs to fine-tune a cell, or cells that are alike but for their budgets.

    `cells` are those that are to be made, smallest budget first; several share their stable phase.
    `key` stands for all cells of the grid that do, made or not: the same command goes on.
    """

    key: Address
    cells: tuple[tuple[Address, Cell], ...]
    encoding: Encoding
    adapted: Address
    tokens: Artifact
    groups: Artifact
    collection: str
    training_part: str
    store: Store
    execution: Execution
    board: Any = None
    arrays: Artifact | None = None  # the groups as workers map them

    @property
    def address(self) -> Address:
        return self.key

    @property
    def run_name(self) -> str:
        return self.cells[-1][1].run_name


def jobs_name(adaptation: Address) -> str:
    """Of the run that makes an adapted backbone."""
    return f"mntp-{adaptation.path.partition('/')[2]}"


def training_devices(execution: Execution) -> int:
    """Devices that training may hold now: of `concurrent_trials` runs, or (0) all of the cluster."""
    if execution.concurrent_trials:
        return execution.concurrent_trials * execution.workers
    return room("GPU" if execution.use_gpu else "CPU", 1.0)


def run_folder(job: AdaptationJob | FineTuningJob) -> str:
    """Name of a job's folder below `train/`.

    A checkpoint of sharded state resumes only with the same sharding; results do not depend on it.
    """
    execution = job.execution
    sharding = f"workers{execution.workers}-zero{execution.zero_stage}"
    return f"{job.address.path.replace('/', '-')}-{sharding}"


def _work(config: dict[str, Any]) -> None:
    """Runs on every worker."""
    from raylab.jobs import workers  # see the top of this module

    workers.work(config["job"])


def train(job: AdaptationJob | FineTuningJob) -> None:
    """Run one training job to its committed artifact; its checkpoints are removed afterwards.

    Raises:
        The worker's own error, unwrapped, once `max_failures` restarts did not help.
    """
    execution, store = job.execution, job.store
    name = run_folder(job)
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
            storage_path=f"{store.root}/{RUNS}",
            storage_filesystem=None if store.is_local else arrow_filesystem(store),
            failure_config=ray.train.FailureConfig(max_failures=execution.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise root_cause(error) from None
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm(f"{store.root}/{RUNS}/{name}", recursive=True)
