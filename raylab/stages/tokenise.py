"""Tokenise on Ray Data: a collection's Parquet shards -> the passage store of a tokenizer.

tokens artifact   passages/ (and train_passages/): a passage store each, joined from those of the
                  shards, which are artifacts of their own while the work goes on
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raylab.data.ingest import PASSAGES, TRAIN_PASSAGES
from raylab.data.tokenise import STORE_LIMIT, TextTokenizer, tokenised
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import PassageStore, write_flat_store
from raylab.stages.shards import Pool, local_pool, make_shards, remove_shards
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store


def tokens_address(collection: Artifact, tokenizer: Tokenizer) -> Address:
    """Where the tokens of a collection stand under a tokenizer."""
    identity = {"tokenizer": tokenizer.fingerprint, "limit": STORE_LIMIT}
    return Address(
        "tokens", collection.manifest["name"], identity, {"collection": collection.fingerprint}
    )


@dataclass(frozen=True)
class TokenTask:
    """One Parquet shard's tokens to be made: a passage store of its own.

    `file`: the shard's name within the collection's artifact.
    """

    address: Address
    file: str


def _tasks(collection: Artifact, whole: Address, part: str) -> list[TokenTask]:
    """The shards of a collection's part, in id order."""
    files = sorted(f for f in collection.manifest["files"] if f.startswith(f"{part}/"))
    return [TokenTask(whole.shard(n, {"file": file}), file) for n, file in enumerate(files)]


@dataclass(frozen=True)
class _TokenWorker:
    """Starts a worker that commits shards of tokens."""

    store: Store
    collection: Artifact
    tokenizer: TextTokenizer

    def __call__(self) -> Callable[[TokenTask], None]:
        folder = self.store.local(self.collection)

        def make(task: TokenTask) -> None:
            passages = tokenised(self.tokenizer, folder / task.file)
            with self.store.draft(task.address) as draft:
                count = write_flat_store(draft.path, passages, self.tokenizer.dtype)
                draft.meta["passages"] = count

        return make


def tokenise(
    store: Store, collection: Artifact, tokenizer: Tokenizer, pool: Pool = local_pool
) -> Artifact:
    """Commit the passage store(s) of a collection under a tokenizer.

    Every Parquet shard's tokens are an artifact of its own until all are there, so that a killed run
    goes on from the finished ones; the shards are then joined and removed.
    """
    address = tokens_address(collection, tokenizer)
    start = _TokenWorker(store, collection, tokenizer.text)
    tasks = {part: _tasks(collection, address, part) for part in (PASSAGES, TRAIN_PASSAGES)}
    artifacts = make_shards(
        store, [t for part_tasks in tasks.values() for t in part_tasks], start, pool
    )
    with store.draft(address) as draft:
        first = 0
        for part, part_tasks in tasks.items():
            shards, first = artifacts[first : first + len(part_tasks)], first + len(part_tasks)
            if shards:
                draft.meta[part] = write_flat_store(
                    draft.path / part, _joined(store, shards), tokenizer.dtype
                )
        statistics = {**draft.meta, "vocabulary": tokenizer.vocabulary}
        (draft.path / "statistics.json").write_text(json.dumps(statistics, indent=1))
    remove_shards(store, artifacts)
    return store.committed(address)


def _joined(
    store: Store, shards: Sequence[Artifact]
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
    for shard in shards:
        passages = PassageStore(store.local(shard))
        yield (
            passages.passage_ids(slice(None)),
            passages.flat,
            np.diff(passages.offsets),
            passages.titles,
        )
