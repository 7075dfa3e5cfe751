"""A grid on an S3 server: the same table as on a folder, whatever fails meanwhile; its repetition asks little."""

import os
import signal
from pathlib import Path

import pandas as pd
import psutil
import pytest

from benchmarks.s3_server import BUCKET, Server
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, RESULTS, read_table
from tests.jobs.commands import measures, run_here, without_times
from tests.jobs.test_crash import DATA_STAGES, start, wait_for, wait_until_gone

FAULTS = 0.05  # of the requests


@pytest.fixture
def storage(s3_server: Server, tmp_path) -> Store:
    s3_server.disturb()
    return Store(f"s3://{BUCKET}/{tmp_path.name}", cache=str(tmp_path / "node"))


def begin_after(done: Path, store: Store, stages: tuple[str, ...]) -> None:
    for stage in stages:
        store.fs.put(f"{done / stage}/", f"{store.root}/{stage}/", recursive=True)


def assert_same(store: Store, lab: Path) -> None:
    """The values of both storages are equal to the last bit, in the rows that the first has."""
    ours, theirs = without_times(read_table(store, RESULTS)), measures(lab)
    theirs = theirs[theirs["system"].isin(ours["system"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, theirs)


@pytest.fixture
def arguments(finished_grid, storage: Store) -> list[str]:
    """Those of the finished grid, on the object storage."""
    return [storage.uri if a == str(finished_grid.lab) else a for a in finished_grid.arguments]


def test_trained_and_measured_while_requests_fail(
    finished_grid, storage, arguments, s3_server: Server
):
    """One cell; the data stages are copied there, which changes every tag."""
    begin_after(finished_grid.lab, storage, (*DATA_STAGES, "backbone"))
    s3_server.disturb(faults=FAULTS)
    s3_server.asked()
    run_here([*arguments, "--cells", "sparse-tiny-cl"])
    assert s3_server.asked()["faults"] > 10
    assert_same(storage, finished_grid.lab)
    s3_server.disturb()
    stored = read_table(storage, LEDGER)["size_bytes"].sum()
    output = run_here([*arguments, "--cells", "sparse-tiny-cl"])
    asked = s3_server.asked()
    assert "everything was done already" in output
    assert asked["bytes fetched"] < 0.5 * stored
    assert asked["LIST"] + asked["GET"] + asked["HEAD"] < 250
    assert "0 of them damaged" in run_here(
        [arguments[0], "-m", "raylab.cli.main", "check", "--storage", storage.uri]
    )


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("moment", ["collection", "train", "embedding-part"])
def test_killed_and_resumed_from_start_to_end_while_requests_fail(
    finished_grid, storage, arguments, s3_server: Server, tmp_path, moment
):
    """The whole grid, its driver killed once it has begun to ingest, to train, or to encode."""
    s3_server.disturb(faults=FAULTS)
    driver = start(arguments, tmp_path)
    wait_for(lambda: storage.fs.find(f"{storage.root}/{moment}"), driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until_gone(children)
    assert not storage.files.exists("report/index.html")  # rows of what was measured may be there
    run_here(arguments)
    assert_same(storage, finished_grid.lab)
    ledger = read_table(storage, LEDGER)
    assert not ledger.duplicated(["stage", "name", "fingerprint"]).any()


@pytest.mark.slow
def test_without_an_index(finished_grid, storage, arguments, s3_server: Server):
    s3_server.disturb(faults=FAULTS)
    begin_after(finished_grid.lab, storage, (*DATA_STAGES, "backbone", "retriever"))
    run_here([*arguments, "--cells", "*-cl", "--no-index"])
    ours = without_times(read_table(storage, RESULTS)).drop(columns="index_bytes")
    theirs = measures(finished_grid.lab).drop(columns="index_bytes")
    theirs = theirs[theirs["system"].isin(ours["system"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, theirs)
