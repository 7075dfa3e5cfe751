"""Raw files -> a validated collection in a folder: shards in id order, topics, statistics, quarantine.

Whoever calls brings the order: `raylab.jobs.ingest` sorts on Ray, `in_order` below in this process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.collections import (
    TRAIN,
    Judged,
    Topics,
    read_judged,
    topics_of,
    without_unknown_passages,
)
from raylab.data.faults import Quarantine
from raylab.data.shards import PARSED, SORT_KEY, parsed, write_shards
from raylab.data.sources import Source
from raylab.experiment.config import fault_identity
from raylab.storage.artifacts import Address

PASSAGES, TRAIN_PASSAGES = "passages", "train_passages"

InOrder = Callable[[Sequence[str], bool], Iterable[pa.Table]]
"""(addresses, whether faulty records are kept) -> tables of `PARSED`, sorted by `SORT_KEY`."""


def collection_address(source: Source, on_fault: str = "error") -> Address:
    """Where a collection's artifact stands: by its files' content, and by what is done about faults."""
    return Address("collection", source.name, source.identity() | fault_identity(on_fault))


def in_order(addresses: Sequence[str], quarantine: bool) -> list[pa.Table]:
    """Sorted in this process: for collections that fit in its memory."""
    tables = [t for i, a in enumerate(addresses) for t in parsed(a, i, quarantine)]
    whole = pa.concat_tables(tables) if tables else PARSED.empty_table()
    return [whole.sort_by([(key, "ascending") for key in SORT_KEY])]


def write_collection(
    folder: Path, source: Source, on_fault: str = "error", order: InOrder = in_order
) -> dict[str, Any]:
    """Validate a collection and write it into a folder; returns the facts that go on its manifest.

    ``on_fault``: which faulty records are left out, counted, and written with their reasons to
    `quarantine.jsonl` (`raylab.experiment.config.quarantined_kinds`); any other fault refuses the collection.

    Raises:
        CollectionError: a fault, by file and line. Whatever the policy: a damaged compressed stream
            or Parquet file, an archive that is not the published one, a collection or a split of
            which nothing is left.
    """
    verified = source.verify()
    with Quarantine(folder, on_fault) as quarantine:
        # Small files first: most faults are found before a passage is moved.
        judged = read_judged(source, quarantine)
        wanted = {j.passage_id for judgements in judged.values() for j in judgements.judgements}
        statistics: dict[str, Any] = {}
        known: dict[str, set[str]] = {TRAIN_PASSAGES: set()}
        for part, files in ((PASSAGES, source.passages), (TRAIN_PASSAGES, source.train_passages)):
            if files:
                batches = order(files, bool(quarantine.kinds))
                statistics[part], known[part] = write_shards(
                    folder / part, batches, files, wanted, quarantine
                )
        for split, judgements in judged.items():
            # Training judgements may name the passages that are kept apart for training.
            there = known[PASSAGES] | (known[TRAIN_PASSAGES] if split == TRAIN else set())
            judged[split] = without_unknown_passages(source, split, judgements, there, quarantine)
        topics = topics_of(judged)
    _write_topics(folder, topics)
    statistics["splits"] = _split_facts(source, judged, topics)
    (folder / "statistics.json").write_text(json.dumps(statistics, indent=1))
    return {
        "name": source.name,
        "passages": statistics[PASSAGES]["passages"],
        "train_passages": statistics.get(TRAIN_PASSAGES, {}).get("passages"),
        "splits": {split: len(t.queries) for split, t in topics.items()},
        "quarantined": quarantine.facts(),
        "verified": verified,
    }


def _split_facts(
    source: Source, judged: dict[str, Judged], topics: dict[str, Topics]
) -> dict[str, dict[str, int]]:
    """Counts by split; where a split has its own file of queries, also those that nobody judged."""
    facts = {
        split: {"queries": len(own.queries), "judgements": sum(map(len, own.qrels.values()))}
        for split, own in topics.items()
    }
    files = list(source.queries.values())
    for split, own in judged.items():
        if files.count(source.queries[split]) == 1:
            judged_queries = {j.query_id for j in own.judgements}
            facts[split]["queries_without_judgement"] = len(own.queries) - len(judged_queries)
    return facts


def _write_topics(folder: Path, topics: dict[str, Topics]) -> None:
    queries = [(t.split, q, text) for t in topics.values() for q, text in t.queries.items()]
    grades = [
        (t.split, q, p, grade)
        for t in topics.values()
        for q, judged in t.qrels.items()
        for p, grade in judged.items()
    ]
    for name, columns, rows in (
        ("topics", ("split", "query_id", "text"), queries),
        ("qrels", ("split", "query_id", "passage_id", "grade"), grades),
    ):
        values = map(list, zip(*rows, strict=True))
        table = pa.table(dict(zip(columns, values, strict=True)))
        pq.write_table(table, folder / f"{name}.parquet")
