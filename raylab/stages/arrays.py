"""Training groups on Ray Data: Parquet shards -> the memory-mapped arrays that every train worker reads.

arrays artifact   see `raylab.data.supervision.groups`; its passages are rows of the passage store, with which a
                  worker joins its share of a step. Every Parquet shard's arrays are an artifact of its own
                  until all are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raylab.data.supervision.groups import join_arrays, write_arrays
from raylab.data.tokens import PassageStore
from raylab.stages.shards import Pool, local_pool, make_shards, remove_shards
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store


def arrays_address(collection: Artifact, part: str, groups: Artifact | Address) -> Address:
    """Where the arrays of training groups stand; rows are the same under every tokenizer."""
    name = collection.manifest["name"]
    return Address("arrays", name, {"format": 1, "part": part}, {"groups": groups.fingerprint})


@dataclass(frozen=True)
class ArrayTask:
    """One Parquet file of groups, by its name within their artifact."""

    address: Address
    file: str


@dataclass(frozen=True)
class _ArrayWorker:
    """Starts a worker that commits shards of arrays."""

    store: Store
    groups: Artifact
    tokens: Artifact
    part: str

    def __call__(self) -> Callable[[ArrayTask], None]:
        passages = PassageStore(self.store.local(self.tokens) / self.part)
        folder = self.store.local(self.groups)

        def make(task: ArrayTask) -> None:
            with self.store.draft(task.address) as draft:
                count = write_arrays([folder / task.file], passages.rows, draft.path)
                draft.meta["groups"] = count

        return make


def make_arrays(
    store: Store,
    collection: Artifact,
    groups: Artifact,
    tokens: Artifact,
    part: str,
    pool: Pool = local_pool,
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
    tasks = [ArrayTask(address.shard(n, {"file": file}), file) for n, file in enumerate(files)]
    shards = make_shards(store, tasks, _ArrayWorker(store, groups, tokens, part), pool)
    with store.draft(address) as draft:
        draft.meta["groups"] = join_arrays([store.local(shard) for shard in shards], draft.path)
    remove_shards(store, shards)
    return store.committed(address)
