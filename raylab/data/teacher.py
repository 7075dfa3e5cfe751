"""Training groups: a query, its positive, mined negatives, and teacher scores where there are any.

query_id         string          body_only        bool: passages are read without their title
query            string          positive_score   float32 or null
positive         string          negative_scores  list<float32>, aligned with negatives, or null
negatives        list<string>    mined            int32: so many of the first negatives were mined
                                                  (hard), the rest were drawn at random
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raylab.data.collections import CollectionError, Topics, lines

GROUP_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("body_only", pa.bool_()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("mined", pa.int32()),
        ("positive_score", pa.float32()),
        ("negative_scores", pa.list_(pa.float32())),
    ]
)
# `rank` of a mined negative from 0; null for positives and for negatives drawn at random.
SCORE_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("score", pa.float32()),
        ("rank", pa.int32()),
    ]
)
PSEUDO_PREFIX = "title:"  # query ids of pseudo-queries: a passage's title asks for its body


@dataclass(frozen=True)
class Candidates:
    """Negatives of a query: mined ones, best first, then ones drawn at random."""

    mined: tuple[str, ...]
    random: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """A training query before mining: its text and the passages that answer it."""

    query_id: str
    text: str
    positives: tuple[str, ...]
    body_only: bool = False


def asks_of_topics(topics: Topics) -> list[Ask]:
    """The training queries with at least one relevant passage (grade 1 or more)."""
    asks = []
    for query_id, text in topics.queries.items():
        positives = tuple(sorted(p for p, grade in topics.qrels[query_id].items() if grade > 0))
        if positives:
            asks.append(Ask(query_id, text, positives))
    return asks


def asks_of_titles(
    passages: Iterable[tuple[str, str, str]], banned: frozenset[str] = frozenset()
) -> list[Ask]:
    """Pseudo-queries from (id, title, text): the title asks for the passage without its title."""
    return [
        Ask(f"{PSEUDO_PREFIX}{passage_id}", title, (passage_id,), body_only=True)
        for passage_id, title, text in passages
        if title.strip() and text.strip() and passage_id not in banned
    ]


def draw_candidates(
    ask: Ask,
    ranked: Sequence[str],
    drawn: Sequence[str],
    texts: Mapping[str, int],
    depth: int,
    random: int,
) -> Candidates:
    """The first `depth` ranked passages, filled up from `drawn`, then `random` more drawn ones.

    Positives and copies of them are left out; no passage occurs twice.

    Args:
        drawn: passages in random order.
        texts: passage id -> hash of its text; equal hashes are the same passage under two ids.
    """
    positives = set(ask.positives)
    copies = {texts[p] for p in positives if p in texts}

    def usable(passages: Sequence[str]) -> list[str]:
        return [
            p
            for p in dict.fromkeys(passages)
            if p and p not in positives and texts.get(p) not in copies
        ]

    mined = usable([*ranked, *drawn] if len(usable(ranked)) < depth else ranked)[:depth]
    left = [p for p in usable(drawn) if p not in set(mined)]
    return Candidates(tuple(mined), tuple(left[:random]))


def group_rows(
    ask: Ask, candidates: Candidates, scores: Mapping[tuple[str, str], float] | None
) -> list[dict]:
    """One group for each positive of `ask`.

    Raises:
        CollectionError: teacher scores are given and one is missing or not finite.
    """
    chosen = [*candidates.mined, *candidates.random]
    rows = []
    for positive in ask.positives:
        row: dict = {
            "query_id": ask.query_id,
            "query": ask.text,
            "body_only": ask.body_only,
            "positive": positive,
            "negatives": chosen,
            "mined": len(candidates.mined),
            "positive_score": None,
            "negative_scores": None,
        }
        if scores is not None:
            row["positive_score"] = _score(scores, ask.query_id, positive)
            row["negative_scores"] = [_score(scores, ask.query_id, p) for p in chosen]
        rows.append(row)
    return rows


def _score(scores: Mapping[tuple[str, str], float], query_id: str, passage_id: str) -> float:
    value = scores.get((query_id, passage_id))
    if value is None:
        raise CollectionError(f"no teacher score for query {query_id!r}, passage {passage_id!r}")
    if not math.isfinite(value):
        raise CollectionError(
            f"teacher score of query {query_id!r}, passage {passage_id!r} is {value}"
        )
    return value


def read_published(path: Path, query_ids: Mapping[str, str]) -> list[dict]:
    """Groups from the three published JSON-lines formats (paper.md, Fine-tuning).

    Args:
        query_ids: query text -> id (the format carries texts only); unknown texts become their own id.

    Raises:
        CollectionError: FILE:LINE of a record that is in none of the formats, misaligned or not finite.
    """
    rows = []
    for number, line in lines(path):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
            for key in ("docids", "scores", "neg_pids", "neg_scores"):
                if not isinstance(record.get(key) or [], list):
                    raise ValueError(f"{key!r} is not a list")
            if "docids" in record:
                text, (positive, *negatives) = record["query"], record["docids"]
                positive_score, *negative_scores = record["scores"]
            else:
                text, positive, negatives = (
                    record["question"],
                    record["pos_pid"],
                    record["neg_pids"],
                )
                positive_score, negative_scores = record.get("pos_score"), record.get("neg_scores")
            if not isinstance(text, str):
                raise ValueError("the query is not a string")
            if not all(type(p) in (str, int) for p in (positive, *negatives)):
                raise ValueError("a passage id is neither a string nor a whole number")
            if (positive_score is None) != (negative_scores is None):
                raise ValueError("the positive is scored and the negatives are not, or vice versa")
            if negative_scores is not None and len(negative_scores) != len(negatives):
                raise ValueError(f"{len(negative_scores)} scores for {len(negatives)} negatives")
            values = [] if negative_scores is None else [positive_score, *negative_scores]
            if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
                raise ValueError("a score is not a finite number")
        except (ValueError, KeyError, TypeError) as error:
            raise CollectionError(
                f"{path}:{number}: {error}; a line is one of the published teacher formats "
                '{"question", "pos_pid", "neg_pids"[, "pos_score", "neg_scores"]} or {"query", "docids", "scores"}'
            ) from None
        rows.append(
            {
                "query_id": query_ids.get(text, text),
                "query": text,
                "body_only": False,
                "positive": str(positive),
                "negatives": [str(p) for p in negatives],
                "mined": len(negatives),
                "positive_score": positive_score,
                "negative_scores": negative_scores,
            }
        )
    return rows


@dataclass(frozen=True)
class Groups:
    """Training groups in memory: columns, with passages as rows of the passage store."""

    query_ids: list[str]
    queries: list[str]
    body_only: np.ndarray  # bool [G]
    positives: np.ndarray  # int64 [G]
    negatives: list[np.ndarray]  # int64, ragged
    mined: np.ndarray  # int64 [G]: so many of the first negatives are mined, the rest random
    positive_scores: np.ndarray | None  # float32 [G]
    negative_scores: list[np.ndarray] | None
    source: str = "training groups"  # where they were read, for error messages

    def __len__(self) -> int:
        return len(self.query_ids)

    def check_scores(self) -> None:
        """Raise `CollectionError` unless every passage of every group has a finite teacher score."""
        if self.positive_scores is None or self.negative_scores is None:
            return
        counts = np.array([len(n) for n in self.negatives], np.int64)
        scored = np.array([len(s) for s in self.negative_scores], np.int64)
        fault = misfit(counts, scored, self.positive_scores, self.negative_scores)
        if fault is not None:
            place, why = fault
            raise CollectionError(f"{self.source}: query {self.query_ids[place]!r}: {why}")


def misfit(
    negatives: np.ndarray,
    scored: np.ndarray,
    positive_scores: np.ndarray,
    negative_scores: Sequence[np.ndarray],
) -> tuple[int, str] | None:
    """(place, why) of the first group whose teacher scores are not one finite number a passage.

    Args:
        negatives: how many negatives each group has.
        scored: how many of their scores.
    """
    groups = len(negatives)
    if not len(scored) == len(positive_scores) == len(negative_scores) == groups:
        shortest = min(len(scored), len(positive_scores), len(negative_scores), groups - 1)
        return shortest, f"teacher scores of {len(scored)} groups for {groups} groups"
    wrong = np.flatnonzero(scored != negatives)
    if len(wrong):
        place = int(wrong[0])
        return place, f"{scored[place]} teacher scores for {negatives[place]} negatives"
    flat = np.concatenate([np.asarray(positive_scores), *negative_scores])
    if not np.isfinite(flat).all():
        owner = np.concatenate([np.arange(groups), np.repeat(np.arange(groups), scored)])
        bad = ~np.isfinite(flat)
        place = int(owner[bad].min())
        return place, f"a teacher score is {flat[bad & (owner == place)][0]}"
    return None


def read_groups(folder: Path, rows_of) -> Groups:
    """Read the groups' Parquet shards; `rows_of` maps passage ids to store rows.

    Scores are None unless every group has them.

    Raises:
        CollectionError: FILE and query id of a group whose teacher scores are not one finite number a
            passage.
    """
    shards = [_read_shard(path) for path in sorted(folder.glob("*.parquet"))]
    table = pa.concat_tables([shard for shard, _ in shards])
    negatives = table["negatives"].combine_chunks()
    bounds = negatives.offsets.to_numpy()
    flat = rows_of(negatives.values.to_pylist())
    scored = bool(len(table)) and all(has_scores for shard, has_scores in shards if len(shard))
    scores, neg_scores = None, None
    if scored:
        scores = table["positive_score"].to_numpy()
        flat_scores = table["negative_scores"].combine_chunks().values.to_numpy()
        neg_scores = [flat_scores[a:b] for a, b in itertools.pairwise(bounds)]
    return Groups(
        query_ids=table["query_id"].to_pylist(),
        queries=table["query"].to_pylist(),
        body_only=table["body_only"].to_numpy(zero_copy_only=False),
        positives=rows_of(table["positive"].to_pylist()),
        negatives=[flat[a:b] for a, b in itertools.pairwise(bounds)],
        mined=table["mined"].to_numpy().astype(np.int64),
        positive_scores=scores,
        negative_scores=neg_scores,
        source=str(folder),
    )


def _read_shard(path: Path) -> tuple[pa.Table, bool]:
    """A shard of groups, and whether all of them have scores.

    Raises:
        CollectionError: a group with scores that are not one finite number a passage.
    """
    table = pq.read_table(path, schema=GROUP_SCHEMA)
    positive = table["positive_score"].combine_chunks()
    lists = table["negative_scores"].combine_chunks()
    halves = pc.xor(positive.is_null(), lists.is_null()).to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]
    if halves.any():
        query = table["query_id"][int(halves.argmax())].as_py()
        raise CollectionError(
            f"{path}: query {query!r}: teacher scores of the positive or of the negatives are missing"
        )
    given = positive.is_valid()
    table_given = table.filter(given)
    lists = lists.filter(given)
    sizes = lists.value_lengths().to_numpy(zero_copy_only=False)
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    counts = table_given["negatives"].combine_chunks().value_lengths()
    fault = misfit(
        counts.to_numpy(zero_copy_only=False),
        sizes,
        table_given["positive_score"].to_numpy(),
        np.split(flat, np.cumsum(sizes)[:-1]) if len(sizes) else [],
    )
    if fault is not None:
        query = table_given["query_id"][fault[0]].as_py()
        raise CollectionError(f"{path}: query {query!r}: {fault[1]}")
    return table, len(table_given) == len(table)
