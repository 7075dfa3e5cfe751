"""DenseIndex: exact against a float64 loop and faiss, whatever the sharding, ties by id."""

import faiss
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.index.dense import DenseIndex
from raylab.index.embeddings import write_shard
from raylab.index.kernels import exact
from raylab.index.kernels.topk import merge_topk

FILES = ["ids.npy", "ranks.npy", "vectors.npy", "index.json"]


def naive_search(ids, passages, queries, k):
    """Python-loop search: float64 inner products rounded to float32, ties by id."""
    found = []
    for query in queries.astype(np.float64):
        scores = [float(np.float32(np.dot(p, query))) for p in passages.astype(np.float64)]
        best = sorted(
            zip(ids, scores, strict=True), key=lambda hit: (hit[1], hit[0]), reverse=True
        )[:k]
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


def test_many_ties_at_the_boundary_are_searched_until_certain(monkeypatch):
    """6,000 equal vectors: more than any margin holds, and faiss would return arbitrary ones."""
    rng = np.random.default_rng(2)
    ids = [f"{number:04d}" for number in rng.permutation(6100)]
    passages = np.repeat(rng.standard_normal((1, 40)), 6100, axis=0).astype(np.float32)
    passages[:100] = rng.standard_normal((100, 40))
    queries = np.stack([passages[-1] / 3, rng.standard_normal(40)]).astype(np.float32)
    index = DenseIndex.build([(ids, passages)])
    expected = naive_search(ids, passages, queries, 50)
    assert pairs(index.search(queries, 50, device="cpu")) == expected
    for how in ("float32", "bfloat16"):
        nominate_by(how, monkeypatch)
        assert pairs(index.search(queries, 50)) == expected


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


def nominate_by(how, monkeypatch):
    """Use bfloat16 products, or do not, whatever this processor is good at."""
    monkeypatch.setattr(exact, "bfloat16_is_fast", lambda: how == "bfloat16")
    monkeypatch.setattr(exact, "_LEAST_DIMENSION", 1)
    monkeypatch.setattr(exact, "_LEAST_PASSAGES_A_HIT", 0)


def best_rows(scores_QN: np.ndarray, k: int) -> np.ndarray:
    """The rows of the best k scores of each query; of equal ones the last row first."""
    last = scores_QN.shape[1] - 1
    return last - np.argsort(-scores_QN[:, ::-1], axis=1, kind="stable")[:, :k]


# Sums of their products are exact in float64, in any order, and are not in float32.
WIDE = [0.0, -0.0, 1.0, -1.0, 0.75, 2.0**-12, 2.0**10, -(2.0**10)]
# Subnormal products, cancellation: float64 rounds too, so only the bits of two cuts are compared.
NASTY = [0.0, 1.0, 1e-7, 3e4, -3e4, 1e-30, 0.1, 7e-42]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([WIDE, NASTY]), st.data())
def test_any_cut_into_shards_threads_batches_and_devices_gives_the_naive_answer(seed, cells, data):
    n, dimension = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 140))
    k, cut = data.draw(st.integers(1, n + 3)), data.draw(st.integers(0, n))
    rng = np.random.default_rng(seed)
    passages = rng.choice(cells, (data.draw(st.integers(1, 6)), dimension)).astype(np.float32)
    passages = passages[rng.integers(0, len(passages), n)]  # equal vectors: ties
    queries = rng.choice(cells, (3, dimension)).astype(np.float32)
    ids = [str(number) for number in rng.permutation(n)]
    whole = DenseIndex.build([(ids, passages)])
    expected = pairs(whole.search(queries, k))
    if cells is WIDE:
        assert expected == naive_search(ids, passages, queries, k)
    assert pairs(whole.search(queries, k, threads=3)) == expected
    assert pairs(whole.search(queries, k, device="cpu")) == expected
    with pytest.MonkeyPatch.context() as patch:
        nominate_by("bfloat16", patch)
        assert pairs(whole.search(queries, k)) == expected
    assert [pairs(whole.search(query[None], k))[0] for query in queries] == expected
    shards = [(ids[:cut], passages[:cut]), (ids[cut:], passages[cut:])]
    assert pairs(DenseIndex.build(shards[::-1]).search(queries, k)) == expected
    parts = [DenseIndex.build([shard]).search(queries, k) for shard in shards if len(shard[0])]
    assert pairs(merge_topk(parts, k)) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("how", ["float32", "bfloat16", "device"])
