"""The same collection from everywhere: folders, shards, compression, Parquet, archives, fsspec, ir_datasets."""

import gzip
import hashlib
import json
import shutil
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylab.data import irds
from raylab.data.collections import read_passages, read_topics
from raylab.data.faults import CollectionError
from raylab.data.files import below, digest, lines, name_of
from raylab.data.ingest import collection_address, write_collection
from raylab.data.sources import open_collection


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


def content(name):
    source = open_collection(str(name))
    passages = [tuple(p)[1:] for p in read_passages(source.passages)]
    return passages, read_topics(source)


@pytest.fixture(scope="module")
def expected(collection_folder):
    """Read with nothing of ours."""
    corpus = (collection_folder / "corpus.jsonl").read_text().splitlines()
    return [(r["_id"], r["title"], r["text"]) for r in map(json.loads, corpus)]


def test_plain_gzip_and_zstd_read_alike(collection_folder, expected, tmp_path):
    plain = content(collection_folder)
    assert plain[0] == expected
    for ending, pack in (("gz", gzip.compress), ("zst", zstd)):
        folder = tmp_path / ending
        (folder / "qrels").mkdir(parents=True)
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv"):
            data = (collection_folder / name).read_bytes()
            (folder / f"{name}.{ending}").write_bytes(pack(data))
        assert content(folder) == plain


def test_a_zstd_stream_of_several_frames_is_read_whole_and_a_cut_one_refused(tmp_path):
    path = tmp_path / "collection.tsv.zst"
    text = "".join(f"{i}\ttext {i}\n" for i in range(50_000)).encode()
    path.write_bytes(zstd(text[:300_001]) + zstd(text[300_001:]))
    assert sum(1 for _ in lines(path)) == 50_000
    path.write_bytes(zstd(text)[:-100])
    with pytest.raises(
        CollectionError, match=r"collection\.tsv\.zst:\d+: the zstd stream is damaged"
    ):
        list(lines(path))


def test_a_byte_order_mark_is_not_part_of_the_first_id(tmp_path):
    path = tmp_path / "collection.tsv"
    path.write_bytes(b"\xef\xbb\xbf7\tx\n8\t\xef\xbb\xbfy\n")
    assert [p.passage_id for p in read_passages(path)] == ["7", "8"]
    assert [p.text for p in read_passages(path)] == ["x", "\ufeffy"]


def test_shards_are_one_collection_and_a_duplicate_across_them_names_both(
    collection_folder, expected, tmp_path
):
    folder = shutil.copytree(collection_folder, tmp_path / "sharded")
    corpus = (folder / "corpus.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.jsonl").write_bytes(b"".join(corpus[:50]))
    (folder / "corpus" / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(corpus[50:])))
    assert content(folder)[0] == expected
    (folder / "corpus" / "b.jsonl.gz").write_bytes(
        gzip.compress(b"".join(corpus[50:] + corpus[:1]))
    )
    out = tmp_path / "out"
    out.mkdir()
    first, second = folder / "corpus" / "a.jsonl", folder / "corpus" / "b.jsonl.gz"
    with pytest.raises(CollectionError) as refused:
        write_collection(out, open_collection(str(folder)))
    assert str(refused.value) == (
        f"{second}:71: duplicate passage id 'p000' (first at line 1 of {first}); ids must be unique"
    )


@pytest.mark.parametrize(
    "string", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_reads_as_jsonl_does(string, collection_folder, tmp_path):
    plain = content(collection_folder)
    folder = tmp_path / "parquet"
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        rows = [json.loads(w) for w in (collection_folder / f"{name}.jsonl").open()]
        columns = {k: pa.array([r[k] for r in rows]).cast(string) for k in rows[0]}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=17)
    for split, own in plain[1].items():
        if split != "valid":
            judged = (collection_folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]
            query_ids, passage_ids, grades = zip(*(j.split("\t") for j in judged), strict=True)
            table = {
                "query-id": query_ids,
                "corpus-id": passage_ids,
                "score": list(map(int, grades)),
            }
            pq.write_table(pa.table(table), folder / "qrels" / f"{split}.parquet")
            assert own.qrels
    assert content(folder) == plain


def test_parquet_whose_ids_are_numbers_is_refused(collection_folder, tmp_path):
    folder = shutil.copytree(collection_folder, tmp_path / "numbers")
    (folder / "corpus.jsonl").unlink()
    pq.write_table(pa.table({"_id": [1, 2], "text": ["a", "b"]}), folder / "corpus.parquet")
    with pytest.raises(
        CollectionError, match=r"corpus\.parquet:1: '_id' is 1; it must be a string"
    ):
        content(folder)


def test_any_fsspec_address(collection_folder):
    fs = fsspec.filesystem("memory")
    fs.put(f"{collection_folder}/", "/bucket/tiny/", recursive=True)
    try:
        assert content("memory://bucket/tiny") == content(collection_folder)
        assert open_collection("memory://bucket/tiny/").name == "tiny"
        with pytest.raises(CollectionError, match=r"memory://bucket/none: cannot be listed"):
            open_collection("memory://bucket/none")
        with pytest.raises(CollectionError, match=r"nope://x: cannot be listed"):
            open_collection("nope://x")
    finally:
        fs.rm("/bucket", recursive=True)


