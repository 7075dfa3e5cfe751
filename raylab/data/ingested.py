"""What an ingested collection holds: topics by split, and passages batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from raylab.data.collections import Topics
from raylab.data.ingest import PASSAGES, TRAIN_PASSAGES
from raylab.storage.artifacts import Artifact


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
