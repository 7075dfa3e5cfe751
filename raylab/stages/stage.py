"""The stage: one artifact to be, what it is made of, and what makes it. A grid is a list of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from raylab.storage.artifacts import Address, Artifact, DamagedArtifact
from raylab.storage.store import Store

StageKind = Literal[
    "ingest",
    "tokenise",
    "teach",
    "arrange",
    "adapt",
    "fine-tune",
    "encode",
    "search",
    "evaluate",
    "profile",
]
"""In the order in which a grid goes through them. Indexes stand beside the parts of embeddings that they are of
(`raylab.stages.search.IndexTask`): how many there are is a matter of execution."""


class HasAddress(Protocol):
    """Whatever makes the artifact at an address."""

    @property
    def address(self) -> Address: ...


@dataclass(frozen=True)
class Stage:
    """One artifact of a grid.

    Args:
        address: where it will stand; known before it is made, and the same wherever it is made.
        inputs: where the artifacts stand that it is made from.
        task: what the runner of its kind is given: all that making it takes.
    """

    kind: StageKind
    address: Address
    inputs: tuple[Address, ...]
    task: Any

    @property
    def name(self) -> str:
        return self.address.name


MadeStage = TypeVar("MadeStage", bound=HasAddress)
STAGES = "stages.json"  # at the root of a storage: the list of its last grid
Runner = Callable[[list[Any]], None]
"""Makes the artifacts of the stages (or tasks) it is given: each is committed when it returns."""


def missing(store: Store, stages: Iterable[MadeStage]) -> list[MadeStage]:
    """Those whose artifact is not there, in order."""
    stages = list(stages)
    found = store.find_all(stage.address for stage in stages)
    return [stage for stage, artifact in zip(stages, found, strict=True) if artifact is None]


def find_or_make(store: Store, stages: Sequence[HasAddress], runner: Runner) -> list[Artifact]:
    """The artifacts of the stages, in order; those that are not there are made by `runner`, all at once.

    Raises:
        DamagedArtifact: one is not there after it was made.
    """
    addresses = [stage.address for stage in stages]
    found = store.find_all(addresses)
    absent = [stage for stage, one in zip(stages, found, strict=True) if one is None]
    if not absent:
        return [artifact for artifact in found if artifact is not None]
    runner(absent)
    return store.all_committed(addresses)


def write_list(store: Store, stages: Sequence[Stage]) -> None:
    """Keep the list at the root of the storage, for `read_list`."""
    rows = [
        {
            "kind": stage.kind,
            "name": stage.name,
            "path": stage.address.path,
            "inputs": [address.path for address in stage.inputs],
        }
        for stage in stages
    ]
    store.put_text(STAGES, json.dumps(rows, indent=1))


def read_list(store: Store) -> list[dict]:
    """The list of a storage's last grid: kind, name, path and paths of inputs of every stage.

    Raises:
        FileNotFoundError: no grid was run there.
        DamagedArtifact: it is no such list.
    """
    try:
        rows = json.loads(store.files.read(STAGES))
        assert all(isinstance(row["path"], str) and isinstance(row["kind"], str) for row in rows)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise DamagedArtifact(STAGES, "not a list of stages; run the experiment again") from None
    return rows
