"""Tokenise on Ray Data: a collection's Parquet shards -> the passage store of a tokenizer.

tokens artifact   passages/ (and train_passages/): a passage store each, joined from those of the
                  shards, which are artifacts of their own while the work goes on
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from raylab.artifacts import Address, Artifact, Store
from raylab.data.ingest import PASSAGES, TRAIN_PASSAGES
from raylab.data.tokenise import STORE_LIMIT, TextTokenizer, tokenised
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import PassageStore, write_flat_store
from raylab.jobs.cluster import core, unwrapped
from raylab.jobs.shards import remove_shards


def tokens_address(collection: Artifact, tokenizer: Tokenizer) -> Address:
    """Where the tokens of a collection stand under a tokenizer."""
    identity = {"tokenizer": tokenizer.fingerprint, "limit": STORE_LIMIT}
    return Address(
        "tokens", collection.manifest["name"], identity, {"collection": collection.fingerprint}
    )


@dataclass(frozen=True)
class _Shard:
    """One Parquet shard's tokens to be made: a passage store of its own.

    `file`: the shard's name within the collection's artifact.
    """

    address: Address
    file: str


def _shards(collection: Artifact, whole: Address, part: str) -> list[_Shard]:
    """The shards of a collection's part, in id order."""
    files = sorted(f for f in collection.manifest["files"] if f.startswith(f"{part}/"))
    return [_Shard(whole.shard(n, {"file": file}), file) for n, file in enumerate(files)]


_FOLDERS: dict[tuple[str, ...], Path] = {}


def _folder(store: Store, collection: Artifact) -> Path:
    """The collection on this node; its checksums are checked once a process, not once a shard."""
    key = store.uri, collection.path, collection.manifest["attempt"]
    if key not in _FOLDERS:
        _FOLDERS[key] = store.local(collection)
    return _FOLDERS[key]


@dataclass(frozen=True)
class _MakeShard:
    """Ray Data function: commits the shards whose numbers it is given."""

    store: Store
    collection: Artifact
    shards: tuple[_Shard, ...]
    tokenizer: TextTokenizer

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for number in batch["id"].tolist():
            shard = self.shards[number]
            file = _folder(self.store, self.collection) / shard.file
            with self.store.draft(shard.address) as draft:
                draft.meta["passages"] = write_flat_store(
                    draft.path, tokenised(self.tokenizer, file), self.tokenizer.dtype
                )
        return batch


def tokenise(store: Store, collection: Artifact, tokenizer: Tokenizer) -> Artifact:
    """Commit the passage store(s) of a collection under a tokenizer.

    Every Parquet shard's tokens are an artifact of its own until all are there, so that a killed run
    goes on from the finished ones; the shards are then joined and removed.
    """
    address = tokens_address(collection, tokenizer)
    shards = {part: _shards(collection, address, part) for part in (PASSAGES, TRAIN_PASSAGES)}
    missing = [s for own in shards.values() for s in own if store.find(s.address) is None]
    if missing:
        made = ray.data.range(len(missing), override_num_blocks=len(missing)).map_batches(
            _MakeShard(store, collection, tuple(missing), tokenizer.text),  # type: ignore[arg-type]
            batch_size=1,
            num_cpus=core(),  # more processes than cores have less of the cores' caches
        )
        unwrapped(made.materialize)
    parts = {
        part: [store.committed(shard.address) for shard in own] for part, own in shards.items()
    }
    with store.draft(address) as draft:
        for part, own in parts.items():
            if own:
                draft.meta[part] = write_flat_store(
                    draft.path / part, _joined(store, own), tokenizer.dtype
                )
        statistics = {**draft.meta, "vocabulary": tokenizer.vocabulary}
        (draft.path / "statistics.json").write_text(json.dumps(statistics, indent=1))
        draft.meta["shards_made"] = len(missing)
    for own in parts.values():
        remove_shards(store, own)
    return store.committed(address)


def _joined(
    store: Store, shards: Sequence[Artifact]
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
    for shard in shards:
        own = PassageStore(store.local(shard))
        yield own.passage_ids(slice(None)), own.flat, np.diff(own.offsets), own.titles
