"""Teacher scores of pairs, query by query: whatever the order of the file, in parts that fit."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylab.data.faults import CollectionError
from raylab.data.supervision import scores as module
from raylab.data.supervision.scores import LeftOut, scores_by_query

QUERIES = sorted(f"q{i}" for i in range(40))
PASSAGES = np.array(sorted(f"p{i}".encode() for i in range(30)))
APART = np.array([b"e1", b"e2"])


@pytest.fixture
def pairs() -> list[tuple[str, str, float]]:
    """Pairs of 60 queries, of which 40 are asked for, in random order; some of kept-apart passages."""
    rng = np.random.default_rng(0)
    made = [
        (f"q{q}", f"p{p}", float(np.float32(rng.normal())))
        for q in range(60)
        for p in rng.choice(30, 12, replace=False)
    ]
    made += [("q3", "e1", 5.0), ("q4", "e2", 6.0), ("q59", "unheard", 1.0)]
    return [made[i] for i in rng.permutation(len(made))]


def run_file(path, pairs):
    text = "".join(f"{q} Q0 {p} {i} {s:.9g} tag\n" for i, (q, p, s) in enumerate(pairs))
    path.write_bytes(gzip.compress(text.encode()))
    return path


def table_file(path, pairs, **more):
    queries, passages, scores = zip(*pairs, strict=True)
    columns = {"query_id": queries, "passage_id": passages, "score": scores} | more
    pq.write_table(pa.table({name: list(c) for name, c in columns.items()}), path, row_group_size=7)
    return path


@pytest.mark.parametrize("write", [run_file, table_file])
@pytest.mark.parametrize("parts", [1, 7, 40, 256])
def test_each_query_has_its_own_scores(tmp_path, monkeypatch, pairs, write, parts):
    path, left = write(tmp_path / "scores", pairs), LeftOut()
    monkeypatch.setattr(module, "_PART_BYTES", path.stat().st_size / parts)
    monkeypatch.setattr(module, "_BATCH_SCORES", 50)
    found = list(scores_by_query(path, QUERIES, PASSAGES, APART, left))
    expected: dict = {}
    for query, passage, score in pairs:
        if query in QUERIES and passage[0] == "p":
            expected.setdefault(query, {})[passage] = (score, None)
    assert [query for query, _ in found] == sorted(expected)
    assert dict(found) == expected
    assert left == LeftOut(other_queries=20 * 12 + 1, other_passages=2)


def test_ranks_come_along(tmp_path):
    pairs = [("q1", "p1", 0.5), ("q1", "p2", 0.25)]
    path = table_file(tmp_path / "scores", pairs, rank=pa.array([None, 4], pa.int32()).to_pylist())
    assert dict(scores_by_query(path, QUERIES, PASSAGES)) == {
        "q1": {"p1": (0.5, None), "p2": (0.25, 4)}
    }


def test_a_query_without_scores_is_passed_over(tmp_path):
    path = table_file(tmp_path / "scores", [("q7", "p1", 0.5)])
    assert [q for q, _ in scores_by_query(path, QUERIES, PASSAGES)] == ["q7"]
    assert list(scores_by_query(path, [], PASSAGES)) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("q1 Q0 p1 9 1.0 tag", "passage 'p1' again for query 'q1'"),
        ("q1 Q0 p99 9 1.0 tag", "unknown passage 'p99'"),
        ("q1 Q0 p3 9 high tag", "score 'high'"),
        ("q1 Q0 p3 9 nan tag", "score 'nan'"),
        ("q1 Q0 p3 9 1e39 tag", "score '1e39'"),
        ("q1 Q0 p3 9 1.0", "5 columns"),
    ],
)
def test_a_faulty_line_of_a_run_is_named(tmp_path, monkeypatch, line, words):
    monkeypatch.setattr(module, "_BATCH_SCORES", 2)
    path = tmp_path / "run"
    path.write_text(f"q1 Q0 p1 1 3.0 tag\nq2 Q0 p2 1 3.0 tag\n\nq1 Q0 p2 2 2.0 tag\n{line}\n")
    with pytest.raises(CollectionError) as fault:
        list(scores_by_query(path, QUERIES, PASSAGES))
    assert str(fault.value).startswith(f"{path}:5: ")
    assert words in str(fault.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("q1", "p1", 2.0), "passage 'p1' again for query 'q1'"),
        (("q1", "p99", 2.0), "unknown passage 'p99'"),
        (("q1", "p3", float("inf")), "passage 'p3' is inf"),
        (("q1", "p3", 1e300), "passage 'p3' is inf"),
        (("q1", "p3", None), "score is null"),
        ((None, "p3", 1.0), "query_id is null"),
    ],
)
def test_a_faulty_row_of_a_table_is_named(tmp_path, row, words):
    pairs = [("q1", "p1", 3.0), *[(f"q{i}", "p2", 1.0) for i in range(1, 20)], row]
    path = table_file(tmp_path / "scores", pairs)
    with pytest.raises(CollectionError) as fault:
        list(scores_by_query(path, QUERIES, PASSAGES))
    assert str(fault.value).startswith(f"{path}:21: ")
    assert words in str(fault.value)


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    path = table_file(tmp_path / "scores", [("q1", "p1", "high")])
    with pytest.raises(CollectionError, match="not a table of query_id, passage_id, score"):
        list(scores_by_query(path, QUERIES, PASSAGES))
