"""Teach on Ray Data: score mined candidates with a real teacher, make training groups.

scores artifact       (query_id, passage_id, score, rank)   an actor pool of teachers
groups artifact       training groups (raylab.data.teacher)
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made at run time)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from raylab.artifacts import Address, Artifact, Store, sha256_of
from raylab.config import ConfigError
from raylab.data.collections import CollectionError
from raylab.data.teacher import (
    GROUP_SCHEMA,
    SCORE_SCHEMA,
    Ask,
    Candidates,
    group_rows,
)
from raylab.jobs.cluster import unwrapped
from raylab.jobs.ingest import training_part
from raylab.jobs.mine import (
    TAUGHT,
    Mining,
    Texts,
    candidates_address,
    mine,
    read_candidates,
    training_asks,
)
from raylab.models.teachers import MAX_TOKENS, Teacher, teacher_fingerprint

SHIPPED = "shipped"  # the scores that come with an embedded collection
SHIPPED_SCORES = "teacher.parquet"
_GROUP_ROWS = 16_384


# ------------------------------------------------------------------------------------ scores


class _Scorer:
    """Ray Data actor: a teacher scores batches of (query, passage) pairs."""

    def __init__(self, source: str, models_dir: str | None):
        self.teacher = Teacher(source, models_dir)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        scores = self.teacher.score(
            [str(q) for q in batch["query"]], [str(p) for p in batch["passage"]]
        )
        return {name: batch[name] for name in ("query_id", "passage_id", "rank")} | {
            "score": scores
        }


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
    store, collection, mining = teaching.store, teaching.collection, teaching.mining
    teacher, models_dir, actors = teaching.teacher, teaching.models_dir, teaching.actors
    assert teacher is not None
    address = scores_address(collection, candidates.fingerprint, teacher, models_dir)
    if (done := store.find(address)) is not None:
        return done
    folder, part = store.local(collection), training_part(collection)
    with store.draft(address) as draft:
        # In passage order an actor meets a passage once, and passages are what costs a bi-encoder.
        ordered = sorted(
            _pairs(folder, part, store.local(candidates), mining), key=lambda p: p["passage_id"]
        )
        pairs = ray.data.from_items(ordered, override_num_blocks=16 * actors)
        scored = pairs.map_batches(
            _Scorer,
            fn_constructor_args=(teacher, models_dir),
            compute=ActorPoolStrategy(size=actors),
            batch_size=4_096,
            num_cpus=1,
        )
        tables: list[Any] = unwrapped(lambda: list(scored.iter_batches(batch_format="pyarrow")))
        table = pa.concat_tables([t.select(SCORE_SCHEMA.names).cast(SCORE_SCHEMA) for t in tables])
        table = table.sort_by([("query_id", "ascending"), ("passage_id", "ascending")])
        ranks = pc.if_else(pc.less(table["rank"], 0), pa.scalar(None, pa.int32()), table["rank"])
        table = table.set_column(3, SCORE_SCHEMA.field("rank"), ranks)
        _check_finite(table)
        metadata = {"teacher": teacher, "command": f"raylab teach --teacher {teacher}"}
        pq.write_table(
            table.replace_schema_metadata(metadata),
            draft.path / "scores.parquet",
            compression="zstd",
        )
        draft.meta.update(pairs=len(table), teacher=teacher)
    return store.committed(address)


def _pairs(folder: Path, part: str, candidates: Path, mining: Mining) -> Iterator[dict[str, Any]]:
    texts = Texts.load(folder, part)
    full = dict(zip(texts.ids, texts.texts, strict=True))
    body = dict(zip(texts.ids, texts.bodies, strict=True))
    found = read_candidates(candidates)
    for ask in training_asks(folder, part, mining, TAUGHT):
        read, own = body if ask.body_only else full, found[ask.query_id]
        ranked = [*((p, -1) for p in ask.positives), *((p, -1) for p in own.random)]
        for passage_id, rank in [*ranked, *((p, r) for r, p in enumerate(own.mined))]:
            yield {
                "query_id": ask.query_id,
                "query": ask.text,
                "passage_id": passage_id,
                "rank": rank,
                "passage": read[passage_id] or full[passage_id],
            }


def _check_finite(table: pa.Table) -> None:
    finite = pc.is_finite(table["score"]).to_numpy(zero_copy_only=False)
    if not finite.all():
        row = table.slice(int(np.flatnonzero(~finite)[0]), 1).to_pylist()[0]
        raise CollectionError(
            f"teacher score of query {row['query_id']!r}, passage {row['passage_id']!r} is {row['score']}"
        )


# ------------------------------------------------------------------------------------ groups


@dataclass(frozen=True)
class Teaching:
    """How a collection's training groups are made.

    `teacher`: None (no scores), `SHIPPED` (the embedded collection's own), a Parquet file of scores
    (query_id, passage_id, score), or a model (folder, hub id, `package:NAME/FOLDER`).
    `assets`: the embedded collection's folder, for `SHIPPED`.
    """

    store: Store
    collection: Artifact
    mining: Mining
    teacher: str | None
    models_dir: str | None
    actors: int
    assets: Path | None = None

    def scores_file(self) -> Path | None:
        """The file that holds the scores already, if one does.

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
        if self.teacher is not None and self.teacher.endswith(".parquet"):
            if not Path(self.teacher).exists():
                raise ConfigError(f"--teacher {self.teacher}: no such file")
            return Path(self.teacher)
        return None

    def address(self) -> Address:
        """Where the groups stand; depends on addresses of candidates and scores, made or not."""
        inputs = {"collection": self.collection.fingerprint}
        scores = self.scores_file()
        if scores is not None:
            inputs["scores"] = sha256_of(scores)
        else:
            candidates = candidates_address(self.collection, self.mining)
            inputs["candidates"] = candidates.fingerprint
            if self.teacher is not None:
                made = scores_address(
                    self.collection, candidates.fingerprint, self.teacher, self.models_dir
                )
                inputs["scores"] = made.fingerprint
        return Address("groups", self.collection.manifest["name"], vars(self.mining), inputs)


def make_groups(teaching: Teaching) -> Artifact:
    """Commit the training groups: mined candidates, with a teacher's scores when there is one.

    Raises:
        ConfigError, CollectionError: see `Teaching.scores_file`, `mine` and `teach`.
    """
    store, collection = teaching.store, teaching.collection
    candidates, scores_file = None, teaching.scores_file()
    if scores_file is None:
        candidates = mine(store, collection, teaching.mining, teaching.actors)
        if teaching.teacher is not None:
            scored = teach(teaching, candidates)
            scores_file = store.local(scored) / "scores.parquet"
    asks = training_asks(store.local(collection), training_part(collection), teaching.mining)
    scores = _read_scores(scores_file) if scores_file else None
    if candidates is not None:
        found = read_candidates(store.local(candidates))
    else:
        assert scores is not None
        found = _scored_candidates(asks, scores)
    values = {key: score for key, (score, _) in scores.items()} if scores is not None else None
    address = teaching.address()
    with store.draft(address) as draft:
        grouper = _Grouper(ray.put(found), ray.put(values) if values is not None else None)
        dataset = ray.data.from_items(asks, override_num_blocks=4).map_batches(
            grouper,  # type: ignore[arg-type]
            batch_size=1_024,
        )
        tables: list[Any] = unwrapped(lambda: list(dataset.iter_batches(batch_format="pyarrow")))
        table = pa.concat_tables([t.cast(GROUP_SCHEMA) for t in tables])
        table = table.sort_by([("query_id", "ascending"), ("positive", "ascending")])
        for number, start in enumerate(range(0, len(table), _GROUP_ROWS)):
            pq.write_table(
                table.slice(start, _GROUP_ROWS), draft.path / f"groups-{number:05d}.parquet"
            )
        pseudo = int(pc.sum(table["body_only"]).as_py())
        draft.meta.update(groups=len(table), pseudo=pseudo, teacher=teaching.teacher)
    return store.committed(address)


@dataclass(frozen=True)
class _Grouper:
    """Ray Data function: asks -> groups."""

    candidates: ray.ObjectRef
    scores: ray.ObjectRef | None

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        found = ray.get(self.candidates)
        scores = ray.get(self.scores) if self.scores else None
        rows = [
            row for ask in batch["item"] for row in group_rows(ask, found[ask.query_id], scores)
        ]
        return pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)


