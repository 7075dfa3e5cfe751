"""Ingest on Ray Data: raw files -> validated Parquet shards.

collection artifact   passages/*.parquet (and train_passages/), sorted by id;
                      topics.parquet, qrels.parquet; statistics.json;
                      quarantine.jsonl when records were left out
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from raylab.data.ingest import collection_address, write_collection
from raylab.data.shards import SORT_KEY, parsed
from raylab.data.sources import Source
from raylab.jobs.cluster import unwrapped
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store

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
