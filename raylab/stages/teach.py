"""Make training groups of mined candidates with a teacher's scores, or of what a file holds.

groups artifact    training groups (`raylab.data.supervision.teacher`), by ascending query id
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylab.data.faults import CollectionError, OnFault, Quarantine, left_out
from raylab.data.ingest import PASSAGES
from raylab.data.ingested import load_topics, training_part
from raylab.data.supervision.groups import write_shards
from raylab.data.supervision.held_out import GroupCounts, HeldOut
from raylab.data.supervision.published import form_of, read_groups_of
from raylab.data.supervision.scores import LeftOut, Scores, is_run, scores_by_query
from raylab.data.supervision.teacher import Candidates, TrainingQuery, group_rows
from raylab.data.texts import passage_ids
from raylab.stages.mine import (
    candidates_by_query,
    mine,
)
from raylab.stages.score import sorted_queries, teach
from raylab.stages.teaching import Teaching
from raylab.storage.artifacts import Artifact, Draft


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
            queries = sorted_queries(folder, part, teaching.mining)
            scores = (
                None if file is None else _scores(file, queries, folder, part, draft, quarantine)
            )
            partial = file is not None and (is_run(file) or bool(quarantine.kinds))
            candidates_found = _scored_candidates(queries, scores, partial, draft)
            if candidates is not None:
                candidates_found = _mined_candidates(queries, candidates, scores)
            batches = _groups_of(candidates_found, teaching.margin, draft)
        groups, pseudo = write_shards(batches, draft.path)
        if not groups:
            kept_apart = draft.meta.get("held_out_for_evaluation")
            why = f"; {kept_apart} were of queries for evaluation" if kept_apart else ""
            raise CollectionError(
                f"{teaching.teacher}: no training group is left of it{why}{left_out(quarantine)}"
            )
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
    tally, held_out = GroupCounts(), HeldOut(load_topics(folder).values())
    yield from read_groups_of(file, held_out, passage_ids(folder, part), tally, on_fault)
    draft.meta.update(tally.facts())


def _scores(
    file: Path,
    queries: Sequence[TrainingQuery],
    folder: Path,
    part: str,
    draft: Draft,
    on_fault: OnFault,
) -> Iterator[tuple[str, Scores]]:
    left = LeftOut()
    apart = None if part == PASSAGES else passage_ids(folder, PASSAGES)
    names = [query.query_id for query in queries]
    yield from scores_by_query(file, names, passage_ids(folder, part), apart, left, on_fault)
    draft.meta.update(scores_of_evaluation_passages=left.other_passages)


# A query, its negatives, and the scores of all its passages.
_Found = Iterator[tuple[TrainingQuery, Candidates, Mapping[tuple[str, str], float] | None]]


def _mined_candidates(
    queries: Sequence[TrainingQuery], candidates: Path, scores: Iterator[tuple[str, Scores]] | None
) -> _Found:
    """All three by ascending query id; candidates and scores are of validation queries too."""
    by_id = {query.query_id: query for query in queries}
    for query_id, drawn in candidates_by_query(candidates):
        query = by_id.get(query_id)
        if query is not None:
            scored_id, given = next(scores) if scores is not None else (query_id, None)
            assert scored_id == query_id
            yield query, drawn, None if given is None else _values(query_id, given)


def _scored_candidates(
    queries: Sequence[TrainingQuery],
    scores: Iterator[tuple[str, Scores]] | None,
    partial: bool,
    draft: Draft,
) -> _Found:
    """Negatives from a file of scores: ranked ones are mined, the others random, as they were written.

    Without any rank the scored passages are all taken as mined, best score first. `partial`: the file
    need not have every query and positive (a run has no score of a positive that its system did not
    find); the queries that lack one are left out, and counted.
    """
    assert scores is not None
    given, last, left_out = iter(scores), None, 0
    for query in queries:
        last = next(given, None) if last is None else last
        query_scores: Scores = {}
        if last is not None and last[0] == query.query_id:
            query_scores, last = last[1], None
        candidates = _candidates_of(query, query_scores)
        if partial:
            positives = tuple(p for p in query.positives if p in query_scores)
            query = TrainingQuery(query.query_id, query.text, positives, query.body_only)
            if not positives or not candidates.mined:
                left_out += 1
                continue
        if not candidates.mined:
            raise CollectionError(
                f"the teacher scores hold no negative passage for training query {query.query_id!r}"
            )
        yield query, candidates, _values(query.query_id, query_scores)
    if partial:
        draft.meta["queries_without_scores"] = left_out


def _candidates_of(query: TrainingQuery, scores: Scores) -> Candidates:
    negatives = {p: s for p, s in scores.items() if p not in set(query.positives)}
    ranked = sorted((rank, p) for p, (_, rank) in negatives.items() if rank is not None)
    others = sorted((-score, p) for p, (score, rank) in negatives.items() if rank is None)
    mined, rest = tuple(p for _, p in ranked), tuple(p for _, p in others)
    return Candidates(mined, rest) if mined else Candidates(rest)


def _values(query_id: str, scores: Scores) -> dict[tuple[str, str], float]:
    return {(query_id, passage): score for passage, (score, _) in scores.items()}


def _groups_of(found: _Found, margin: float | None, draft: Draft) -> Iterator[list[dict[str, Any]]]:
    expected = count = 0
    for query, candidates, scores in found:
        rows = group_rows(query, candidates, scores, margin)
        expected += len(query.positives)
        count += len(rows)
        yield rows
    if margin is not None:
        draft.meta["groups_without_negatives_left"] = expected - count
