"""Queries that moved, and searches from the page: as the grid's own, read-only, clear where nothing is stored."""

import asyncio
import os
import shutil
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd
import pytest
from aiohttp.test_utils import TestClient

from raylab.evaluation.runs import read_run
from raylab.storage.store import Store
from tests.live.stored import CELLS, laboratory
from tests.live.test_server import ask

PLACE = {"collection": "tiny", "split": "test", "measure": "nDCG@10"}
PAIR = {"a": CELLS["dense"], "b": CELLS["sparse"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory, collection_folder, model_folder, retriever_folders) -> Store:
    root = tmp_path_factory.mktemp("stored") / "lab"
    return laboratory(root, collection_folder, model_folder, retriever_folders)


@pytest.fixture
def store(made, tmp_path) -> Store:
    """In a copy of its own."""
    return Store(str(shutil.copytree(made.root, tmp_path / "lab")))


def run_of(store: Store, name: str):
    (place,) = Path(store.root, "run").glob(f"{name}-test-*/attempt-*/run.trec.gz")
    return read_run(place)


def files_of(store: Store) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file and folder."""
    found = {}
    for folder, _, names in os.walk(store.root):
        for name in (".", *names):
            status = os.stat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (status.st_size, status.st_mtime_ns)
    return found


async def told(client: TestClient, path: str, **query) -> dict:
    answer = await client.get(f"{path}?{urlencode(query, doseq=True)}")
    assert answer.status == 200, await answer.text()
    return await answer.json()


def search(client: TestClient, text: str, **more):
    cells = list(CELLS.values())
    return told(client, "/api/search", cell=cells, collection="tiny", q=text, **more)


def test_a_search_is_the_grids_own_and_its_terms_make_the_score(store, collection_folder):
    runs = {head: run_of(store, name) for head, name in CELLS.items()}
    queries = pd.read_json(collection_folder / "queries.jsonl", lines=True).set_index("_id")["text"]

    async def questions(client: TestClient):
        for query in ("q060", "q071"):
            answer = await search(client, queries[query], k=10)
            for (head, name), side in zip(CELLS.items(), answer["sides"], strict=True):
                assert (side["system"], side["note"]) == (name, "")
                expected = list(runs[head][query])[:10]
                found = [(one["passage"], one["score"]) for one in side["passages"]]
                assert [one for one, _ in found] == [one for one, _ in expected]
                assert [one for _, one in found] == pytest.approx(
                    [s for _, s in expected], rel=1e-4
                )
                assert all(bool(one["terms"]) == (head == "sparse") for one in side["passages"])
            sparse = answer["sides"][0]
            assert 0 < len(sparse["terms"]) <= 16
            for one in sparse["passages"]:
                products = [ours * theirs for _, ours, theirs in one["terms"]]
                assert products == sorted(products, reverse=True)
                whole = pytest.approx(one["score"], rel=1e-3)
                assert (
                    sum(products) == whole if len(products) < 16 else sum(products) < one["score"]
                )

    ask(store, questions)


def test_queries_that_moved_are_those_of_the_table(store):
    table = pd.read_parquet(Path(store.root, "per_query.parquet"))
    own = table[table["measure"] == "nDCG@10"].pivot_table("value", "query_id", "system")
    change = own["sparse-tiny-cl"] - own["dense-tiny-cl"]

    async def questions(client: TestClient):
        answer = await told(client, "/api/compare", **PAIR, **PLACE)
        assert answer["queries"] == len(change) == 20
        assert answer["better"] == (change > 0).sum()
        assert answer["worse"] == (change < 0).sum()
        assert answer["mean_b"] == pytest.approx(own["sparse-tiny-cl"].mean())
        moved = answer["moved"]
        assert {one["query"] for one in moved} == set(change[change != 0].index)
        sizes = [abs(one["b"] - one["a"]) for one in moved]
        assert sizes == sorted(sizes, reverse=True)
        assert all(one["text"] for one in moved)
        assert [one["change"] for one in answer["changes"]] == sorted(change)

    ask(store, questions)


def test_a_query_shows_what_each_ranked_and_which_is_relevant(store):
    run = run_of(store, CELLS["sparse"])

    async def questions(client: TestClient):
        answer = await told(client, "/api/compare/query", **PAIR, **PLACE, query="q065")
        dense, sparse = answer["sides"]
        assert [one["passage"] for one in sparse["passages"]] == [
            passage for passage, _ in run["q065"]
        ][:10]
        relevant = [one for side in (dense, sparse) for one in side["passages"] if one["grade"]]
        assert {one["passage"] for one in relevant} <= {"p065"}
        assert all(one["terms"] for one in sparse["passages"])
        assert not any(one["terms"] for one in dense["passages"])
        assert not any(name.startswith("term ") for name, _, _ in sparse["passages"][0]["terms"])

    ask(store, questions)


@pytest.mark.parametrize(
    ("gone", "note", "ranked"),
    [
        ("index", "its index is not stored (--no-index, or cleaned away)", True),
        ("embedding-part", "its representations are not stored", True),
        ("retriever", "it is not stored, or was cleaned away", True),
        ("run", "its run is not stored", False),
        ("collection", "it is not stored, or was cleaned away", False),
    ],
)
def test_what_is_not_stored_is_said_in_one_line(store, gone, note, ranked):
    shutil.rmtree(Path(store.root, gone))

    async def questions(client: TestClient):
        for side in (await search(client, "some words"))["sides"]:
            assert note in side["note"]
            assert "\n" not in side["note"]
        answer = await told(client, "/api/compare/query", **PAIR, **PLACE, query="q065")
        assert all(bool(side["passages"]) == ranked for side in answer["sides"])
        assert (await told(client, "/api/compare", **PAIR, **PLACE))["queries"] == 20

    ask(store, questions)


def test_nothing_is_written_whatever_is_damaged(store):
    for place in Path(store.root, "retriever").glob("*/manifest.json"):
        place.write_text("no manifest")
    (index, *_) = Path(store.root, "index").glob("sparse*/attempt-*/ranks.npy")
    index.write_bytes(b"cut")
    before = files_of(store)

    async def questions(client: TestClient):
        for side in (await search(client, "some words"))["sides"]:
            assert "damaged" in side["note"]
        await told(client, "/api/compare", **PAIR, **PLACE)
        await told(client, "/api/compare/query", **PAIR, **PLACE, query="q065")
        for path in ("/api/state", "/api/systems", "/api/timeline", "/api/chart/laws"):
            assert (await client.get(path)).status == 200

    ask(store, questions)
    assert files_of(store) == before


def test_questions_are_bounded(store):
    async def questions(client: TestClient):
        async def status(path: str, **query) -> int:
            return (await client.get(f"{path}?{urlencode(query, doseq=True)}")).status

        good = {"cell": CELLS["dense"], "collection": "tiny", "q": "words"}
        assert await status("/api/search", **good) == 200
        for bad in (
            {"q": "x" * 1_001},
            {"q": " "},
            {"k": 51},
            {"k": "x"},
            {"cell": ["a", "b", "c"]},
        ):
            assert await status("/api/search", **{**good, **bad}) == 400
        assert await status("/api/compare", **PAIR) == 400
        answers = await asyncio.gather(*(status("/api/search", **good) for _ in range(20)))
        assert set(answers) == {200, 503}
        answer = await told(client, "/api/search", **{**good, "cell": "../../etc"})
        assert "no trained cell" in answer["sides"][0]["note"]

    ask(store, questions)


def test_only_files_that_a_manifest_lists_are_served(store, tmp_path):
    (folder,) = Path(store.root, "retriever").glob("sparse*")
    (attempt,) = folder.glob("attempt-*")
    (attempt / "unlisted.txt").write_text("not listed")
    (tmp_path / "secret").write_text("outside")
    (attempt / "raylab.json").unlink(missing_ok=True)
    name = sorted(path.name for path in attempt.glob("*.json"))[0]
    place = f"retriever/{folder.name}"

    async def questions(client: TestClient):
        manifest = await (await client.get(f"/api/artifact/{place}")).json()
        assert name in manifest["files"]
        answer = await client.get(f"/artifact/{place}/{name}")
        assert await answer.read() == (attempt / name).read_bytes()
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        for file in (
            "unlisted.txt",
            "manifest.json",
            f"..%2f{attempt.name}%2f{name}",
            "../manifest.json",
        ):
            assert (await client.get(f"/artifact/{place}/{file}")).status == 404
        (attempt / name).unlink()
        (attempt / name).symlink_to(tmp_path / "secret")
        assert (await client.get(f"/artifact/{place}/{name}")).status == 404
        for bad in ("retriever/..", "../retriever", "retriever/%2e%2e", "live/runs"):
            assert (await client.get(f"/api/artifact/{bad}")).status == 404

    ask(store, questions)
