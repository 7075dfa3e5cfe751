"""DenseIndex: exact against a float64 loop and faiss, whatever the sharding, ties by id."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.index.dense import DenseIndex
from raylab.index.topk import merge_topk


def naive_search(ids, passages, queries, k):
    """Python-loop search: float64 inner products rounded to float32, ties by id."""
    found = []
    for query in queries.astype(np.float64):
        scores = [float(np.float32(np.dot(p, query))) for p in passages.astype(np.float64)]
        best = sorted(zip(ids, scores, strict=True), key=lambda hit: (-hit[1], hit[0]))[:k]
        found.append(best + [("", -np.inf)] * (k - len(best)))
    return found


def pairs(answer):
    return [list(zip(i.tolist(), s.tolist(), strict=True)) for i, s in zip(*answer, strict=True)]


def random_collection(n, dimension, seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"p{number}" for number in rng.permutation(n)]
    return ids, rng.standard_normal((n, dimension)).astype(np.float32)


def test_equals_faiss_and_the_naive_loop():
    ids, passages = random_collection(700, 33)
    queries = np.random.default_rng(1).standard_normal((40, 33)).astype(np.float32)
    answer = DenseIndex.build([(ids, passages)]).search(queries, 100)
    assert pairs(answer) == naive_search(ids, passages, queries, 100)
    plain = faiss.IndexFlatIP(33)
    plain.add(passages)
    products, rows = plain.search(queries, 100)
    assert (np.array(ids)[rows] == answer[0]).mean() > 0.99
    np.testing.assert_allclose(products, answer[1], rtol=1e-5)


# Small integers make exact ties common; halves are exact in every float type.
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), VALUES, VALUES), min_size=1, max_size=40), st.data())
def test_ties_are_by_id_and_shards_do_not_matter(rows, data):
    k = data.draw(st.integers(1, len(rows) + 2))
    ids = np.array([str(number) for number in range(len(rows))])
    shard_of = np.array([row[0] for row in rows])
    passages = np.array([row[1:] for row in rows], np.float32)
    queries = np.array([[1, 0.5], [0, 1], [0, 0]], np.float32)
    shards = [(ids[shard_of == s], passages[shard_of == s]) for s in range(3)]
    expected = naive_search(ids.tolist(), passages, queries, k)
    assert pairs(DenseIndex.build(shards).search(queries, k)) == expected
    parts = [DenseIndex.build([shard]).search(queries, k) for shard in shards if len(shard[0])]
    assert pairs(merge_topk(parts, k)) == expected


def test_many_ties_at_the_boundary_are_searched_until_certain():
    """1,500 equal vectors: more than any margin holds, and faiss would return arbitrary ones."""
    rng = np.random.default_rng(2)
    ids = [f"{number:04d}" for number in rng.permutation(1600)]
    passages = np.repeat(rng.standard_normal((1, 40)), 1600, axis=0).astype(np.float32)
    passages[:100] = rng.standard_normal((100, 40))
    queries = passages[-1:] / 3
    answer = DenseIndex.build([(ids, passages)]).search(queries, 50)
    assert pairs(answer) == naive_search(ids, passages, queries, 50)


def test_equal_vectors_tie_exactly_in_any_sharding_and_batching():
    """A float32 matrix product rounds by block shape; ours must not."""
    ids, passages = random_collection(501, 129, seed=3)
    passages[250:] = passages[:251]
    queries = np.random.default_rng(4).standard_normal((65, 129)).astype(np.float32)
    whole = DenseIndex.build([(ids, passages)]).search(queries, 501)
    parts = [
        DenseIndex.build([(ids[part], passages[part])]).search(queries, 501)
        for part in (slice(0, 7), slice(7, 260), slice(260, None))
    ]
    for one, other in zip(whole, merge_topk(parts, 501), strict=True):
        assert (one == other).all()
    alone = DenseIndex.build([(ids, passages)]).search(queries[7:8], 501)
    assert (alone[0][0] == whole[0][7]).all()
    assert (alone[1][0] == whole[1][7]).all()


def test_saved_index_is_mapped_and_readable_by_faiss(tmp_path):
    ids, passages = random_collection(90, 16)
    built = DenseIndex.build([(ids[:40], passages[:40]), (ids[40:], passages[40:])])
    built.save(tmp_path / "new" / "index")
    loaded = DenseIndex.load(tmp_path / "new" / "index")
    assert (len(loaded), loaded.dimension) == (90, 16)
    for one, other in zip(built.search(passages, 20), loaded.search(passages, 20), strict=True):
        assert (one == other).all()
    plain = faiss.read_index(str(tmp_path / "new" / "index" / "vectors.faiss"))
    by_id = dict(zip(ids, passages, strict=True))
    assert (plain.reconstruct(3) == by_id[loaded.ids[3].decode()]).all()


def test_damaged_index_is_named(tmp_path):
    ids, passages = random_collection(9, 4)
    DenseIndex.build([(ids, passages)]).save(tmp_path)
    np.save(tmp_path / "ids.npy", np.array([b"a"]))
    with pytest.raises(ValueError, match=r"index\.json says"):
        DenseIndex.load(tmp_path)
    (tmp_path / "vectors.faiss").write_bytes(b"IxFI")
    with pytest.raises(ValueError, match=r"vectors\.faiss: not a whole faiss index"):
        DenseIndex.load(tmp_path)
    (tmp_path / "vectors.faiss").unlink()
    with pytest.raises(FileNotFoundError, match=r"vectors\.faiss"):
        DenseIndex.load(tmp_path)


def test_ids_may_be_any_text_and_inputs_half_precision():
    ids = ["é", "z", "\U0001f600", "a-" + "long" * 50]
    passages = np.eye(4, dtype=np.float16)
    found, scores = DenseIndex.build([(ids, passages)]).search(np.ones((1, 4)), 5)
    assert found.tolist() == [[*sorted(ids), ""]]
    assert scores.tolist() == [[1, 1, 1, 1, -np.inf]]


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], "no passages"),
        ([([], np.empty((0, 2)))], "no passages"),
        ([(["a"], np.ones((2, 2)))], "shard 0: 1 ids"),
        ([(["a"], np.ones((1, 2))), (["b"], np.ones((1, 3)))], "shard 1 has dimension 3"),
        ([(["a"], np.ones((1, 2))), (["a"], np.ones((1, 2)))], "'a'"),
        ([(["a", "b"], np.array([[1, 2], [np.nan, 1]]))], "passage 'b'"),
        ([(["a"], np.array([[1e300, 1]]))], "infinite"),
        ([([7], np.ones((1, 2)))], "row 0: passage id 7 is a int"),
        ([([""], np.ones((1, 2)))], "empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_bad_collections_are_named(shards, message):
    with pytest.raises(ValueError, match=message):
        DenseIndex.build(shards)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones((1, 3)), r"\[Q, 2\]"),
        (np.ones(2), r"\[Q, 2\]"),
        (np.array([[1, 1], [np.inf, 1]]), "query 1"),
        (np.array([[1e38, 1e38]]), "overflow"),
    ],
)
def test_bad_queries_are_named(queries, message):
    index = DenseIndex.build([(["a"], np.array([[10.0, 10.0]]))])
    with pytest.raises(ValueError, match=message):
        index.search(queries, 1)


def test_no_queries_give_empty_arrays():
    found, scores = DenseIndex.build([(["a"], np.ones((1, 2)))]).search(np.empty((0, 2)), 3)
    assert found.shape == scores.shape == (0, 3)
