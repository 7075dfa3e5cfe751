"""Ingest on Ray Data: raw files -> validated Parquet shards -> the tokenised passage store.

collection artifact   passages/*.parquet (and train_passages/), sorted by id;
                      topics.parquet, qrels.parquet; statistics.json;
                      quarantine.jsonl when records were left out
tokens artifact       passages/ (and train_passages/): a passage store each, joined from those of the
                      shards, which are artifacts of their own while the work goes on
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raylab.artifacts import Address, Artifact, Store
from raylab.config import Backbone
from raylab.data.collections import Topics
from raylab.data.ingest import PASSAGES, TRAIN_PASSAGES, collection_address, write_collection
from raylab.data.shards import SORT_KEY, parsed
from raylab.data.sources import Source
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import PassageStore, write_flat_store
from raylab.jobs.cluster import unwrapped
from raylab.models.hub import load_tokenizer

TOKEN_SHARDS = "token-shards"
_WRITE_ROWS = 16_384
STORE_LIMIT = 512  # tokens of a passage that are kept: the longest length any protocol reads


# ------------------------------------------------------------------------------- collection


def ingest(store: Store, source: Source, on_fault: str = "error") -> Artifact:
    """Validate a collection and commit it as Parquet shards in id order, with statistics.

    Parsed and sorted by id on Ray, across all blocks, and written in one pass over what comes sorted.

    Raises:
        CollectionError: as `raylab.data.ingest.write_collection`; nothing is left behind.
    """
    address = collection_address(source, on_fault)
    with store.draft(address) as draft:
        draft.meta.update(
            unwrapped(write_collection, draft.path, source, on_fault, _in_order),
            checksums=address.identity["files"],
        )
    return store.committed(address)


def _in_order(addresses: Sequence[str], quarantine: bool) -> Iterable[pa.Table]:
    files = [{"address": address, "number": i} for i, address in enumerate(addresses)]
    dataset = (
        ray.data.from_items(files, override_num_blocks=len(files))
        .map_batches(_Parse(quarantine), batch_size=1)  # type: ignore[arg-type]
        .sort(SORT_KEY)
    )
    return dataset.iter_batches(batch_size=_WRITE_ROWS, batch_format="pyarrow")


@dataclass(frozen=True)
class _Parse:
    """Ray Data function: files -> their records, in tables."""

    quarantine: bool

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for address, number in zip(batch["address"], batch["number"], strict=True):
            yield from parsed(str(address), int(number), self.quarantine)


def load_topics(folder: Path) -> dict[str, Topics]:
    """The topics of a collection artifact, by split."""
    topics: dict[str, Topics] = {}
    for row in pq.read_table(folder / "topics.parquet").to_pylist():
        topics.setdefault(row["split"], Topics(row["split"], {}, {})).queries[row["query_id"]] = (
            row["text"]
        )
    for row in pq.read_table(folder / "qrels.parquet").to_pylist():
        topics[row["split"]].qrels.setdefault(row["query_id"], {})[row["passage_id"]] = row["grade"]
    return topics


def load_passages(folder: Path, part: str = PASSAGES) -> Iterator[dict[str, list]]:
    """Columns of a collection artifact's passages, batch by batch, in id order."""
    for file in sorted((folder / part).glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["passage_id", "title", "text"]):
            yield batch.to_pydict()


def training_part(collection: Artifact) -> str:
    """Which passages training reads: the training passages where the collection keeps them apart."""
    return TRAIN_PASSAGES if collection.meta["train_passages"] else PASSAGES


# ------------------------------------------------------------------------------------ tokens