def _read_scores(path: Path) -> dict[tuple[str, str], tuple[float, int | None]]:
    """(score, rank) by (query, passage); a file without ranks gives None for all."""
    required = SCORE_SCHEMA.names[:3]
    try:
        table = pq.read_table(path)
        ranks = table["rank"].to_pylist() if "rank" in table.column_names else [None] * len(table)
        table = table.select(required).cast(
            pa.schema([SCORE_SCHEMA.field(name) for name in required])
        )
    except (pa.ArrowInvalid, KeyError) as error:
        raise CollectionError(f"{path}: not a table of {', '.join(required)} ({error})") from None
    _check_finite(table)
    keys = zip(table["query_id"].to_pylist(), table["passage_id"].to_pylist(), strict=True)
    return dict(zip(keys, zip(table["score"].to_pylist(), ranks, strict=True), strict=True))


def _scored_candidates(
    asks: list[Ask], scores: dict[tuple[str, str], tuple[float, int | None]]
) -> dict[str, Candidates]:
    """Negatives by query, from a file of scores: ranked ones are mined, the others random.

    Without any rank the scored passages are all taken as mined, best score first.
    """
    positives = {ask.query_id: set(ask.positives) for ask in asks}
    ranked: dict[str, list[tuple[float, str]]] = {q: [] for q in positives}
    others: dict[str, list[tuple[float, str]]] = {q: [] for q in positives}
    for (query_id, passage_id), (score, rank) in scores.items():
        if query_id in positives and passage_id not in positives[query_id]:
            if rank is None:
                others[query_id].append((-score, passage_id))
            else:
                ranked[query_id].append((rank, passage_id))
    found = {}
    for query_id in positives:
        mined = tuple(p for _, p in sorted(ranked[query_id]))
        rest = tuple(p for _, p in sorted(others[query_id]))
        if not mined and not rest:
            raise CollectionError(
                f"the teacher scores hold no negative passage for training query {query_id!r}"
            )
        found[query_id] = Candidates(mined, rest) if mined else Candidates(rest)
    return found
