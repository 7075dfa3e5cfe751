"""Score mined candidates with a teacher that is a model.

scores artifact    scores.parquet: (query_id, passage_id, score, rank), sorted; the teacher's fingerprint
                   in the file's metadata

Pairs are scored in shards, each an artifact until the last is done: a killed run goes on from the
finished ones, and ends with the same content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.collections import TRAIN
from raylab.data.faults import CollectionError
from raylab.data.ingested import training_part
from raylab.data.supervision.teacher import SCORE_SCHEMA, TrainingQuery
from raylab.data.texts import Texts, passage_ids
from raylab.data.tokens import find_ids
from raylab.experiment.config import ComputeDtype
from raylab.models.teachers import Teacher, teacher_fingerprint
from raylab.stages.mine import (
    TAUGHT,
    Mining,
    candidates_by_query,
    training_queries,
)
from raylab.stages.shards import make_shards, remove_shards
from raylab.stages.teaching import Teaching
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

_SHARD_PAIRS = 16_384
_WRITTEN = 2**18  # scores a row group


@dataclass(frozen=True)
class ScoreTask:
    """One shard of pairs, in passage order: an encoder meets a passage in one shard, and once."""

    address: Address
    queries: tuple[TrainingQuery, ...]
    query_of: np.ndarray  # int32 [N], places in `queries`
    rows: np.ndarray  # int32 [N], ascending rows of the training passages


@dataclass(frozen=True)
class Scorer:
    """Starts a worker that commits shards of scores: scores.npy, float32 [N] in the order of the pairs."""

    store: Store
    folder: Path
    part: str
    teacher: str
    models_dir: str | None
    compute_dtype: ComputeDtype

    def __call__(self) -> Callable[[ScoreTask], None]:
        teacher = Teacher(self.teacher, self.models_dir, self.compute_dtype)

        def make(task: ScoreTask) -> None:
            first = int(task.rows[0])
            texts = Texts.read(self.folder, self.part, range(first, int(task.rows[-1]) + 1))
            texts_of_queries, passages = [], []
            for place, row in zip(task.query_of, task.rows - first, strict=True):
                query = task.queries[place]
                texts_of_queries.append(query.text)
                bare = texts.bodies[row] if query.body_only else ""
                passages.append(bare or texts.texts[row])
            scores = teacher.score(texts_of_queries, passages)
            if not np.isfinite(scores).all():
                at = int(np.isfinite(scores).argmin())
                query, passage = task.queries[task.query_of[at]], texts.ids[task.rows[at] - first]
                raise CollectionError(
                    f"teacher score of query {query.query_id!r}, passage {passage!r} is {scores[at]}"
                )
            with self.store.draft(task.address) as draft:
                np.save(draft.path / "scores.npy", scores)
                draft.meta["pairs"] = len(scores)

        return make


@dataclass(frozen=True)
class _Pairs:
    """What is to be scored, by ascending query and then passage."""

    queries: Sequence[TrainingQuery]
    ids: np.ndarray  # bytes [P], of the training passages
    query_of: np.ndarray  # int32 [N]
    rows: np.ndarray  # int32 [N]
    ranks: np.ndarray  # int32 [N]; -1: positives, and negatives drawn at random

    @classmethod
    def of(cls, queries: Sequence[TrainingQuery], ids: np.ndarray, candidates: Path) -> _Pairs:
        by_id = {query.query_id: number for number, query in enumerate(queries)}
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for query_id, drawn in candidates_by_query(candidates):
            number = by_id[query_id]
            positives = queries[number].positives
            rows, _ = find_ids(ids, [*positives, *drawn.random, *drawn.mined])
            ranks = np.full(len(rows), -1, np.int32)
            ranks[len(rows) - len(drawn.mined) :] = np.arange(len(drawn.mined))
            order = np.argsort(rows)
            numbers = np.full(len(rows), number, np.int32)
            parts.append((numbers, rows[order].astype(np.int32), ranks[order]))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return cls(queries, ids, *columns)

    def tasks(self, address: Address) -> Iterator[tuple[np.ndarray, ScoreTask]]:
        """(places of the pairs, task) of every shard."""
        order = np.argsort(self.rows, kind="stable")
        for start in range(0, len(order), _SHARD_PAIRS):
            places = order[start : start + _SHARD_PAIRS]
            numbers, query_of = np.unique(self.query_of[places], return_inverse=True)
            facts = {"pairs": [start, start + len(places)]}
            yield (
                places,
                ScoreTask(
                    address.shard(start // _SHARD_PAIRS, facts),
                    tuple(self.queries[number] for number in numbers),
                    query_of.astype(np.int32),
                    self.rows[places],
                ),
            )

    def tables(self, scores: np.ndarray) -> Iterator[pa.Table]:
        """Tables of `SCORE_SCHEMA`."""
        for start in range(0, len(scores), _WRITTEN):
            part = slice(start, start + _WRITTEN)
            ranks = self.ranks[part]
            columns = [
                [self.queries[number].query_id for number in self.query_of[part]],
                [one.decode() for one in self.ids[self.rows[part]]],
                pa.array(scores[part]),
                pa.array(ranks, mask=ranks < 0),
            ]
            yield pa.table(columns, schema=SCORE_SCHEMA)


def teach(teaching: Teaching, candidates: Artifact) -> Artifact:
    """Commit the teacher's scores of every training query's positives and candidates.

    Raises:
        ConfigError: no such teacher.
        CollectionError: a score that is not finite.
    """
    store, collection, teacher = teaching.store, teaching.collection, teaching.teacher
    assert teacher is not None
    address = teaching.scores_address(candidates)
    if (done := store.find(address)) is not None:
        return done
    folder, part = store.local(collection), training_part(collection)
    queries = sorted_queries(folder, part, teaching.mining, TAUGHT)
    pairs = _Pairs.of(queries, passage_ids(folder, part), store.local(candidates))
    places, tasks = zip(*pairs.tasks(address), strict=True)
    start = Scorer(store, folder, part, teacher, teaching.models_dir, teaching.compute_dtype)
    shards = make_shards(store, tasks, start, teaching.pool, teaching.actors)
    scores = np.empty(len(pairs.rows), np.float32)
    for pair_places, shard in zip(places, shards, strict=True):
        scores[pair_places] = np.load(store.local(shard) / "scores.npy")
    metadata = {
        "teacher": teacher,
        "fingerprint": teacher_fingerprint(teacher, teaching.models_dir),
        "command": f"raylab data teach --teacher {teacher}",
    }
    with store.draft(address) as draft:
        schema = SCORE_SCHEMA.with_metadata(metadata)
        with pq.ParquetWriter(draft.path / "scores.parquet", schema, compression="zstd") as writer:
            for table in pairs.tables(scores):
                writer.write_table(table.replace_schema_metadata(metadata))
        draft.meta.update(pairs=len(scores), teacher=teacher)
    remove_shards(store, shards)
    return store.committed(address)


def sorted_queries(
    folder: Path, part: str, mining: Mining, splits: tuple[str, ...] = (TRAIN,)
) -> list[TrainingQuery]:
    return sorted(training_queries(folder, part, mining, splits), key=lambda query: query.query_id)
