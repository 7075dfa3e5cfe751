"""What published collections lack, two files for one thing, and a quarantine that leaves nothing."""

import json
import shutil
from pathlib import Path

import pytest
import pytrec_eval

from raylab.data.faults import CollectionError, Quarantine
from raylab.data.ingest import collection_address, first_faults, gaps, write_collection
from raylab.data.ingested import load_topics
from raylab.data.sources import open_collection
from raylab.evaluation.measures import evaluate
from raylab.evaluation.runs import Run

PASSAGES = {f"d{n}": f"text of passage {n}" for n in range(6)}


def beir(folder: Path, passages=PASSAGES, judged=(("q1", "d1", 1), ("q2", "d2", 1)), split="test"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"_id": key, "title": "", "text": text} for key, text in passages.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = sorted({q for q, _, _ in judged})
    rows = [{"_id": q, "text": f"question {q}?"} for q in ids]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def ingested(folder: Path, out: Path, on_fault: str = "error"):
    out.mkdir(parents=True)
    return write_collection(out, open_collection(str(folder)), on_fault)


# ------------------------------------------------- judgements of passages that are not there

JUDGED = [("q1", "d1", 1), ("q1", "gone1", 1), ("q2", "gone2", 2), ("q3", "d3", 1), ("q3", "x", 0)]


@pytest.mark.parametrize("name", ["arguana", "mine"])
@pytest.mark.parametrize("on_fault", ["error", "quarantine", "quarantine:unknown"])
def test_evaluation_keeps_judgements_of_missing_passages_as_misses(tmp_path, name, on_fault):
    meta = ingested(beir(tmp_path / name, judged=JUDGED), tmp_path / "out", on_fault)
    assert meta["misses"] == {"test": 2}
    assert meta["quarantined"] == {}
    topics = load_topics(tmp_path / "out")["test"]
    assert topics.qrels == {
        "q1": {"d1": 1, "gone1": 1},
        "q2": {"gone2": 2},
        "q3": {"d3": 1, "x": 0},
    }
    (told,) = gaps(meta)
    assert "split test: 2 relevant passage(s) are not in the collection" in told
    assert ("published arguana lacks 5" in told) == (name == "arguana")
    run = {"q1": [("d1", 2.0)], "q3": [("d5", 2.0), ("d3", 1.0)]}
    ours = evaluate(Run.from_pairs(run), topics.qrels, ["nDCG@10"])["nDCG@10"]
    judge = pytrec_eval.RelevanceEvaluator(topics.qrels, {"ndcg_cut.10"})
    theirs = judge.evaluate({q: dict(hits) for q, hits in run.items()})
    for query_id, value in ours.items():  # trec_eval -c: what the run lacks counts 0
        expected = theirs.get(query_id, {"ndcg_cut_10": 0.0})["ndcg_cut_10"]
        assert value == pytest.approx(expected)


def test_judgements_of_another_collection_are_refused(tmp_path):
    folder = beir(tmp_path / "mine", judged=[("q1", "other1", 1), ("q2", "other2", 1)])
    with pytest.raises(CollectionError, match=r"test\.tsv:2: unknown passage 'other1', and so is"):
        ingested(folder, tmp_path / "out")


def test_training_refuses_what_it_cannot_train_on(tmp_path):
    folder = beir(tmp_path / "arguana", judged=JUDGED, split="train")
    with pytest.raises(CollectionError, match=r"train\.tsv:3: unknown passage 'gone1'"):
        ingested(folder, tmp_path / "out")


def test_what_quarantine_did_to_judgements_before_is_another_artifact(tmp_path):
    source = open_collection(str(beir(tmp_path / "mine")))
    for policy in ("quarantine", "quarantine:unknown"):
        assert "unknown_in_evaluation" in collection_address(source, policy).identity
    for policy in ("error", "quarantine:empty"):
        assert "unknown_in_evaluation" not in collection_address(source, policy).identity


# ------------------------------------------------------------------------ empty passages


@pytest.mark.parametrize(("name", "known"), [("fiqa", 38), ("trec-covid", 1)])
def test_empty_passages_of_a_published_archive_are_left_out_and_told(tmp_path, name, known):
    folder = beir(tmp_path / name, passages=PASSAGES | {"e1": " "})
    meta = ingested(folder, tmp_path / "out")
    assert (meta["passages"], meta["empty_passages"], meta["quarantined"]) == (6, 1, {})
    assert gaps(meta) == [f"1 passage(s) without text left out (published {name} has {known})"]
    first_faults(open_collection(str(folder)), "error")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_known_empty_passage_is_not_trained_on_and_is_a_miss_in_evaluation(tmp_path, split):
    judged = [("q1", "d1", 1), ("q2", "d2", 1), ("q3", "e1", 1), ("q3", "d3", 1)]
    folder = beir(tmp_path / "fiqa", PASSAGES | {"e1": ""}, judged, split)
    meta = ingested(folder, tmp_path / "out")
    assert meta["misses"] == ({"test": 1} if split == "test" else {})
    qrels = [grades for t in load_topics(tmp_path / "out").values() for grades in t.qrels.values()]
    assert any("e1" in grades for grades in qrels) == (split == "test")


