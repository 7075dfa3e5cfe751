"""Seismic's index of the same shards: its answers, its recall against exact, its files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from raylab.index.embeddings import write_shard
from raylab.index.seismic import SeismicIndex, SeismicSettings
from raylab.index.sparse import SparseIndex

library = pytest.importorskip(
    "seismic", reason="SEISMIC IS NOT TESTED: pip install 'pyseismic-lsr>=0.5.4'"
)
# Every posting is kept, summaries are whole, every list is read and no cluster skipped.
EXACT = SeismicSettings(
    n_postings=5000, summary_energy=1.0, query_cut=1000, heap_factor=0.0, sorted=False
)


def representations(rng, rows: int, terms: np.ndarray, vocabulary: int, draw) -> sp.csr_array:
    """About 12 of ``terms`` a row, which may be drawn twice; every seventh row is empty."""
    columns = rng.choice(terms, (rows, 12))
    values = draw((rows, 12)).astype(np.float32)
    values[::7] = 0.0
    matrix = sp.csr_array(
        (values.ravel(), columns.ravel(), np.arange(rows + 1) * 12), shape=(rows, vocabulary)
    )
    matrix.sum_duplicates()
    matrix.data = matrix.data.astype(np.float16).astype(np.float32)
    return matrix  # with explicit zeros


def naive(ids, passages, queries, k: int) -> list[list[tuple[str, float]]]:
    """(id, score) of each query's hits by loops in float64; score descending, id descending."""
    answers = []
    for q in range(queries.shape[0]):
        weights = dict(zip(*row(queries, q), strict=True))
        scores = []
        for p, passage_id in enumerate(ids):
            score = sum(weights.get(t, 0.0) * v for t, v in zip(*row(passages, p), strict=True))
            if score > 0:
                scores.append((score, passage_id))
        answers.append(
            [(passage_id, score) for score, passage_id in sorted(scores, reverse=True)[:k]]
        )
    return answers


def row(matrix, number: int) -> tuple[list[int], list[float]]:
    own = slice(matrix.indptr[number], matrix.indptr[number + 1])
    return matrix.indices[own].tolist(), matrix.data[own].astype(np.float64).tolist()


def hits(answer) -> list[list[tuple[str, float]]]:
    """What was found, having checked that what is missing is padding and comes last."""
    ids, scores = answer
    found = []
    for own_ids, own_scores in zip(ids.tolist(), scores.tolist(), strict=True):
        count = sum(i != "" for i in own_ids)
        assert own_ids[count:] == [""] * (len(own_ids) - count)
        assert own_scores[count:] == [-np.inf] * (len(own_ids) - count)
        found.append(list(zip(own_ids[:count], own_scores[:count], strict=True)))
    return found


@pytest.fixture(scope="module")
def collection():
    """1,500 passages and 60 queries of 400 terms above and below 65,536 of 70,000; ids in no order."""
    rng = np.random.default_rng(0)
    terms = np.concatenate([np.arange(0, 65_536, 328), np.arange(65_536, 69_536, 20)])
    passages = representations(rng, 1500, terms, 70_000, rng.standard_exponential)
    queries = representations(rng, 60, terms, 70_000, rng.standard_exponential)
    ids = [f"pä{number}" for number in rng.permutation(1500)]
    return ids, passages, queries


@pytest.fixture(scope="module")
def built(collection):
    ids, passages, _ = collection
    return SeismicIndex.build([(ids[:500], passages[:500]), (ids[500:], passages[500:])], EXACT)


@pytest.mark.parametrize("vocabulary", [200, 65_536, 65_537, 70_000])
def test_with_full_effort_it_answers_as_loops_in_float64_do(vocabulary):
    """To the last hit, ties included: small integers have exact scores, and many equal ones."""
    rng = np.random.default_rng(vocabulary)
    terms = np.unique(np.concatenate([np.arange(40), vocabulary - 1 - np.arange(40)]))

    def integers(shape):
        return rng.integers(0, 4, shape)

    passages = representations(rng, 300, terms, vocabulary, integers)
    queries = representations(rng, 40, terms, vocabulary, integers)
    ids = [f"p{number}" for number in rng.permutation(300)]
    index = SeismicIndex.build([(ids, passages)], EXACT)
    k = 320  # more than there are
    expected = naive(ids, passages, queries, k)
    assert hits(index.search(queries, k)) == expected
    assert min(map(len, expected)) == 0
    assert max(map(len, expected)) > 150
    exact = SparseIndex.build([(ids, passages)]).search(queries, k)
    assert hits(exact) == expected


def test_the_best_ten_of_real_weights_are_those_of_loops_in_float64(collection, built):
    ids, passages, queries = collection
    expected = naive(ids, passages, queries, 10)
    found = hits(built.search(queries, 10))
    assert [[i for i, _ in own] for own in found] == [[i for i, _ in own] for own in expected]
    for own, best in zip(found, expected, strict=True):
        np.testing.assert_allclose([s for _, s in own], [s for _, s in best], rtol=1e-6)


