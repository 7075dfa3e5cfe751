"""Runs read by columns are those read line by line; what is not plain is left to the other reader."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.data.faults import CollectionError
from raylab.data.files import lines
from raylab.data.grammar import run_line
from raylab.evaluation.plain_runs import plain_hits
from raylab.evaluation.runs import Run, read_run, write_run


def line_by_line(path):
    """What a reader that knows nothing of columns makes of a file."""
    hits = {}
    for _, text in lines(path):
        query_id, passage_id, score = run_line(text)
        hits.setdefault(query_id, []).append((passage_id, score))
    return Run.from_pairs(hits)


ids = st.text(
    st.characters(blacklist_categories=["Cs", "Cc", "Zs"]), min_size=1, max_size=5
).filter(lambda text: text.encode().split() == [text.encode()])
numbers = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32).map(lambda x: f"{x:.9g}"),
    st.sampled_from(["1e5", "-0", "0.0", "3.", "1e-50", "12345678901234567890"]),
)


@settings(deadline=None)
@given(
    records=st.lists(st.tuples(ids, ids, numbers), max_size=30, unique_by=lambda r: r[:2]),
    compressed=st.booleans(),
)
def test_it_is_the_run_of_the_lines(tmp_path_factory, records, compressed):
    path = tmp_path_factory.mktemp("run") / f"run.trec{'.gz' if compressed else ''}"
    text = "".join(f"{q} Q0 {p} 1 {score} tag\n" for q, p, score in records).encode()
    path.write_bytes(gzip.compress(text) if compressed else text)
    assert dict(read_run(path)) == dict(line_by_line(path))
    if not text.startswith(b"\xef\xbb\xbf") and b"\xef\xbb\xbf" not in text:
        assert plain_hits(path) is not None


def test_a_query_whose_hits_are_parted_is_one_over_blocks_too(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    order = rng.permutation(300)
    text = "".join(f"q{n % 3} Q0 p{n} 1 {n / 7:.9g} tag\n" for n in order)
    path = tmp_path / "run.trec"
    path.write_text(text)
    monkeypatch.setattr("raylab.evaluation.plain_runs._BLOCK_BYTES", 100)
    assert len(plain_hits(path)["q0"]) > 1
    assert dict(read_run(path)) == dict(line_by_line(path))


@pytest.mark.parametrize(
    "text",
    [
        "q Q0 p 1 1.5 tag\r\n", "q\tQ0\tp\t1\t1.5\ttag\n", " q Q0 p 1 1.5 tag\n", "q  Q0 p 1 1.5 tag\n",
        "q Q0 p 1 1.5 tag \n", "\ufeffq Q0 p 1 1.5 tag\n", "q Q0 p 1 +1.5 tag\n", "q Q0 p 1 0x1p3 tag\n",
        "q Q0 p 1 1.5 tag\n \nq Q0 r 1 1.5 tag\n",
    ],
)  # fmt: skip
def test_other_forms_are_read_line_by_line_and_are_the_same_run(tmp_path, text):
    path = tmp_path / "run.trec"
    path.write_bytes(text.encode())
    assert dict(read_run(path)) == dict(line_by_line(path))
    assert len(read_run(path)["q"]) in (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 p 1 nan tag\n", "run.trec:1: score 'nan'"),
        ("q Q0 p 1 inf tag\n", "run.trec:1: score 'inf'"),
        ("q Q0 p 1 NA tag\n", "run.trec:1: score 'NA'"),
        ("q Q0 p 1 3.4028234e+38 tag\nq Q0 r 1 3.4028235e+38 tag\n", "run.trec:2: score"),
        ("q Q0 p 1 1 tag\nq Q0 p 2 0.5 tag\n", "run.trec:2: passage 'p' again"),
        ("q Q0 p 1 1 tag\nq Q0 p  0.5 tag\n", "run.trec:2: 5 columns"),
        ("q Q0 p 1 1 tag\nq Q0 r 0.5 tag\n", "run.trec:2: 5 columns"),
        ("q Q0 p 1 1 tag\nq Q0 r 2 0.5 tag more\n", "run.trec:2: 7 columns"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path, text, message):
    path = tmp_path / "run.trec"
    path.write_text(text)
    with pytest.raises(CollectionError, match=message):
        read_run(path)


def test_our_own_files_are_plain(tmp_path):
    run = Run.from_pairs({"q\u00a01": [("p1", 2.0), ("p2", 1.0)], "q2": [("p1", -1.5)]})
    write_run(run, tmp_path / "run.trec.gz")
    assert plain_hits(tmp_path / "run.trec.gz").keys() == run.keys()
    assert dict(read_run(tmp_path / "run.trec.gz")) == dict(run)
