"""Systems are measured task by task, in any order and from any moment on, with the same tables at the end."""

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from raylab.data.tokens import write_store
from raylab.experiment.config import Adaptation, Backbone, ConfigError, Encoding, FineTuning
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid, Ladder, Recipe
from raylab.experiment.heads import DENSE, SPARSE
from raylab.experiment.objectives import CL
from raylab.pipeline.arriving import Arrivals
from raylab.pipeline.collect import Measured, collect
from raylab.pipeline.evaluation import SystemsEvaluation
from raylab.pipeline.measured import BM25
from raylab.pipeline.measuring import Measuring, PairWork, measured_of, pairs_of
from raylab.pipeline.real_plan import grid_stages
from raylab.pipeline.stages import GridStages
from raylab.stages import search
from raylab.stages.work import Worker, following, model_of
from raylab.storage.merging import parts_of
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, PER_QUERY, RESULTS, read_table
from tests.stages.collections import committed

pytestmark = pytest.mark.long

SHARDS = {"shard_passages": 25}  # five parts


@pytest.fixture(scope="module")
def grid(model_folder, collection_folder) -> Grid:
    tuning = {(head, "cl"): FineTuning() for head in ("dense", "sparse")}
    recipe = Recipe(Adaptation(), tuning, Encoding(passage_length=40, top_k_passage=30), 1e12)
    ladder = Ladder("mine", (Backbone("tiny", str(model_folder)),), recipe)
    return Grid(ladder, str(collection_folder), heads=(DENSE, SPARSE), objectives=(CL,))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, grid, collection_folder) -> Path:
    """A storage with two collections and their tokens."""
    folder = tmp_path_factory.mktemp("prepared")
    store = Store(str(folder / "lab"))
    shutil.copytree(collection_folder, folder / "other")
    text = (collection_folder / "queries.jsonl").read_text()
    (folder / "other" / "queries.jsonl").write_text(text.replace("cell", "gene"))
    for place in (collection_folder, folder / "other"):
        committed(store, place)
    stages = stages_of(store, grid, collection_folder, folder / "other")
    for measured in stages.measured:
        tokenizer = stages.tokenizers["tiny"]
        rows = pq.read_table(store.local(measured.collection) / "passages").to_pylist()
        rows.sort(key=lambda row: row["passage_id"])
        texts = tokenizer.encode([f"{row['title']} {row['text']}" for row in rows])
        with store.draft(measured.tokens["tiny"]) as draft:
            own = [row["passage_id"] for row in rows], texts, [4] * len(rows)
            write_store(draft.path / "passages", [own], tokenizer.dtype)
    return folder


def stages_of(store: Store, grid: Grid, *folders: Path) -> GridStages:
    collections = [committed(store, folder) for folder in folders]
    return grid_stages(grid, Execution(storage=store.uri), store, collections, None)


@pytest.fixture
def work(prepared, grid, collection_folder, tmp_path):
    """(store, the grid's list, its untrained systems) in a copy."""
    store = Store(str(shutil.copytree(prepared / "lab", tmp_path / "lab")))
    stages = stages_of(store, grid, collection_folder, prepared / "other")
    return store, stages, [(system, None) for system in stages.untrained]


def go(store, execution, measuring: Measuring, pairs, most: int = 10**9, order=None) -> int:
    """Do what the pairs need, at most so many tasks, in a random order if one is given; returns how many were done."""
    worker, queue = Worker(store, execution), measuring.begin(pairs)
    done = 0
    while queue and done < most:
        place = None if order is None else order.randrange(len(queue))
        task = following(None, queue) if place is None else queue.pop(place)
        worker.work(task)
        queue[:0] = measuring.finished(task)
        done += 1
    return done


def tables(store, stages, systems, execution) -> pd.DataFrame:
    """The results, once everything is measured."""

    def refuse(*_) -> None:
        raise AssertionError("something was left to do")

    monitor = type("Silent", (), {"say": refuse, "enter": refuse, "advance": refuse})
    evaluated = SystemsEvaluation(stages, systems, execution, store, monitor, refuse, refuse).run()
    name = stages.collection.meta["name"]
    evaluations, profiles = evaluated.evaluations, evaluated.profiles
    results, _ = collect(
        store, Measured(name, systems, {}, evaluations, profiles, evaluated.used), execution
    )
    return results.drop(columns="query_ms")


@pytest.fixture(scope="module")
def expected(prepared, grid, collection_folder, tmp_path_factory) -> pd.DataFrame:
    """Of one pass in order."""
    folder = tmp_path_factory.mktemp("expected")
    store = Store(str(shutil.copytree(prepared / "lab", folder / "lab")))
    stages = stages_of(store, grid, collection_folder, prepared / "other")
    systems, execution = [(s, None) for s in stages.untrained], Execution(**SHARDS)
    go(store, execution, Measuring(store, execution), pairs_of(stages, systems))
    results = tables(store, stages, systems, execution)
    assert set(results["collection"]) == {"tiny", "other"}
    assert set(results["system"]) == {BM25, "untrained-dense-tiny", "untrained-sparse-tiny"}
    return results


@pytest.mark.parametrize("seed", [0, 1])
def test_whatever_the_order_and_wherever_it_stops_the_table_is_the_same(work, expected, seed):
    """Every few tasks the driver dies; another begins with what stands in the storage."""
    store, stages, systems = work
    execution, order = Execution(**SHARDS), random.Random(seed)
    rounds = 0
    while go(store, execution, Measuring(store, execution), pairs_of(stages, systems), 9, order):
        rounds += 1
    assert rounds > 3
    pd.testing.assert_frame_equal(tables(store, stages, systems, execution), expected)


