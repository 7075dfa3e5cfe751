"""What an ingested collection holds: topics by split, and passages batch by batch."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.collections import Topics
from raylab.data.ingest import PASSAGES, TRAIN_PASSAGES
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store

_TOPICS, _QRELS = "topics.parquet", "qrels.parquet"


def load_topics(folder: Path) -> dict[str, Topics]:
    """The topics of a collection artifact, by split."""
    return _topics(*(pq.read_table(folder / name) for name in (_TOPICS, _QRELS)))


def stored_topics(store: Store, collection: Artifact, splits: Collection[str]) -> dict[str, Topics]:
    """The topics of those of the splits that there are, without a copy of the collection on this machine."""
    chosen = [("split", "in", list(splits))]
    files = (store.read(collection, name) for name in (_TOPICS, _QRELS))
    return _topics(*(pq.read_table(io.BytesIO(data), filters=chosen) for data in files))


def _topics(queries: pa.Table, judgements: pa.Table) -> dict[str, Topics]:
    topics: dict[str, Topics] = {}
    for row in queries.to_pylist():
        of_split = topics.setdefault(row["split"], Topics(row["split"], {}, {}))
        of_split.queries[row["query_id"]] = row["text"]
    for row in judgements.to_pylist():
        grades = topics[row["split"]].qrels.setdefault(row["query_id"], {})
        grades[row["passage_id"]] = row["grade"]
    return topics


def load_passages(folder: Path, part: str = PASSAGES) -> Iterator[dict[str, list]]:
    """Columns of a collection artifact's passages, batch by batch, in id order."""
    for file in sorted((folder / part).glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["passage_id", "title", "text"]):
            yield batch.to_pydict()


def training_part(collection: Artifact) -> str:
    """Which passages training reads: the training passages where the collection keeps them apart."""
    return TRAIN_PASSAGES if collection.meta["train_passages"] else PASSAGES
