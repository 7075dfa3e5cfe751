"""Training groups: a query, its positive, mined negatives, and teacher scores where there are any.

query_id         string          body_only        bool: passages are read without their title
query            string          positive_score   float32 or null
positive         string          negative_scores  list<float32>, aligned with negatives, or null
negatives        list<string>    mined            int32: so many of the first negatives were mined
                                                  (hard), the rest were drawn at random
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from raylab.data.collections import Topics
from raylab.data.faults import CollectionError

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
PSEUDO_PREFIX = "title:"  # query ids of pseudo-queries: a passage's title stands for a query that its body answers


@dataclass(frozen=True)
class Candidates:
    """Negatives of a query: mined ones, best first, then ones drawn at random."""

    mined: tuple[str, ...]
    random: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingQuery:
    """A training query before mining: its text and the passages that answer it."""

    query_id: str
    text: str
    positives: tuple[str, ...]
    body_only: bool = False


def asks_of_topics(topics: Topics) -> list[TrainingQuery]:
    """The training queries with at least one relevant passage (grade 1 or more)."""
    queries = []
    for query_id, text in topics.queries.items():
        positives = tuple(sorted(p for p, grade in topics.qrels[query_id].items() if grade > 0))
        if positives:
            queries.append(TrainingQuery(query_id, text, positives))
    return queries


def asks_of_titles(
    passages: Iterable[tuple[str, str, str]], banned: frozenset[str] = frozenset()
) -> list[TrainingQuery]:
    """Pseudo-queries from (id, title, text): the passage without its title answers its title."""
    return [
        TrainingQuery(f"{PSEUDO_PREFIX}{passage_id}", title, (passage_id,), body_only=True)
        for passage_id, title, text in passages
        if title.strip() and text.strip() and passage_id not in banned
    ]


def draw_candidates(
    query: TrainingQuery,
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
    positives = set(query.positives)
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
    query: TrainingQuery,
    candidates: Candidates,
    scores: Mapping[tuple[str, str], float] | None,
    margin: float | None = None,
) -> list[dict]:
    """One group for each positive of `query`.

    Args:
        margin: leave out of a group the negatives that the teacher scores above its positive minus this
            (false negatives), and groups that keep none. Needs scores.

    Raises:
        CollectionError: teacher scores are given and one is missing or not finite.
    """
    chosen = [*candidates.mined, *candidates.random]
    rows = []
    for positive in query.positives:
        row: dict = {
            "query_id": query.query_id,
            "query": query.text,
            "body_only": query.body_only,
            "positive": positive,
            "negatives": chosen,
            "mined": len(candidates.mined),
            "positive_score": None,
            "negative_scores": None,
        }
        if scores is not None:
            row["positive_score"] = _score(scores, query.query_id, positive)
            row["negative_scores"] = _scores(scores, query.query_id, chosen)
        if margin is not None:
            row = _without_false_negatives(row, margin)
        if margin is None or row["negatives"]:
            rows.append(row)
    return rows


def _without_false_negatives(row: dict, margin: float) -> dict:
    kept = [s <= row["positive_score"] - margin for s in row["negative_scores"]]
    return row | {
        "negatives": list(itertools.compress(row["negatives"], kept)),
        "negative_scores": list(itertools.compress(row["negative_scores"], kept)),
        "mined": sum(kept[: row["mined"]]),
    }


def _scores(
    scores: Mapping[tuple[str, str], float], query_id: str, passage_ids: Sequence[str]
) -> list[float]:
    values = [scores.get((query_id, passage_id)) for passage_id in passage_ids]
    if None in values or not all(map(math.isfinite, values)):  # pyright: ignore[reportArgumentType]
        return [_score(scores, query_id, passage_id) for passage_id in passage_ids]  # it raises
    return values  # pyright: ignore[reportReturnType]


def _score(scores: Mapping[tuple[str, str], float], query_id: str, passage_id: str) -> float:
    value = scores.get((query_id, passage_id))
    if value is None:
        raise CollectionError(f"no teacher score for query {query_id!r}, passage {passage_id!r}")
    if not math.isfinite(value):
        raise CollectionError(
            f"teacher score of query {query_id!r}, passage {passage_id!r} is {value}"
        )
    return value
