"""BM25Index: Lucene's formula by hand, bm25s' own scores, and the published effectiveness."""

import gzip
import json
import math

import bm25s
import numpy as np
import pytest
import Stemmer

from raylab.data.collections import read_qrels
from raylab.evaluation.measures import evaluate
from raylab.evaluation.runs import Run
from raylab.index import bm25
from raylab.index.bm25 import BM25Index

TEXTS = ["the cat sat", "cats and dogs", "dogs dogs dogs chase a cat in gardens", "", "fish"]
IDS = ["e", "d", "c", "b", "a"]


def lucene_bm25(query, passages, k1=0.9, b=0.4):
    """BM25 by its formula in float64; passages and query are lists of stems."""
    mean_length = sum(map(len, passages)) / len(passages)
    scores = []
    for passage in passages:
        score = 0.0
        for stem in query:
            frequency = passage.count(stem)
            containing = sum(stem in other for other in passages)
            idf = math.log(1 + (len(passages) - containing + 0.5) / (containing + 0.5))
            norm = k1 * (1 - b + b * len(passage) / mean_length)
            score += idf * frequency / (frequency + norm)
        scores.append(score)
    return scores


def test_scores_follow_the_formula_and_stems():
    stems = [["cat", "sat"], ["cat", "dog"], ["dog", "dog", "dog", "chase", "cat", "garden"]]
    expected = lucene_bm25(["dog", "dog", "cat"], [*stems, [], ["fish"]])
    ids, scores = BM25Index.build(IDS, TEXTS).search(["Dogs, dog: the CATS!"], 5)
    order = sorted(range(3), key=lambda row: -expected[row])
    assert ids[0].tolist() == [IDS[row] for row in order] + ["", ""]
    np.testing.assert_allclose(scores[0, :3], [expected[row] for row in order], rtol=1e-6)


def test_ties_are_by_id_and_unknown_words_find_nothing():
    index = BM25Index.build(["b", "a", "c"], ["same words", "same words", "others"])
    assert index.search(["words", "absent", ""], 2)[0].tolist() == [["b", "a"], ["", ""], ["", ""]]


def test_saved_index_answers_the_same(tmp_path):
    built = BM25Index.build(IDS, TEXTS)
    built.save(tmp_path)
    loaded = BM25Index.load(tmp_path)
    for one, other in zip(built.search(TEXTS, 4), loaded.search(TEXTS, 4), strict=True):
        assert (one == other).all()


def test_texts_may_be_streamed(monkeypatch, tmp_path):
    """In batches of any size the index is the same, bit for bit."""
    BM25Index.build(IDS, TEXTS).save(tmp_path / "whole")
    monkeypatch.setattr(bm25, "_BATCH", 2)
    BM25Index.build(IDS, iter(TEXTS)).save(tmp_path / "streamed")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) > 2
    for name in names:
        whole, streamed = (tmp_path / kind / name for kind in ("whole", "streamed"))
        assert streamed.read_bytes() == whole.read_bytes(), name


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 ids for 2 texts"):
        BM25Index.build(["a"], ["x", "y"])
    with pytest.raises(ValueError, match="holds a word"):
        BM25Index.build(["a"], ["the"])
    with pytest.raises(ValueError, match="one string"):
        BM25Index.build(IDS, TEXTS).search("cat", 1)
    with pytest.raises(ValueError, match="one string"):
        BM25Index.build(["a", "b"], "ab")


def test_scifact_effectiveness_is_the_published_one(shared_data):
    """BM25 (k1 0.9, b 0.4) has nDCG@10 of about 0.68 on SciFact test; scores equal bm25s' own."""
    folder = shared_data / "beir" / "scifact"
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        passages = [json.loads(line) for line in stream]
    with open(folder / "queries.jsonl", encoding="utf-8") as stream:
        texts = {query["_id"]: query["text"] for query in map(json.loads, stream)}
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    ids = [passage["_id"] for passage in passages]
    contents = [f"{passage['title']} {passage['text']}" for passage in passages]
    index = BM25Index.build(ids, contents)
    query_texts = [texts[query_id] for query_id in qrels]
    run = Run.from_topk(list(qrels), *index.search(query_texts, 100))
    values = evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]
    assert 0.67 < np.mean(list(values.values())) < 0.69

    options = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    reference = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    reference.index(bm25s.tokenize(contents, **options), show_progress=False)
    stems = bm25s.tokenize(query_texts[:1], return_ids=False, **options)[0]
    scores = dict(zip(ids, reference.get_scores(stems), strict=True))
    found, ours = index.search(query_texts[:1], 100)
    np.testing.assert_allclose([scores[i] for i in found[0]], ours[0], rtol=1e-5)
