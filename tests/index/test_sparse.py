"""SparseIndex: exact against a dictionary loop, whatever the sharding, ties by id."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.index.embeddings import write_shard
from raylab.index.kernels.topk import merge_topk
from raylab.index.sparse import SparseIndex

FILES = ["ids.npy", "ranks.npy", "offsets.npy", "positions.npy", "impacts.npy", "index.json"]


def naive_search(ids, passages, queries, k):
    """Dictionary-loop search in float64; a passage without overlap is no hit."""
    passages, queries = sp.csr_array(passages), sp.csr_array(queries)
    found = []
    for q in range(queries.shape[0]):
        query = {}
        for term, weight in zip(*_row(queries, q), strict=True):
            query[term] = query.get(term, 0.0) + weight
        hits = []
        for p, passage_id in enumerate(ids):
            terms, impacts = _row(passages, p)
            score = sum(query.get(t, 0.0) * i for t, i in zip(terms, impacts, strict=True))
            if score > 0:
                hits.append((passage_id, score))
        best = sorted(hits, key=lambda hit: (hit[1], hit[0]), reverse=True)[:k]
        found.append(best + [("", -np.inf)] * (k - len(best)))
    return found


def _row(matrix, row):
    span = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[span].tolist(), matrix.data[span].astype(np.float64).tolist()


def pairs(answer):
    return [list(zip(i.tolist(), s.tolist(), strict=True)) for i, s in zip(*answer, strict=True)]


def random_matrix(rows, terms, density, seed):
    """Impacts in eighths: float32 sums of their products are exact, ties common."""
    rng = np.random.default_rng(seed)
    matrix = sp.random_array((rows, terms), density=density, rng=rng, format="csr")
    matrix.data = (np.ceil(matrix.data * 8) / 8).astype(np.float32)
    return matrix


def test_equals_the_naive_loop():
    passages, queries = random_matrix(400, 60, 0.1, 0), random_matrix(30, 60, 0.1, 1)
    ids = [f"p{number}" for number in np.random.default_rng(2).permutation(400)]
    index = SparseIndex.build([(ids, passages)])
    for k in (1, 10, 400, 500):
        assert pairs(index.search(queries, k)) == naive_search(ids, passages, queries, k)


IMPACTS = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 2.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(IMPACTS, min_size=4, max_size=4)),
        min_size=1,
        max_size=40,
    ),
    st.data(),
)
def test_ties_are_by_id_and_shards_do_not_matter(rows, data):
    k = data.draw(st.integers(1, len(rows) + 2))
    ids = np.array([str(number) for number in range(len(rows))])
    shard_of = np.array([row[0] for row in rows])
    passages = np.array([row[1] for row in rows])
    queries = sp.csr_array([[1.0, 0, 0, 0], [0, 1, 0.5, 2], [0, 0, 0, 0]])
    shards = [(ids[shard_of == s], sp.csr_array(passages[shard_of == s])) for s in range(3)]
    expected = naive_search(ids.tolist(), passages, queries, k)
    assert pairs(SparseIndex.build(shards).search(queries, k)) == expected
    parts = [SparseIndex.build([shard]).search(queries, k) for shard in shards if len(shard[0])]
    assert pairs(merge_topk(parts, k)) == expected


def test_scores_are_the_same_bits_in_any_sharding():
    rng = np.random.default_rng(5)
    passages = sp.random_array((300, 200), density=0.2, rng=rng, format="csr", dtype=np.float32)
    queries = sp.random_array((20, 200), density=0.2, rng=rng, format="csr", dtype=np.float32)
    ids = [str(number) for number in range(300)]
    whole = SparseIndex.build([(ids, passages)]).search(queries, 300)
    parts = [
        SparseIndex.build([(ids[part], passages[part])]).search(queries, 300)
        for part in (slice(200, 300), slice(0, 200))
    ]
    merged = merge_topk(parts, 300)
    assert (whole[0] == merged[0]).all()
    assert (whole[1] == merged[1]).all()


def test_several_windows_a_large_vocabulary_and_interleaved_shards():
    """150,000 passages are three windows; term 128,255 does not fit 16 bits."""
    n, terms = 150_000, 128_256
    numbers = np.arange(n)
    matrix = sp.csr_array(
        (
            np.repeat((1 + numbers % 1000).astype(np.float32), 2),
            np.stack([numbers % 7 + 128_249, numbers % 65_536], axis=1).ravel(),
            2 * np.arange(n + 1),
        ),
        shape=(n, terms),
    )
    ids = [f"{number:06d}" for number in numbers]
    shards = [(ids[s::2], matrix[s::2]) for s in range(2)]
    index = SparseIndex.build(shards)
    assert (index.n_postings, index.vocabulary_size) == (2 * n, terms)
    query = sp.csr_array(([1.0, 10.0], ([0, 0], [128_255, 5])), shape=(1, terms))
    found, scores = index.search(query, 50)
    expected = (query @ matrix.T).toarray()[0]
    best = np.lexsort((-numbers, -expected))[:50]
    assert found[0].tolist() == [ids[row] for row in best]
    assert scores[0].tolist() == expected[best].tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_folders_and_generators_build_on_disk_what_pairs_build_in_memory(tmp_path, dtype):
    """Rows of 2,300 passages in three shards; eighths up to 1 are exact in float16."""
    matrix, queries = random_matrix(2300, 500, 0.02, 8), random_matrix(9, 500, 0.05, 9)
    matrix.data[0] = 1.0
    ids = [f"p{number}" for number in np.random.default_rng(10).permutation(2300)]
    cuts = [(ids[a:b], matrix[a:b]) for a, b in ((0, 700), (700, 700), (700, 701), (701, 2300))]
    folders = []
    for number, (shard_ids, rows) in enumerate(cuts):
        folders.append(tmp_path / f"shard-{number}")
        folders[-1].mkdir()
        write_shard(folders[-1], shard_ids, rows)
    whole = SparseIndex.build([(ids, matrix)], dtype=dtype)
    expected = pairs(whole.search(queries, 40))
    for name, shards in {"folders": folders, "pairs": cuts, "generator": iter(cuts)}.items():
        built = SparseIndex.build(shards, tmp_path / name, dtype)
        assert built.impacts.dtype == dtype
        assert isinstance(built.impacts.base, np.memmap)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(FILES)
        assert pairs(built.search(queries, 40)) == expected
        assert pairs(built.search(queries, 40, threads=3)) == expected
        parts = [
            SparseIndex.build([cut], dtype=dtype, largest_impact=1.0) for cut in cuts if cut[0]
        ]
        merged = merge_topk([part.search(queries, 40) for part in parts], 40)
        assert pairs(merged) == expected
    if dtype != "uint8":
        assert expected == naive_search(ids, matrix, queries, 40)
    assert SparseIndex.build(folders).impacts.dtype == np.float16


def test_a_build_may_overwrite_an_index_and_one_without_postings_is_none_the_worse(tmp_path):
    SparseIndex.build([(["a"], sp.csr_array([[1.0, 0]]))], tmp_path)
    empty = SparseIndex.build([(["b", "c"], sp.csr_array((2, 70_000)))], tmp_path)
    assert (len(empty), empty.n_postings, empty.vocabulary_size) == (2, 0, 70_000)
    query = sp.csr_array(([1.0], ([0], [69_999])), shape=(1, 70_000))
    assert pairs(empty.search(query, 1)) == [[("", -np.inf)]]


def test_compact_impacts_are_within_half_a_step():
    """uint8: linear steps, nothing falls to zero; float16: 11 bits, 2^-9 apart above 2."""
    rng = np.random.default_rng(11)
    values = np.concatenate([[1e-6, 3.0], rng.uniform(0, 3, 500)]).astype(np.float32)
    matrix = sp.csr_array(values[:, None])
    ids = [f"{number:03d}" for number in range(len(values))]
    query = sp.csr_array([[1.0]])
    for dtype, error in {"uint8": 3 / 255 / 2, "float16": 2**-10}.items():
        index = SparseIndex.build([(ids, matrix)], dtype=dtype)
        found, scores = index.search(query, len(ids))
        assert set(found[0]) == set(ids)
        kept = scores[0, np.argsort(found[0])]
        np.testing.assert_allclose(kept[1:], values[1:], atol=error * 1.001)
        assert 0 < kept[0] <= 3 / 255 * 1.001
    sizes = {"float32": 6, "float16": 4, "uint8": 3}
    for dtype, bytes_each in sizes.items():
        index = SparseIndex.build([(ids, matrix)], dtype=dtype)
        assert index.size_bytes == bytes_each * len(ids) + 8 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"dtype": "float16"}, "an impact of 100000 does not fit float16"),
        ({"dtype": "uint8", "largest_impact": 9.0}, "largest_impact is 9.0"),
    ],
)
def test_impacts_that_do_not_fit_are_refused_and_leave_nothing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        SparseIndex.build([(["a"], sp.csr_array([[1e5]]))], tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("terms", "impacts", "message"),
    [
        ([2, 1, 3], [1, 1, 1], "row 0, term 1: terms of a row must ascend"),
        ([1, 2, 5], [1, 1, 1], "row 1, term 5: terms of a row must ascend and lie below 5"),
        ([1, 2, 3], [1, np.nan, 1], "row 0, term 2: value nan"),
        ([1, 2, 3], [1, 1, np.inf], "row 1, term 3: value inf"),
        ([1, 2, 3], [-1, 1, 1], "row 0, term 1: value -1"),
    ],
)
def test_a_broken_embedding_shard_is_named(tmp_path, terms, impacts, message):
    write_shard(tmp_path, ["a", "b"], sp.csr_matrix(np.eye(2, 5)))
    np.save(tmp_path / "indptr.npy", np.array([0, 2, 3]))
    np.save(tmp_path / "terms.npy", np.array(terms, np.uint32))
    np.save(tmp_path / "impacts.npy", np.array(impacts, np.float16))
    with pytest.raises(ValueError, match=message):
        SparseIndex.build([tmp_path])


def test_saved_index_answers_the_same(tmp_path):
    passages, queries = random_matrix(100, 30, 0.1, 6), random_matrix(9, 30, 0.2, 7)
    built = SparseIndex.build([([str(number) for number in range(100)], passages)])
    built.save(tmp_path / "index")
    loaded = SparseIndex.load(tmp_path / "index")
    assert pairs(loaded.search(queries, 20)) == pairs(built.search(queries, 20))
    assert not list((tmp_path / "index").glob("*.pkl"))
    np.save(tmp_path / "index" / "positions.npy", loaded.positions[:-1])
    with pytest.raises(ValueError, match=r"index\.json says"):
        SparseIndex.load(tmp_path / "index")


def test_duplicate_entries_add_up_and_the_input_is_left_alone():
    matrix = sp.csr_array((np.array([1.0, 2.0], np.float32), [3, 3], [0, 2]), shape=(1, 5))
    index = SparseIndex.build([(["a"], matrix)])
    assert pairs(index.search(matrix, 1)) == [[("a", 9.0)]]
    assert matrix.nnz == 2


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], "no passages"),
        ([(["a", "b"], sp.csr_array(np.ones((1, 2))))], "shard 0: 2 ids for 1 rows"),
        ([(["a"], sp.csr_array([[1, -1]]))], "shard 0, row 0, term 1: value -1.0"),
        ([(["a"], sp.csr_array([[np.nan, 1]]))], "row 0, term 0: value nan"),
        ([(["a"], sp.csr_array([[1]])), (["b"], sp.csr_array([[1, 1]]))], "sizes: \\[1, 2\\]"),
        ([(["a"], sp.csr_array([[1]])), (["a"], sp.csr_array([[1]]))], "'a'"),
        ([(["a"], np.ones((1, 2)))], "scipy sparse"),
    ],
)
def test_bad_collections_are_named(shards, message):
    with pytest.raises(ValueError, match=message):
        SparseIndex.build(shards)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (sp.csr_array([[1.0, 1.0, 1.0]]), "3 terms; this index has 2"),
        (sp.csr_array([[1.0, -0.5]]), "queries, row 0, term 1"),
        (sp.csr_array([[3e38, 3e38]]), "query 0: a score overflows"),
    ],
)
def test_bad_queries_are_named(query, message):
    index = SparseIndex.build([(["a"], sp.csr_array([[2.0, 2.0]]))])
    with pytest.raises(ValueError, match=message):
        index.search(query, 1)