def test_many_blocks_and_nominees_are_exact(dtype, how, monkeypatch):
    """Several blocks of passages, several cuts of the nominees, the last block not full."""
    nominate_by(how, monkeypatch)
    device = "cpu" if how == "device" else None
    rng = np.random.default_rng(5)
    n, dimension, k = 40_001, 24, 300
    passages = rng.standard_normal((n, dimension)).astype(dtype)
    queries = rng.standard_normal((70, dimension)).astype(np.float32)
    ids = np.array([f"{number:05d}" for number in range(n)])
    index = DenseIndex.build([(ids.tolist(), passages)])
    assert index.vectors.dtype == dtype
    scores = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    expected = best_rows(scores, k)
    found, values = index.search(queries, k, device=device)
    assert (found == ids[expected]).all()
    assert (values == np.take_along_axis(scores, expected, axis=1)).all()


@pytest.mark.parametrize(("how", "size"), [("float32", 1000), ("bfloat16", 2), ("device", 1e6)])
def test_products_that_put_the_wrong_passages_first_do_no_harm(how, size, monkeypatch):
    """Scores are small differences of large terms, closer to each other than products are to them."""
    nominate_by(how, monkeypatch)
    rng = np.random.default_rng(9)
    n, k = 20_000, 1000
    terms = size * rng.uniform(1, 2, n)
    passages = np.stack([terms, rng.uniform(0, 1, n) - terms], axis=1).astype(np.float32)
    queries = (np.ones((40, 1)) * np.linspace(1.1, 1.3, 40)[:, None] * [[1, 1]]).astype(np.float32)
    scores = (queries.astype(np.float64) @ passages.T.astype(np.float64)).astype(np.float32)
    expected = best_rows(scores, k)
    if how == "bfloat16":
        rounded = [exact.rounded_to_bfloat16(part) for part in (queries, passages)]
        products = rounded[0] @ rounded[1].T
    else:
        products = queries @ passages.T
    misled = np.argsort(-products, axis=1, kind="stable")[:, :k]
    assert any(set(e) != set(m) for e, m in zip(expected, misled, strict=True))
    ids = np.array([f"{number:05d}" for number in range(n)])
    found, values = DenseIndex.build([(ids.tolist(), passages)]).search(
        queries, k, device="cpu" if how == "device" else None
    )
    assert (found == ids[expected]).all()
    assert (values == np.take_along_axis(scores, expected, axis=1)).all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_products_are_within_the_bound_on_their_error(bfloat16):
    """The bound is what makes the search exact; on these vectors it is within 30 x of the worst."""
    rng = np.random.default_rng(7)
    queries = rng.standard_normal((50, 300)).astype(np.float32)
    passages = np.concatenate([queries, queries + rng.standard_normal((50, 300)).astype("f4")])
    index = DenseIndex.build([([str(number) for number in range(100)], passages)])
    vectors = exact.Vectors(passages, index.ranks, index.max_norm, index.max_residual)
    if bfloat16:
        sums = [exact.rounded_to_bfloat16(part).astype(np.float64) for part in (queries, passages)]
    else:
        sums = [queries, passages]
    error = np.abs(sums[0] @ sums[1].T - queries.astype(np.float64) @ passages.T).max(axis=1)
    bounds = vectors.bounds(queries, bfloat16)
    assert (error <= bounds).all()
    assert error.max() > bounds.max() / (30 if bfloat16 else 3000)


def test_rounding_to_bfloat16_is_torch_s():
    values = np.random.default_rng(8).standard_normal((40, 50)).astype(np.float32) * 1e-3
    values[0, :4] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0, 3e-42]  # ties to even; a subnormal
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert (exact.rounded_to_bfloat16(values) == expected).all()
    half = values.astype(np.float16)
    assert (
        exact.rounded_to_bfloat16(half) == torch.from_numpy(half).bfloat16().float().numpy()
    ).all()


def test_values_that_bfloat16_cannot_hold_are_searched_in_float32(monkeypatch):
    nominate_by("bfloat16", monkeypatch)
    passages = np.array([[3.4e38, 1], [3.39e38, 2]], np.float32)
    found = DenseIndex.build([(["a", "b"], passages)]).search(np.array([[1e-3, 0.1]]), 1)
    assert pairs(found) == [[("a", pytest.approx(3.4e35))]]


