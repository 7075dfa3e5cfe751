"""Mining, scoring and groups, run in this process: what they make, and that a killed run goes on."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylab.data.collections import read_passages, read_topics
from raylab.data.faults import CollectionError
from raylab.data.sources import open_collection
from raylab.models.retriever import Retriever
from raylab.models.teachers import Teacher, teacher_fingerprint
from raylab.stages import mine as mining_module
from raylab.stages import mining_index
from raylab.stages import score as scoring
from raylab.stages.mine import Mining, candidates_by_query, mine
from raylab.stages.score import teach
from raylab.stages.shards import local_pool
from raylab.stages.teach import make_groups
from raylab.stages.teaching import Teaching
from raylab.storage.store import Store
from tests.stages.collections import committed

SMALL = Mining(depth=5, random=3)


class Killed(BaseException):
    """Plays a process that dies."""


def dies_after(shards: int):
    """A pool whose process dies once it has made so many shards."""

    def pool(start, tasks, workers):
        make = start()
        for made, task in enumerate(tasks):
            if made == shards:
                raise Killed
            make(task)

    return pool


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "lab"))


@pytest.fixture
def teaching(store, collection_folder) -> Teaching:
    collection = committed(store, collection_folder)
    return Teaching(store, collection, SMALL, None, None, 1, pool=local_pool)


def with_teacher(teaching: Teaching, teacher, **more) -> Teaching:
    return dataclasses.replace(teaching, teacher=str(teacher), **more)


def groups_of(teaching: Teaching) -> list[dict]:
    folder = teaching.store.local(make_groups(teaching))
    shards = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return pa.concat_tables(shards).to_pylist()


def candidates_of(teaching: Teaching, mining: Mining, pool=local_pool) -> dict:
    made = mine(teaching.store, teaching.collection, mining, 1, pool=pool)
    return dict(candidates_by_query(teaching.store.local(made)))


# ------------------------------------------------------------------------------------- scoring


@pytest.fixture
def truth(collection_folder) -> tuple[dict[str, str], dict]:
    """(query texts, passages by id) of the collection."""
    source = open_collection(str(collection_folder))
    topics = read_topics(source)
    queries = {q: text for t in topics.values() for q, text in t.queries.items()}
    return queries, {p.passage_id: p for p in read_passages(source.passages)}


def test_every_pair_has_the_score_of_its_texts(teaching, teacher_folder, truth, monkeypatch):
    monkeypatch.setattr(scoring, "_SHARD_PAIRS", 100)
    teaching = with_teacher(teaching, teacher_folder)
    mined = mine(teaching.store, teaching.collection, SMALL, 1, pool=local_pool)
    scores = teach(teaching, mined)
    path = teaching.store.local(scores) / "scores.parquet"
    rows = pq.read_table(path).to_pylist()
    queries, passages = truth
    texts = []
    for row in rows:
        title = row["query_id"].removeprefix("title:")
        passage = passages[row["passage_id"]]
        pseudo = title != row["query_id"]
        texts.append(
            (passages[title].title, passage.text)
            if pseudo
            else (queries[row["query_id"]], f"{passage.title} {passage.text}")
        )
    expected = Teacher(str(teacher_folder)).score(*map(list, zip(*texts, strict=True)))
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-6)
    keys = [(row["query_id"], row["passage_id"]) for row in rows]
    assert keys == sorted(keys)
    found = dict(candidates_by_query(teaching.store.local(mined)))
    assert {
        k: row["rank"] for k, row in zip(keys, rows, strict=True) if row["rank"] is not None
    } == {(q, p): rank for q, own in found.items() for rank, p in enumerate(own.mined)}
    assert {p for q, p in keys if q == "q007"} == {
        "p007",
        *found["q007"].mined,
        *found["q007"].random,
    }
    metadata = pq.read_schema(path).metadata
    assert metadata[b"fingerprint"].decode() == teacher_fingerprint(str(teacher_folder))


def test_a_killed_teacher_goes_on_from_its_finished_shards(
    teaching, teacher_folder, tmp_path, collection_folder, monkeypatch
):
    monkeypatch.setattr(scoring, "_SHARD_PAIRS", 300)
    teaching = with_teacher(teaching, teacher_folder)
    whole = Store(str(tmp_path / "whole"))
    undisturbed = dataclasses.replace(
        teaching, store=whole, collection=committed(whole, collection_folder)
    )
    mined = mine(whole, undisturbed.collection, SMALL, 1, pool=local_pool)
    expected = (whole.local(teach(undisturbed, mined)) / "scores.parquet").read_bytes()

    mined = mine(teaching.store, teaching.collection, SMALL, 1, pool=local_pool)
    for _ in range(2):
        with pytest.raises(Killed):
            teach(dataclasses.replace(teaching, pool=dies_after(2)), mined)
    assert not list((tmp_path / "lab" / "scores").glob("*/attempt-*/scores.parquet"))
    asked: list[int] = []

    def counting(start, tasks, workers):
        asked.append(len(tasks))
        local_pool(start, tasks, workers)

    scores = teach(dataclasses.replace(teaching, pool=counting), mined)
    total = -(-scores.meta["pairs"] // 300)
    assert asked == [total - 4]
    assert total > 5
    path = teaching.store.local(scores) / "scores.parquet"
    assert path.read_bytes() == expected
    assert [p.name for p in (tmp_path / "lab" / "scores").iterdir()] == [scores.path.split("/")[1]]


def test_a_teacher_that_gives_no_number_is_refused(teaching, teacher_folder, monkeypatch):
    monkeypatch.setattr(
        Teacher, "score", lambda self, q, p: np.where([x == q[3] for x in q], np.nan, 1.0)
    )
    mined = mine(teaching.store, teaching.collection, SMALL, 1, pool=local_pool)
    with pytest.raises(CollectionError, match=r"teacher score of query '.*', passage 'p.*' is nan"):
        teach(with_teacher(teaching, teacher_folder), mined)


# -------------------------------------------------------------------------------------- mining


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_a_retriever_mines_what_it_ranks_first(
    teaching, retriever_folders, truth, head, monkeypatch
):
    monkeypatch.setattr(mining_index, "_SHARD_PASSAGES", 32)
    mining = dataclasses.replace(SMALL, source=str(retriever_folders[head]), pseudo_queries=False)
    found = candidates_of(teaching, mining)
    queries, passages = truth
    retriever = Retriever.load(retriever_folders[head])
    ids = sorted(passages)
    texts = [f"{passages[i].title} {passages[i].text}" for i in ids]
    reps = retriever.encode_passages(texts)
    assert len(found) == 60
    for query_id, own in found.items():
        scores = retriever.encode_queries([queries[query_id]]) @ reps.T
        scores = np.asarray(scores.toarray() if head == "sparse" else scores).ravel()
        best = [ids[i] for i in np.argsort(-scores, kind="stable") if ids[i] != f"p{query_id[1:]}"]
        cut = scores[ids.index(best[4])]
        near = {p for p in ids if abs(scores[ids.index(p)] - cut) < 1e-4 * abs(cut)}
        assert set(own.mined) | near == set(best[:5]) | near
        assert len(own.random) == 3


def test_a_killed_miner_goes_on_and_finds_the_same(
    teaching, tmp_path, collection_folder, monkeypatch
):
    monkeypatch.setattr(mining_module, "_SHARD_QUERIES", 25)
    whole = Store(str(tmp_path / "whole"))
    made = mine(whole, committed(whole, collection_folder), SMALL, 1, pool=local_pool)
    expected = (whole.local(made) / "candidates.parquet").read_bytes()
    for shards in (0, 1, 2, 2):  # the index is a shard too
        with pytest.raises(Killed):
            candidates_of(teaching, SMALL, dies_after(shards))
    made = mine(teaching.store, teaching.collection, SMALL, 1, pool=local_pool)
    assert (teaching.store.local(made) / "candidates.parquet").read_bytes() == expected
    assert len(list((tmp_path / "lab" / "candidates").iterdir())) == 1


def write_run(path, hits: dict[str, list[str]]):
    lines = [
        f"{q} Q0 {p} {rank} {100 - rank} tag"
        for q, found in hits.items()
        for rank, p in enumerate(found)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_run_is_mined_in_its_own_order_without_positives(teaching, tmp_path):
    hits = {"q003": ["p009", "p003", "p001", "p005"], "q075": ["p001"], "nobody": ["p002"]}
    found = candidates_of(teaching, Mining(3, 0, source=write_run(tmp_path / "run", hits)))
    assert found["q003"].mined == ("p009", "p001", "p005")
    assert "nobody" not in found
    assert all(not query.startswith("title:") for query in found)


@pytest.mark.parametrize(
    ("hits", "words"),
    [({"q003": ["p009", "p777"]}, ":2: unknown passage 'p777'"), ({"x": ["p1"]}, "none of the")],
)
def test_a_run_that_does_not_fit_is_refused(teaching, tmp_path, hits, words):
    with pytest.raises(CollectionError, match=words):
        candidates_of(teaching, Mining(3, 0, source=write_run(tmp_path / "run", hits)))


@pytest.fixture
def apart(store, tmp_path) -> Teaching:
    """An MS MARCO folder whose training passages are kept apart from those of the evaluation."""
    folder = tmp_path / "apart"
    folder.mkdir()
    words = [
        "cell",
        "gene",
        "protein",
        "tumour",
        "virus",
        "mouse",
        "patient",
        "drug",
        "dose",
        "heart",
    ]
    texts = [f"{words[i % 10]} {words[(i * 3 + 1) % 10]} {words[(i * 7) % 10]}" for i in range(20)]
    rows = [f"e{i}\t{text}" for i, text in enumerate(texts)]
    (folder / "collection.tsv").write_text("\n".join(rows) + "\n")
    rows = [f"t{i}\t{text} study" for i, text in enumerate(texts)]
    rows += ["copy\t" + rows[4].split("\t")[1]]  # of t4, under another id
    (folder / "train_passages.tsv").write_text("\n".join(rows) + "\n")
    for split, letter in (("train", "t"), ("dev", "e")):
        queries = [f"{split}{i}\t{texts[i]}" for i in range(8)]
        (folder / f"queries.{split}.tsv").write_text("\n".join(queries) + "\n")
        qrels = [f"{split}{i} 0 {letter}{i} 1" for i in range(8)]
        (folder / f"qrels.{split}.tsv").write_text("\n".join(qrels) + "\n")
    return Teaching(store, committed(store, folder), SMALL, None, None, 1, pool=local_pool)


@pytest.mark.parametrize("source", ["bm25", "retriever", "run"])
def test_no_positive_copy_or_evaluation_passage_becomes_a_negative(
    apart, tmp_path, retriever_folders, source
):
    listed = ["copy", "t4", "t1", "t2", "t9"]
    hits = {f"train{i}": [f"e{i}", *dict.fromkeys([f"t{i}", *listed])] for i in range(8)}
    sources = {
        "bm25": "bm25",
        "retriever": str(retriever_folders["dense"]),
        "run": write_run(tmp_path / "run", hits),
    }
    found = candidates_of(apart, dataclasses.replace(SMALL, source=sources[source]))
    assert set(found) == {f"train{i}" for i in range(8)}
    for query, own in found.items():
        listed = {*own.mined, *own.random}
        assert own.mined
        assert all(p[0] == "t" or p == "copy" for p in listed)
        assert f"t{query.removeprefix('train')}" not in listed
    assert "copy" not in {*found["train4"].mined, *found["train4"].random}


# -------------------------------------------------------------------------------------- groups


def test_published_groups_join_the_collection_by_text(teaching, truth, tmp_path):
    queries, _ = truth
    records = [
        {"query": queries["q003"], "docids": ["p003", "p001"], "scores": [2.0, 1.0]},
        {"query": "somebody else's", "docids": ["p004", "p001"], "scores": [2.0, 1.5]},
        {
            "query": queries["q070"],
            "docids": ["p070", "p001"],
            "scores": [2.0, 1.0],
        },  # a test query
    ]
    path = tmp_path / "kd.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    made = make_groups(with_teacher(teaching, path))
    rows = groups_of(with_teacher(teaching, path))
    assert [(r["query_id"], r["positive"], r["negatives"]) for r in rows] == [
        ("q003", "p003", ["p001"]),
        ("somebody else's", "p004", ["p001"]),
    ]
    assert made.meta["held_out_for_evaluation"] == 1
    assert made.meta["own_queries"] == 1


def test_faulty_records_of_a_teacher_file_are_set_aside_beside_the_groups(teaching, tmp_path):
    record = {"question": "somebody's", "pos_pid": "p004", "neg_pids": ["p001"]}
    path = tmp_path / "cl.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (record, record | {"pos_pid": "p999"})))
    strict = with_teacher(teaching, path)
    with pytest.raises(CollectionError, match=r"cl\.jsonl:2: unknown passage 'p999'"):
        make_groups(strict)
    patient = dataclasses.replace(
        strict, mining=dataclasses.replace(strict.mining, on_fault="quarantine:unknown")
    )
    assert patient.address().path != strict.address().path
    made = make_groups(patient)
    assert (made.meta["groups"], made.meta["quarantined"]) == (1, {"unknown id": 1})
    (told,) = (teaching.store.local(made) / "quarantine.jsonl").read_text().splitlines()
    assert (json.loads(told)["file"], json.loads(told)["line"]) == (str(path), 2)


def test_a_run_as_a_teacher_gives_groups_where_it_found_the_positive(teaching, tmp_path):
    hits = {"q003": ["p009", "p003", "p001"], "q004": ["p001", "p002"], "q005": ["p005"]}
    path = write_run(tmp_path / "run.trec", hits)
    (row,) = groups_of(with_teacher(teaching, path))
    assert make_groups(with_teacher(teaching, path)).meta["queries_without_scores"] > 1
    assert (row["query_id"], row["positive"], row["positive_score"]) == ("q003", "p003", 99.0)
    assert (row["negatives"], row["negative_scores"]) == (["p009", "p001"], [100.0, 98.0])


def test_scores_that_were_made_give_the_groups_that_were_mined(teaching, teacher_folder):
    """A teacher's scores, and their file given as the teacher, make the same groups."""
    mined = mine(teaching.store, teaching.collection, SMALL, 1, pool=local_pool)
    scored = with_teacher(teaching, teacher_folder)
    scores = teaching.store.local(teach(scored, mined)) / "scores.parquet"
    rows = groups_of(scored)
    from_file = groups_of(with_teacher(teaching, scores))
    for row, other in zip(rows, from_file, strict=True):
        ours = dict(zip(row["negatives"], row["negative_scores"], strict=True))
        theirs = dict(zip(other["negatives"], other["negative_scores"], strict=True))
        assert ours == theirs
        assert row["negatives"][: row["mined"]] == other["negatives"][: other["mined"]]
        assert row["positive_score"] == other["positive_score"]


@pytest.mark.long
@pytest.mark.parametrize("margin", [0.0, 0.05, 10.0])
def test_the_margin_leaves_out_what_the_teacher_takes_for_relevant(
    teaching, teacher_folder, margin
):
    scored = with_teacher(teaching, teacher_folder)
    expected = {}
    for row in groups_of(scored):
        pairs = zip(row["negatives"], row["negative_scores"], strict=True)
        kept = [(p, s) for p, s in pairs if s <= row["positive_score"] - margin]
        if kept:
            mined = {*row["negatives"][: row["mined"]]}
            expected[row["query_id"]] = (kept, sum(p in mined for p, _ in kept))
    filtered = dataclasses.replace(scored, margin=margin)
    if not expected:
        with pytest.raises(CollectionError, match="no training group is left"):
            make_groups(filtered)
        return
    rows = groups_of(filtered)
    assert {
        r["query_id"]: (list(zip(r["negatives"], r["negative_scores"], strict=True)), r["mined"])
        for r in rows
    } == expected
    assert make_groups(filtered).meta["groups_without_negatives_left"] == len(
        groups_of(scored)
    ) - len(rows)
