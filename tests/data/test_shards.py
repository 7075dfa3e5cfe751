"""Shards: in id order, cut at fixed sizes whatever the batches were, duplicates found across all edges."""

import json
import resource
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylab.data.faults import QUARANTINE, CollectionError
from raylab.data.ingest import PASSAGES, collection_address, in_order, write_collection
from raylab.data.shards import PARSED, write_shards
from raylab.data.sources import open_collection
from raylab.storage.artifacts import StorageError
from raylab.storage.store import Store


def table(rows):
    """`PARSED` of (id, file, line, title, text)."""
    columns = zip(*((*row, None) for row in rows), strict=True)
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, PARSED, strict=True)], schema=PARSED
    )


ROWS = [(f"{i:04d}", 0, i + 1, "t" * (i % 2), f"é{i}") for i in range(103)]


def batches(rows, size):
    return [table(rows[i : i + size]) for i in range(0, len(rows), size)]


@pytest.mark.parametrize("size", [1, 7, 50, 1_000])
def test_shards_and_statistics_do_not_depend_on_the_batches(size, tmp_path):
    facts, found = write_shards(
        tmp_path, batches(ROWS, size), ["f"], {"0007", "nope"}, shard_rows=20
    )
    assert found == {"0007"}
    assert [s["rows"] for s in facts["shards"]] == [20, 20, 20, 20, 20, 3]
    read = []
    for shard in facts["shards"]:
        path = tmp_path / shard["file"]
        own = pq.read_table(path).to_pylist()
        assert (own[0]["passage_id"], own[-1]["passage_id"]) == (shard["first"], shard["last"])
        assert path.stat().st_size == shard["bytes"]
        read += [(r["passage_id"], 0, r["line"], r["title"], r["text"]) for r in own]
    assert read == ROWS
    lengths = sorted(len(t) + len(x) for *_, t, x in ROWS)
    assert facts["passages"] == len(ROWS)
    assert facts["with_title"] == 51
    assert facts["text_bytes"] == sum(len(r[4].encode()) for r in ROWS)
    assert facts["characters"] == {
        "mean": pytest.approx(sum(lengths) / len(lengths)),
        "median": lengths[51],
        "95%": lengths[97],
        "longest": lengths[-1],
    }


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_duplicates_at_any_edge(size, tmp_path):
    rows = sorted(
        [*ROWS[:9], ("0004", 0, 200, "", "b"), ("0004", 1, 3, "", "c"), ("0008", 1, 9, "", "")]
    )
    told = []
    facts, _ = write_shards(
        tmp_path, batches(rows, size), ["f", "g"], on_fault=told.append, shard_rows=4
    )
    assert facts["passages"] == 9
    assert [str(f) for f in told] == [
        "f:200: duplicate passage id '0004' (first at line 5); ids must be unique",
        "g:3: duplicate passage id '0004' (first at line 5 of f); ids must be unique",
        "g:9: duplicate passage id '0008' (first at line 9 of f); ids must be unique",
    ]
    with pytest.raises(CollectionError, match=r"f:200: duplicate"):
        write_shards(tmp_path / "strict", batches(rows, size), ["f", "g"])


def test_memory_does_not_grow_with_the_collection(tmp_path):
    """Duplicates in every batch and across them; what is held after 20 batches is held after 400."""
    held = []

    def endless():
        for number in range(400):
            held.append(tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes())
            first = number * 90
            rows = [
                (f"{first + i * 90 // 100:09d}", 0, first + i, "", "x" * 200) for i in range(100)
            ]
            yield table(rows)

    count = 0

    def told(fault):
        nonlocal count
        count += 1

    tracemalloc.start()
    try:
        facts, _ = write_shards(tmp_path, endless(), ["f"], on_fault=told, shard_rows=3_000)
    finally:
        tracemalloc.stop()
    assert (facts["passages"], count) == (36_000, 4_000)
    assert max(held[300:]) < max(held[20:60]) + 100_000  # 240 more batches are 5 MB of text


