"""Raw files -> a validated collection in a folder: shards in id order, topics, statistics, quarantine.

Whoever calls brings the order: `raylab.jobs.ingest` sorts on Ray, `in_order` below in this process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.collections import (
    TRAIN,
    Judged,
    Topics,
    check_beginning,
    count_misses,
    read_judged,
    topics_of,
    without_unknown_passages,
)
from raylab.data.faults import Fault, Kind, LeavingOut, OnFault, Quarantine
from raylab.data.registry import BENCHMARKS
from raylab.data.shards import PARSED, SORT_KEY, parsed, write_shards
from raylab.data.sources import Source
from raylab.experiment.faults import fault_identity, quarantined_kinds
from raylab.storage.artifacts import Address

PASSAGES, TRAIN_PASSAGES = "passages", "train_passages"

InOrder = Callable[[Sequence[str], bool], Iterable[pa.Table]]
"""(addresses, whether faulty records are kept) -> tables of `PARSED`, sorted by `SORT_KEY`."""


def collection_address(source: Source, on_fault: str = "error") -> Address:
    """Where a collection's artifact stands: by its files' content, and by what is done about faults."""
    identity = source.identity() | fault_identity(on_fault)
    if "unknown" in quarantined_kinds(on_fault):
        identity["unknown_in_evaluation"] = "kept as misses"
    return Address("collection", source.name, identity)


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
    `quarantine.jsonl` (`raylab.experiment.faults.quarantined_kinds`); any other fault refuses the collection.
    Empty passages that a published benchmark is known to have are left out in any case, and relevant
    passages that splits for evaluation judge and the collection lacks stay judged (`count_misses`); both
    are counted. Training judgements of those empty passages are left out with them.

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
        passing = KnownGaps(source, quarantine)
        for part, files in ((PASSAGES, source.passages), (TRAIN_PASSAGES, source.train_passages)):
            if files:
                batches = order(files, bool(quarantine.kinds) or passing.expected > 0)
                statistics[part], known[part] = write_shards(
                    folder / part, batches, files, wanted, passing
                )
        misses = {}
        for split, own in judged.items():
            if split == TRAIN:
                # Training judgements may name the passages that are kept apart for training.
                there = known[PASSAGES] | known[TRAIN_PASSAGES]
                sound = [j for j in own.judgements if j.passage_id not in passing.empty]
                own = Judged(own.queries, sound)
                judged[split] = without_unknown_passages(source, split, own, there, quarantine)
            elif count := count_misses(source, split, own, known[PASSAGES]):
                misses[split] = count
        topics = topics_of(judged, quarantine)
    _write_topics(folder, topics)
    statistics["splits"] = _split_facts(source, judged, topics)
    (folder / "statistics.json").write_text(json.dumps(statistics, indent=1))
    return {
        "name": source.name,
        "passages": statistics[PASSAGES]["passages"],
        "train_passages": statistics.get(TRAIN_PASSAGES, {}).get("passages"),
        "splits": {split: len(t.queries) for split, t in topics.items()},
        "quarantined": quarantine.facts(),
        "empty_passages": len(passing.empty),
        "misses": misses,
        "verified": verified,
    }


def first_faults(source: Source, on_fault: str) -> None:
    """Read the first record of every file, before anything is started for the rest.

    Raises:
        CollectionError: a file that cannot be read, or whose first record is faulty.
    """
    policy = LeavingOut(on_fault)
    check_beginning(source, policy, KnownGaps(source, policy))


class KnownGaps:
    """Passes over the empty passages that a benchmark's publisher left in; other faults go on to a policy.

    For one reading of the passages, since it counts.
    """

    def __init__(self, source: Source, policy: OnFault):
        benchmark = BENCHMARKS.get(source.name)
        self.expected = benchmark.empty_passages if benchmark is not None else 0
        self.policy = policy
        self.empty: set[str] = set()  # ids

    def __call__(self, fault: Fault) -> None:
        if fault.kind is not Kind.EMPTY or len(self.empty) >= self.expected:
            self.policy(fault)
            return
        self.empty.add(json.loads(fault.record)["_id"])


def gaps(meta: Mapping[str, Any]) -> list[str]:
    """What a collection artifact tells of what it lacks, a sentence each."""
    benchmark = BENCHMARKS.get(meta["name"])
    told = []
    if count := meta.get("empty_passages"):
        assert benchmark is not None
        told.append(
            f"{count:,} passage(s) without text left out (published {meta['name']} has "
            f"{benchmark.empty_passages})"
        )
    missing = benchmark.missing_passages if benchmark is not None else 0
    for split, count in meta.get("misses", {}).items():
        known = f" (published {meta['name']} lacks {missing})" if missing else ""
        told.append(
            f"split {split}: {count:,} relevant passage(s) are not in the collection{known}; they count as misses"
        )
    if quarantined := meta.get("quarantined"):
        counts = ", ".join(f"{count:,} x {kind}" for kind, count in quarantined.items())
        told.append(f"records set aside: {counts}")
    return told


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
