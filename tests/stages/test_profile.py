"""Runs, measures and profiles of a system as tasks make them, without Ray: every figure against a loop."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from raylab.data.ingested import load_topics
from raylab.evaluation.entropy import sample_negatives
from raylab.experiment.config import Backbone
from raylab.experiment.execution import Execution
from raylab.experiment.heads import HEADS
from raylab.index.embeddings import read_shard, shards, write_shard
from raylab.pipeline.collect import Measured, collect
from raylab.stages.encode import EMBEDDINGS, System
from raylab.stages.profile import PROFILE, Profile, make_profile
from raylab.stages.search import (
    Evaluation,
    bm25_address,
    build_index,
    index_address,
    search_and_evaluate,
)
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store
from tests.stages.collections import committed

SPLITS = ("test", "valid")
TEMPERATURE = 0.25
PASSAGES = 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BEIR folder of 320 passages and 60 queries with graded judgments, some of nothing relevant."""
    folder = tmp_path_factory.mktemp("collection") / "own"
    (folder / "qrels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(90)]
    corpus = [
        {"_id": f"p{n}", "title": "", "text": " ".join(rng.choice(words, 12))}
        for n in range(PASSAGES)
    ]
    queries = [{"_id": f"q{n}", "text": " ".join(rng.choice(words, 4))} for n in range(60)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for split, own in (("train", range(20)), ("test", range(20, 40)), ("valid", range(40, 60))):
        lines = ["query-id\tcorpus-id\tscore"]
        for n in own:
            for grade, p in enumerate(rng.choice(PASSAGES, 1 + n % 3, replace=False)):
                lines.append(f"q{n}\tp{p}\t{0 if n % 10 == 3 else 1 + grade % 2}")
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def embeddings(store: Store, name: str, ids: list[str], matrix) -> Artifact:
    address = Address(EMBEDDINGS, name, {"of": name}, {})
    with store.draft(address) as draft:
        write_shard(draft.path, ids, matrix)
        draft.meta.update(
            rows=len(ids), representation="dense" if isinstance(matrix, np.ndarray) else "sparse"
        )
    return store.committed(address)


def some(head: str, rng, rows: int):
    matrix = rng.normal(size=(rows, 24)).astype(np.float32) / 3
    return sp.csr_matrix(np.maximum(matrix, 0)) if head == "sparse" else matrix


def system_profile(store: Store, collection: Artifact, head: str, cut: int) -> Profile:
    """A system with random embeddings of the whole collection in shards of `cut` rows."""
    rng = np.random.default_rng(1)
    ids = sorted(f"p{n}" for n in range(PASSAGES))
    passages = some(head, rng, PASSAGES)
    parts = [
        embeddings(
            store, f"{head}-{cut}-{r.start}", ids[r.start : r.stop], passages[r.start : r.stop]
        )
        for r in shards(PASSAGES, cut)
    ]
    topics = load_topics(store.local(collection))
    queries = {
        split: embeddings(
            store, f"{head}-{split}", list(topics[split].queries), some(head, rng, 20)
        )
        for split in SPLITS
    }
    whole = Address(EMBEDDINGS, f"{head}-{cut}", {"whole": head}, {})
    return Profile(f"{head}-{cut}", collection, whole, queries, TEMPERATURE, tuple(parts))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("lab")))


@pytest.fixture(scope="module")
def collection(store, folder) -> Artifact:
    return committed(store, folder)


def loaded(store: Store, profile: Profile, split: str):
    """(query ids, queries, passage ids, passages) in float64."""

    def full(matrix):
        return np.asarray(matrix.todense() if sp.issparse(matrix) else matrix, np.float64)

    parts = [read_shard(store.local(a)) for a in profile.parts]
    query_ids, queries = read_shard(store.local(profile.queries[split]))
    ids = [i for own, _ in parts for i in own]
    return query_ids, full(queries), ids, np.concatenate([full(matrix) for _, matrix in parts])


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_a_profile_is_the_definition_on_every_split(store, collection, head):
    profile = system_profile(store, collection, head, 100)
    make_profile(store, profile)
    made = store.committed(profile.address)
    table = pq.read_table(store.local(made) / "entropy.parquet").to_pandas()
    topics = load_topics(store.local(collection))
    for split in SPLITS:
        query_ids, queries, ids, passages = loaded(store, profile, split)
        found = table[table["split"] == split].set_index("query_id")["value"]
        expected = {}
        for query_id, query in zip(query_ids, queries, strict=True):
            positives = [p for p, grade in topics[split].qrels[query_id].items() if grade >= 1]
            if not positives:
                continue
            rows = [ids.index(p) for p in positives]
            negatives = sample_negatives(query_id, PASSAGES, rows)
            assert len(negatives) == 256
            total = 0.0
            for row in rows:
                high = math.exp(query @ passages[row] / TEMPERATURE)
                low = sum(math.exp(query @ passages[n] / TEMPERATURE) for n in negatives)
                total -= math.log(high / (high + low)) / len(rows)
            expected[query_id] = total
        assert len(expected) == 18  # two of twenty have nothing relevant
        assert found.to_dict() == pytest.approx(expected, rel=1e-9)
        costs = made.meta["splits"][split]
        if head == "dense":
            assert costs["retrieval_flops"] == 24
            assert costs["passage_postings"] is None
        else:
            overlap = ((queries != 0)[:, None, :] & (passages != 0)[None]).sum(-1)
            assert costs["retrieval_flops"] == pytest.approx(overlap.mean())
            assert costs["passage_postings"] == pytest.approx((passages != 0).sum(1).mean())
            assert costs["query_postings"] == pytest.approx((queries != 0).sum(1).mean())
    assert made.meta["negatives"] == 256
    assert made.meta["temperature"] == TEMPERATURE


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_a_profile_does_not_depend_on_the_size_of_shards(store, collection, head):
    tables = []
    for cut in (7, PASSAGES):
        profile = system_profile(store, collection, head, cut)
        make_profile(store, profile)
        path = store.local(store.committed(profile.address)) / "entropy.parquet"
        tables.append(pq.read_table(path).to_pandas())
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_what_enters_a_profiles_identity(store, collection):
    profile = system_profile(store, collection, "dense", 100)
    warmer = dataclasses.replace(profile, temperature=0.3)
    assert warmer.address.fingerprint != profile.address.fingerprint
    again = system_profile(store, collection, "dense", 100)
    assert again.address.fingerprint == profile.address.fingerprint
    assert profile.address.stage == PROFILE


