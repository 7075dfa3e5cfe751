"""Adapt and fine-tune: where their artifacts stand, and what a worker needs to know of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylab.experiment.config import COST_MODEL, Adaptation, Backbone, Encoding, identity
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell
from raylab.stages.validation import ValidationQueries
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

RUNS = "train"  # folder of checkpoints and journals below the storage root
BACKBONE, RETRIEVER, FAMILY = "backbone", "retriever", "family"


# --------------------------------------------------------------------------------- addresses


def adaptation_address(
    backbone: Backbone, weights: str, adaptation: Adaptation, tokens: Artifact | Address
) -> Address:
    """Where a size's adapted backbone stands; `weights` is the checksum of the weights it starts from."""
    facts = {"backbone": identity(backbone), "weights": weights, "adaptation": identity(adaptation)}
    return Address(BACKBONE, backbone.name, facts, {"tokens": tokens.fingerprint})


def cell_address(
    cell: Cell, adapted: Address, tokens: Artifact | Address, groups: Artifact | Address
) -> Address:
    """Where a cell's retriever stands; the cost model says how many steps its budget is."""
    inputs = {
        "backbone": adapted.fingerprint,
        "tokens": tokens.fingerprint,
        "groups": groups.fingerprint,
    }
    facts = {**identity(cell), "cost_model": COST_MODEL}
    return Address(RETRIEVER, cell.run_name, facts, inputs)


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
    tokens: Address
    store: Store
    execution: Execution
    board: Any

    @property
    def run_name(self) -> str:
        return jobs_name(self.address.path)


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
    tokens: Address
    groups: Address
    arrays: Address  # the groups as workers map them
    collection: str
    training_part: str
    store: Store
    execution: Execution
    board: Any = None
    validation: ValidationQueries | None = None

    @property
    def address(self) -> Address:
        return self.key

    @property
    def run_name(self) -> str:
        return self.cells[-1][1].run_name


def jobs_name(path: str) -> str:
    """Of the run that makes the adapted backbone at a path below the storage."""
    return f"mntp-{path.partition('/')[2]}"


def run_folder(job: AdaptationJob | FineTuningJob) -> str:
    """Name of a job's folder below `train/`.

    A checkpoint of sharded state resumes only with the same sharding; results do not depend on it.
    """
    execution = job.execution
    sharding = f"workers{execution.workers}-zero{execution.zero_stage}"
    return f"{job.address.path.replace('/', '-')}-{sharding}"
