"""Teacher files of others: told by their content, streamed, and strict about each record."""

import gzip
import itertools
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylab.data.collections import Topics
from raylab.data.faults import CollectionError
from raylab.data.supervision.groups import write_shards
from raylab.data.supervision.held_out import GroupCounts, HeldOut
from raylab.data.supervision.published import form_of, read_groups_of, read_published
from raylab.data.supervision.scores import read_scores

OWN = HeldOut([Topics("train", {"q12": "why"}, {})])
KNOWN = np.array([b"p0", b"p1", b"p2", b"p3"])
RECORDS = [
    {"question": "why", "pos_pid": "p0", "neg_pids": ["p1", "p2"], "pos_score": 9.5, "neg_scores": [1, -2.5]},
    {"question": "how", "pos_pid": "p3", "neg_pids": ["p1"], "pos_score": 1.5, "neg_scores": [0.25]},
]  # fmt: skip
KD = [
    {"query": "why", "docids": ["p0", "p1", "p2"], "scores": [9.5, 1, -2.5]},
    {"query": "how", "docids": ["p3", "p1"], "scores": [1.5, 0.25]},
]
RUN = "q1 Q0 p1 1 12.5 tag\nq1 Q0 p2 2 11 tag\nq2 Q0 p1 1 3 tag\n"


