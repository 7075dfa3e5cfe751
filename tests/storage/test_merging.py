"""The tables of a storage hold what every command made, whatever the order and however many write at once."""

import threading

import pandas as pd
import pytest

from raylab.storage import merging
from raylab.storage.merging import add_rows, current, of_cells, read_current
from raylab.storage.store import Store
from raylab.storage.tables import (
    LEDGER,
    PER_QUERY,
    RESULTS,
    LedgerRow,
    QueryValue,
    Result,
    read_table,
)
from tests.tables import filled, query_value, result


def rows(system: str, fingerprint: str, value: float = 0.5, **more) -> list[Result]:
    facts = {"kind": "trained", "system": system, "seed": 0, "collection": "c", "split": "test"}
    facts |= {"fingerprint": fingerprint, "run": f"run-{fingerprint}", "value": value} | more
    return [result(measure=measure, **facts) for measure in ("nDCG@10", "RR@10")]


def names(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["system"], table["fingerprint"], strict=True))


def test_a_second_command_adds_to_what_the_first_left(tmp_path):
    store = Store(str(tmp_path))
    add_rows(store, RESULTS, rows("dense", "d1"), Result)
    whole = add_rows(store, RESULTS, rows("sparse", "s1"), Result)
    assert names(whole) == [("dense", "d1")] * 2 + [("sparse", "s1")] * 2
    pd.testing.assert_frame_equal(read_table(store, RESULTS), whole)
    pd.testing.assert_frame_equal(read_current(store, RESULTS), whole)


def test_the_same_command_again_changes_nothing(tmp_path):
    store = Store(str(tmp_path))
    for _ in range(3):
        add_rows(store, RESULTS, rows("dense", "d1"), Result)
        file = (tmp_path / RESULTS).read_bytes()
    assert len(list((tmp_path / "tables" / "results").iterdir())) == 1
    assert (tmp_path / RESULTS).read_bytes() == file
    assert len(read_table(store, RESULTS)) == 2


def test_of_a_cell_that_was_run_again_the_last_run_is_current_and_the_first_is_kept(tmp_path):
    """With another budget under the same name; its BM25 has no seed."""
    store = Store(str(tmp_path))
    bm25 = rows("BM25", "b", seed=None, kind="baseline")
    add_rows(store, RESULTS, [*rows("dense", "small", 0.3), *bm25], Result)
    add_rows(store, RESULTS, [*rows("dense", "large", 0.6), *bm25], Result)
    assert set(names(read_table(store, RESULTS))) == {
        ("dense", "small"),
        ("dense", "large"),
        ("BM25", "b"),
    }
    assert set(names(read_current(store, RESULTS))) == {("dense", "large"), ("BM25", "b")}
    add_rows(
        store, RESULTS, [*rows("dense", "small", 0.3), *bm25], Result
    )  # the first command again
    assert set(names(read_current(store, RESULTS))) == {("dense", "small"), ("BM25", "b")}
    assert len(read_table(store, RESULTS)) == 6


def test_values_of_the_same_checkpoint_under_another_encoding_do_not_mix():
    old, new = rows("sparse", "s", 0.3, run="short"), rows("sparse", "s", 0.6, run="long")
    table = pd.DataFrame([vars(row) for row in [*old, *new]])
    assert current(table)["value"].tolist() == [0.6, 0.6]


def test_values_per_query_are_those_of_the_current_run(tmp_path):
    store = Store(str(tmp_path))

    def values(fingerprint: str, value: float) -> list[QueryValue]:
        key = {"system": "dense", "seed": 0, "collection": "c", "split": "test", "measure": "RR@10"}
        return [
            query_value(fingerprint=fingerprint, query_id=f"q{n}", value=value, **key)
            for n in range(3)
        ]

    add_rows(store, PER_QUERY, values("one", 0.1), QueryValue)
    add_rows(store, PER_QUERY, values("two", 0.2), QueryValue)
    assert len(read_table(store, PER_QUERY)) == 6
    assert read_current(store, PER_QUERY)["value"].tolist() == [0.2] * 3


def test_an_artifact_is_in_the_ledger_once(tmp_path):
    store = Store(str(tmp_path))
    shared = filled(LedgerRow, stage="tokens", name="c", fingerprint="t", seconds=1.0, size_bytes=1)
    for cell in ("a", "b"):
        own = filled(
            LedgerRow, stage="retriever", name=cell, fingerprint=cell, seconds=2.0, size_bytes=1
        )
        ledger = add_rows(store, LEDGER, [shared, own], LedgerRow)
    assert sorted(ledger["name"]) == ["a", "b", "c"]
    assert ledger["seconds"].sum() == 5


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_several_drivers_at_once_lose_nothing(tmp_path, protocol):
    """Also on an object storage, where nothing keeps two drivers apart."""
    uri = str(tmp_path) if protocol == "file" else f"memory://{tmp_path.name}"
    start = threading.Barrier(8)

    def drive(number: int) -> None:
        store = Store(uri)
        start.wait()
        for turn in range(3):
            add_rows(store, RESULTS, rows(f"cell{number}-{turn}", f"{number}-{turn}"), Result)

    drivers = [threading.Thread(target=drive, args=(n,)) for n in range(8)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    table = read_table(Store(uri), RESULTS)
    assert {s for s, _ in names(table)} == {f"cell{n}-{t}" for n in range(8) for t in range(3)}
    assert len(table) == 48


def test_a_slow_driver_does_not_overwrite_what_came_meanwhile(tmp_path, monkeypatch):
    """It has read the parts, and another one ends before it writes the table."""
    slow, fast, merged = Store(str(tmp_path)), Store(str(tmp_path)), merging._merged
    waiting = [True]

    def interrupted(store, name, parts):
        table = merged(store, name, parts)
        if waiting and store is slow:
            waiting.pop()
            add_rows(fast, RESULTS, rows("fast", "f"), Result)
        return table

    monkeypatch.setattr(merging, "_merged", interrupted)
    add_rows(slow, RESULTS, rows("slow", "s"), Result)
    assert {system for system, _ in names(read_table(slow, RESULTS))} == {"slow", "fast"}


def test_a_filter_chooses_trained_systems_and_what_stands_beside_them():
    table = pd.DataFrame(
        [
            vars(row)
            for row in (
                *rows("dense-s-cl", "1", size="s", head="dense"),
                *rows("sparse-s-cl", "2", size="s", head="sparse"),
                *rows("untrained-dense-s", "3", kind="untrained", size="s", head="dense"),
                *rows("untrained-sparse-s", "4", kind="untrained", size="s", head="sparse"),
                *rows("BM25", "5", kind="baseline"),
            )
        ]
    )
    assert set(of_cells(table, "dense-*, none")["fingerprint"]) == {"1", "3", "5"}
    assert set(of_cells(table, "none")["fingerprint"]) == {"5"}
