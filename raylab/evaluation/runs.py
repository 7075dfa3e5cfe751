"""Runs in memory and as TREC files.

A ``Run`` has no ties: equal scores are ordered by descending passage id, as trec_eval orders them, and
then lowered until they strictly decrease, as float32, within each query. Every tool that sorts by score
sees the same order, and writing and reading a run gives the same run back.
"""

import gzip
import io
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylab.data.faults import CollectionError, Kind, RecordError
from raylab.data.files import lines
from raylab.data.grammar import run_line
from raylab.evaluation.plain_runs import plain_hits

Qrels = dict[str, dict[str, int]]
"""Query id -> passage id -> grade."""

_GZIP_LEVEL = 6  # in less than half the time of 9, and 0.7 % larger


@dataclass(frozen=True, eq=False)
class Ranking(Sequence):
    """The hits of one query, best first: a sequence of (passage id, score) pairs.

    ``passage_ids``: str [n], each once; ``scores``: float32 [n], strictly decreasing.
    """

    passage_ids: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(
        cls,
        passage_ids: Sequence[str] | np.ndarray,
        scores: Sequence[float] | np.ndarray,
    ) -> "Ranking":
        """Order hits by float32 score descending, equal scores by id descending, as trec_eval does.

        A score that is not below the one before it is then lowered to the next float32 below that
        one: as small a change as makes the order unambiguous. Raises ValueError for a duplicate id,
        one that is empty or holds white space, and a score that is not finite as float32.
        """
        _check_ids(passage_ids)
        ids = np.asarray(passage_ids, dtype=np.str_)
        with np.errstate(over="ignore"):
            values = np.asarray(scores, dtype=np.float32)
        if ids.ndim != 1 or ids.shape != values.shape:
            raise ValueError(f"ids of shape {ids.shape} for scores of shape {values.shape}")
        if not np.isfinite(values).all():
            place = int(np.argmin(np.isfinite(values)))
            raise ValueError(
                f"passage {str(ids[place])!r} has score {scores[place]}; "
                "a score is a finite float32 number"
            )
        if not (values[1:] < values[:-1]).all():  # else they stand in order, as in a file of ours
            by_id = np.argsort(ids, kind="stable")[::-1]
            order = by_id[np.argsort(-values[by_id], kind="stable")]
            ids, values = ids[order], values[order]
        return cls(ids, _strictly_decreasing(values))

    def __len__(self) -> int:
        return len(self.passage_ids)

    def __getitem__(self, rank):
        """The pair at a rank (from 0), or for a slice the ``Ranking`` of those ranks."""
        if isinstance(rank, slice):
            return Ranking(self.passage_ids[rank], self.scores[rank])
        return str(self.passage_ids[rank]), float(self.scores[rank])

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return zip(self.passage_ids.tolist(), self.scores.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranking):
            return NotImplemented
        return np.array_equal(self.passage_ids, other.passage_ids) and np.array_equal(
            self.scores, other.scores
        )


class Run(Mapping[str, Ranking]):
    """Query id -> ``Ranking``, immutable, in ascending order of query id."""

    def __init__(self, rankings: Mapping[str, Ranking]):
        _check_ids(list(rankings), kind="query")
        self._rankings = {query_id: rankings[query_id] for query_id in sorted(rankings)}

    @classmethod
    def from_topk(cls, query_ids: Sequence[str], ids: np.ndarray, scores: np.ndarray) -> "Run":
        """From the answer of an index: ids [Q, k] str, scores [Q, k] float32; missing hits dropped.

        A query without any hit stays in the run with an empty ranking. Raises ValueError for
        unequal lengths, duplicate query ids, and as ``Ranking.of``.
        """
        if not len(query_ids) == len(ids) == len(scores):
            raise ValueError(
                f"{len(query_ids)} query ids for {len(ids)} rows of ids, {len(scores)} of scores"
            )
        _check_ids(query_ids, kind="query")
        rankings = {}
        for query_id, row_ids, row_scores in zip(query_ids, ids, scores, strict=True):
            exists = row_ids != ""
            rankings[query_id] = _named(query_id, row_ids[exists], row_scores[exists])
        return cls(rankings)

    @classmethod
    def from_pairs(cls, pairs: Mapping[str, Iterable[tuple[str, float]]]) -> "Run":
        """From (passage id, score) pairs in any order. Raises ValueError as ``Ranking.of``."""
        rankings = {}
        for query_id, hits in pairs.items():
            hits = list(hits)
            rankings[query_id] = _named(
                query_id, [hit[0] for hit in hits], [hit[1] for hit in hits]
            )
        return cls(rankings)

    def __getitem__(self, query_id: str) -> Ranking:
        return self._rankings[query_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rankings)

    def __len__(self) -> int:
        return len(self._rankings)

    def __repr__(self) -> str:
        return f"Run({len(self)} queries, {sum(map(len, self.values()))} hits)"


def read_run(path: str | Path) -> Run:
    """Read a TREC run (``query Q0 passage rank score tag``), gzip if the name ends in ``.gz``.

    As in trec_eval the score alone gives the order, the rank column is not used, and equal float32
    scores are ordered by passage id descending: a published run measures as published. Raises
    CollectionError ("FILE:LINE: ...") for a wrong number of columns, a score that is not a finite
    float32 number, a duplicate (query, passage), or text that is not UTF-8.
    """
    plain = _read_plain(path)
    if plain is not None:
        return plain
    hits: dict[str, dict[str, float]] = {}
    for line, text in lines(Path(path)):
        try:
            query_id, passage_id, score = run_line(text)
            query_hits = hits.setdefault(query_id, {})
            if passage_id in query_hits:
                raise RecordError(
                    Kind.DUPLICATE,
                    f"passage {passage_id!r} again for query {query_id!r}; a passage occurs once a query",
                )
        except RecordError as wrong:
            raise CollectionError(f"{path}:{line}: {wrong}") from None
        query_hits[passage_id] = score
    pairs = {query_id: query_hits.items() for query_id, query_hits in hits.items()}
    try:
        return Run.from_pairs(pairs)
    except ValueError as error:
        raise CollectionError(f"{path}: {error}") from None


