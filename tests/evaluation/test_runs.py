"""Runs and qrels: one order for every tool, lossless files, errors that say where."""

import gzip

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.data.collections import read_qrels
from raylab.evaluation.runs import (
    Ranking,
    Run,
    read_run,
    write_qrels,
    write_run,
)

FLOATS = st.floats(
    width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**99), max_value=2.0**99
)
SCORES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0]), FLOATS)
HITS = st.dictionaries(st.integers(0, 99).map(str), SCORES, max_size=30)


@settings(deadline=None)
@given(HITS)
def test_order_is_score_then_id_and_scores_move_only_to_break_ties(hits):
    ranking = Ranking.of(list(hits), list(hits.values()))
    """The order is trec_eval's, of equal scores too."""
    expected = sorted(hits, key=lambda i: (np.float32(hits[i]), i), reverse=True)
    assert ranking.passage_ids.tolist() == expected
    assert ranking.scores.dtype == np.float32
    assert (np.diff(ranking.scores) < 0).all()
    given_scores = np.array([hits[passage_id] for passage_id in expected], np.float32)
    before = np.float32(np.inf)
    for score, wanted in zip(ranking.scores, given_scores, strict=True):
        just_below = np.nextafter(before, np.float32(-np.inf), dtype=np.float32)
        assert score == (wanted if wanted < before else just_below)
        before = score


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 9).map(str), HITS.filter(bool), min_size=1, max_size=4))
def test_written_run_reads_the_same_and_trec_eval_sees_its_order(tmp_path_factory, hits):
    run = Run.from_pairs({query_id: query_hits.items() for query_id, query_hits in hits.items()})
    path = tmp_path_factory.mktemp("runs") / "a.trec.gz"
    write_run(run, path)
    assert read_run(path) == run
    with gzip.open(path, "rt") as stream:
        printed = pytrec_eval.parse_run(stream)
    for query_id, ranking in run.items():
        for rank, passage_id in enumerate(ranking.passage_ids.tolist(), 1):
            judged = pytrec_eval.RelevanceEvaluator({query_id: {passage_id: 1}}, {"recip_rank"})
            measured = judged.evaluate({query_id: printed[query_id]})[query_id]["recip_rank"]
            assert measured == pytest.approx(1 / rank)


def test_file_is_as_trec_wants_it_and_repeatable(tmp_path):
    run = Run.from_topk(
        ["q2", "q1", "q0"],
        np.array([["b", "a", ""], ["c", "", ""], ["", "", ""]]),
        np.array([[0.1, 0.1, -np.inf], [3, -np.inf, -np.inf], [-np.inf] * 3], np.float32),
    )
    write_run(run, tmp_path / "run.trec", tag="x")
    assert (tmp_path / "run.trec").read_text() == (
        "q1 Q0 c 1 3 x\nq2 Q0 b 1 0.100000001 x\nq2 Q0 a 2 0.099999994 x\n"
    )
    assert list(run["q0"]) == []
    for name in ("1.gz", "2.gz"):
        write_run(run, tmp_path / name)
    assert (tmp_path / "1.gz").read_bytes() == (tmp_path / "2.gz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "run"
    good = Run.from_pairs({"q": [("a", 1.0)]})
    write_run(good, path)
    old = path.read_text()
    with pytest.raises(ValueError, match="not enough values"):
        write_run({"q": [("b", 1.0)], "r": [()]}, path)  # type: ignore[arg-type]
    assert path.read_text() == old
    assert list(tmp_path.iterdir()) == [path]


def test_ties_in_a_file_are_read_as_trec_eval_reads_them(tmp_path):
    path = tmp_path / "run"
    path.write_text("q Q0 a 1 2.0 t\nq Q0 c 2 2.0 t\nq Q0 b 3 2.00000001 t\nq Q0 d 4 3 t\n")
    assert read_run(path)["q"].passage_ids.tolist() == ["d", "c", "b", "a"]


def test_ranking_is_a_sequence_of_pairs():
    ranking = Ranking.of(["a", "b", "c"], [1.0, 3.0, 2.0])
    assert list(ranking) == [("b", 3.0), ("c", 2.0), ("a", 1.0)]
    assert ranking[0] == ("b", 3.0)
    assert ranking[:2] == Ranking.of(["b", "c"], [3.0, 2.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 a 1 1.0 t\nq Q0 b 2 1.0\n", ":2: 5 columns; a run has 6"),
        ("q Q0 a 1 high t\n", ":1: score 'high'"),
        ("q Q0 a 1 nan t\n", ":1: score 'nan'"),
        ("q Q0 a 1 1e39 t\n", ":1: score '1e39'"),
        ("q Q0 a 1 2 t\nq Q0 a 2 1 t\n", ":2: passage 'a' again for query 'q'"),
        (b"q Q0 \xff 1 2 t\n", ":1: byte 6 is not UTF-8"),
    ],
)
def test_bad_run_lines_are_named(tmp_path, text, message):
    path = tmp_path / "bad.trec"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="bad.trec" + message):
        read_run(path)


