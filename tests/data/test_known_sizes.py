"""What is known of the named benchmarks is what their catalogue and the real data say; a plan finds them by name."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from raylab.data import irds
from raylab.data.collections import read_passages, read_topics
from raylab.data.faults import CollectionError
from raylab.data.known_sizes import (
    KNOWN_SIZES,
    KnownCollection,
    Words,
    known_collection,
    open_or_known,
)
from raylab.data.registry import BEIR_SETS, BENCHMARKS
from raylab.data.sources import Source, open_collection


@pytest.fixture(scope="module")
def catalogue() -> dict:
    """ir_datasets' counts, which it made from the data themselves."""
    spec = find_spec("ir_datasets")
    if spec is None or spec.origin is None:
        pytest.skip("needs raylab[irds]")
    return json.loads((Path(spec.origin).parent / "etc" / "metadata.json").read_text())


def test_every_benchmark_with_its_splits_is_known():
    assert set(KNOWN_SIZES) == set(BENCHMARKS) == {"msmarco", *BEIR_SETS}
    for name, size in KNOWN_SIZES.items():
        assert set(size.splits) == {
            s for s, split in BENCHMARKS[name].splits.items() if split.ir_datasets
        }


@pytest.mark.parametrize("name", KNOWN_SIZES)
def test_counts_are_those_of_the_catalogue(name, catalogue):
    size, benchmark = KNOWN_SIZES[name], BENCHMARKS[name]
    passages = catalogue[benchmark.passages]["docs"]
    while "_ref" in passages:
        passages = catalogue[passages["_ref"]]["docs"]
    assert size.passages == passages["count"]
    assert size.id_bytes == passages["fields"]["doc_id"]["max_len"]
    for split, counts in size.splits.items():
        dataset = benchmark.splits[split].ir_datasets
        # Of MS MARCO's training queries most are not judged, and are not trained on.
        queries = f"{dataset}/judged" if (name, split) == ("msmarco", "train") else dataset
        assert counts.queries == catalogue[queries]["queries"]["count"]
        judged = catalogue[dataset]["qrels"]
        judged = catalogue[judged["_ref"]]["qrels"] if "_ref" in judged else judged
        grades = judged["fields"]["relevance"]["counts_by_value"]
        assert counts.relevant == sum(n for grade, n in grades.items() if int(grade) > 0)


@pytest.mark.parametrize(("mean", "spread"), [(56.0, 0.45), (292.37, 1.0), (3.3, 0.75)])
def test_lengths_are_lognormal(mean, spread):
    lengths = Words(mean, spread).lengths()
    assert lengths.mean() == pytest.approx(mean)
    assert np.log(lengths).std() == pytest.approx(spread, rel=0.01)
    assert np.median(lengths) == pytest.approx(mean / np.exp(spread**2 / 2), rel=0.02)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("msmarco", "msmarco"),
        ("/data/msmarco", "msmarco"),
        ("DIR/nfcorpus.zip", "nfcorpus"),
        ("s3://bucket/beir/climate-fever", "climate-fever"),
        ("irds:msmarco", "msmarco"),
        ("irds:msmarco-passage/train", "msmarco"),
        ("irds:beir/webis-touche2020/v2", "webis-touche2020"),
        ("irds:fiqa", "fiqa"),
        ("mine", None),
        ("irds:beir/cqadupstack/android", None),
        ("DIR/msmarco-slice", None),
    ],
)
def test_a_benchmark_is_known_by_the_end_of_its_address(address, name):
    known = known_collection(address)
    assert (None if known is None else known.name) == name


def test_a_plan_takes_what_is_there_and_knows_what_is_not(collection_folder, tmp_path, monkeypatch):
    def downloads(_):
        raise AssertionError("ir_datasets was asked")

    monkeypatch.setattr(irds, "_dataset", downloads)
    assert isinstance(open_or_known("scifact"), Source)
    there = shutil.copytree(collection_folder, tmp_path / "fiqa")
    assert isinstance(open_or_known(str(there)), Source)
    for address in (str(tmp_path / "nq"), "nq", "irds:nq", "s3://nowhere.invalid/nq"):
        known = open_or_known(address)
        assert isinstance(known, KnownCollection)
        assert (known.name, known.size.passages) == ("nq", 2_681_468)
    (there / "queries.jsonl").unlink()
    with pytest.raises(CollectionError, match=r"queries\.jsonl\[\.gz\] is missing"):
        open_or_known(str(there))
    with pytest.raises(CollectionError, match="no collection 'mine'"):
        open_or_known("mine")
    with pytest.raises(CollectionError):  # a run must have it
        open_collection(str(tmp_path / "nq"))


@pytest.mark.parametrize(
    ("folder", "name"), [("beir/nfcorpus", "nfcorpus"), ("beir/scifact", "scifact")]
)
def test_the_words_of_real_data(shared_data, folder, name):
    """Mean and spread, and so the words that a limit of 390, about 512 tokens, leaves."""
    source, size = open_collection(str(shared_data / folder)), KNOWN_SIZES[name]
    passages = [len(f"{p.title} {p.text}".split()) for p in read_passages(source.passages)]
    queries = [
        len(t.split()) for topics in read_topics(source).values() for t in topics.queries.values()
    ]
    assert len(passages) == size.passages
    for words, known, limit in (
        (passages, size.passage_words, 390),
        (queries, size.query_words, 64),
    ):
        assert known.mean == pytest.approx(np.mean(words), rel=0.08)
        assert known.spread == pytest.approx(np.log(words).std(), abs=0.1)
        left = np.minimum(known.lengths(), limit).mean()
        assert left == pytest.approx(np.minimum(words, limit).mean(), rel=0.08)
