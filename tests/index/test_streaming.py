"""A build from a generator or folders holds about one shard, whatever the size of the collection."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from raylab.index import postings, sparse
from raylab.index.dense import DenseIndex
from raylab.index.kernels.topk import merge_topk
from raylab.index.sparse import SparseIndex

ROWS = 4096


def dense_shards(n_shards):
    for number in range(n_shards):
        rng = np.random.default_rng(number)
        ids = [f"{number:02d}-{row:04d}" for row in range(ROWS)]
        yield ids, rng.standard_normal((ROWS, 128)).astype(np.float32)  # 2 MB


def sparse_shards(n_shards):
    for number in range(n_shards):
        rng = np.random.default_rng(number)
        ids = [f"{number:02d}-{row:04d}" for row in range(ROWS)]
        terms = np.sort(rng.integers(0, 100, (ROWS, 60)) + 100 * np.arange(60), axis=1)
        impacts = rng.random(terms.size, dtype=np.float32) + np.float32(0.1)
        yield ids, sp.csr_array((impacts, terms.ravel(), 60 * np.arange(ROWS + 1)), (ROWS, 6000))


def peak_bytes(build):
    tracemalloc.start()
    build()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "shards"), [(DenseIndex, dense_shards), (SparseIndex, sparse_shards)]
)
def test_memory_does_not_grow_with_the_collection_but_for_the_ids(
    kind, shards, tmp_path, monkeypatch
):
    """20 shards against 5: kept in memory, vectors or postings would take 30 or 22 MB more."""
    monkeypatch.setattr(sparse, "WINDOW", ROWS)  # of a build; real windows are 65,536
    kind.build(shards(2), tmp_path / "compiled")
    few = peak_bytes(lambda: kind.build(shards(5), tmp_path / "few"))
    many = peak_bytes(lambda: kind.build(shards(20), tmp_path / "many"))
    assert many - few < 2 * 15 * ROWS * 7 * 4 + 2e6
    kept = peak_bytes(lambda: kind.build(list(shards(20))))
    assert kept > 3 * many


def test_windows_of_any_shards_are_the_same_postings():
    """Shards smaller than a window, larger, and across its edge: the same files, bit for bit."""
    (ids, matrix), (more_ids, more) = sparse_shards(2)
    ids, matrix = ids + more_ids, sp.vstack([matrix, more], format="csr")
    copies = -(-(postings.WINDOW + 500) // len(ids))
    many = sp.vstack([matrix] * copies, format="csr")
    names = [f"{copy}-{i}" for copy in range(copies) for i in ids]
    whole = SparseIndex.build([(names, many)])
    cuts = [0, 1, 4000, postings.WINDOW - 1, postings.WINDOW + 2, len(names)]
    parts = [(names[a:b], many[a:b]) for a, b in itertools.pairwise(cuts)]
    pieced = SparseIndex.build(parts)
    assert len(whole.offsets) == 2
    for name in ("ids", "ranks", "offsets", "positions", "impacts"):
        assert np.array_equal(getattr(pieced, name), getattr(whole, name)), name
    queries = matrix[:5]
    found = merge_topk([SparseIndex.build([part]).search(queries, 50) for part in parts], 50)
    for one, other in zip(found, whole.search(queries, 50), strict=True):
        assert (one == other).all()
