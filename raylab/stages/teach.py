"""Teach on Ray: score mined candidates with a real teacher; make training groups.

scores artifact    scores.parquet: (query_id, passage_id, score, rank), sorted; the teacher's fingerprint
                   in the file's metadata
groups artifact    training groups (raylab.data.supervision.teacher), by ascending query id

Pairs are scored in shards, each an artifact until the last is done: a killed run goes on from the
finished ones, and ends with the same content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.collections import TRAIN
from raylab.data.faults import CollectionError, OnFault, Quarantine
from raylab.data.ingest import PASSAGES
from raylab.data.ingested import load_topics, training_part
from raylab.data.supervision.groups import write_shards
from raylab.data.supervision.published import Tally, form_of, read_groups_of
from raylab.data.supervision.scores import Left, Scores, is_run, scores_by_query
from raylab.data.supervision.teacher import SCORE_SCHEMA, Ask, Candidates, group_rows
from raylab.data.texts import Texts, passage_ids
from raylab.data.tokens import find_ids
from raylab.experiment.config import ConfigError, fault_identity
from raylab.models.teachers import MAX_TOKENS, Teacher, teacher_fingerprint
from raylab.stages.mine import (
    TAUGHT,
    Mining,
    candidates_address,
    candidates_by_query,
    mine,
    training_asks,
)
from raylab.stages.shards import Pool, local_pool, make_shards, remove_shards
from raylab.storage.artifacts import Address, Artifact, Draft, sha256_of
from raylab.storage.store import Store

SHIPPED = "shipped"  # the scores that come with an embedded collection
SHIPPED_SCORES = "teacher.parquet"
_SHARD_PAIRS = 16_384
_WRITTEN = 2**18  # scores a row group


@dataclass(frozen=True)
class Teaching:
    """How a collection's training groups are made.

    `teacher`: None (no scores), `SHIPPED` (the embedded collection's own), a file of scores or of
    training groups (`raylab.data.supervision.published`), or a model (`raylab.models.teachers`).
    `assets`: the embedded collection's folder, for `SHIPPED`.
    `margin`: leave out negatives that the teacher scores above the positive minus this.
    """

    store: Store
    collection: Artifact
    mining: Mining
    teacher: str | None
    models_dir: str | None
    actors: int | None  # None: as many as the cluster takes
    assets: Path | None = None
    margin: float | None = None
    pool: Pool = field(default=local_pool, compare=False)

    def scores_file(self) -> Path | None:
        """The file that holds the scores, or the groups, already, if one does.

        Raises:
            ConfigError: it is not there.
        """
        if self.teacher == SHIPPED:
            if self.assets is None or not (self.assets / SHIPPED_SCORES).exists():
                name = self.collection.manifest["name"]
                raise ConfigError(
                    f"collection {name!r} ships no teacher scores; give --teacher MODEL"
                )
            return self.assets / SHIPPED_SCORES
        if self.teacher is not None and Path(self.teacher).is_file():
            return Path(self.teacher)
        if self.teacher is not None and self.teacher.endswith(".parquet"):
            raise ConfigError(f"--teacher {self.teacher}: no such file")
        return None

    def address(self) -> Address:
        """Where the groups stand; depends on addresses of candidates and scores, made or not."""
        inputs = {"collection": self.collection.fingerprint}
        scores = self.scores_file()
        if scores is not None:
            inputs["scores"] = sha256_of(scores)
        else:
            candidates = candidates_address(self.collection, self.mining, self.models_dir)
            inputs["candidates"] = candidates.fingerprint
            if self.teacher is not None:
                made = scores_address(
                    self.collection, candidates.fingerprint, self.teacher, self.models_dir
                )
                inputs["scores"] = made.fingerprint
        identity = self.mining.identity(self.models_dir)
        if scores is not None:
            identity |= fault_identity(self.mining.on_fault)
        if self.margin is not None:
            identity["margin"] = self.margin
        return Address("groups", self.collection.manifest["name"], identity, inputs)


# ------------------------------------------------------------------------------------ scores


@dataclass(frozen=True)
class ScoreTask:
    """One shard of pairs, in passage order: an encoder meets a passage in one shard, and once."""

    address: Address
    asks: tuple[Ask, ...]
    ask_of: np.ndarray  # int32 [N], places in `asks`
    rows: np.ndarray  # int32 [N], ascending rows of the training passages


@dataclass(frozen=True)
class Scorer:
    """Starts a worker that commits shards of scores: scores.npy, float32 [N] in the order of the pairs."""

    store: Store
    folder: Path
    part: str
    teacher: str
    models_dir: str | None

    def __call__(self) -> Callable[[ScoreTask], None]:
        teacher = Teacher(self.teacher, self.models_dir)

        def make(task: ScoreTask) -> None:
            first = int(task.rows[0])
            texts = Texts.read(self.folder, self.part, range(first, int(task.rows[-1]) + 1))
            queries, passages = [], []
            for place, row in zip(task.ask_of, task.rows - first, strict=True):
                ask = task.asks[place]
                queries.append(ask.text)
                bare = texts.bodies[row] if ask.body_only else ""
                passages.append(bare or texts.texts[row])
            scores = teacher.score(queries, passages)
            if not np.isfinite(scores).all():
                at = int(np.isfinite(scores).argmin())
                ask, passage = task.asks[task.ask_of[at]], texts.ids[task.rows[at] - first]
                raise CollectionError(
                    f"teacher score of query {ask.query_id!r}, passage {passage!r} is {scores[at]}"
                )
            with self.store.draft(task.address) as draft:
                np.save(draft.path / "scores.npy", scores)
                draft.meta["pairs"] = len(scores)

        return make


@dataclass(frozen=True)
class _Pairs:
    """What is to be scored, by ascending query and then passage."""

    asks: Sequence[Ask]
    ids: np.ndarray  # bytes [P], of the training passages
    ask_of: np.ndarray  # int32 [N]
    rows: np.ndarray  # int32 [N]
    ranks: np.ndarray  # int32 [N]; -1: positives, and negatives drawn at random

    @classmethod
    def of(cls, asks: Sequence[Ask], ids: np.ndarray, candidates: Path) -> _Pairs:
        by_id = {ask.query_id: number for number, ask in enumerate(asks)}
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for query_id, own in candidates_by_query(candidates):
            number = by_id[query_id]
            positives = asks[number].positives
            rows, _ = find_ids(ids, [*positives, *own.random, *own.mined])
            ranks = np.full(len(rows), -1, np.int32)
            ranks[len(rows) - len(own.mined) :] = np.arange(len(own.mined))
            order = np.argsort(rows)
            numbers = np.full(len(rows), number, np.int32)
            parts.append((numbers, rows[order].astype(np.int32), ranks[order]))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return cls(asks, ids, *columns)

    def tasks(self, address: Address) -> Iterator[tuple[np.ndarray, ScoreTask]]:
        """(places of the pairs, task) of every shard."""
        order = np.argsort(self.rows, kind="stable")
        for start in range(0, len(order), _SHARD_PAIRS):
            places = order[start : start + _SHARD_PAIRS]
            numbers, ask_of = np.unique(self.ask_of[places], return_inverse=True)
            what = {"pairs": [start, start + len(places)]}
            yield (
                places,
                ScoreTask(
                    address.shard(start // _SHARD_PAIRS, what),
                    tuple(self.asks[number] for number in numbers),
                    ask_of.astype(np.int32),
                    self.rows[places],
                ),
            )

    def tables(self, scores: np.ndarray) -> Iterator[pa.Table]:
        """Tables of `SCORE_SCHEMA`."""
        for start in range(0, len(scores), _WRITTEN):
            part = slice(start, start + _WRITTEN)
            ranks = self.ranks[part]
            columns = [
                [self.asks[number].query_id for number in self.ask_of[part]],
                [one.decode() for one in self.ids[self.rows[part]]],
                pa.array(scores[part]),
                pa.array(ranks, mask=ranks < 0),
            ]
            yield pa.table(columns, schema=SCORE_SCHEMA)


def scores_address(
    collection: Artifact, candidates: str, teacher: str, models_dir: str | None
) -> Address:
    identity = {"teacher": teacher_fingerprint(teacher, models_dir), "max_tokens": MAX_TOKENS}
    return Address("scores", collection.manifest["name"], identity, {"candidates": candidates})


def teach(teaching: Teaching, candidates: Artifact) -> Artifact:
    """Commit the teacher's scores of every training query's positives and candidates.

    Raises:
        ConfigError: no such teacher.
        CollectionError: a score that is not finite.
    """
    store, collection, teacher = teaching.store, teaching.collection, teaching.teacher
    assert teacher is not None
    address = scores_address(collection, candidates.fingerprint, teacher, teaching.models_dir)
    if (done := store.find(address)) is not None:
        return done
    folder, part = store.local(collection), training_part(collection)
    asks = _sorted_asks(folder, part, teaching.mining, TAUGHT)
    pairs = _Pairs.of(asks, passage_ids(folder, part), store.local(candidates))
    places, tasks = zip(*pairs.tasks(address), strict=True)
    start = Scorer(store, folder, part, teacher, teaching.models_dir)
    shards = make_shards(store, tasks, start, teaching.pool, teaching.actors)
    scores = np.empty(len(pairs.rows), np.float32)
    for own, shard in zip(places, shards, strict=True):
        scores[own] = np.load(store.local(shard) / "scores.npy")
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


def _sorted_asks(
    folder: Path, part: str, mining: Mining, splits: tuple[str, ...] = (TRAIN,)
) -> list[Ask]:
    return sorted(training_asks(folder, part, mining, splits), key=lambda ask: ask.query_id)


# ------------------------------------------------------------------------------------ groups


def make_groups(teaching: Teaching) -> Artifact:
    """Commit the training groups: mined candidates with a teacher's scores, or what a file holds.

    Raises:
        ConfigError, CollectionError: see `Teaching.scores_file`, `mine` and `teach`; no group at all.
    """
    store, collection = teaching.store, teaching.collection
    folder, part = store.local(collection), training_part(collection)
    file, candidates = teaching.scores_file(), None
    if file is None:
        mined = mine(
            store, collection, teaching.mining, teaching.actors, teaching.models_dir, teaching.pool
        )
        candidates = store.local(mined)
        if teaching.teacher is not None:
            file = store.local(teach(teaching, mined)) / "scores.parquet"
    on_fault = teaching.mining.on_fault
    with store.draft(teaching.address()) as draft, Quarantine(draft.path, on_fault) as quarantine:
        if file is not None and candidates is None and form_of(file) == "groups":
            batches = _read_groups(file, folder, part, draft, quarantine)
        else:
            asks = _sorted_asks(folder, part, teaching.mining)
            scores = None if file is None else _scores(file, asks, folder, part, draft, quarantine)
            partial = file is not None and (is_run(file) or bool(quarantine.kinds))
            found = _scored_candidates(asks, scores, partial, draft)
            if candidates is not None:
                found = _mined_candidates(asks, candidates, scores)
            batches = _groups_of(found, teaching.margin, draft)
        groups, pseudo = write_shards(batches, draft.path)
        if not groups:
            raise CollectionError(f"{teaching.teacher}: no training group is left of it")
        draft.meta.update(
            groups=groups,
            pseudo=pseudo,
            teacher=teaching.teacher,
            quarantined=quarantine.facts(),
        )
    return store.committed(teaching.address())


def _read_groups(
    file: Path, folder: Path, part: str, draft: Draft, on_fault: OnFault
) -> Iterator[list[dict[str, Any]]]:
    """Groups of a file, of training queries and of such that the collection does not have."""
    topics = load_topics(folder)
    query_ids: dict[str, str] = {}
    if TRAIN in topics:
        for query_id, text in sorted(topics[TRAIN].queries.items(), reverse=True):
            query_ids[text] = query_id
    held_out = {text for t in topics.values() if t.split != TRAIN for text in t.queries.values()}
    tally = Tally()
    yield from read_groups_of(
        file, query_ids, passage_ids(folder, part), held_out - set(query_ids), tally, on_fault
    )
    draft.meta.update(own_queries=tally.own_queries, held_out_for_evaluation=tally.held_out)


def _scores(
    file: Path, asks: Sequence[Ask], folder: Path, part: str, draft: Draft, on_fault: OnFault
) -> Iterator[tuple[str, Scores]]:
    left = Left()
    apart = None if part == PASSAGES else passage_ids(folder, PASSAGES)
    names = [ask.query_id for ask in asks]
    yield from scores_by_query(file, names, passage_ids(folder, part), apart, left, on_fault)
    draft.meta.update(scores_of_evaluation_passages=left.other_passages)


# A query, its negatives, and the scores of all its passages.
_Found = Iterator[tuple[Ask, Candidates, Mapping[tuple[str, str], float] | None]]


def _mined_candidates(
    asks: Sequence[Ask], candidates: Path, scores: Iterator[tuple[str, Scores]] | None
) -> _Found:
    """All three by ascending query id; candidates and scores are of validation queries too."""
    by_id = {ask.query_id: ask for ask in asks}
    for query_id, own in candidates_by_query(candidates):
        ask = by_id.get(query_id)
        if ask is not None:
            scored_id, given = next(scores) if scores is not None else (query_id, None)
            assert scored_id == query_id
            yield ask, own, None if given is None else _values(query_id, given)


def _scored_candidates(
    asks: Sequence[Ask], scores: Iterator[tuple[str, Scores]] | None, partial: bool, draft: Draft
) -> _Found:
    """Negatives from a file of scores: ranked ones are mined, the others random, as they were written.

    Without any rank the scored passages are all taken as mined, best score first. `partial`: the file
    need not have every query and positive (a run has no score of a positive that its system did not
    find); the queries that lack one are left out, and counted.
    """
    assert scores is not None
    given, last, left_out = iter(scores), None, 0
    for ask in asks:
        last = next(given, None) if last is None else last
        own: Scores = {}
        if last is not None and last[0] == ask.query_id:
            own, last = last[1], None
        candidates = _candidates_of(ask, own)
        if partial:
            positives = tuple(p for p in ask.positives if p in own)
            ask = Ask(ask.query_id, ask.text, positives, ask.body_only)
            if not positives or not candidates.mined:
                left_out += 1
                continue
        if not candidates.mined:
            raise CollectionError(
                f"the teacher scores hold no negative passage for training query {ask.query_id!r}"
            )
        yield ask, candidates, _values(ask.query_id, own)
    if partial:
        draft.meta["queries_without_scores"] = left_out


def _candidates_of(ask: Ask, scores: Scores) -> Candidates:
    negatives = {p: s for p, s in scores.items() if p not in set(ask.positives)}
    ranked = sorted((rank, p) for p, (_, rank) in negatives.items() if rank is not None)
    others = sorted((-score, p) for p, (score, rank) in negatives.items() if rank is None)
    mined, rest = tuple(p for _, p in ranked), tuple(p for _, p in others)
    return Candidates(mined, rest) if mined else Candidates(rest)


def _values(query_id: str, scores: Scores) -> dict[tuple[str, str], float]:
    return {(query_id, passage): score for passage, (score, _) in scores.items()}


def _groups_of(found: _Found, margin: float | None, draft: Draft) -> Iterator[list[dict[str, Any]]]:
    expected = count = 0
    for ask, candidates, scores in found:
        rows = group_rows(ask, candidates, scores, margin)
        expected += len(ask.positives)
        count += len(rows)
        yield rows
    if margin is not None:
        draft.meta["groups_without_negatives_left"] = expected - count
