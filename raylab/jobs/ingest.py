"""Ingest on Ray Data: raw files -> validated Parquet shards -> the tokenised passage store.

collection artifact   passages/*.parquet (and train_passages/), sorted by id;
                      topics.parquet, qrels.parquet; statistics.json;
                      quarantine.jsonl when records were left out
tokens artifact       passages/ (and train_passages/): a passage store each
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from raylab.data.tokens import write_flat_store
from raylab.jobs.cluster import unwrapped
from raylab.models.hub import load_tokenizer

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


@dataclass(frozen=True)
class _Tokenise:
    """Ray Data function: passages -> their tokens; the tokenizer is loaded once a process."""

    backbone: Backbone
    models_dir: str | None

    def __call__(self, batch: pa.Table) -> pa.Table:
        tokenizer = _tokenizer(self.backbone, self.models_dir)
        titles = [title.strip() for title in batch["title"].to_pylist()]
        heads = tokenizer.encode(titles, STORE_LIMIT)
        bodies = [
            f" {text}" if title else text
            for title, text in zip(titles, batch["text"].to_pylist(), strict=True)
        ]
        tails = tokenizer.encode(bodies, STORE_LIMIT)
        tokens = [np.concatenate([h, t])[:STORE_LIMIT] for h, t in zip(heads, tails, strict=True)]
        return pa.table(
            {
                "passage_id": batch["passage_id"],
                "tokens": _as_binary(tokens),
                "title_tokens": pa.array([min(len(h), STORE_LIMIT) for h in heads], pa.int32()),
            }
        )


def _as_binary(tokens: list[np.ndarray]) -> pa.LargeBinaryArray:
    """Token arrays as one column over one buffer: neither side copies or visits passages one by one."""
    flat = np.concatenate(tokens)
    ends = np.cumsum([0, *map(len, tokens)], dtype=np.int64) * flat.itemsize
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(flat)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(tokens), buffers)


_TOKENIZERS: dict[tuple[Backbone, str | None], Tokenizer] = {}


def _tokenizer(backbone: Backbone, models_dir: str | None) -> Tokenizer:
    if (backbone, models_dir) not in _TOKENIZERS:
        _TOKENIZERS[backbone, models_dir] = load_tokenizer(backbone, models_dir)
    return _TOKENIZERS[backbone, models_dir]


def tokens_address(collection: Artifact, tokenizer: Tokenizer) -> Address:
    identity = {"tokenizer": tokenizer.fingerprint, "limit": STORE_LIMIT}
    return Address(
        "tokens", collection.manifest["name"], identity, {"collection": collection.fingerprint}
    )


def tokenise(
    store: Store, collection: Artifact, backbone: Backbone, models_dir: str | None
) -> Artifact:
    """Commit the passage store(s) of a collection under a backbone's tokenizer."""
    tokenizer = load_tokenizer(backbone, models_dir)
    address = tokens_address(collection, tokenizer)
    folder = store.local(collection)
    with store.draft(address) as draft:
        for part in (PASSAGES, TRAIN_PASSAGES):
            files = sorted(str(f) for f in (folder / part).glob("*.parquet"))
            if not files:
                continue
            dataset = ray.data.read_parquet(files).map_batches(
                _Tokenise(backbone, models_dir),  # type: ignore[arg-type]
                batch_size=1_024,
                batch_format="pyarrow",
            )
            draft.meta[part] = unwrapped(
                write_flat_store,
                draft.path / part,
                _token_shards(dataset, tokenizer.dtype),
                tokenizer.dtype,
            )
        statistics = {**draft.meta, "vocabulary": tokenizer.vocabulary}
        (draft.path / "statistics.json").write_text(json.dumps(statistics, indent=1))
    return store.committed(address)


def _token_shards(
    dataset: ray.data.Dataset, dtype: type
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
    size = np.dtype(dtype).itemsize
    batch: Any
    for batch in dataset.iter_batches(batch_size=4_096, batch_format="pyarrow"):
        for part in batch.combine_chunks().to_batches():
            tokens = part["tokens"].cast(pa.large_binary())
            _, ends, flat = tokens.buffers()
            own = slice(tokens.offset, tokens.offset + len(tokens) + 1)
            places = np.frombuffer(ends, np.int64)[own] // size
            yield (
                part["passage_id"].to_pylist(),
                np.frombuffer(flat, dtype, count=places[-1])[places[0] :],
                np.diff(places),
                part["title_tokens"].to_numpy(),
            )