@pytest.mark.parametrize("name", ["mine", "nfcorpus"])
def test_other_empty_passages_are_refused_with_the_remedy(tmp_path, name):
    folder = beir(tmp_path / name, passages=PASSAGES | {"e1": ""})
    with pytest.raises(CollectionError, match=r"corpus\.jsonl:7: .*--on-fault quarantine:empty"):
        ingested(folder, tmp_path / "out")
    assert ingested(folder, tmp_path / "ok", "quarantine:empty")["passages"] == 6


def test_more_empty_passages_than_were_published_are_refused(tmp_path):
    folder = beir(tmp_path / "trec-covid", passages=PASSAGES | {"e1": "", "e2": ""})
    with pytest.raises(CollectionError, match="'e2' has no text"):
        ingested(folder, tmp_path / "out")


# ---------------------------------------------------------------- two files for one thing


TWICE = [
    ("corpus.jsonl", "corpus.jsonl.gz"),
    ("corpus.jsonl", "corpus.jsonl.zst"),
    ("corpus.jsonl", "corpus.parquet"),
    ("corpus.jsonl", "corpus/part-0.jsonl"),
    ("corpus.jsonl", "collection.tsv"),
    ("queries.jsonl", "queries.jsonl.gz"),
    ("queries.jsonl", "queries.parquet"),
    ("qrels/test.tsv", "qrels/test.tsv.gz"),
    ("qrels/test.tsv", "qrels/test.parquet"),
]


@pytest.mark.parametrize(("one", "other"), TWICE)
def test_two_files_for_one_thing_are_refused_in_beirs_layout(tmp_path, one, other):
    folder = beir(tmp_path / "own")
    (folder / other).parent.mkdir(exist_ok=True)
    shutil.copy(folder / one, folder / other)
    with pytest.raises(CollectionError, match="are both there") as refused:
        open_collection(str(folder))
    for name in (one, other):
        assert name.removeprefix("qrels/").partition("/part")[0] in str(refused.value)


@pytest.mark.parametrize(
    "one", ["collection.tsv", "queries.dev.tsv", "qrels.dev.tsv", "train_passages.tsv"]
)
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_two_files_for_one_thing_are_refused_in_ms_marcos_layout(tmp_path, one, ending):
    for name in ("collection.tsv", "queries.dev.tsv", "qrels.dev.tsv", "train_passages.tsv"):
        (tmp_path / name).write_text("x\ty\n")
    (tmp_path / (one + ending)).write_text("x\ty\n")
    with pytest.raises(CollectionError, match=r"both"):
        open_collection(str(tmp_path))


def test_two_shards_of_one_name_are_refused(tmp_path):
    folder = beir(tmp_path / "own")
    (folder / "corpus").mkdir()
    shutil.move(folder / "corpus.jsonl", folder / "corpus" / "a.jsonl")
    open_collection(str(folder))
    (folder / "corpus" / "a.jsonl.gz").write_bytes(b"")
    with pytest.raises(CollectionError, match=r"a\.jsonl and a\.jsonl\.gz are both there"):
        open_collection(str(folder))


# ------------------------------------------------------------------- nothing is left


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (
            "corpus.jsonl",
            "{}\n{}\n",
            ["no passage is there", "2 x not a record", "corpus.jsonl:1: "],
        ),
        ("queries.jsonl", "[]\n", ["no query is there", "1 x not a record", "queries.jsonl:1: "]),
        ("qrels/test.tsv", "q1\td1\t1\n", ["no judgement", "1 x wrong field count", "header line"]),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq9\td1\t1\n",
            ["no judgement is left", "1 x unknown id", "unknown query 'q9'"],
        ),
    ],
)
def test_a_quarantine_that_leaves_nothing_says_what_the_faults_were(tmp_path, file, text, words):
    folder = beir(tmp_path / "own")
    (folder / file).write_text(text)
    with pytest.raises(CollectionError) as refused:
        ingested(folder, tmp_path / "out", "quarantine")
    for word in words:
        assert word in str(refused.value)


def test_first_records_are_looked_at_under_the_policy(tmp_path):
    folder = beir(tmp_path / "own")
    (folder / "corpus.jsonl").write_text("not JSON\n" + (folder / "corpus.jsonl").read_text())
    source = open_collection(str(folder))
    with pytest.raises(CollectionError, match=r"corpus\.jsonl:1: not JSON"):
        first_faults(source, "error")
    first_faults(source, "quarantine")
    with Quarantine(tmp_path, "quarantine:empty") as policy:
        assert policy.facts() == {}