def test_the_recall_told_is_that_of_a_count_by_hand(collection):
    ids, passages, queries = collection
    exact = SparseIndex.build([(ids, passages)])
    low = SeismicSettings(n_postings=1, query_cut=2, heap_factor=1.0)
    index = SeismicIndex.build([(ids, passages)], low)
    told = index.measured_search(exact, queries, 10)
    expected = naive(ids, passages, queries, len(ids))
    counted = []
    for found, best in zip(hits((told.ids, told.scores)), expected, strict=True):
        scores = dict(best)
        assert found == sorted(found, key=lambda hit: (hit[1], hit[0]), reverse=True)
        # Whatever is not found, what is has its whole score: the query is not cut in that.
        np.testing.assert_allclose([s for _, s in found], [scores[i] for i, _ in found], rtol=1e-6)
        if best:
            counted.append(len({i for i, _ in best[:10]} & {i for i, _ in found}) / len(best[:10]))
    assert told.agreement.recall == pytest.approx(np.mean(counted))
    assert told.agreement.worst_recall == pytest.approx(min(counted))
    assert told.agreement.queries == 60
    assert 0.1 < told.agreement.recall < 0.95
    index.settings = replace(low, query_cut=12)
    assert index.measured_search(exact, queries, 10).agreement.recall > told.agreement.recall
    assert index.measured_search(exact, queries, 10, sample=20).agreement.queries == 20
    with pytest.raises(ValueError, match="same passages"):
        index.measured_search(SparseIndex.build([(ids[1:], passages[1:])]), queries, 10)
    with pytest.raises(ValueError, match="0 queries"):
        index.measured_search(exact, queries[:0], 10)


class Scrambled:
    """The library's index, whose batches come back in another order."""

    def __init__(self, index, order):
        self.index, self.order = index, order

    def batch_search(self, *args, **kwargs):
        answers = self.index.batch_search(*args, **kwargs)
        return [answers[i] for i in self.order(len(answers))]


def test_the_order_in_which_a_batch_comes_back_does_not_matter(collection, built):
    _, _, queries = collection
    expected = built.search(queries, 7)
    rng = np.random.default_rng(1)
    for order in (rng.permutation, lambda n: range(n - 1, -1, -1)):
        index = SeismicIndex(built.ids, 70_000, Scrambled(built.index, order), EXACT)
        for one, other in zip(index.search(queries, 7), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(built.search(queries, 7, threads=2), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    alone = [built.search(queries[[q]], 7) for q in range(60)]
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in alone]), expected[0])