def test_cut_gzip_is_named(tmp_path):
    whole = gzip.compress(b"q Q0 a 1 2 t\n" * 1000)
    for content in (whole[:-9], b"plain text"):
        (tmp_path / "cut.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.gz:\d+: "):
            read_run(tmp_path / "cut.gz")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"q": [("a", 1.0), ("a", 2.0)]}, "query 'q': passage id 'a' occurs twice"),
        ({"q": [("a b", 1.0)]}, "passage id 'a b' is empty or holds white space"),
        ({"q": [("a", float("inf"))]}, "query 'q': passage 'a' has score inf"),
        ({"q": [(7, 1.0)]}, "passage id 7 is a int"),
        ({"": [("a", 1.0)]}, "query id '' is empty"),
        ({5: [("a", 1.0)]}, "query id 5 is a int"),
    ],
)
def test_bad_hits_are_named(pairs, message):
    with pytest.raises(ValueError, match=message):
        Run.from_pairs(pairs)


def test_tag_must_be_a_word(tmp_path):
    with pytest.raises(ValueError, match="tag"):
        write_run(Run({}), tmp_path / "run", tag="two words")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 9).map(str),
        st.dictionaries(st.text("aé-.7", min_size=1), st.integers(-3, 4), min_size=1),
        min_size=1,
    ),
    st.sampled_from(["qrels.tsv", "qrels.tsv.gz"]),
)
def test_written_qrels_read_the_same_here_and_in_trec_eval(tmp_path_factory, qrels, name):
    path = tmp_path_factory.mktemp("qrels") / name
    write_qrels(qrels, path)
    assert read_qrels(path) == qrels
    with gzip.open(path, "rt") if name.endswith(".gz") else open(path) as stream:
        assert pytrec_eval.parse_qrel(stream) == qrels


def test_qrels_are_in_four_columns(tmp_path):
    write_qrels({"q2": {"b": 0, "a": 1}, "q1": {"c": 3}}, tmp_path / "qrels")
    assert (tmp_path / "qrels").read_text() == "q1 0 c 3\nq2 0 a 1\nq2 0 b 0\n"


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ({}, "qrels are empty"),
        ({"q": {}}, "qrels are empty"),
        ({"q": {"a": 1.5}}, "query 'q', passage 'a': grade 1.5; a grade is an integer"),
        ({"q": {"a b": 1}}, "passage id 'a b' is empty or holds white space"),
        ({"q r": {"a": 1}}, "query id 'q r' is empty"),
    ],
)
def test_bad_qrels_are_named_and_not_written(tmp_path, qrels, message):
    with pytest.raises(ValueError, match=message):
        write_qrels(qrels, tmp_path / "qrels")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_again_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"run\.zst: written are plain files and \.gz"):
        write_run(Run({}), tmp_path / "run.zst")