def test_bfloat16_products_are_not_taken_for_float32():
    """A process may have asked torch for fast products; the nominees must not suffer from it."""
    ids, passages = random_collection(3000, 64, seed=6)
    index = DenseIndex.build([(ids, passages)])
    before = index.search(passages[:20], 50)
    torch.set_float32_matmul_precision("medium")
    try:
        after = index.search(passages[:20], 50, device="cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert pairs(after) == pairs(before)


def test_a_saved_index_is_mapped_and_answers_the_same(tmp_path):
    ids, passages = random_collection(90, 16)
    built = DenseIndex.build([(ids[:40], passages[:40]), (ids[40:], passages[40:])])
    built.save(tmp_path / "new" / "index")
    loaded = DenseIndex.load(tmp_path / "new" / "index")
    assert (len(loaded), loaded.dimension, loaded.size_bytes) == (90, 16, 90 * 16 * 4)
    assert isinstance(loaded.vectors.base, np.memmap)
    for one, other in zip(built.search(passages, 20), loaded.search(passages, 20), strict=True):
        assert (one == other).all()


def test_folders_and_generators_build_on_disk_what_pairs_build_in_memory(tmp_path):
    """Embedding shards hold float16, and so does their index; a generator is held one at a time."""
    ids, passages = random_collection(300, 9)
    passages = passages.astype(np.float16)
    cuts = [(ids[part], passages[part]) for part in (slice(0, 7), slice(7, 100), slice(100, 300))]
    folders = []
    for number, (shard_ids, matrix) in enumerate(cuts):
        folders.append(tmp_path / f"shard-{number}")
        folders[-1].mkdir()
        write_shard(folders[-1], shard_ids, matrix)
    expected = DenseIndex.build([(ids, passages)]).search(passages[:5], 40)
    for name, shards in {"folders": folders, "pairs": cuts, "generator": iter(cuts)}.items():
        index = DenseIndex.build(shards, tmp_path / name)
        assert index.vectors.dtype == np.float16
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(FILES)
        assert pairs(index.search(passages[:5], 40)) == pairs(expected)
    wide = DenseIndex.build(folders, dtype="float32")
    assert wide.vectors.dtype == np.float32
    assert pairs(wide.search(passages[:5], 40)) == pairs(expected)


def test_a_failed_build_leaves_nothing(tmp_path):
    broken = np.ones((3, 2))
    broken[2, 1] = np.nan
    shards = [(["a"], np.ones((1, 2))), (["b", "c", "d"], broken)]
    for source in (shards, iter(shards)):
        with pytest.raises(ValueError, match=r"passage 'd' \(shard 1\) holds a NaN"):
            DenseIndex.build(source, tmp_path / "index")
        assert not list((tmp_path / "index").iterdir())
    with pytest.raises(ValueError, match="infinite value in float16"):
        DenseIndex.build([(["a"], np.array([[1e5, 1]]))], dtype="float16")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        DenseIndex.build([(["a"], np.ones((1, 2)))], dtype="int8")


def test_a_folder_that_is_no_shard_of_vectors_is_named(tmp_path):
    write_shard(tmp_path, ["a", "b"], np.ones((2, 3)))
    np.save(tmp_path / "ids.npy", np.array([b"a"]))
    with pytest.raises(ValueError, match=r"sizes \(1, 2, 3\); shape.json asks for \(2, 2, 3\)"):
        DenseIndex.build([tmp_path])
    (tmp_path / "sparse").mkdir()
    write_shard(tmp_path / "sparse", ["a"], sp.csr_matrix(np.ones((1, 3))))
    with pytest.raises(ValueError, match="sparse: sparse rows; vectors are"):
        DenseIndex.build([tmp_path / "sparse"])


def test_damaged_index_is_named(tmp_path):
    ids, passages = random_collection(9, 4)
    DenseIndex.build([(ids, passages)]).save(tmp_path)
    np.save(tmp_path / "ids.npy", np.array([b"a"]))
    with pytest.raises(ValueError, match=r"index\.json says"):
        DenseIndex.load(tmp_path)
    whole = (tmp_path / "vectors.npy").read_bytes()
    (tmp_path / "vectors.npy").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"vectors\.npy: not a whole array"):
        DenseIndex.load(tmp_path)
    (tmp_path / "vectors.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"vectors\.npy"):
        DenseIndex.load(tmp_path)


def test_ids_may_be_any_text_and_inputs_half_precision():
    ids = ["é", "z", "\U0001f600", "a-" + "long" * 50]
    passages = np.eye(4, dtype=np.float16)
    found, scores = DenseIndex.build([(ids, passages)]).search(np.ones((1, 4)), 5)
    assert found.tolist() == [[*sorted(ids, reverse=True), ""]]
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