def test_without_an_index_the_values_are_the_same(work, expected):
    store, stages, systems = work
    execution, told = Execution(no_index=True, **SHARDS), []
    measuring = Measuring(store, execution, say=told.append)
    order = random.Random(0)
    go(store, execution, measuring, pairs_of(stages, systems), order=order)
    assert sum("bytes of embeddings not stored" in text for text in told) == 4
    results = tables(store, stages, systems, execution).drop(columns="index_bytes")
    pd.testing.assert_frame_equal(results, expected.drop(columns="index_bytes"))
    assert not list(Path(store.root).glob("embedding-part/*"))


def test_pieces_of_a_search_give_the_same(work, expected, monkeypatch):
    """Of two index shards each, where there are more than two."""
    monkeypatch.setattr(search, "_SHARDS_A_PIECE", 2)
    store, stages, systems = work
    execution = Execution(**SHARDS)
    go(store, execution, Measuring(store, execution), pairs_of(stages, systems))
    pd.testing.assert_frame_equal(tables(store, stages, systems, execution), expected)
    assert not list(Path(store.root).glob("run-shards/*"))


def test_an_index_is_made_once_for_all_splits(work):
    store, stages, systems = work
    execution = Execution(**SHARDS)
    go(store, execution, Measuring(store, execution), pairs_of(stages, systems))
    for home in (Path(store.root) / "index").iterdir():
        assert len(list(home.glob("attempt-*"))) == 1


def test_a_pair_is_told_of_once_and_the_smallest_collection_does_not_wait(work):
    store, stages, systems = work
    execution, told = Execution(**SHARDS), []
    measuring = Measuring(store, execution, lambda pair: told.append(pair.name))
    pairs = pairs_of(stages, systems)
    go(store, execution, measuring, pairs)
    assert sorted(told) == sorted(pair.name for pair in pairs)
    # A system's first collection is measured before its second is encoded.
    own = [collection for collection, system in told if system == systems[0][0].name]
    assert own == [measured.name for measured in stages.measured]
    assert measured_of(store, pairs).keys() == set(told)
    assert not Measuring(store, execution).begin(pairs)


def test_the_task_that_follows_needs_no_model_or_the_loaded_one(work):
    store, stages, systems = work
    tasks = Measuring(store, Execution(**SHARDS)).begin(pairs_of(stages, systems))
    others = [replace(task, system=replace(task.system, weights="w")) for task in tasks[2:4]]
    queue = [*others, *tasks]
    (bm25, *_) = [task for task in tasks if model_of(task) is None]
    assert following(others[0], list(queue)) == bm25
    queue = [task for task in queue if model_of(task) is not None]
    loaded = queue[-1]
    assert model_of(following(loaded, list(queue))) == model_of(loaded) != "w"
    assert following(None, list(queue)) == following(bm25, list(queue)) == others[0]


def test_rows_come_while_the_rest_goes_on_and_stand_in_order_at_the_end(work, expected):
    store, stages, systems = work
    execution, seen = Execution(**SHARDS), []
    arrivals = Arrivals(stages, execution, store)

    def measured(pair: PairWork) -> None:
        arrivals.add(pair)
        if not seen:  # the first is written at once
            end = time.monotonic() + 20
            while not arrivals.parts[RESULTS] and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.2)  # its part is merged
            seen.append(read_table(store, RESULTS))

    with arrivals.adding():
        pairs = pairs_of(stages, systems)
        go(store, execution, Measuring(store, execution, measured), pairs[::-1])
    assert len(seen[0]) < len(expected)
    assert set(seen[0]["value"]) <= set(expected["value"])
    evaluated = SystemsEvaluation(
        stages, systems, execution, store, None, lambda: None, arrivals.add
    ).run()
    name = stages.collection.meta["name"]
    facts = Measured(name, systems, {}, evaluated.evaluations, evaluated.profiles, evaluated.used)
    results, _ = collect(store, facts, execution, arrivals.parts)
    pd.testing.assert_frame_equal(results.drop(columns="query_ms"), expected)
    assert len(parts_of(store, RESULTS)) == len(parts_of(store, PER_QUERY)) == 1


def test_what_the_tables_hold_is_not_read_again(work, expected, monkeypatch):
    store, stages, systems = work
    execution = Execution(**SHARDS)
    go(store, execution, Measuring(store, execution), pairs_of(stages, systems))
    tables(store, stages, systems, execution)
    parts = {name: parts_of(store, name) for name in (RESULTS, PER_QUERY, LEDGER)}

    def refuse(*_) -> None:
        raise AssertionError("a measure was read")

    monkeypatch.setattr(Store, "local", refuse)
    pd.testing.assert_frame_equal(tables(store, stages, systems, execution), expected)
    assert {name: parts_of(store, name) for name in parts} == parts


def test_a_faulty_task_is_its_own_error(work, monkeypatch):
    store, stages, systems = work
    execution = Execution(**SHARDS)
    worker, measuring = Worker(store, execution), Measuring(store, execution)
    (task, *_) = [t for t in measuring.begin(pairs_of(stages, systems)) if model_of(t)]
    with pytest.raises(ConfigError, match="no model at '/nowhere'"):
        worker.work(replace(task, system=replace(task.system, backbone=Backbone("x", "/nowhere"))))
    assert store.find(task.address) is None
