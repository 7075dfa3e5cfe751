"""Ingest on Ray Data: raw files -> validated Parquet shards.

collection artifact   passages/*.parquet (and train_passages/), sorted by id;
                      topics.parquet, qrels.parquet; statistics.json;
                      quarantine.jsonl when records were left out
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raylab.artifacts import Artifact, Store
from raylab.data.collections import Topics
from raylab.data.ingest import PASSAGES, TRAIN_PASSAGES, collection_address, write_collection
from raylab.data.shards import SORT_KEY, parsed
from raylab.data.sources import Source
from raylab.jobs.cluster import unwrapped

_WRITE_ROWS = 16_384
_BLOCK_BYTES = 32 * 2**20  # what a task sorts at once; memory is some times that a worker


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
    numbered = [{"address": address, "number": i} for i, address in enumerate(addresses)]
    files = ray.data.from_items(numbered, override_num_blocks=len(numbered))
    files.context.target_max_block_size = files.context.shuffle_input_batch_bytes = _BLOCK_BYTES
    # Sorting makes as many partitions as there are blocks, of which one file of any size is one until
    # it has been read.
    parsed = files.map_batches(_Parse(quarantine), batch_size=1).materialize()  # type: ignore[arg-type]
    return parsed.sort(SORT_KEY).iter_batches(batch_size=_WRITE_ROWS, batch_format="pyarrow")


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
