"""Training groups on Ray Data: Parquet shards -> the memory-mapped arrays that every train worker reads.

arrays artifact   see `raylab.data.groups`; its passages are rows of the passage store, with which a
                  worker joins its share of a step. Every Parquet shard's arrays are an artifact of its own
                  until all are there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ray

from raylab.artifacts import Address, Artifact, Store
from raylab.data.groups import join_arrays, write_arrays
from raylab.data.tokens import PassageStore
from raylab.jobs.cluster import core, unwrapped
from raylab.jobs.shards import remove_shards


def arrays_address(collection: Artifact, part: str, groups: Artifact) -> Address:
    """Where the arrays of training groups stand; rows are the same under every tokenizer."""
    name = collection.manifest["name"]
    return Address("arrays", name, {"format": 1, "part": part}, {"groups": groups.fingerprint})


@dataclass(frozen=True)
class _MakeShard:
    """Ray Data function: commits the shards whose numbers it is given."""

    store: Store
    shards: tuple[tuple[Address, str], ...]  # where, and which Parquet file of the groups
    groups: Artifact
    tokens: Artifact
    part: str

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        passages = PassageStore(self.store.local(self.tokens) / self.part)
        groups = self.store.local(self.groups)
        for number in batch["id"].tolist():
            address, file = self.shards[number]
            with self.store.draft(address) as draft:
                draft.meta["groups"] = write_arrays([groups / file], passages.rows, draft.path)
        return batch


def make_arrays(
    store: Store, collection: Artifact, groups: Artifact, tokens: Artifact, part: str
) -> Artifact:
    """Commit the arrays of training groups.

    Raises:
        CollectionError: groups whose teacher scores are not one finite number a passage, or that name a
            passage which is not in `part` of the collection.
    """
    address = arrays_address(collection, part, groups)
    if (done := store.find(address)) is not None:
        return done
    files = sorted(file for file in groups.manifest["files"] if file.endswith(".parquet"))
    shards = [(address.shard(number, {"file": file}), file) for number, file in enumerate(files)]
    missing = [shard for shard in shards if store.find(shard[0]) is None]
    make = _MakeShard(store, tuple(missing), groups, tokens, part)
    if len(missing) == 1:  # a small collection's: not worth a worker's start
        make({"id": np.zeros(1, np.int64)})
    elif missing:
        numbers = ray.data.range(len(missing), override_num_blocks=len(missing))
        made = numbers.map_batches(make, batch_size=1, num_cpus=core())  # type: ignore[arg-type]
        unwrapped(made.materialize)
    parts = [store.committed(shard) for shard, _ in shards]
    with store.draft(address) as draft:
        draft.meta["groups"] = join_arrays([store.local(part) for part in parts], draft.path)
    remove_shards(store, parts)
    return store.committed(address)
