"""What a system's representations say beside its runs: contrastive entropy, postings, expected overlap.

profile artifact    entropy.parquet: contrastive entropy of every query of every split that has a
                    positive; postings and retrieval FLOPS by split in its manifest

One pass over the embedding shards, one of them in memory at a time, for all splits at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from raylab.data.collections import Topics
from raylab.data.ingested import load_topics
from raylab.data.registry import Protocol, protocol
from raylab.data.tokens import find_ids
from raylab.evaluation.efficiency import TermCounts, retrieval_flops
from raylab.evaluation.entropy import NEGATIVES, Pairs, sample_negatives
from raylab.index.embeddings import Matrix, read_ids, read_shard
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

PROFILE, ENTROPY = "profile", "entropy.parquet"
NEGATIVES_SEED = 0

_SCHEMA = pa.schema([("split", pa.string()), ("query_id", pa.string()), ("value", pa.float64())])


@dataclass(frozen=True)
class Profile:
    """One system's representations of all passages, and of the queries of every split.

    Args:
        embeddings: where the passages' artifact stands, or would (`raylab.stages.scan`).
        parts: of it, in row order, which is that of passage ids; none where nothing is stored.
        temperature: of the system's training loss.
    """

    name: str
    collection: Artifact
    embeddings: Address
    queries: Mapping[str, Artifact | Address]
    temperature: float
    parts: tuple[Artifact, ...] = ()

    def protocol(self, split: str) -> Protocol:
        return protocol(self.collection.meta["name"], split)

    @property
    def address(self) -> Address:
        rules = {split: self.protocol(split) for split in self.queries}
        settings = {
            "format": 2,
            "negatives": NEGATIVES,
            "seed": NEGATIVES_SEED,
            "temperature": self.temperature,
            "splits": {s: [p.binary_level, p.drop_own_document] for s, p in rules.items()},
        }
        inputs = {"embeddings": self.embeddings.fingerprint}
        inputs |= {f"queries-{split}": a.fingerprint for split, a in self.queries.items()}
        return Address(
            PROFILE, self.name, settings, inputs | {"collection": self.collection.fingerprint}
        )


def make_profile(store: Store, profile: Profile) -> None:
    """Commit the profile of one system, from the parts of its embeddings."""
    folders = [store.local(part) for part in profile.parts]
    passage_ids = np.concatenate([read_ids(folder) for folder in folders])
    queries = read_queries(store, profile.queries)
    pairs = pairs_of(store, profile, queries, passage_ids)
    scores_M, first = np.empty(len(pairs.rows_M)), 0
    stacked, terms = stack(queries), None
    for folder in folders:
        _, matrix = read_shard(folder)
        places, scores = pairs.scores(stacked, matrix, first)
        scores_M[places] = scores
        first += matrix.shape[0]  # type: ignore[index]
        terms = add_terms(terms, matrix)
    pairs.check_rows(first)
    commit_profile(store, profile, queries, pairs, scores_M, terms)


Queries: TypeAlias = dict[str, tuple[list[str], Matrix]]
"""(ids, representations) of the queries of every split."""


def read_queries(store: Store, queries: Mapping[str, Artifact | Address]) -> Queries:
    """Of query embeddings by split.

    Raises:
        DamagedArtifact: they are not there.
    """
    return {s: read_shard(store.local(store.committed(place))) for s, place in queries.items()}


def stack(queries: Queries) -> Matrix:
    """Those of all splits, one after the other."""
    matrices = [matrix for _, matrix in queries.values()]
    dense = [matrix for matrix in matrices if isinstance(matrix, np.ndarray)]
    return np.concatenate(dense) if dense else sp.csr_matrix(sp.vstack(matrices, format="csr"))


def add_terms(terms: TermCounts | None, matrix: Matrix) -> TermCounts | None:
    """The counts with those of a shard's terms; None for dense ones."""
    if isinstance(matrix, np.ndarray):
        return None
    counts = TermCounts.of(matrix)
    return counts if terms is None else terms + counts


def pairs_of(store: Store, profile: Profile, queries: Queries, passage_ids: np.ndarray) -> Pairs:
    """The pairs to score; ``passage_ids``: bytes [N], ascending."""
    topics = load_topics(store.local(profile.collection))
    positives, negatives = [], []
    for split, (query_ids, _) in queries.items():
        for query_id in query_ids:
            relevant, barred = _positives(
                passage_ids, topics[split], query_id, profile.protocol(split)
            )
            positives.append(relevant)
            negatives.append(
                sample_negatives(query_id, len(passage_ids), barred, seed=NEGATIVES_SEED)
                if len(relevant)
                else []
            )
    return Pairs.of(positives, negatives)


def commit_profile(
    store: Store,
    profile: Profile,
    queries: Queries,
    pairs: Pairs,
    scores_M: np.ndarray,
    terms: TermCounts | None,
) -> None:
    """Commit a profile from the scores of its pairs and the counts of the passages' terms."""
    values = pairs.entropies(scores_M, profile.temperature)
    keys = [(split, q) for split, (query_ids, _) in queries.items() for q in query_ids]
    rows = [
        {"split": split, "query_id": query_id, "value": float(value)}
        for (split, query_id), value in zip(keys, values, strict=True)
        if not np.isnan(value)
    ]
    with store.draft(profile.address) as draft:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), draft.path / ENTROPY)
        draft.meta.update(
            temperature=profile.temperature,
            negatives=int(pairs.sizes_Q2[:, 1].max(initial=0)),
            splits={split: _efficiency(matrix, terms) for split, (_, matrix) in queries.items()},
        )


def _positives(
    passage_ids: np.ndarray, topics: Topics, query_id: str, rules: Protocol
) -> tuple[np.ndarray, set[int]]:
    """Rows of a query's relevant passages, and of all that no negative may be.

    Relevant is what binary measures count so; no negative is anything that was judged above 0, nor
    the query itself where queries are passages.
    """
    grades = topics.qrels.get(query_id, {})
    relevant = [p for p, grade in grades.items() if grade >= rules.binary_level]
    barred = [p for p, grade in grades.items() if grade > 0]
    if rules.drop_own_document:
        relevant = [p for p in relevant if p != query_id]
        barred.append(query_id)
    return _rows(passage_ids, relevant), set(_rows(passage_ids, barred).tolist())


def _rows(passage_ids: np.ndarray, wanted: list[str]) -> np.ndarray:
    rows, known = find_ids(passage_ids, wanted)
    return rows[known]


def _efficiency(queries: Matrix, passages: TermCounts | None) -> dict[str, float | None]:
    """Of dense vectors a score costs one multiply-add a dimension, and there are no postings."""
    if isinstance(queries, np.ndarray) or passages is None:
        flops = float(queries.shape[1])  # type: ignore[index]
        return {"query_postings": None, "passage_postings": None, "retrieval_flops": flops}
    ours = TermCounts.of(queries)
    return {
        "query_postings": ours.postings,
        "passage_postings": passages.postings,
        "retrieval_flops": retrieval_flops(ours, passages),
    }