def jsonl(records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


SCORE_TABLE = pa.table(
    {"query_id": ["q1", "q1", "q2"], "passage_id": ["p1", "p2", "p1"], "score": [12.5, 11.0, 3.0]}
)
FILES = {
    "CL+KD": ("groups", jsonl(RECORDS)),
    "CL": ("groups", jsonl([{k: r[k] for k in ("question", "pos_pid", "neg_pids")} for r in RECORDS])),
    "KD": ("groups", jsonl(KD)),
    "KD columns": ("groups", parquet(pa.Table.from_pylist(KD))),
    "CL+KD columns": ("groups", parquet(pa.Table.from_pylist(RECORDS))),
    "run": ("scores", RUN.encode()),
    "table": ("scores", parquet(SCORE_TABLE)),
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    def write(content: bytes, name: str = "teacher"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def read_all(path) -> list:
    """Every record of a file, whatever it holds."""
    if form_of(path) == "groups":
        return list(read_published(path))
    return [row for table in read_scores(path) for row in table.to_pylist()]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["teacher", "scores.jsonl", "x.trec.gz", "y.parquet"])
def test_a_file_is_what_it_holds_whatever_its_name(file, kind, name):
    form, content = FILES[kind]
    plain = file(content, name)
    assert form_of(plain) == form
    rows = read_all(plain)
    if "parquet" not in kind and not content.startswith(b"PAR1"):
        zipped = file(gzip.compress(content), name)
        assert form_of(zipped) == form
        assert read_all(zipped) == rows


@pytest.mark.parametrize("kind", ["CL+KD", "KD", "KD columns", "CL+KD columns"])
def test_every_format_gives_the_same_groups(file, kind):
    first, second = read_published(file(FILES[kind][1]), OWN)
    assert first == {
        "query_id": "q12", "query": "why", "body_only": False, "positive": "p0",
        "negatives": ["p1", "p2"], "mined": 2, "positive_score": 9.5, "negative_scores": [1.0, -2.5],
    }  # fmt: skip
    assert (second["query_id"], second["negatives"], second["negative_scores"]) == (
        "how",
        ["p1"],
        [0.25],
    )


def test_groups_that_raylab_wrote_come_back_as_they_were(tmp_path, file):
    rows = [*read_published(file(FILES["KD"][1]), OWN)]
    rows[0] |= {"mined": 1, "body_only": True}
    write_shards([rows], tmp_path)
    path = tmp_path / "groups-00000.parquet"
    assert form_of(path) == "groups"
    assert list(read_published(path)) == rows


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ('{"query": "q", "docids": ["p1", "p2"], "scores": [1, 1e39]}', "finite float32"),
        ('{"query": "q", "docids": ["p1", "p2"], "scores": [1, 1e999]}', "finite float32"),
        (f'{{"query": "q", "docids": ["p1", "p2"], "scores": [1, {10**400}]}}', "finite float32"),
        ('{"query": "q", "docids": ["p1", "p2"], "scores": [1, true]}', "finite float32"),
        ('{"query": "q", "docids": ["p1", "p1"], "scores": [1, 2]}', "'p1' is among the negatives"),
        ('{"query": "q", "docids": ["p1"], "scores": [1]}', "no negative passage"),
        ('{"query": "q", "docids": ["p1", "p2"], "scores": [1, 2], "neg_pids": []}', "two formats"),
        ('{"question": "q", "pos_pid": "p1", "neg_pids": ["p2", "p2"]}', "'p2' is listed twice"),
        ('{"question": "q", "pos_pid": "p1", "neg_pids": []}', "is empty"),
        ('{"question": "q", "pos_pid": true, "neg_pids": ["p2"]}', "neither a string nor"),
        ('{"question": "q", "pos_pid": 1.0, "neg_pids": ["p2"]}', "neither a string nor"),
        ('{"question": "q", "pos_pid": "", "neg_pids": ["p2"]}', "not a string with text"),
        ('{"question": " ", "pos_pid": "p1", "neg_pids": ["p2"]}', "not a string with text"),
        ('{"question": "\\ud800", "pos_pid": "p1", "neg_pids": ["p2"]}', "surrogates"),
        ('{"question": "q", "pos_pid": "p1"}', "key 'neg_pids' is missing"),
        ('{"question": "q", "pos_pid": "p1", "neg_pids": ["p2"', "delimiter"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_faulty_record_names_its_line_and_what_is_wrong(file, record, words):
    path = file(jsonl(RECORDS) + record.encode() + b"\n")
    with pytest.raises(CollectionError) as fault:
        read_all(path)
    assert str(fault.value).startswith(f"{path}:3: ")
    assert words in str(fault.value)


def test_a_faulty_row_of_a_table_is_named_by_its_number(file):
    table = pa.Table.from_pylist([*KD, {"query": "q", "docids": ["p1", "p2"], "scores": [1.0]}])
    path = file(parquet(table))
    with pytest.raises(CollectionError, match=":3: 0 scores for 1 negatives"):
        read_all(path)


def many(count: int) -> list[dict]:
    return [
        {"question": f"q{i}", "pos_pid": f"p{i % 4}", "neg_pids": [f"p{(i + 1) % 4}"]}
        for i in range(count)
    ]


@pytest.mark.parametrize("line", [1, 256, 257, 600])
@pytest.mark.parametrize("place", ["pos_pid", "neg_pids"])
def test_an_unknown_passage_names_its_line(file, line, place):
    records = many(600)
    records[line - 1][place] = "p9" if place == "pos_pid" else ["p0\0"]
    path = file(jsonl(records))
    with pytest.raises(CollectionError) as fault:
        list(read_groups_of(path, HeldOut(()), KNOWN))
    assert str(fault.value).startswith(f"{path}:{line}: unknown passage 'p")


def test_queries_kept_for_evaluation_are_left_out_and_counted(file):
    tally = GroupCounts()
    path = file(jsonl(many(600)))
    training = Topics("train", {"id0": "q0", "id9": "q9"}, {})
    test = Topics("test", {"a": "q7", "b": "q599"}, {})
    held_out = HeldOut([training, test])
    rows = list(itertools.chain(*read_groups_of(path, held_out, KNOWN, tally)))
    assert tally == GroupCounts(groups=598, own_queries=596, held_out=2)
    names = [row["query_id"] for row in rows]
    assert names[0] == "id0"
    assert not {"q7", "q599"} & set(names)


def test_a_file_is_read_as_it_is_used_in_flat_memory(file):
    """A fault far behind what was asked for is not met; four times the groups take no more memory."""

    def peak(count: int) -> int:
        path = file(jsonl(many(count)))
        tracemalloc.start()
        for _ in read_groups_of(path, HeldOut(()), KNOWN):
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    next(read_groups_of(file(jsonl(many(600)) + b"{"), HeldOut(()), KNOWN))
    assert peak(8_000) < 1.3 * peak(2_000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"q1 0 p1 2\n", ":1: no teacher file begins like this"),
        (b"q1\tp1\t0.5\n", ":1: no teacher file begins like this"),
        (b"\xff\xfe{}\n", ":1: byte 1 is not UTF-8"),
        (b"PAR1 and no more", "the Parquet file is damaged"),
        (parquet(pa.table({"qid": ["q"], "score": [1.0]})), "not a table of query_id, passage_id"),
        (gzip.compress(jsonl(RECORDS), mtime=0)[:-9], "the gzip stream is damaged"),
        (gzip.compress(RUN.encode(), mtime=0)[:12], "the gzip stream is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_teacher_file_is_told_in_one_line(file, content, words):
    path = file(content)
    with pytest.raises(CollectionError) as fault:
        read_all(path)
    assert str(fault.value).startswith(str(path))
    assert words in str(fault.value)
    assert "\n" not in str(fault.value)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_gives_whole_records(file, data):
    """Any library's own error would be a traceback to the user."""
    content = bytearray(FILES[data.draw(st.sampled_from(list(FILES)))][1])
    if data.draw(st.booleans()) and not content.startswith(b"PAR1"):
        content = bytearray(gzip.compress(bytes(content), mtime=0))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            del content[at : at + data.draw(st.integers(1, 8))]
        if not content:
            break
    path = file(bytes(content))
    try:
        rows = read_all(path)
    except CollectionError as fault:
        named = str(fault).startswith(str(path))
        assert named
        return
    for row in rows:
        if "score" in row:
            assert row["query_id"]
            assert np.isfinite(row["score"])
        else:
            assert len({row["positive"], *row["negatives"]}) == 1 + len(row["negatives"]) > 1
            scores = row["negative_scores"]
            assert scores is None or len(scores) == len(row["negatives"])