def _tokens(
    tokenizer: Tokenizer, titles: list[str], texts: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens in a row, token counts and title token counts of passages cut to the store's limit."""
    titles = [title.strip() for title in titles]
    heads = tokenizer.encode(titles, STORE_LIMIT)
    bodies = [f" {text}" if title else text for title, text in zip(titles, texts, strict=True)]
    tails = tokenizer.encode(bodies, STORE_LIMIT)
    tokens = [np.concatenate([h, t])[:STORE_LIMIT] for h, t in zip(heads, tails, strict=True)]
    return np.concatenate(tokens), np.array(list(map(len, tokens))), np.array(list(map(len, heads)))


_TOKENIZERS: dict[tuple[Backbone, str | None], Tokenizer] = {}


def _tokenizer(backbone: Backbone, models_dir: str | None) -> Tokenizer:
    if (backbone, models_dir) not in _TOKENIZERS:
        _TOKENIZERS[backbone, models_dir] = load_tokenizer(backbone, models_dir)
    return _TOKENIZERS[backbone, models_dir]


_FOLDERS: dict[tuple[str, ...], Path] = {}


def _folder(store: Store, collection: Artifact) -> Path:
    """The collection on this node; its checksums are checked once a process, not once a shard."""
    key = store.uri, collection.path, collection.manifest["attempt"]
    if key not in _FOLDERS:
        _FOLDERS[key] = store.local(collection)
    return _FOLDERS[key]


def tokens_address(collection: Artifact, tokenizer: Tokenizer) -> Address:
    identity = {"tokenizer": tokenizer.fingerprint, "limit": STORE_LIMIT}
    return Address(
        "tokens", collection.manifest["name"], identity, {"collection": collection.fingerprint}
    )


@dataclass(frozen=True)
class TokenShard:
    """One Parquet shard's tokens to be made: a passage store of its own.

    `file`: the shard's name within the collection's artifact.
    """

    address: Address
    file: str


def token_shards(collection: Artifact, tokenizer: Tokenizer, part: str) -> list[TokenShard]:
    """The shards of a collection's part, in id order."""
    whole = tokens_address(collection, tokenizer)
    held = collection.manifest["files"]
    files = sorted(file for file in held if file.startswith(f"{part}/"))
    return [
        TokenShard(
            Address(
                TOKEN_SHARDS,
                f"{whole.name}-{part}-{number:05d}",
                {**whole.identity, "shard": held[file]["sha256"]},
                whole.inputs,
            ),
            file,
        )
        for number, file in enumerate(files)
    ]


@dataclass(frozen=True)
class MakeTokenShard:
    """Ray Data function: commits the shards whose numbers it is given."""

    store: Store
    collection: Artifact
    shards: tuple[TokenShard, ...]
    backbone: Backbone
    models_dir: str | None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for number in batch["id"].tolist():
            shard = self.shards[number]
            tokenizer = _tokenizer(self.backbone, self.models_dir)
            file = _folder(self.store, self.collection) / shard.file
            with self.store.draft(shard.address) as draft:
                draft.meta["passages"] = write_flat_store(
                    draft.path, _tokenised(tokenizer, file), tokenizer.dtype
                )
        return batch


def _tokenised(
    tokenizer: Tokenizer, file: Path
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
    for batch in pq.ParquetFile(file).iter_batches(1_024, columns=["passage_id", "title", "text"]):
        ids, titles, texts = (batch[name].to_pylist() for name in ("passage_id", "title", "text"))
        yield ids, *_tokens(tokenizer, titles, texts)


def tokenise(
    store: Store, collection: Artifact, backbone: Backbone, models_dir: str | None
) -> Artifact:
    """Commit the passage store(s) of a collection under a backbone's tokenizer.

    Every Parquet shard's tokens are an artifact of its own until all are there, so that a killed run
    goes on from the finished ones; the shards are then joined and removed.
    """
    tokenizer = load_tokenizer(backbone, models_dir)
    address = tokens_address(collection, tokenizer)
    shards = {p: token_shards(collection, tokenizer, p) for p in (PASSAGES, TRAIN_PASSAGES)}
    missing = [s for own in shards.values() for s in own if store.find(s.address) is None]
    if missing:
        made = ray.data.range(len(missing), override_num_blocks=len(missing)).map_batches(
            MakeTokenShard(store, collection, tuple(missing), backbone, models_dir),  # type: ignore[arg-type]
            batch_size=1,
        )
        unwrapped(made.materialize)
    with store.draft(address) as draft:
        for part, own in shards.items():
            if own:
                draft.meta[part] = write_flat_store(
                    draft.path / part, _joined(store, own), tokenizer.dtype
                )
        statistics = {**draft.meta, "vocabulary": tokenizer.vocabulary}
        (draft.path / "statistics.json").write_text(json.dumps(statistics, indent=1))
        draft.meta["shards_made"] = len(missing)
    tokens = store.committed(address)
    for shard in (s for own in shards.values() for s in own):
        with contextlib.suppress(FileNotFoundError):
            store.fs.rm(f"{store.root}/{shard.address.path}", recursive=True)
    return tokens


def _joined(
    store: Store, shards: list[TokenShard]
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
    for shard in shards:
        own = PassageStore(store.local(store.committed(shard.address)))
        yield own.passage_ids(slice(None)), own.flat, np.diff(own.offsets), own.titles
