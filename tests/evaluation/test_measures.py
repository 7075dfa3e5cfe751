"""Measures: against ir_measures, values worked out by hand, and published runs."""

import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.data.collections import read_qrels
from raylab.data.registry import BEIR, TREC_DL, protocol
from raylab.evaluation.measures import evaluate
from raylab.evaluation.runs import Run, drop_own_document, read_run

NAMES = ["nDCG@10", "nDCG", "RR", "RR@10", "RR(rel=2)@10", "R@100", "R(rel=2)@1000", "AP", "AP@5"]


def mean(values):
    return float(np.mean(list(values.values())))


def run_of(ranked):
    return Run.from_pairs(
        {q: [(p, float(-rank)) for rank, p in enumerate(ps)] for q, ps in ranked.items()}
    )


def test_values_worked_out_by_hand():
    qrels = {"q": {"a": 3, "b": 1, "c": 0, "e": 2}, "absent": {"a": 1}, "none": {"a": 0}}
    run = run_of({"q": ["c", "b", "x", "a"], "none": ["a"], "unjudged": ["a"]})
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    expected = {
        "nDCG@10": (1 / math.log2(3) + 3 / math.log2(5)) / ideal,
        "nDCG@2": (1 / math.log2(3)) / (3 + 2 / math.log2(3)),
        "RR@10": 1 / 2,
        "RR@1": 0,
        "RR(rel=2)@10": 1 / 4,
        "R@2": 1 / 3,
        "R(rel=2)@1000": 1 / 2,
        "AP": (1 / 2 + 2 / 4) / 3,
    }
    values = evaluate(run, qrels, list(expected))
    for name, value in expected.items():
        assert values[name] == {"q": pytest.approx(value), "absent": 0.0, "none": 0.0}, name


def test_reciprocal_rank_is_cut_after_the_tenth():
    passages = [f"p{rank:02d}" for rank in range(1, 13)]
    run = run_of({"ten": passages, "eleven": passages})
    qrels = {"ten": {"p10": 1}, "eleven": {"p11": 1}}
    values = evaluate(run, qrels, ["RR@10", "RR"])
    assert values["RR@10"] == {"ten": pytest.approx(1 / 10), "eleven": 0.0}
    assert values["RR"]["eleven"] == pytest.approx(1 / 11)


def test_the_order_measured_is_the_runs_own():
    """trec_eval by itself would put the tied 'b' before 'a'."""
    run = Run.from_pairs({"q": [("a", 1.0), ("b", 1.0)]})
    assert evaluate(run, {"q": {"a": 1}}, ["RR@10"])["RR@10"]["q"] == 1.0


PASSAGES = st.lists(st.integers(0, 30).map(str), unique=True, min_size=1, max_size=25)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from("xyz"), PASSAGES, min_size=1),
    st.dictionaries(st.integers(0, 30).map(str), st.integers(0, 3), min_size=1),
)
def test_equals_ir_measures(ranked, grades):
    run, qrels = run_of(ranked), dict.fromkeys(ranked, grades)
    scored = {q: {p: float(s) for p, s in ranking} for q, ranking in run.items()}
    values = evaluate(run, qrels, NAMES)
    measures = [ir_measures.parse_measure(name) for name in NAMES]
    for metric in ir_measures.iter_calc(measures, qrels, scored):
        ours = values[str(metric.measure)][metric.query_id]
        assert ours == pytest.approx(metric.value, abs=1e-6), metric


def test_more_queries_than_one_block_agree_with_one_at_a_time():
    rng = np.random.default_rng(0)
    ranked = {f"q{n}": [str(p) for p in rng.permutation(20)] for n in range(1100)}
    qrels = {query_id: {"3": 1, "7": 2} for query_id in ranked}
    values = evaluate(run_of(ranked), qrels, ["RR(rel=2)@10"])["RR(rel=2)@10"]
    for query_id, passages in ranked.items():
        rank = passages.index("7") + 1
        assert values[query_id] == pytest.approx(1 / rank if rank <= 10 else 0)


@pytest.mark.parametrize(
    "name",
    [
        "MRR@10",
        "nDCG@0",
        "nDCG@",
        "nDCG(rel=2)@10",
        "R",
        "R(rel=0)@10",
        "RR@10 ",
        "ndcg_cut_10",
        "",
    ],
)
def test_unknown_measures_list_the_known(name):
    with pytest.raises(ValueError, match=r"unknown measure .* known are nDCG\[@k\], RR"):
        evaluate(run_of({"q": ["a"]}), {"q": {"a": 1}}, [name])


def test_a_run_of_another_collection_is_an_error_and_an_empty_run_is_zero():
    with pytest.raises(ValueError, match="no query of the run"):
        evaluate(run_of({"1": ["a"]}), {"q1": {"a": 1}}, ["AP"])
    with pytest.raises(ValueError, match="qrels are empty"):
        evaluate(run_of({"1": ["a"]}), {}, ["AP"])
    assert evaluate(Run({}), {"q": {"a": 1}}, ["AP"]) == {"AP": {"q": 0.0}}


@pytest.mark.parametrize(
    ("system", "ndcg"),
    [
        ("BM25", 0.5058),
        ("D_BERT_KD_TASB", 0.7210),
        ("SPLADE_P_P_ENSEMBLE_DISTIL", 0.7308),
        ("REP_LLAMA", 0.7384),
        ("BM25_BERTCE", 0.6855),
    ],
)
def test_published_runs_have_their_published_values(shared_data, system, ndcg):
    folder = shared_data / "msmarco-slice"
    qrels = read_qrels(folder / "qrels.dl19.tsv")
    run = read_run(folder / f"run.{system}.dl19.trec.gz")
    values = evaluate(run, qrels, protocol("msmarco", "dl19").measures)
    assert mean(values["nDCG@10"]) == pytest.approx(ndcg, abs=5e-5)
    assert len(values["nDCG@10"]) == 43


def test_protocols():
    assert protocol("msmarco", "dev").primary == "RR@10"
    assert protocol("msmarco", "dev").run_depth == 1000
    assert protocol("msmarco-slice", "dl20") is TREC_DL
    assert protocol("scifact", "test") is BEIR
    assert protocol("msmarco", "train") is BEIR
    arguana = protocol("arguana", "test")
    assert (arguana.drop_own_document, arguana.run_depth, arguana.search_depth) == (True, 100, 101)
    assert protocol("quora", "dev").drop_own_document


def test_own_document_is_dropped():
    run = drop_own_document(run_of({"a": ["a", "b"], "b": ["c", "a"]}))
    assert {q: ranking.passage_ids.tolist() for q, ranking in run.items()} == {
        "a": ["b"],
        "b": ["c", "a"],
    }