@pytest.mark.parametrize("limit_bytes", [500, 3_000, 12_000])
def test_a_disk_that_is_full_leaves_nothing(limit_bytes, collection_folder, tmp_path):
    """The limit on file sizes fails a write as a full disk does, here at three places."""
    store, source = Store(str(tmp_path / "lab")), open_collection(str(collection_folder))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with (
            pytest.raises(StorageError, match=r"File too large|errno 27"),
            store.draft(collection_address(source)) as draft,
        ):
            write_collection(draft.path, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [p for p in (tmp_path / "lab").rglob("*") if p.is_file()]
    assert store.find(collection_address(source)) is None


def test_quarantine_tells_each_record_and_its_reason(collection_folder, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "collection.tsv").write_bytes(b"b\ttwo\na\tone\nb\tagain\nc\t\xff\nd\n")
    (folder / "queries.dev.tsv").write_text("q\tone?\nr\tunjudged?\ns\t\n")
    (folder / "qrels.dev.tsv").write_text("q 0 a 1\nq 0 x 1\nq 0 b many\n")
    out = tmp_path / "out"
    out.mkdir()
    meta = write_collection(out, open_collection(str(folder)), "quarantine")
    assert meta["passages"] == 2
    assert meta["splits"] == {"dev": 1}
    assert meta["quarantined"] == {
        "bad grade": 1,
        "duplicate": 1,
        "empty text": 1,
        "not UTF-8": 1,
        "wrong field count": 1,
    }
    told = {
        (f["file"].rpartition("/")[2], f["line"]): f
        for f in map(json.loads, (out / QUARANTINE).open())
    }
    assert set(told) == {
        ("queries.dev.tsv", 3),
        ("qrels.dev.tsv", 3),
        ("collection.tsv", 3),
        ("collection.tsv", 4),
        ("collection.tsv", 5),
    }
    assert told["collection.tsv", 4]["record"] == "c\t\\xff"
    assert told["qrels.dev.tsv", 3]["record"] == "q 0 b many"
    facts = json.loads((out / "statistics.json").read_text())
    assert facts["splits"]["dev"] == {"queries": 1, "judgements": 2, "queries_without_judgement": 1}
    assert meta["misses"] == {"dev": 1}
    assert facts[PASSAGES]["passages"] == 2


def test_judgements_of_training_are_of_passages_that_are_there(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "collection.tsv").write_text("a\tone\n")
    (folder / "train_passages.tsv").write_text("t\tfor training\n")
    for split in ("dev", "train"):
        (folder / f"queries.{split}.tsv").write_text("q\tone?\n")
        (folder / f"qrels.{split}.tsv").write_text("q 0 a 1\n")
    (folder / "qrels.train.tsv").write_text("q 0 t 1\nq 0 a 1\n")
    (tmp_path / "out").mkdir()
    assert write_collection(tmp_path / "out", open_collection(str(folder)))["train_passages"] == 1
    (folder / "qrels.train.tsv").write_text("q 0 a 1\nq 0 x 1\n")
    with pytest.raises(
        CollectionError,
        match=r"qrels\.train\.tsv:2: unknown passage 'x'; it must be in collection\.tsv",
    ):
        write_collection(tmp_path / "out", open_collection(str(folder)))


@pytest.mark.parametrize("name", ["msmarco-slice", "beir/nfcorpus"])
def test_real_collections_go_through_whole(name, shared_data, tmp_path):
    source = open_collection(str(shared_data / name))
    meta = write_collection(tmp_path, source)
    expected = {
        "msmarco-slice": (34_627, 4_665, {"dev": 2_287, "dl19": 43, "train": 4_693}),
        "beir/nfcorpus": (3_633, None, {"dev": 324, "test": 323, "train": 2_590}),
    }
    assert (meta["passages"], meta["train_passages"], meta["splits"]) == expected[name]
    assert meta["quarantined"] == {}
    ids = pq.read_table(tmp_path / PASSAGES, columns=["passage_id"])["passage_id"].to_pylist()
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_order_in_this_process_is_by_id_then_place(tmp_path):
    path = tmp_path / "collection.tsv"
    path.write_text("b\t1\na\t2\nb\t3\n")
    (sorted_table,) = in_order([str(path), str(path)], False)
    keys = sorted_table.select(["passage_id", "file", "line"]).to_pylist()
    assert [tuple(k.values()) for k in keys] == [
        ("a", 0, 2),
        ("a", 1, 2),
        ("b", 0, 1),
        ("b", 0, 3),
        ("b", 1, 1),
        ("b", 1, 3),
    ]
