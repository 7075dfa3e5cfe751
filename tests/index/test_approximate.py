"""faiss indexes of the same shards: their answers, their recall against exact, their files."""

import faiss
import numpy as np
import pytest

from raylab.index.approximate import KINDS, FaissIndex, FaissSettings
from raylab.index.dense import DenseIndex
from raylab.index.embeddings import write_shard

SMALL = {
    "Flat": FaissSettings("Flat"),
    "HNSW": FaissSettings("HNSW", links=8, build_breadth=40, search_breadth=16),
    "IVFPQ": FaissSettings("IVFPQ", lists=16, probes=1, code_bytes=8),
}


@pytest.fixture(scope="module")
def collection():
    """2,000 passages about 40 topics, in three embedding shards' worth; ids in no order."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((40, 32))
    passages = topics[rng.integers(0, 40, 2000)] + 0.5 * rng.standard_normal((2000, 32))
    passages = passages.astype(np.float16).astype(np.float32)
    ids = [f"p{number}" for number in rng.permutation(2000)]
    queries = (topics + 0.5 * rng.standard_normal((40, 32))).astype(np.float32)
    return ids, passages, queries


def test_flat_is_exact_but_for_rounding(collection):
    ids, passages, queries = collection
    exact = DenseIndex.build([(ids, passages)])
    found = FaissIndex.build([(ids, passages)], SMALL["Flat"]).measured_search(exact, queries, 20)
    assert found.agreement.recall == 1.0
    assert found.agreement.score_error < 1e-6
    np.testing.assert_allclose(found.scores, exact.search(queries, 20)[1], rtol=1e-5)


@pytest.mark.parametrize("kind", ["HNSW", "IVFPQ"])
def test_recall_is_that_of_a_count_by_hand_and_grows_with_effort(collection, kind):
    ids, passages, queries = collection
    exact = DenseIndex.build([(ids, passages)])
    index = FaissIndex.build(
        [(ids[:700], passages[:700]), (ids[700:], passages[700:])], SMALL[kind]
    )
    found = index.measured_search(exact, queries, 10)
    truth = np.argsort(-(queries.astype(np.float64) @ passages.T), axis=1)[:, :10]
    counted = [
        len({ids[r] for r in t} & set(f)) / 10 for t, f in zip(truth, found.ids, strict=True)
    ]
    assert found.agreement.recall == pytest.approx(np.mean(counted))
    assert found.agreement.worst_recall == pytest.approx(min(counted))
    assert found.agreement.queries == 40
    assert 0.1 < found.agreement.recall < 1
    assert (np.diff(found.scores, axis=1) <= 0).all()
    index.settings = FaissSettings(kind, search_breadth=2000, probes=16)
    assert index.measured_search(exact, queries, 10).agreement.recall > found.agreement.recall
    assert index.measured_search(exact, queries, 10, sample=20).agreement.queries == 20


@pytest.mark.parametrize("kind", KINDS)
def test_folders_and_saved_files_answer_as_pairs_do(collection, tmp_path, kind):
    ids, passages, queries = collection
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder, part in zip(folders, (slice(0, 900), slice(900, None)), strict=True):
        folder.mkdir()
        write_shard(folder, ids[part], passages[part])
    built = FaissIndex.build(folders, SMALL[kind])
    expected = FaissIndex.build([(ids, passages)], SMALL[kind]).search(queries, 30)
    built.save(tmp_path / "index")
    loaded = FaissIndex.load(tmp_path / "index")
    assert loaded.settings == SMALL[kind]
    for index in (built, loaded):
        for one, other in zip(index.search(queries, 30), expected, strict=True):
            assert (one == other).all()
    plain = faiss.read_index(str(tmp_path / "index" / "vectors.faiss"))
    assert plain.ntotal == 2000
    assert built.size_bytes == (tmp_path / "index" / "vectors.faiss").stat().st_size


def test_what_is_not_found_is_padded(collection):
    """One probe of 16 lists holds fewer than 2,000; a collection of 3 fewer than 5."""
    ids, passages, queries = collection
    index = FaissIndex.build(
        [(ids, passages)], FaissSettings("IVFPQ", lists=16, probes=1, code_bytes=8)
    )
    found, scores = index.search(queries, 2000)
    assert ((found == "") == np.isneginf(scores)).all()
    assert (found[:, -1] == "").all()
    found, scores = FaissIndex.build([(["b", "a", "c"], np.ones((3, 2)))], SMALL["Flat"]).search(
        np.ones((1, 2)), 5
    )
    assert found.tolist() == [["c", "b", "a", "", ""]]
    assert scores.tolist() == [[2, 2, 2, -np.inf, -np.inf]]


def test_bad_input_is_named(collection, tmp_path):
    ids, passages, queries = collection
    pairs = [(ids, passages)]
    with pytest.raises(ValueError, match="kind is 'LSH'"):
        FaissSettings("LSH")
    with pytest.raises(ValueError, match="probes is 0"):
        FaissSettings("IVFPQ", probes=0)
    with pytest.raises(ValueError, match="code_bytes is 64; it must divide D = 32"):
        FaissIndex.build(pairs, FaissSettings("IVFPQ"))
    with pytest.raises(ValueError, match="at least 256 passages, not 9"):
        FaissIndex.build([(ids[:9], passages[:9])], SMALL["IVFPQ"])
    with pytest.raises(ValueError, match="'a'"):
        FaissIndex.build([(["a", "a"], np.ones((2, 2)))], SMALL["Flat"])
    with pytest.raises(ValueError, match="passage 'b'"):
        FaissIndex.build([(["a", "b"], np.array([[1], [np.nan]]))], SMALL["Flat"])
    index = FaissIndex.build(pairs, SMALL["Flat"])
    with pytest.raises(ValueError, match="query 1 holds a NaN"):
        index.search(np.where(np.arange(40)[:, None] == 1, np.nan, queries), 3)
    with pytest.raises(ValueError, match="same passages"):
        index.measured_search(DenseIndex.build([(["a"], passages[:1])]), queries, 3)
    index.save(tmp_path)
    (tmp_path / "vectors.faiss").write_bytes(b"IxFI")
    with pytest.raises(ValueError, match=r"vectors\.faiss: not a whole faiss index"):
        FaissIndex.load(tmp_path)
