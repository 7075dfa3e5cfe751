"""CIFF read back by protobuf's own parser from the published schema; JSON vectors; faiss files."""

import gzip
import io
import json

import faiss
import numpy as np
import pytest
import scipy.sparse as sp

from raylab.index.dense import DenseIndex
from raylab.index.export import write_ciff, write_faiss, write_json_vectors
from raylab.index.sparse import SparseIndex

# osirrc/ciff, src/main/protobuf/CommonIndexFileFormat.proto: name, number, type (protobuf's codes).
INT32, INT64, DOUBLE, STRING, MESSAGE = 5, 3, 1, 9, 11
SCHEMA = {
    "Header": [
        ("version", INT32),
        ("num_postings_lists", INT32),
        ("num_docs", INT32),
        ("total_postings_lists", INT32),
        ("total_docs", INT32),
        ("total_terms_in_collection", INT64),
        ("average_doclength", DOUBLE),
        ("description", STRING),
    ],
    "Posting": [("docid", INT32), ("tf", INT32)],
    "PostingsList": [("term", STRING), ("df", INT64), ("cf", INT64), ("postings", MESSAGE)],
    "DocRecord": [("docid", INT32), ("collection_docid", STRING), ("doclength", INT32)],
}


@pytest.fixture(scope="module")
def ciff():
    """The message classes of the schema, made by protobuf."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="ciff.proto", package="ciff", syntax="proto3")
    for message_name, fields in SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for number, (name, kind) in enumerate(fields, 1):
            field = message.field.add(name=name, number=number, type=kind, label=1)
            if kind == MESSAGE:
                field.type_name, field.label = ".ciff.Posting", 3
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ciff.{name}"))
        for name in SCHEMA
    }


def read_ciff(stream, ciff):
    def next_message(kind):
        length = shift = 0
        while True:
            byte = stream.read(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return ciff[kind].FromString(stream.read(length))

    header = next_message("Header")
    lists = [next_message("PostingsList") for _ in range(header.num_postings_lists)]
    documents = [next_message("DocRecord") for _ in range(header.num_docs)]
    assert stream.read() == b""
    return header, lists, documents


def small_collection(n=70_000):
    """Two windows; a vocabulary above 65,536, most of it unused; an empty passage; ids in no order."""
    rng = np.random.default_rng(0)
    terms = np.stack([rng.integers(0, 30, n), rng.integers(70_000, 70_020, n)], axis=1)
    matrix = sp.csr_array(
        (rng.uniform(0.001, 3, 2 * n).astype(np.float32), terms.ravel(), 2 * np.arange(n + 1)),
        shape=(n, 70_020),
    )
    matrix.data[:2] = 0
    ids = [f"é{number}" for number in rng.permutation(n)]
    return ids, matrix


def weights_of(ids, matrix, quantum):
    """{id: {term: whole number}} by a plain loop."""
    found = {}
    for row, passage_id in enumerate(ids):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        pairs = zip(matrix.indices[span].tolist(), matrix.data[span].tolist(), strict=True)
        found[passage_id] = {f"t{t}": max(1, round(v * quantum)) for t, v in pairs if v > 0}
    return found


NAMES = [f"t{term}" for term in range(70_020)]


def test_ciff_holds_every_posting(tmp_path, ciff):
    ids, matrix = small_collection()
    expected = weights_of(ids, matrix, 100)
    index = SparseIndex.build([(ids[:10], matrix[:10]), (ids[10:], matrix[10:])])
    write_ciff(index, tmp_path / "out.ciff.gz", NAMES)
    data = gzip.decompress((tmp_path / "out.ciff.gz").read_bytes())
    header, lists, documents = read_ciff(io.BytesIO(data), ciff)
    assert (header.version, header.num_docs, header.total_docs) == (1, len(ids), len(ids))
    total = sum(sum(weights.values()) for weights in expected.values())
    assert header.total_terms_in_collection == total
    assert header.average_doclength == total / len(ids)
    assert [d.collection_docid for d in documents] == sorted(ids, reverse=True)
    assert [d.docid for d in documents] == list(range(len(ids)))
    found = {passage_id: {} for passage_id in ids}
    assert [part.term for part in lists] == sorted(part.term for part in lists)
    for part in lists:
        number = 0
        for place, posting in enumerate(part.postings):
            assert posting.docid > 0 or place == 0
            number += posting.docid
            found[documents[number].collection_docid][part.term] = posting.tf
        assert part.df == len(part.postings)
        assert part.cf == sum(posting.tf for posting in part.postings)
    assert found == expected
    assert [d.doclength for d in documents] == [
        sum(expected[i].values()) for i in sorted(ids, reverse=True)
    ]
    write_ciff(index, tmp_path / "out.ciff", NAMES)
    assert (tmp_path / "out.ciff").read_bytes() == data


def test_json_vectors_hold_every_passage(tmp_path):
    ids, matrix = small_collection()
    index = SparseIndex.build([(ids, matrix)])
    write_json_vectors(index, tmp_path / "out.jsonl.gz", NAMES, quantum=10)
    with gzip.open(tmp_path / "out.jsonl.gz", "rt", encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    assert [line["id"] for line in lines] == ids
    assert {line["id"]: line["vector"] for line in lines} == weights_of(ids, matrix, 10)
    assert lines[0] == {"id": ids[0], "contents": "", "vector": {}}


def test_uint8_impacts_are_exported_at_their_scale(tmp_path):
    index = SparseIndex.build([(["a"], sp.csr_array([[3.0, 1.0]]))], dtype="uint8")
    write_json_vectors(index, tmp_path / "out.jsonl", ["x", "y"])
    assert json.loads((tmp_path / "out.jsonl").read_text())["vector"] == {"x": 300, "y": 100}


def test_faiss_files_hold_the_vectors_and_ids_in_order(tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((5000, 7)).astype(np.float16)
    ids = [f"é{number}" for number in rng.permutation(5000)]
    write_faiss(DenseIndex.build([(ids, vectors)]), tmp_path / "out")
    plain = faiss.read_index(str(tmp_path / "out" / "index"))
    assert (plain.metric_type, plain.ntotal) == (faiss.METRIC_INNER_PRODUCT, 5000)
    assert (plain.reconstruct_n(0, 5000) == vectors.astype(np.float32)).all()
    assert (tmp_path / "out" / "docid").read_text(encoding="utf-8").split() == ids


@pytest.mark.parametrize(
    ("names", "quantum", "message"),
    [
        (["a"], 1, "1 names for the 2 terms"),
        (["a", "a"], 1, "1 terms share a name"),
        (["a", ""], 1, "term 1: name ''"),
        (["a", "b"], 0, "quantum is 0"),
    ],
)
def test_bad_names_leave_no_file(tmp_path, names, quantum, message):
    index = SparseIndex.build([(["p"], sp.csr_array([[1.0, 2.0]]))])
    for write in (write_ciff, write_json_vectors):
        with pytest.raises(ValueError, match=message):
            write(index, tmp_path / "out", names, quantum)
    assert not list(tmp_path.iterdir())