def _read_plain(path: str | Path) -> Run | None:
    """A run in the form that tools write; None of another one, whose lines are then read one by one."""
    hits = plain_hits(path)
    if hits is None:
        return None
    rankings = {}
    try:
        for query_id in sorted(hits):
            parts = hits.pop(query_id)
            ids = [passage_id for ids, _ in parts for passage_id in ids.to_pylist()]
            rankings[query_id] = Ranking.of(ids, np.concatenate([scores for _, scores in parts]))
    except ValueError:  # a passage twice: which line has it again is for the other reader to say
        return None
    return Run(rankings)


def write_run(run: Run, path: str | Path, tag: str = "raylab") -> None:
    """Write a TREC run, gzip if the name ends in ``.gz``, whole or not at all (atomic rename).

    Nine significant digits bring back the same float32. The bytes depend on the run and the tag
    alone. A query without hits leaves no line. Raises ValueError for a tag that is not one word.
    """
    if len(tag.split()) != 1 or tag.strip() != tag:
        raise ValueError(f"tag {tag!r} is not one word without white space")
    with atomic_writer(path) as stream:
        for query_id, ranking in run.items():
            lines = [
                f"{query_id} Q0 {passage_id} {rank} {score:.9g} {tag}\n"
                for rank, (passage_id, score) in enumerate(ranking, 1)
            ]
            stream.write("".join(lines).encode())


def write_qrels(qrels: Mapping[str, Mapping[str, int]], path: str | Path) -> None:
    """Write TREC qrels (``query 0 passage grade``), as ``write_run``; ``read_qrels`` reads them.

    Queries and passages in ascending order of id. Raises ValueError for no judgement, an id that is
    empty or holds white space, and a grade that is not an integer.
    """
    if not any(qrels.values()):
        raise ValueError("qrels are empty: there is nothing to write")
    _check_ids(list(qrels), kind="query")
    with atomic_writer(path) as stream:
        for query_id, grades in sorted(qrels.items()):
            _check_ids(list(grades))
            for passage_id, grade in sorted(grades.items()):
                if isinstance(grade, bool) or not isinstance(grade, (int, np.integer)):
                    raise ValueError(
                        f"query {query_id!r}, passage {passage_id!r}: grade {grade!r}; "
                        "a grade is an integer"
                    )
                stream.write(f"{query_id} 0 {passage_id} {grade}\n".encode())


def _named(
    query_id: str,
    passage_ids: Sequence[str] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
) -> Ranking:
    try:
        return Ranking.of(passage_ids, scores)
    except ValueError as error:
        raise ValueError(f"query {query_id!r}: {error}") from error


def _check_ids(ids: Sequence[str] | np.ndarray, kind: str = "passage") -> None:
    listed = np.asarray(ids, dtype=object).ravel().tolist()
    for one in listed:
        if not isinstance(one, str):
            raise ValueError(f"{kind} id {one!r} is a {type(one).__name__}; ids are strings")
    encoded = [one.encode() for one in listed]
    if b" ".join(encoded).split() != encoded:
        wrong = next(one for one in listed if one.encode().split() != [one.encode()])
        raise ValueError(f"{kind} id {wrong!r} is empty or holds white space")
    if len(set(listed)) != len(listed):
        repeated = next(one for place, one in enumerate(listed) if one in listed[:place])
        raise ValueError(f"{kind} id {repeated!r} occurs twice")


def _strictly_decreasing(scores: np.ndarray) -> np.ndarray:
    """Lower scores (float32 [n], descending) by the fewest float32 steps that leave no ties.

    Floats of one sign order as their bits do; ``steps`` numbers all of them, -0.0 and 0.0 both 0.
    """
    bits = scores.view(np.int32).astype(np.int64)
    magnitude = bits & 0x7FFFFFFF
    steps = np.where(bits < 0, -magnitude, magnitude)
    ranks = np.arange(len(steps))
    steps = np.minimum.accumulate(steps + ranks) - ranks
    bits = np.where(steps < 0, -steps | 0x80000000, steps)
    return bits.astype(np.uint32).view(np.float32)


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[io.BufferedIOBase]:
    """A binary stream beside ``path`` that takes its name when the block ends without an error.

    Gzip if the name ends in ``.gz``, with bytes that depend on the content alone. Raises ValueError
    for a name in ``.zst``, and OSError, before anything is written, for a folder that is not there.
    """
    path = Path(path)
    if path.suffix == ".zst":
        raise ValueError(f"{path}: written are plain files and .gz")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(aside, "xb") as raw:
            if path.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as stream:
                    yield stream
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def drop_own_document(run: Run) -> Run:
    """The run without the hits whose passage id is the id of their query."""
    return Run({query_id: _without(ranking, query_id) for query_id, ranking in run.items()})


def cut(run: Run, depth: int) -> Run:
    """The run with the best ``depth`` hits of each query."""
    return Run(
        {
            query_id: Ranking(ranking.passage_ids[:depth], ranking.scores[:depth])
            for query_id, ranking in run.items()
        }
    )


def _without(ranking: Ranking, passage_id: str) -> Ranking:
    kept = ranking.passage_ids != passage_id
    return Ranking(ranking.passage_ids[kept], ranking.scores[kept])