def test_msmarco_as_it_is_unpacked(tmp_path):
    """The names in collectionandqueries.tar.gz, of which some have no judgements."""
    folder = tmp_path / "msmarco"
    folder.mkdir()
    (folder / "collection.tsv").write_text("1\ta\n2\tb\n")
    for name in ("dev.small", "dev", "eval.small", "eval", "train"):
        (folder / f"queries.{name}.tsv").write_text("q\tin all\nr\tunjudged\n")
    (folder / "qrels.dev.small.tsv").write_text("q\t0\t1\t1\n")
    (folder / "qrels.train.tsv").write_text("q\t0\t2\t1\n")
    source = open_collection(str(folder))
    assert set(source.qrels) == {"dev", "train"}
    assert name_of(source.queries["dev"]) == "queries.dev.small.tsv"
    assert content(folder)[1]["dev"].qrels == {"q": {"1": 1}}
    (folder / "qrels.dev.tsv").write_text("q\t0\t1\t1\n")
    with pytest.raises(
        CollectionError, match=r"qrels\.dev\.small\.tsv and qrels\.dev\.tsv are both"
    ):
        open_collection(str(folder))


def test_addresses():
    assert below("/a/b/", "c") == "/a/b/c"
    assert below("s3://b/c", "qrels", "test.tsv") == "s3://b/c/qrels/test.tsv"
    assert below("zip://n::/x.zip", "c.jsonl") == "zip://n/c.jsonl::/x.zip"
    assert below("zip://::/x.zip", "c.jsonl") == "zip://c.jsonl::/x.zip"
    assert name_of("zip://n/c.jsonl.gz::/x.zip") == "c.jsonl.gz"


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{path.stem}/{file.relative_to(folder)}")
    return path


def test_an_archive_as_beir_publishes_them(collection_folder, tmp_path):
    path = zipped(collection_folder, tmp_path / "own.zip")
    assert open_collection(str(path)).name == "own"
    assert content(path) == content(collection_folder)
    (tmp_path / "out").mkdir()
    assert write_collection(tmp_path / "out", open_collection(str(path)))["verified"] == []


def test_an_archive_that_is_not_the_published_one_is_refused(collection_folder, tmp_path):
    path = zipped(collection_folder, tmp_path / "nfcorpus.zip")
    found = hashlib.md5(path.read_bytes()).hexdigest()
    (tmp_path / "out").mkdir()
    with pytest.raises(CollectionError) as refused:
        write_collection(tmp_path / "out", open_collection(str(path)))
    assert f"{path}: md5 {found}, not the published a89dba18a62ef92f7d323ec890a0d38d" in str(
        refused.value
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_archive_is_refused(collection_folder, tmp_path):
    path = zipped(collection_folder, tmp_path / "own.zip")
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes(50) + data[250:])
    with pytest.raises(CollectionError, match=r"own\.zip"):
        content(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CollectionError, match=r"own\.zip"):
        content(path)


def test_the_embedded_collection_is_verified_and_keeps_its_address():
    source = open_collection("scifact")
    assert sorted(source.verify()) == [
        "corpus.jsonl.gz",
        "qrels/test.tsv",
        "qrels/train.tsv",
        "queries.jsonl.gz",
    ]
    files = source.identity()["files"]
    assert files["passages"] == digest(source.passages[0])
    # An ingested SciFact of an older raylab is found again: same content, same address.
    assert set(files) == {
        "passages",
        "queries.test",
        "queries.train",
        "qrels.test",
        "qrels.train",
    }
    assert source.identity()["layout"] == 1


def test_the_policy_is_part_of_the_address_only_where_it_may_leave_records_out():
    source = open_collection("scifact")
    strict = collection_address(source)
    assert strict.identity == source.identity()
    assert collection_address(source, "quarantine").path != strict.path


def test_a_benchmarks_name_without_its_data_says_where_to_get_them(monkeypatch):
    monkeypatch.setattr(irds, "installed", lambda: False)
    with pytest.raises(CollectionError, match="or install ir_datasets, which has it"):
        open_collection("nfcorpus")
    source = open_collection("irds:nfcorpus")
    assert source.qrels["test"] == "irds:beir/nfcorpus/test"
    with pytest.raises(
        CollectionError, match=r"irds:beir/nfcorpus/\w+: ir_datasets is not installed"
    ):
        read_topics(source)


def test_ir_datasets_reads_as_a_folder_does(tmp_path):
    """A real dataset of ir_datasets over files of ours: its own readers, no download."""
    ir_datasets = pytest.importorskip("ir_datasets", reason="needs raylab[irds]")
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "collection.tsv").write_text("p1\tone\np2\ttwo é\n")
    (folder / "queries.test.tsv").write_text("q1\tfirst?\nq2\tsecond?\n")
    (folder / "qrels.test.tsv").write_text("q1 0 p1 1\nq2 0 p2 2\n")
    name = f"raylab-{tmp_path.name}"
    ir_datasets.registry.register(
        name,
        ir_datasets.create_dataset(
            docs_tsv=str(folder / "collection.tsv"),
            queries_tsv=str(folder / "queries.test.tsv"),
            qrels_trec=str(folder / "qrels.test.tsv"),
        ),
    )
    assert content(f"irds:{name}") == content(folder)
