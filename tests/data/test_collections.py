"""Collections: both layouts read, and every fault is one error that names file, line and remedy."""

import gzip
import json

import pytest

from raylab.data.collections import (
    is_validation,
    read_judgements,
    read_passages,
    read_qrels,
    read_queries,
    read_topics,
)
from raylab.data.faults import CollectionError
from raylab.data.sources import open_collection


def write(path, text: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_beir_passages(tmp_path):
    path = write(
        tmp_path / "corpus.jsonl.gz",
        '{"_id": "0", "title": "T", "text": "é x"}\n\n{"_id": "a", "text": "y"}\n',
    )
    assert [tuple(p) for p in read_passages(path)] == [(1, "0", "T", "é x"), (3, "a", "", "y")]


def test_msmarco_passages_may_hold_tabs_and_quotes(tmp_path):
    path = write(tmp_path / "collection.tsv", '7\tsay "hi"\tthere\n8\tx\n')
    assert [tuple(p) for p in read_passages(path)] == [
        (1, "7", "", 'say "hi"\tthere'),
        (2, "8", "", "x"),
    ]


FAULTS = [
    (
        "corpus.jsonl",
        '{"_id": "1", "text": "a"}\n{"_id": "2", "text": ',
        r"corpus\.jsonl:2: not JSON",
    ),
    ("corpus.jsonl", "[1]\n", r":1: not a JSON object"),
    ("corpus.jsonl", '{"_id": 1, "text": "a"}\n', r":1: '_id' is 1; it must be a string"),
    ("corpus.jsonl", '{"_id": "1"}\n', r":1: 'text' is None; it must be a string"),
    ("corpus.jsonl", '{"_id": "1", "title": " ", "text": ""}\n', r":1: passage '1' has no text"),
    ("corpus.jsonl", '{"_id": "", "text": "a"}\n', r":1: the passage id is empty"),
    (
        "collection.tsv",
        "1\ta\nno tab here\n",
        r"collection\.tsv:2: 1 fields, not 2; a line is ID<tab>TEXT",
    ),
    ("collection.tsv", b"1\ta\n2\t\xff\xfe\n", r":2: byte 3 is not UTF-8"),
]


@pytest.mark.parametrize(("name", "text", "message"), FAULTS)
def test_faulty_passages(tmp_path, name, text, message):
    with pytest.raises(CollectionError, match=message):
        list(read_passages(write(tmp_path / name, text)))


def test_a_cut_gzip_stream(tmp_path):
    path = tmp_path / "collection.tsv.gz"
    path.write_bytes(gzip.compress(b"1\thello\n" * 2000)[:-30])
    with pytest.raises(CollectionError, match="the gzip stream is damaged"):
        list(read_passages(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\ta\n1\tb\n", r":2: duplicate query id '1' \(first at line 1\)"),
        ("1\t \n", r":1: query '1' has an empty id or text"),
        ("1 a\n", r":1: 1 fields, not 2"),
    ],
)
def test_faulty_queries(tmp_path, text, message):
    with pytest.raises(CollectionError, match=message):
        read_queries(write(tmp_path / "queries.dev.tsv", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q 0 p 1\nq 0 p2\n", r":2: 3 fields, not 4; a line is QUERY 0 PASSAGE GRADE"),
        ("q 0 p high\n", r":1: grade 'high'; it must be a whole number"),
        ("q 0 p 0.5\n", r":1: grade '0.5'"),
        ("q 0 p 1\nq 0 p 2\n", r":2: query 'q', passage 'p' judged twice \(first at line 1\)"),
        ("query-id\tcorpus-id\tscore\nq\tp\n", r":2: 2 fields, not 3"),
        ("", r"no judgement"),
    ],
)
def test_faulty_judgements(tmp_path, text, message):
    with pytest.raises(CollectionError, match=message):
        read_judgements(write(tmp_path / "qrels.tsv", text))


def test_a_judgement_of_an_unknown_query_names_its_line(tmp_path):
    write(tmp_path / "collection.tsv", "p\ttext\n")
    write(tmp_path / "queries.dev.tsv", "q\ttext\n")
    write(tmp_path / "qrels.dev.tsv", "q 0 p 1\nx 0 p 1\n")
    with pytest.raises(
        CollectionError,
        match=r"qrels\.dev\.tsv:2: unknown query 'x'; it must be in queries\.dev\.tsv",
    ):
        read_topics(open_collection(str(tmp_path)))


def test_missing_collections_and_files(tmp_path):
    with pytest.raises(CollectionError, match="no collection 'nope': give scifact, or a folder"):
        open_collection("nope")
    with pytest.raises(CollectionError, match="neither corpus"):
        open_collection(str(tmp_path))
    write(tmp_path / "corpus.jsonl", "{}")
    with pytest.raises(CollectionError, match=r"queries\.jsonl"):
        open_collection(str(tmp_path))


def test_validation_is_carved_out_of_training_queries_only_where_there_is_none(
    collection_folder, tmp_path
):
    topics = read_topics(open_collection(str(collection_folder)))
    assert set(topics) == {"train", "test", "valid"}
    assert not set(topics["train"].queries) & set(topics["valid"].queries)
    assert len(topics["train"].queries) + len(topics["valid"].queries) == 60
    assert all(is_validation(q) for q in topics["valid"].queries)


def test_the_embedded_scifact_is_the_published_one():
    source = open_collection("scifact")
    assert sum(1 for _ in read_passages(source.passages)) == 5183
    topics = read_topics(source)
    assert len(topics["test"].queries) == 300
    assert len(topics["train"].queries) + len(topics["valid"].queries) == 809
    assert sum(map(len, topics["test"].qrels.values())) == 339


def test_scifact_equals_the_copy_beside_the_project(shared_data):
    def content(source):
        return list(read_passages(source.passages)), read_topics(source)

    assert content(open_collection("scifact")) == content(
        open_collection(str(shared_data / "beir" / "scifact"))
    )


def test_the_msmarco_slice_reads_whole(shared_data):
    source = open_collection(str(shared_data / "msmarco-slice"))
    assert set(source.qrels) == {"dev", "dl19", "train"}
    assert sum(1 for _ in read_passages(source.passages)) == 34_627
    assert source.train_passages is not None
    assert sum(1 for _ in read_passages(source.train_passages)) == 4_665
    topics = read_topics(source)
    assert (
        len(topics["dl19"].queries),
        len(topics["dev"].queries),
        len(topics["train"].queries),
    ) == (43, 2287, 4693)
    assert json.dumps(sorted(topics)) == '["dev", "dl19", "train"]'


def test_both_qrels_formats_read_alike(tmp_path):
    trec = write(tmp_path / "trec.gz", "q 0 a 2\nq 0 b -1\nr 0 é 0\n")
    beir = write(tmp_path / "beir.tsv", "query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t-1\nr\té\t0\n")
    assert read_qrels(trec) == read_qrels(beir) == {"q": {"a": 2, "b": -1}, "r": {"é": 0}}


def test_real_qrels_are_read_whole(shared_data):
    assert sum(map(len, read_qrels(shared_data / "beir/nfcorpus/qrels/test.tsv").values())) == 12334
    assert len(read_qrels(shared_data / "msmarco-slice/qrels.dl19.tsv")) == 43
