"""Faults of teacher files set aside: every one is told of with its line, and nothing sound is lost."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylab.data.faults import CollectionError, Kind, Quarantine
from raylab.data.supervision.held_out import HeldOut
from raylab.data.supervision.published import read_groups_of
from raylab.data.supervision.scores import scores_by_query
from raylab.experiment.config import ConfigError
from raylab.experiment.faults import FAULTS, quarantined_kinds

KNOWN = np.array([f"p{i}".encode() for i in range(9)])
SOUND = [{"question": f"q{i}", "pos_pid": f"p{i}", "neg_pids": [f"p{i + 1}"]} for i in range(5)]
FAULTY = {
    "encoding": b'{"question": "caf\xe9", "pos_pid": "p1", "neg_pids": ["p2"]}',
    "format": b'{"question": "q", "pos_pid": "p1"}',
    "fields": b'{"query": "q", "docids": ["p1", "p2"], "scores": [1]}',
    "empty": b'{"question": " ", "pos_pid": "p1", "neg_pids": ["p2"]}',
    "id": b'{"question": "q", "pos_pid": 1.5, "neg_pids": ["p2"]}',
    "duplicate": b'{"question": "q", "pos_pid": "p1", "neg_pids": ["p2", "p2"]}',
    "unknown": b'{"question": "q", "pos_pid": "p1", "neg_pids": ["p77"]}',
    "score": b'{"query": "q", "docids": ["p1", "p2"], "scores": [1, NaN]}',
}


def told(folder) -> list[tuple[str, int]]:
    faults = [json.loads(line) for line in (folder / "quarantine.jsonl").open()]
    return [(Kind(fault["kind"]).name.lower(), fault["line"]) for fault in faults]


@pytest.fixture
def groups(tmp_path):
    """A file with a fault of every kind after each sound group, and where each fault is."""
    lines, places = [], {}
    for number, (kind, line) in enumerate(FAULTY.items()):
        lines += [json.dumps(SOUND[number % 5]).encode(), line]
        places[kind] = len(lines)
    path = tmp_path / "teacher.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, places


def test_groups_go_on_without_their_faulty_records(groups, tmp_path):
    path, places = groups
    with Quarantine(tmp_path, "quarantine") as quarantine:
        batches = list(read_groups_of(path, HeldOut(()), KNOWN, on_fault=quarantine))
    assert [r["query"] for b in batches for r in b] == [f"q{i % 5}" for i in range(8)]
    assert dict(told(tmp_path)) == places
    assert quarantine.facts() == {str(Kind[kind.upper()]): 1 for kind in places}


@pytest.mark.parametrize("kind", list(FAULTY))
def test_a_policy_is_for_the_kinds_it_names(groups, tmp_path, kind):
    path, places = groups
    others = ",".join(other for other in FAULTY if other != kind)
    with (
        Quarantine(tmp_path, f"quarantine:{others}") as quarantine,
        pytest.raises(CollectionError) as fault,
    ):
        list(read_groups_of(path, HeldOut(()), KNOWN, on_fault=quarantine))
    assert str(fault.value).startswith(f"{path}:{places[kind]}: ")


SCORES = [("q1", "p1", 3.0), ("q1", "p2", 2.0), ("q2", "p1", 1.0)]
EXPECTED = [("q1", {"p1": (3.0, None), "p2": (2.0, None)}), ("q2", {"p1": (1.0, None)})]


def scores(path, folder):
    with Quarantine(folder, "quarantine") as quarantine:
        return list(scores_by_query(path, ["q1", "q2"], KNOWN, on_fault=quarantine))


def test_a_run_goes_on_without_its_faulty_lines(tmp_path):
    sound = [f"{q} Q0 {p} 1 {s} tag" for q, p, s in SCORES]
    faulty = ["q1 Q0 p3 1 high tag", "q1 Q0 p3 1 inf tag", "q1 p3 1", "q1 Q0 p77 1 1 tag"]
    path = tmp_path / "run.trec"
    path.write_text("\n".join([sound[0], *faulty, *sound[1:], "q1 Q0 p1 9 9 tag"]) + "\n")
    with path.open("ab") as file:
        file.write(b"q1 Q0 caf\xe9 1 1 tag\n")
    assert scores(path, tmp_path) == EXPECTED
    assert sorted(told(tmp_path)) == sorted(
        [
            *(("score", 2), ("score", 3), ("fields", 4), ("unknown", 5)),
            *(("duplicate", 8), ("encoding", 9)),
        ]
    )


def test_a_table_goes_on_without_its_faulty_rows(tmp_path):
    faulty = [("q1", "p3", None), (None, "p3", 1.0), ("q1", "p77", 1.0), ("q1", "p3", np.inf)]
    rows = [SCORES[0], *faulty, *SCORES[1:], ("q1", "p1", 9.0)]
    path = tmp_path / "scores.parquet"
    columns = zip(("query_id", "passage_id", "score"), zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns}), path)
    assert scores(path, tmp_path) == EXPECTED
    assert sorted(told(tmp_path)) == sorted(
        [("score", 2), ("id", 3), ("unknown", 4), ("score", 5), ("duplicate", 8)]
    )


def test_kinds_are_named_alike_everywhere():
    assert tuple(kind.name.lower() for kind in Kind) == FAULTS
    assert quarantined_kinds("error") == frozenset()
    assert quarantined_kinds("quarantine") == frozenset(FAULTS)
    for wrong in ("ignore", "quarantine:", "quarantine:nothing", "error:empty", ""):
        with pytest.raises(ConfigError, match="on_fault = "):
            quarantined_kinds(wrong)
