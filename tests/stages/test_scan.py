"""One pass without an index: the same runs and profiles, bit for bit, as through stored indexes."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raylab.data.ingested import load_topics
from raylab.data.tokens import write_store
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.execution import Execution
from raylab.experiment.heads import HEADS
from raylab.index.embeddings import shards
from raylab.models.hub import load_tokenizer
from raylab.planning.flops import Rows, Shape, encode_flops
from raylab.stages import scan as scanning
from raylab.stages import search as searching
from raylab.stages.encode import Embeddings, ShardEncoder, System, commit_shard, query_task
from raylab.stages.profile import Profile, make_profile
from raylab.stages.scan import Scan, Scanner, join, make_scanned_profile
from raylab.stages.search import (
    Evaluation,
    build_index,
    index_address,
    search_and_evaluate,
    search_piece,
)
from raylab.stages.tokenise import tokens_address
from raylab.storage.store import Store
from tests.stages.collections import committed

SPLITS = ("test", "valid")
ROWS = tuple(shards(120, 25))  # five shards, the last of 20


@pytest.fixture(scope="module")
def begun(tmp_path_factory, collection_folder, model_folder):
    """(a storage with collection and tokens, both artifacts)."""
    store = Store(str(tmp_path_factory.mktemp("begun") / "lab"))
    collection = committed(store, collection_folder)
    tokenizer = load_tokenizer(Backbone("tiny", str(model_folder)), None)
    table = pq.read_table(store.local(collection) / "passages")
    rows = sorted(table.to_pylist(), key=lambda row: row["passage_id"])
    texts = [f"{row['title']} {row['text']}" for row in rows]
    address = tokens_address(collection, tokenizer)
    with store.draft(address) as draft:
        own = [row["passage_id"] for row in rows], tokenizer.encode(texts), [4] * len(rows)
        draft.meta["passages"] = write_store(draft.path / "passages", [own], tokenizer.dtype)
    return store, collection, store.committed(address)


@pytest.fixture(scope="module", params=["sparse", "dense"])
def prepared(begun, request, model_folder, tmp_path_factory):
    """What a scan of a system needs, in a copy of that storage, with the queries encoded."""
    begun_store, collection, tokens = begun
    folder = tmp_path_factory.mktemp(request.param) / "lab"
    shutil.copytree(begun_store.root, folder)
    store = Store(str(folder))
    backbone = Backbone("tiny", str(model_folder))
    system = System(request.param, HEADS[request.param], backbone, "w", None)
    encoding = Encoding(passage_length=40, top_k_passage=30)
    encoder = ShardEncoder(store, Execution(encode_batch_tokens=512))
    queries = {}
    for split in SPLITS:
        task = query_task(system, encoding, collection, split)
        commit_shard(store, encoder, task)
        queries[split] = store.committed(task.address)
    return store, encoder, system, encoding, collection, tokens, queries


def test_the_account_of_encoding_is_of_every_texts_own_tokens(prepared):
    store, encoder, system, encoding, collection, tokens, queries = prepared
    retriever = encoder._retriever(query_task(system, encoding, collection, "test"))
    shape = Shape.of(retriever.model.config)

    def cost(texts, kind, limit):
        framed = retriever.tokenizer.encode_framed(texts, kind, limit)
        return sum(encode_flops(shape, Rows(1, len(own)), system.head) for own in framed)

    for split in SPLITS:
        texts = list(load_topics(store.local(collection))[split].queries.values())
        told = queries[split].meta["flops"]
        assert told == pytest.approx(cost(texts, "query", encoding.query_limit))
    task = Embeddings(system, encoding, tokens, 120).part(ROWS[0])
    rows = pq.read_table(store.local(collection) / "passages").sort_by("passage_id").to_pylist()
    texts = [f"{row['title']} {row['text']}" for row in rows[: len(ROWS[0])]]
    _, _, took = encoder.encode(task)
    assert took["flops"] == pytest.approx(cost(texts, "passage", encoding.passage_limit))


@pytest.fixture
def work(prepared, tmp_path):
    """The same in a copy of its own."""
    shutil.copytree(prepared[0].root, tmp_path / "lab")
    return Store(str(tmp_path / "lab")), *prepared[1:]


def scan_of(work, rows=ROWS) -> Scan:
    _, _, system, encoding, collection, tokens, queries = work
    embeddings = Embeddings(system, encoding, tokens, 120)
    profile = Profile(system.name, collection, embeddings.address, queries, 0.2)
    return Scan(embeddings, collection, rows, queries, profile)


def evaluated(store, evaluation) -> bytes:
    search_and_evaluate(store, evaluation)
    run = store.committed(evaluation.run_address)
    return (store.local(run) / "run.trec.gz").read_bytes()


@pytest.fixture(scope="module")
def through_the_index(prepared, tmp_path_factory):
    """(run files by split, the profile, bytes of the embedding shards, storage and indexes), in a copy."""
    store, _, system, encoding, collection, tokens, queries = prepared
    folder = tmp_path_factory.mktemp("indexed") / "lab"
    shutil.copytree(store.root, folder)
    store = Store(str(folder))
    encoder = ShardEncoder(store, Execution(encode_batch_tokens=512))
    whole = Embeddings(system, encoding, tokens, 120)
    embeddings, indexes = [], []
    for rows in ROWS:
        task = whole.part(rows)
        commit_shard(store, encoder, task)
        embeddings.append(store.committed(task.address))
        build_index(store, embeddings[-1])
        indexes.append(store.committed(index_address(embeddings[-1])))
    runs = {
        split: evaluated(
            store,
            Evaluation(
                system.name, collection, split, queries[split], whole.address, tuple(indexes)
            ),
        )
        for split in SPLITS
    }
    profile = Profile(system.name, collection, whole.address, queries, 0.2, tuple(embeddings))
    make_profile(store, profile)
    size = sum(
        facts["bytes"]
        for shard in embeddings
        for name, facts in shard.manifest["files"].items()
        if name != "shape.json"
    )
    return runs, profile_table(store, profile), size, store, tuple(indexes)


def profile_table(store, profile) -> tuple[bytes, dict]:
    made = store.committed(profile.address)
    return (store.local(made) / "entropy.parquet").read_bytes(), dict(made.meta)


@pytest.mark.parametrize(
    ("pieces", "together"),
    [(64, 2**27), (2, 2**27), (1, 1), (1, 2**27)],
    ids=["a piece a shard", "two pieces", "searched shard by shard", "searched at once"],
)
def test_runs_and_profiles_are_those_of_stored_indexes_and_nothing_is_stored(
    work, through_the_index, tmp_path, monkeypatch, pieces, together
):
    monkeypatch.setattr(scanning, "_PIECES", pieces)
    monkeypatch.setattr(scanning, "_SEARCHED_BYTES", together)
    runs, profile, size, *_ = through_the_index
    store, _, system, _, collection, _, queries = work
    before = set((tmp_path / "lab" / "embeddings").iterdir())
    scan = scan_of(work)
    scanner = Scanner(store, Execution(encode_batch_tokens=512))
    assert len(scan.pieces()) == min(pieces, len(ROWS))
    for piece in reversed(scan.pieces()):  # in whatever order actors finish
        scanner.scan(piece)
    hits = join(store, scan, scan.pieces())
    for split in SPLITS:
        what = Evaluation(
            system.name, collection, split, queries[split], scan.embeddings.address, (), hits
        )
        assert evaluated(store, what) == runs[split]
    make_scanned_profile(store, scan, hits)
    assert profile_table(store, scan.profile) == profile
    assert set((tmp_path / "lab" / "embeddings").iterdir()) == before
    assert not (tmp_path / "lab" / "embedding-part").exists()
    assert not (tmp_path / "lab" / "index").exists()
    assert not list((tmp_path / "lab" / "hits-shards").glob("*/manifest.json"))
    assert hits.meta["unstored_bytes"] == size
    assert hits.meta["rows"] == 120


@pytest.mark.parametrize("shards_a_piece", [1, 2, 4])
def test_a_search_in_pieces_has_the_run_of_one_search(
    work, through_the_index, tmp_path, monkeypatch, shards_a_piece
):
    runs, _, _, whole, indexes = through_the_index
    store, _, system, encoding, collection, tokens, queries = work
    for stage in ("index", "embedding-part"):  # a dense index reads the vectors where they stand
        shutil.copytree(Path(whole.root, stage), tmp_path / "lab" / stage)
    monkeypatch.setattr(searching, "_SHARDS_A_PIECE", shards_a_piece)
    for split in SPLITS:
        passages = Embeddings(system, encoding, tokens, 120).address
        what = Evaluation(system.name, collection, split, queries[split], passages, indexes)
        pieces = what.pieces()
        assert [len(piece.shards) for piece in pieces] == {
            1: [1, 1, 1, 1, 1],
            2: [2, 2, 1],
            4: [4, 1],
        }[shards_a_piece]
        for piece in reversed(pieces):  # in whatever order tasks end
            search_piece(store, piece)
        made = [store.committed(piece.address) for piece in pieces]
        assert evaluated(store, what) == runs[split]
        run = store.committed(what.run_address)
        assert run.meta["index_bytes"] == sum(p.meta["index_bytes"] for p in made)
        assert run.meta["search_seconds"] >= sum(p.meta["search_seconds"] for p in made)
        assert not any(store.find(piece.address) for piece in pieces)


def test_a_piece_that_is_there_is_not_done_again(work):
    store, *_ = work
    scan = scan_of(work)
    scanner = Scanner(store, Execution(encode_batch_tokens=512))
    piece = scan.pieces()[1]
    scanner.scan(piece)
    first = store.committed(piece.address)
    scanner.scan(piece)
    assert store.committed(piece.address).manifest == first.manifest


def test_what_enters_the_identity_of_hits(work):
    scan = scan_of(work)
    coarser = scan_of(work, (range(60), range(60, 120)))
    assert coarser.address.fingerprint == scan.address.fingerprint
    pieces = [piece.address.fingerprint for piece in scan.pieces()]
    assert len(set(pieces)) == len(pieces)
    rows = [row for piece in scan.pieces() for own in piece.rows for row in own]
    assert rows == list(range(120))
    assert scan_of(work).address.fingerprint == scan.address.fingerprint
    assert np.all([len(own.rows) >= 1 for own in scan.pieces()])