def test_folders_and_saved_files_answer_as_pairs_do(collection, built, tmp_path):
    ids, passages, queries = collection
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder, part in zip(folders, (slice(0, 900), slice(900, None)), strict=True):
        folder.mkdir()
        write_shard(folder, ids[part], passages[part])
    expected = built.search(queries, 30)
    built.save(tmp_path / "index")
    loaded = SeismicIndex.load(tmp_path / "index")
    assert loaded.settings == EXACT
    assert len(loaded) == 1500
    for index in (SeismicIndex.build(iter(folders), EXACT, threads=2), loaded):
        for one, other in zip(index.search(queries, 30), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    # The library reads its file without us, and answers with our ids.
    plain = library.SeismicIndexLV.load(str(tmp_path / "index" / "passages.index.seismic"))
    terms, weights = row(queries, 1)
    answer = plain.search(
        "q",
        np.array(terms, dtype=library.get_seismic_string()),
        np.array(weights, dtype=np.float32),
        k=1,
        query_cut=12,
        heap_factor=0.0,
    )
    assert answer[0][2] == expected[0][1, 0]


def test_collections_and_queries_without_anything_in_common():
    ids, empty = ["b", "a", "c"], sp.csr_array((3, 66_000))
    one = sp.csr_array(([1.0, 1e-9], ([0, 1], [65_999, 65_999])), shape=(3, 66_000))
    queries = sp.csr_array(([1.0, 1.0, 0.0], ([0, 1, 2], [65_999, 5, 65_999])), shape=(4, 66_000))
    nothing = ["", ""]
    assert SeismicIndex.build([(ids, empty)]).search(queries, 2)[0].tolist() == [nothing] * 4
    # 1e-9 is 0 in float16, so "a" cannot be found.
    found, scores = SeismicIndex.build([(ids, one)]).search(queries, 2)
    assert found.tolist() == [["b", ""], nothing, nothing, nothing]
    assert scores[0].tolist() == [1.0, -np.inf]
    assert queries.nnz == 3  # the caller's queries are left
    assert SeismicIndex.build([(ids, one)]).search(queries[:0], 2)[0].shape == (0, 2)


def test_bad_input_is_named(collection, built):
    _, _, queries = collection

    def build(value, ids=("a", "b")):
        shard = list(ids), sp.csr_array(np.array([[1.0, 0.0], [0.0, value]]))
        return SeismicIndex.build([shard])

    for value in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="shard 0, row 1, term 1: value"):
            build(value)
    with pytest.raises(ValueError, match="passage 'b': an impact of 70000 does not fit float16"):
        build(7e4)
    with pytest.raises(ValueError, match="duplicate passage ids, the first is 'a'"):
        build(1.0, ["a", "a"])
    wide = sp.csr_array(np.ones((1, 65_536), dtype=np.float32))
    with pytest.raises(ValueError, match="passage 'a' has 65536 terms; Seismic takes up to 65535"):
        SeismicIndex.build([(["a"], wide)])
    with pytest.raises(ValueError, match="no passages"):
        SeismicIndex.build([([], sp.csr_array((0, 3)))])
    for value in (np.nan, np.inf, -1.0):
        wrong = sp.csr_array(([1.0, value], ([0, 1], [3, 65_999])), shape=(2, 70_000))
        with pytest.raises(ValueError, match="queries, row 1, term 65999: value"):
            built.search(wrong, 3)
    with pytest.raises(ValueError, match="queries have 9 terms; this index has 70000"):
        built.search(sp.csr_array((1, 9)), 3)
    with pytest.raises(ValueError, match="k is 0"):
        built.search(queries, 0)
    with pytest.raises(ValueError, match="threads is 0"):
        built.search(queries, 3, threads=0)
    with pytest.raises(ValueError, match="query 1: a score overflows float32"):
        build(6e4).search(sp.csr_array(np.array([[1.0, 0.0], [0.0, 1e35]])), 2)
    assert build(6e4).search(sp.csr_array(np.array([[1.0, 0.0]])), 9)[0][0, :2].tolist() == [
        "a",
        "",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_postings", 0),
        ("n_postings", 2.5),
        ("min_cluster_size", 0),
        ("doc_cut", 0),
        ("query_cut", True),
        ("centroid_fraction", 0.0),
        ("summary_energy", 1.1),
        ("max_fraction", 0.5),
        ("heap_factor", -1.0),
        ("heap_factor", float("nan")),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        SeismicSettings(**{name: value})


def test_damaged_and_foreign_folders_are_refused(collection, built, tmp_path):
    ids, passages, _ = collection
    SparseIndex.build([(ids, passages)]).save(tmp_path / "sparse")
    with pytest.raises(ValueError, match=r"format is 'raylab\.sparse\.3'; a Seismic index"):
        SeismicIndex.load(tmp_path / "sparse")
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        SeismicIndex.load(tmp_path)
    folder = tmp_path / "index"
    built.save(folder)
    file, description = folder / "passages.index.seismic", folder / "index.json"
    whole, told = file.read_bytes(), json.loads(description.read_text())
    turned = bytearray(whole)
    turned[len(whole) // 2] ^= 1
    for damaged in (whole[:-1], b"", bytes(turned), whole + b"\0"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"passages\.index\.seismic: not whole"):
            SeismicIndex.load(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"passages\.index\.seismic: missing"):
        SeismicIndex.load(folder)
    file.write_bytes(whole)
    for changed, message in (
        ({"passages": 3}, r"index\.json says"),
        ({"postings": 3}, r"index\.json says"),
        ({"settings": {"probes": 3}}, "not of a Seismic index"),
        ({"settings": {"query_cut": 0}}, "query_cut is 0"),
    ):
        description.write_text(json.dumps(told | changed))
        with pytest.raises(ValueError, match=message):
            SeismicIndex.load(folder)
    description.write_text("{")
    with pytest.raises(ValueError, match=r"index\.json: not JSON"):
        SeismicIndex.load(folder)
    description.write_text(json.dumps(told))
    np.save(folder / "ids.npy", built.ids[1:])
    with pytest.raises(ValueError, match=r"index\.json says"):
        SeismicIndex.load(folder)
    np.save(folder / "ids.npy", built.ids)
    assert len(SeismicIndex.load(folder)) == 1500


def test_a_save_that_fails_leaves_nothing(built, tmp_path, monkeypatch):
    def full(path):
        raise OSError("no space left on device")

    monkeypatch.setattr("raylab.index.seismic.sha256_of", full)
    with pytest.raises(OSError, match="no space left"):
        built.save(tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []


@pytest.mark.parametrize("module", ["None", "types.ModuleType('seismic')"])
def test_without_the_library_only_its_use_fails_and_says_what_to_install(module):
    """Another module of the same name is as good as none."""
    code = f"""
import sys, types
sys.modules["seismic"] = {module}
import numpy as np, scipy.sparse as sp
from raylab.index.seismic import SeismicIndex
try:
    SeismicIndex.build([(["a"], sp.csr_array(np.ones((1, 2))))])
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout.startswith("Seismic is not installed: pip install 'raylab[serving]'")
