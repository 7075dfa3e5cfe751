"""The table of benchmarks against what is published about them."""

import importlib.util

import pytest

from raylab.data.registry import BENCHMARKS, find_benchmark, protocol
from raylab.data.sources import EMBEDDED

# The 13 sets of the paper's zero-shot mean.
BEIR_13 = [
    "arguana",
    "climate-fever",
    "dbpedia-entity",
    "fever",
    "fiqa",
    "hotpotqa",
    "nfcorpus",
    "nq",
    "quora",
    "scidocs",
    "scifact",
    "trec-covid",
    "webis-touche2020",
]


def test_the_papers_collections_are_all_there_and_nothing_else():
    assert sorted(BENCHMARKS) == sorted(["msmarco", *BEIR_13])
    assert {"train", "dev", "dl19", "dl20"} <= set(BENCHMARKS["msmarco"].splits)
    for name in BEIR_13:
        assert "test" in BENCHMARKS[name].splits
        assert BENCHMARKS[name].text == ("title", "text")
        assert len(BENCHMARKS[name].archive_md5 or "") == 32
    assert len({b.archive_md5 for b in BENCHMARKS.values()}) == 14  # none is written twice
    assert BENCHMARKS["msmarco"].text == ("text",)


def test_depths_measures_and_levels_are_the_papers():
    for name in BEIR_13:
        rules = protocol(name, "test")
        assert (rules.run_depth, rules.primary) == (100, "nDCG@10")
    dev = protocol("msmarco", "dev")
    assert (dev.run_depth, dev.primary, dev.binary_level) == (1000, "RR@10", 1)
    for split in ("dl19", "dl20"):
        rules = protocol("msmarco", split)
        assert (rules.run_depth, rules.primary, rules.binary_level) == (1000, "nDCG@10", 2)
        assert BENCHMARKS["msmarco"].splits[split].graded


def test_queries_that_are_documents():
    own = [b for b in BENCHMARKS if protocol(b, "test").drop_own_document]
    assert own == ["arguana", "quora"]
    assert protocol("quora", "valid").drop_own_document  # a split of one's own has the quirk too


def test_a_slice_is_measured_as_what_it_is_cut_from():
    assert find_benchmark("msmarco-slice") is BENCHMARKS["msmarco"]
    assert protocol("msmarco-slice", "dl19") is protocol("msmarco", "dl19")
    assert find_benchmark("anything else") is None
    assert protocol("anything else", "test").primary == "nDCG@10"


def test_what_is_graded_has_grades(shared_data):
    from raylab.data.collections import read_qrels

    def grades(path):
        return {grade for own in read_qrels(path).values() for grade in own.values()}

    for name, path in (
        ("nfcorpus", shared_data / "beir" / "nfcorpus" / "qrels" / "test.tsv"),
        ("scifact", EMBEDDED["scifact"] / "qrels" / "test.tsv"),
    ):
        assert BENCHMARKS[name].splits["test"].graded == bool(grades(path) - {0, 1})
    for split in ("dl19", "dev"):
        found = grades(shared_data / "msmarco-slice" / f"qrels.{split}.tsv")
        assert BENCHMARKS["msmarco"].splits[split].graded == bool(found - {0, 1})


@pytest.mark.skipif(not importlib.util.find_spec("ir_datasets"), reason="needs raylab[irds]")
def test_every_id_is_known_to_ir_datasets():
    import ir_datasets

    for benchmark in BENCHMARKS.values():
        assert ir_datasets.load(benchmark.passages).has_docs()
        for split in benchmark.splits.values():
            if split.ir_datasets:
                dataset = ir_datasets.load(split.ir_datasets)
                assert dataset.has_queries()
                assert dataset.has_qrels()
