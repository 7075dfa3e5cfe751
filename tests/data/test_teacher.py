"""Training groups: who asks, what is drawn against it, which scores are believed, published formats."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylab.data.collections import Topics
from raylab.data.faults import CollectionError
from raylab.data.supervision.groups import open_groups, write_arrays
from raylab.data.supervision.held_out import HeldOut
from raylab.data.supervision.published import read_published
from raylab.data.supervision.teacher import (
    GROUP_SCHEMA,
    Candidates,
    TrainingQuery,
    asks_of_titles,
    asks_of_topics,
    draw_candidates,
    group_rows,
)

# --------------------------------------------------------------------------------------- asks


def test_a_query_asks_for_its_relevant_passages_only():
    """Grade 0 is judged and not relevant; a query with nothing relevant trains nothing."""
    topics = Topics(
        "train",
        {"q1": "first", "q2": "second", "q3": "third"},
        {"q1": {"b": 1, "a": 2, "c": 0}, "q2": {"a": 0}, "q3": {"c": 3}},
    )
    assert asks_of_topics(topics) == [
        TrainingQuery("q1", "first", ("a", "b")),
        TrainingQuery("q3", "third", ("c",)),
    ]


def test_titles_ask_for_bodies_without_them():
    passages = [
        ("p1", "A title", "a body"),
        ("p2", "", "no title"),
        ("p3", " ", "a blank title"),
        ("p4", "no body", " "),
        ("p5", "banned", "body"),
    ]
    (ask,) = asks_of_titles(passages, banned=frozenset({"p5"}))
    assert (ask.text, ask.positives, ask.body_only) == ("A title", ("p1",), True)
    assert ask.query_id != "p1"  # a passage's id may also be a query's


def test_pseudo_queries_have_distinct_ids():
    asks = asks_of_titles([("p1", "same", "x"), ("p2", "same", "y")])
    assert len({ask.query_id for ask in asks}) == 2


# --------------------------------------------------------------------------------- candidates


ASK = TrainingQuery("q", "text", ("p1", "p2"))


def test_positives_and_their_copies_are_no_negatives():
    texts = {"p1": 11, "p2": 22, "copy": 22, "a": 1, "b": 2, "c": 3}
    drawn = ["copy", "c", "p2", "a"]
    found = draw_candidates(ASK, ["p1", "a", "copy", "b", "p2"], drawn, texts, depth=2, random=5)
    assert found == Candidates(("a", "b"), ("c",))


def test_the_best_ranked_come_first_and_random_ones_fill_up():
    """BM25 finds few passages for some queries; every group has `depth` mined ones all the same."""
    texts = {name: i for i, name in enumerate("abcdefgh")}
    found = draw_candidates(ASK, ["d", "b"], ["e", "b", "a", "e", "c"], texts, depth=4, random=1)
    assert found == Candidates(("d", "b", "e", "a"), ("c",))


def test_a_small_collection_gives_what_it_has():
    texts = {"p1": 1, "p2": 2, "a": 3}
    found = draw_candidates(ASK, ["p1", "a"], ["a", "p2", "a"], texts, depth=20, random=12)
    assert found == Candidates(("a",), ())


def test_padding_of_a_short_ranking_is_no_passage():
    """A searcher fills the end of a short result with empty ids."""
    assert draw_candidates(ASK, ["a", "", ""], [""], {"a": 1}, depth=3, random=3).mined == ("a",)


IDS = [f"p{i}" for i in range(12)]


@given(
    positives=st.sets(st.sampled_from(IDS), min_size=1, max_size=4),
    ranked=st.lists(st.sampled_from(IDS), max_size=20),
    drawn=st.lists(st.sampled_from(IDS), max_size=30),
    hashes=st.lists(st.integers(0, 5), min_size=len(IDS), max_size=len(IDS)),
    depth=st.integers(0, 8),
    random=st.integers(0, 8),
)
def test_candidates_are_what_a_naive_loop_picks(positives, ranked, drawn, hashes, depth, random):
    texts = dict(zip(IDS, hashes, strict=True))
    ask = TrainingQuery("q", "text", tuple(sorted(positives)))
    found = draw_candidates(ask, ranked, drawn, texts, depth, random)

    def allowed(passage: str) -> bool:
        return all(passage != p and texts[passage] != texts[p] for p in positives)

    mined: list[str] = []
    for passage in [*ranked, *drawn]:
        if len(mined) < depth and allowed(passage) and passage not in mined:
            mined.append(passage)
    others: list[str] = []
    for passage in drawn:
        if len(others) < random and allowed(passage) and passage not in [*mined, *others]:
            others.append(passage)
    assert found == Candidates(tuple(mined), tuple(others))


# ------------------------------------------------------------------------------------- groups


def test_every_positive_makes_a_group_with_all_candidates():
    candidates = Candidates(("a", "b"), ("c",))
    scores = {
        ("q", p): s for p, s in (("p1", 5.0), ("p2", 4.0), ("a", 1.0), ("b", 0.5), ("c", -2.0))
    }
    first, second = group_rows(ASK, candidates, scores)
    assert (first["positive"], first["positive_score"]) == ("p1", 5.0)
    assert (second["positive"], second["positive_score"]) == ("p2", 4.0)
    for row in (first, second):
        assert row["query_id"] == "q"
        assert row["negatives"] == ["a", "b", "c"]
        assert row["negative_scores"] == [1.0, 0.5, -2.0]
        assert row["mined"] == 2
        assert row["body_only"] is False


def test_without_a_teacher_there_are_no_scores():
    rows = group_rows(ASK, Candidates(("a",)), None)
    assert [(r["positive_score"], r["negative_scores"]) for r in rows] == [(None, None)] * 2


@pytest.mark.parametrize("missing", ["p2", "b", "c"])
def test_a_missing_score_names_query_and_passage(missing):
    scores = {("q", p): 1.0 for p in ("p1", "p2", "a", "b", "c") if p != missing}
    with pytest.raises(
        CollectionError, match=f"no teacher score for query 'q', passage '{missing}'"
    ):
        group_rows(ASK, Candidates(("a", "b"), ("c",)), scores)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(value):
    scores = {("q", "p1"): 1.0, ("q", "p2"): 1.0, ("q", "a"): value}
    with pytest.raises(CollectionError, match=f"query 'q', passage 'a' is {value}"):
        group_rows(ASK, Candidates(("a",)), scores)


def test_a_score_of_zero_is_a_score():
    scores = {("q", "p1"): 0.0, ("q", "p2"): 0.0, ("q", "a"): 0.0}
    assert group_rows(ASK, Candidates(("a",)), scores)[0]["negative_scores"] == [0.0]


# -------------------------------------------------------------------------- published formats


def published(tmp_path, *records):
    path = tmp_path / "teacher.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_the_three_published_formats_give_the_same_groups(tmp_path):
    """2502.15526, Fine-tuning: CL+KD with scores, CL without, KD with the positive first."""
    path = published(
        tmp_path,
        {"question": "why", "pos_pid": 7, "neg_pids": [1, 2], "pos_score": 9.5, "neg_scores": [1, -2.5]},
        {"question": "why", "pos_pid": "7", "neg_pids": ["1", "2"]},
        {"query": "why", "docids": [7, 1, 2], "scores": [9.5, 1, -2.5]},
    )  # fmt: skip
    rows = list(read_published(path, HeldOut([Topics("train", {"q12": "why"}, {})])))
    for row in rows:
        assert (row["query_id"], row["query"]) == ("q12", "why")
        assert (row["positive"], row["negatives"], row["mined"]) == ("7", ["1", "2"], 2)
        assert row["body_only"] is False
    assert [r["positive_score"] for r in rows] == [9.5, None, 9.5]
    assert [r["negative_scores"] for r in rows] == [[1, -2.5], None, [1, -2.5]]
    assert pa.Table.from_pylist(rows, schema=GROUP_SCHEMA).num_rows == 3


def test_an_unknown_query_text_is_its_own_id(tmp_path):
    (row,) = read_published(
        published(tmp_path, {"question": "new", "pos_pid": "1", "neg_pids": ["2"]})
    )
    assert row["query_id"] == "new"


@pytest.mark.parametrize(
    "record",
    [
        "not json",
        "[1, 2]",
        "null",
        '"docids"',
        {"question": "q", "pos_pid": 1},
        {"question": "q", "neg_pids": [1]},
        {"query": "q", "docids": [1, 2]},
        {"query": "q", "docids": [], "scores": []},
        {"query": "q", "docids": [1, 2], "scores": [1.0]},
        {"query": "q", "docids": [1, 2], "scores": [1.0, 2.0, 3.0]},
        {"query": "q", "docids": [1, 2], "scores": [1.0, "2.0"]},
        {"query": "q", "docids": [1, 2], "scores": [1.0, None]},
        '{"query": "q", "docids": [1, 2], "scores": [1.0, NaN]}',
        '{"query": "q", "docids": [1, 2], "scores": [Infinity, 1.0]}',
        {"question": "q", "pos_pid": 1, "neg_pids": [2], "pos_score": 1.0, "neg_scores": []},
        # scores for one half only: such a group cannot be distilled
        {"question": "q", "pos_pid": 1, "neg_pids": [2], "neg_scores": [1.0]},
        {"question": "q", "pos_pid": 1, "neg_pids": [2], "pos_score": 1.0},
        # a text where a list is due would be read letter by letter
        {"question": "q", "pos_pid": 1, "neg_pids": "23"},
        {"query": "q", "docids": "12", "scores": [1.0, 2.0]},
        {"question": ["q"], "pos_pid": 1, "neg_pids": [2]},
        {"question": "q", "pos_pid": None, "neg_pids": [2]},
        {"question": "q", "pos_pid": 1, "neg_pids": [[2]]},
    ],
)  # fmt: skip
def test_a_faulty_record_is_named_by_file_and_line(tmp_path, record):
    good = {"question": "q", "pos_pid": 1, "neg_pids": [2]}
    path = published(tmp_path, good, good, record)
    with pytest.raises(CollectionError) as fault:
        list(read_published(path))
    message = str(fault.value)
    assert message.startswith(f"{path}:3: ")
    assert '"docids"' in message  # what would be right
    assert "\n" not in message


# ------------------------------------------------------------------------------- groups on disk


ROWS = {f"p{i}": 10 + i for i in range(6)}


def rows_of(passage_ids):
    return np.array([ROWS[p] for p in passage_ids], np.int64)


def group(query: str, positive: str, negatives: list[str], scores: list[float] | None, **more):
    return {
        "query_id": query,
        "query": f"text of {query}",
        "body_only": False,
        "positive": positive,
        "negatives": negatives,
        "mined": 1,
        "positive_score": scores[0] if scores else None,
        "negative_scores": scores[1:] if scores else None,
    } | more


def write(folder, *shards):
    for number, shard in enumerate(shards):
        pq.write_table(
            pa.Table.from_pylist(shard, schema=GROUP_SCHEMA),
            folder / f"groups-{number:05d}.parquet",
        )
    write_arrays(sorted(folder.glob("*.parquet")), rows_of, folder / "arrays")
    return open_groups(folder / "arrays")


def test_groups_of_several_shards_come_back_as_they_were_written(tmp_path):
    first = group("q1", "p0", ["p1", "p2", "p3"], [9, 3, 2, 1], mined=2)
    second = group("q2", "p4", ["p5"], [8, 7], body_only=True)
    third = group("q3", "p5", ["p1", "p0"], [6, 5, 4])
    groups = write(tmp_path, [first, second], [third])
    assert len(groups) == 3
    assert list(groups.query_ids) == ["q1", "q2", "q3"]
    assert list(groups.queries) == ["text of q1", "text of q2", "text of q3"]
    assert groups.body_only.tolist() == [False, True, False]
    assert groups.positives.tolist() == [10, 14, 15]
    assert [n.tolist() for n in groups.negatives] == [[11, 12, 13], [15], [11, 10]]
    assert groups.mined.tolist() == [2, 1, 1]
    assert groups.positive_scores.tolist() == [9, 8, 6]
    assert [s.tolist() for s in groups.negative_scores] == [[3, 2, 1], [7], [5, 4]]


def test_scores_count_only_when_every_group_has_them(tmp_path):
    groups = write(tmp_path, [group("q1", "p0", ["p1"], [2, 1]), group("q2", "p2", ["p3"], None)])
    assert groups.positive_scores is None
    assert groups.negative_scores is None
    assert [n.tolist() for n in groups.negatives] == [[11], [13]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_on_disk_that_is_not_finite_names_file_and_query(tmp_path, value, place):
    scores: list = [3.0, 2.0, 1.0]
    scores[place] = value
    bad = group("q7", "p0", ["p1", "p2"], None) | {
        "positive_score": scores[0],
        "negative_scores": scores[1:],
    }
    good = group("q1", "p2", ["p3"], [2, 1])
    with pytest.raises(CollectionError) as fault:
        write(tmp_path, [good], [good, bad, good])
    message = str(fault.value)
    assert message.startswith(f"{tmp_path / 'groups-00001.parquet'}: query 'q7': ")
    assert "score" in message


@pytest.mark.parametrize("scores", [[3.0], [3.0, 2.0], [3.0, 2.0, 1.0, 0.0]])
def test_scores_on_disk_are_as_many_as_passages(tmp_path, scores):
    bad = group("q7", "p0", ["p1", "p2"], scores)
    with pytest.raises(CollectionError) as fault:
        write(tmp_path, [group("q1", "p2", ["p3"], [2, 1]), bad])
    assert str(fault.value) == (
        f"{tmp_path / 'groups-00000.parquet'}: query 'q7': "
        f"{len(scores) - 1} teacher scores for 2 negatives"
    )


def test_misaligned_scores_do_not_slip_through_as_many_in_all(tmp_path):
    """One score too few and one too many: the flat columns are as long, and every pair is wrong."""
    first = group("q1", "p0", ["p1", "p2"], [3.0, 2.0])
    second = group("q2", "p3", ["p4"], [3.0, 2.0, 1.0])
    with pytest.raises(CollectionError, match="query 'q1': 1 teacher scores for 2 negatives"):
        write(tmp_path, [first, second])


def test_half_a_score_is_refused_where_others_have_none(tmp_path):
    half = group("q7", "p0", ["p1"], None) | {"positive_score": 1.0}
    with pytest.raises(CollectionError, match="query 'q7': teacher scores of the positive or of"):
        write(tmp_path, [group("q1", "p2", ["p3"], None), half])


def test_published_groups_survive_parquet(tmp_path):
    path = published(
        tmp_path,
        {"query": "why", "docids": ["p0", "p1", "p2"], "scores": [3.0, 1.0, 2.0]},
        {"query": "how", "docids": ["p3", "p4"], "scores": [0.5, -0.5]},
    )
    (tmp_path / "groups").mkdir()
    groups = write(
        tmp_path / "groups",
        list(read_published(path, HeldOut([Topics("train", {"q1": "why"}, {})]))),
    )
    assert list(groups.query_ids) == ["q1", "how"]
    assert [n.tolist() for n in groups.negatives] == [[11, 12], [14]]
    assert [s.tolist() for s in groups.negative_scores] == [[1.0, 2.0], [-0.5]]
