"""What a run is validated on while it trains: a few held-out queries, the same at every point and in every run.

One relevant passage a query, and 256 passages that are nobody's: so few texts can be scored a dozen times in a
run (`raylab.training.validation`). The measure is that of `raylab.evaluation.entropy`, with one set of negatives
for all queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylab.data.collections import VALIDATION, Topics
from raylab.data.registry import protocol
from raylab.data.tokens import PassageStore, find_ids
from raylab.evaluation.entropy import sample_negatives
from raylab.experiment.config import FineTuning

if TYPE_CHECKING:
    from raylab.data.tokenizer import Tokenizer
    from raylab.training.validation import ValidationTexts

MOST_QUERIES = 64
SPLITS = (VALIDATION, "dev")  # of which the first that a collection has is taken


@dataclass(frozen=True)
class ValidationQueries:
    """Queries of the validation split, in the order of a hash of their ids, and what is judged for them.

    `relevant`: passages, best first; `barred`: all passages that no query may have as a negative.
    """

    split: str
    query_ids: tuple[str, ...]
    texts: tuple[str, ...]
    relevant: tuple[tuple[str, ...], ...]
    barred: tuple[str, ...]


def validation_queries(
    collection: str, topics: Mapping[str, Topics], most: int = MOST_QUERIES
) -> ValidationQueries | None:
    """At most `most` queries that have a relevant passage; None where the collection keeps none for validation."""
    split = next((name for name in SPLITS if name in topics), None)
    if split is None:
        return None
    rules, own = protocol(collection, split), topics[split]
    chosen: list[tuple[str, tuple[str, ...]]] = []
    barred: set[str] = set()
    for query_id in sorted(own.qrels, key=lambda q: hashlib.sha256(q.encode()).digest()):
        grades = own.qrels[query_id]
        relevant = [p for p, grade in grades.items() if grade >= rules.binary_level]
        if rules.drop_own_document:
            relevant = [p for p in relevant if p != query_id]
        if relevant:
            chosen.append((query_id, tuple(sorted(relevant, key=lambda p: (-grades[p], p)))))
            barred |= {p for p, grade in grades.items() if grade > 0} | {query_id}
        if len(chosen) == most:
            break
    if not chosen:
        return None
    query_ids = tuple(query_id for query_id, _ in chosen)
    return ValidationQueries(
        split,
        query_ids,
        tuple(own.queries[query_id] for query_id in query_ids),
        tuple(relevant for _, relevant in chosen),
        tuple(sorted(barred)),
    )


def validation_texts(
    queries: ValidationQueries, store: PassageStore, tokenizer: Tokenizer, tuning: FineTuning
) -> ValidationTexts:
    """Queries and passages as the run cuts them; those whose relevant passages the store lacks are left out.

    The negatives depend on the queries and the number of passages alone.
    """
    # Imported here: it needs torch, and who only names a run does not.
    from raylab.training.validation import ValidationTexts

    kept, positives = [], []
    for text, relevant in zip(queries.texts, queries.relevant, strict=True):
        rows, known = find_ids(store.ids, relevant)
        if known.any():
            kept.append(text)
            positives.append(int(rows[known][0]))
    barred, known = find_ids(store.ids, queries.barred)
    excluded = {*barred[known].tolist(), *positives}
    negatives = sample_negatives(f"validation\0{queries.split}", len(store), excluded)
    limit = tuning.passage_length
    return ValidationTexts(
        tokenizer.encode_framed(kept, "query", tuning.query_length),
        *(
            [tokenizer.framed(store.tokens(row, limit), "passage", limit) for row in rows]
            for rows in (positives, negatives.tolist())
        ),
    )
