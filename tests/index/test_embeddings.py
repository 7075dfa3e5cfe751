"""Embedding shards: what is written is what is read, to half precision; nothing broken is written."""

import numpy as np
import pytest
import scipy.sparse as sp

from raylab.data.tokens import PassageStore, write_store
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.heads import HEADS
from raylab.index.embeddings import as_stored, read_row, read_shard, shards, write_shard
from raylab.models.retriever import Retriever
from raylab.stages.encode import encode_rows

IDS = ["a", "doc-22", "ünïcode"]
HALF = 2**-11  # relative rounding error of float16


def test_dense_shards_come_back_to_half_precision(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    write_shard(tmp_path, IDS, matrix)
    ids, again = read_shard(tmp_path)
    assert ids == IDS
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, matrix, rtol=HALF)
    assert not np.array_equal(again, matrix)  # half the bytes, not all of the digits


def test_sparse_shards_come_back_with_empty_rows_and_wide_vocabularies(tmp_path):
    """Llama 3's vocabulary does not fit 16 bits; a passage may have no term left."""
    rows, columns = [0, 0, 2, 2], [0, 128_255, 70_000, 65_536]
    values = np.array([0.123, 2.5, 1e-3, 3.3], np.float32)
    matrix = sp.csr_matrix((values, (rows, columns)), shape=(3, 128_256))
    write_shard(tmp_path, IDS, matrix)
    ids, again = read_shard(tmp_path)
    assert ids == IDS
    assert again.shape == (3, 128_256)
    assert again.dtype == np.float32
    for row, column, value in zip(rows, columns, values, strict=True):
        assert again[row, column] == pytest.approx(value, rel=HALF)
    assert again.nnz == 4
    assert again[1].nnz == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 70_000.0])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_values_that_half_precision_cannot_hold_are_refused_and_nothing_is_written(
    tmp_path, kind, value
):
    matrix = np.ones((2, 4), np.float32)
    matrix[1, 2] = value
    with pytest.raises(ValueError, match=f"{tmp_path.name}: .* not finite in float16"):
        write_shard(tmp_path, ["a", "b"], sp.csr_matrix(matrix) if kind == "sparse" else matrix)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 25])
@pytest.mark.parametrize("size", [1, 5, 10])
def test_shards_hold_every_row_once_in_order(count, size):
    ranges = shards(count, size)
    assert [row for part in ranges for row in part] == list(range(count))
    assert all(1 <= len(part) <= size for part in ranges)
    assert all(len(part) == size for part in ranges[:-1])


def test_a_large_collection_has_larger_shards_not_more():
    ranges = shards(8_841_823, 2_048)
    assert [row for part in ranges for row in (part.start, part.stop)][1:-1:2] == [
        part.start for part in ranges[1:]
    ]
    assert ranges[-1].stop == 8_841_823
    assert 250 < len(ranges) <= 256


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_rows_of_the_store_are_encoded_as_their_cut_texts(tmp_path, model_folder, head):
    """A shard's row is what encoding its passage alone gives: right row, right limit, title included."""
    texts = ["cell protein", "virus mouse heart liver brain bone", "drug dose gene " * 5]
    encoding = Encoding(passage_length=6, top_k_passage=5)
    retriever = Retriever.untrained(Backbone("tiny", str(model_folder)), HEADS[head], encoding)
    tokens = retriever.tokenizer.encode(texts)
    write_store(tmp_path / "store", [(["a", "b", "c"], tokens, [1, 1, 1])], np.uint16)
    matrix = encode_rows(retriever, PassageStore(tmp_path / "store"), range(1, 3), 8)
    assert matrix.shape[0] == 2
    for row, text in enumerate(texts[1:]):
        alone = retriever.encode_passages([text])
        one, other = (m.toarray()[0] if sp.issparse(m) else m[0] for m in (alone, matrix[[row]]))
        np.testing.assert_allclose(other, one, atol=1e-6)


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_what_is_stored_is_known_without_storing_it_and_read_row_by_row(tmp_path, kind, precision):
    matrix = np.random.default_rng(1).normal(size=(3, 9)).astype(np.float32)
    matrix[1] = 0
    given = sp.csr_matrix(matrix) if kind == "sparse" else matrix

    def full(found):
        return np.asarray(found.todense() if sp.issparse(found) else found)

    write_shard(tmp_path, IDS, given, precision)
    _, again = read_shard(tmp_path)
    expected = matrix.astype(precision).astype(np.float32)
    np.testing.assert_array_equal(full(again), expected)
    np.testing.assert_array_equal(full(as_stored(given, precision)), expected)
    for row in range(3):
        np.testing.assert_array_equal(full(read_row(tmp_path, row)), expected[[row]])
    stored = np.load(tmp_path / ("dense.npy" if kind == "dense" else "impacts.npy"))
    assert stored.dtype == precision


def test_single_precision_holds_what_half_does_not(tmp_path):
    write_shard(tmp_path, ["a"], np.full((1, 2), 70_000.0, np.float32), "float32")
    np.testing.assert_array_equal(read_shard(tmp_path)[1], [[70_000.0, 70_000.0]])