def test_the_querys_own_document_is_neither_positive_nor_negative(tmp_path, folder):
    """As on ArguAna, whose rule the collection's name brings with it."""
    own = tmp_path / "arguana"
    (own / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"p{n:03d}", "title": "", "text": f"word{n}"} for n in range(258)]
    (own / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in corpus))
    queries = [{"_id": name, "text": "word"} for name in ("p007", "p008")]
    (own / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    (own / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\np007\tp001\t1\np007\tp007\t1\np008\tp001\t1\n"
    )
    store = Store(str(tmp_path / "lab"))
    made = committed(store, own)
    passages = np.zeros((258, 2), np.float32)
    # Of 258 passages a query's positive and its own leave 256. Were its own among them, the entropy
    # would be 100; were it a positive (one of them was judged), it would be half of what it is.
    passages[7, 0] = passages[8, 1] = 100.0
    parts = (embeddings(store, "passages", [r["_id"] for r in corpus], passages),)
    vectors = embeddings(store, "queries", ["p007", "p008"], np.eye(2, dtype=np.float32))
    whole = Address(EMBEDDINGS, "x", {}, {})
    profile = Profile("x", made, whole, {"test": vectors}, 1.0, parts)
    make_profile(store, profile)
    path = store.local(store.committed(profile.address)) / "entropy.parquet"
    assert pq.read_table(path)["value"].to_pylist() == pytest.approx([math.log(257)] * 2)


# ----------------------------------------------------------------- from the tasks to the results


@pytest.fixture(scope="module")
def results(store, collection, model_folder):
    """(results, per-query values) of a sparse and a dense untrained system and of BM25."""
    systems, evaluations, profiles = [], {}, {}
    for head in ("sparse", "dense"):
        profile = system_profile(store, collection, head, 100)
        make_profile(store, profile)
        profiles["own", head] = store.committed(profile.address)
        backbone = Backbone("tiny", str(model_folder))
        systems.append((System(head, HEADS[head], backbone, "w", None), None))
        indexes = []
        for shard in profile.parts:
            build_index(store, shard)
            indexes.append(store.committed(index_address(shard)))
        for split in SPLITS:
            own = Evaluation(
                head,
                collection,
                split,
                profile.queries[split],
                profile.embeddings,
                tuple(indexes),
            )
            evaluations["own", head, split] = evaluated(store, own)
    for split in SPLITS:
        own = Evaluation("BM25", collection, split, None, bm25_address(collection, "passages"))
        evaluations["own", "BM25", split] = evaluated(store, own)
    measured = Measured("own", systems, {}, evaluations, profiles, [])
    results, _ = collect(store, measured, Execution(storage=store.uri))
    return results, pd.read_parquet(Path(store.root, "per_query.parquet")), measured


def evaluated(store: Store, evaluation: Evaluation) -> tuple[Artifact, Artifact]:
    search_and_evaluate(store, evaluation)
    run = store.committed(evaluation.run_address)
    return run, store.committed(evaluation.address)


def test_the_results_hold_the_entropy_of_every_system_beside_its_measures(results):
    table, per_query, _ = results
    entropy = table[table["measure"] == "CE@256"]
    assert set(zip(entropy["system"], entropy["split"], strict=True)) == {
        (head, split) for head in ("sparse", "dense") for split in SPLITS
    }
    assert set(entropy["queries"]) == {18}
    assert (entropy["ci_low"] < entropy["value"]).all()
    assert (entropy["value"] < entropy["ci_high"]).all()
    means = per_query.groupby(["system", "split", "measure"])["value"].mean()
    for row in table.to_dict("records"):
        assert row["value"] == pytest.approx(means[row["system"], row["split"], row["measure"]])
    others = table[table["measure"] != "CE@256"]
    assert len(others) == 3 * 2 * 3
    assert set(others["queries"]) == {20}
    assert set(others["without_relevant"]) == {2}


def test_the_results_hold_what_a_search_costs(results):
    table, _, measured = results
    for (_, system, split), (run, _) in measured.evaluations.items():
        own = table[(table["system"] == system) & (table["split"] == split)]
        assert len(own.drop_duplicates("query_ms")) == 1
        first = own.iloc[0]
        assert first["query_ms"] == pytest.approx(50 * run.meta["search_seconds"])
        assert 0 < first["query_ms"] < 10_000
        assert first["index_bytes"] > PASSAGES
    by_system = table.groupby("system").first()
    profile = measured.profiles["own", "sparse"].meta["splits"]["test"]
    assert by_system.loc["sparse", "passage_postings"] == profile["passage_postings"] > 1
    assert by_system.loc["dense", "retrieval_flops"] == 24
    assert math.isnan(by_system.loc["dense", "passage_postings"])
    assert 9 < by_system.loc["BM25", "passage_postings"] <= 12  # of twelve words, some twice
    assert math.isnan(by_system.loc["BM25", "retrieval_flops"])
