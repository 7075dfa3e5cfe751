"""A driver that is asked to stop while it trains: at once, with the status of the signal, and it goes on later."""

import os
import signal
import time

import pandas as pd
import psutil
import pytest

from tests.jobs.commands import command, measures_of_cells, run_here
from tests.jobs.job_server import job_server
from tests.jobs.test_crash import BUDGET, DATA_STAGES, DEADLINE_S, begin_after, start, wait_for

CELL = "sparse-tiny-cl"


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_at_once_and_the_same_command_goes_on(
    finished_grid, tmp_path, collection_folder, ladder_file, teacher_folder, number
):
    lab = tmp_path / "lab"
    begin_after(finished_grid.lab, lab, (*DATA_STAGES, "backbone"))
    more = ("--cells", CELL, *BUDGET)
    arguments = command(collection_folder, ladder_file, teacher_folder, lab, *more)
    driver = start(arguments, tmp_path)
    wait_for(lambda: next(iter((lab / "live" / "runs").glob("*/*.jsonl")), None), driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, number)
    asked = time.monotonic()
    said, _ = driver.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert driver.returncode == 128 + number, said
    assert f"stopped by {number.name}" in said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert "spent" not in said.split("stopped by")[1]  # nothing is said to be done
    assert not (lab / "report" / "index.html").exists()
    if (lab / "results.parquet").exists():
        assert CELL not in set(pd.read_parquet(lab / "results.parquet")["system"])
    psutil.wait_procs(children, timeout=20)
    run_here(arguments)
    pd.testing.assert_frame_equal(
        measures_of_cells(lab, CELL), measures_of_cells(finished_grid.lab, CELL)
    )


@pytest.mark.slow
@pytest.mark.chaos
def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(
    finished_grid, tmp_path, collection_folder, ladder_file, teacher_folder
):
    """`ray job stop` while it trains."""
    lab = tmp_path / "lab"
    begin_after(finished_grid.lab, lab, (*DATA_STAGES, "backbone"))
    more = ("--cells", CELL, *BUDGET)
    arguments = command(collection_folder, ladder_file, teacher_folder, lab, *more)
    with job_server(tmp_path) as server:
        server.submit("first", arguments, OMP_NUM_THREADS="1")
        deadline = time.monotonic() + DEADLINE_S
        while not any((lab / "live" / "runs").glob("*/*.jsonl")):
            assert time.monotonic() < deadline, server.ray("job", "logs", "first").stdout
            time.sleep(0.1)
        asked = time.monotonic()
        server.ray("job", "stop", "first")
        assert server.end("first") == "STOPPED"
        assert time.monotonic() - asked < 30  # two commands of Ray's are part of it
        said = server.ray("job", "logs", "first").stdout
        assert "stopped by SIGTERM" in said
        assert "the same command goes on" in said
        assert not (lab / "report" / "index.html").exists()
        if (lab / "results.parquet").exists():
            assert CELL not in set(pd.read_parquet(lab / "results.parquet")["system"])
        server.submit("again", arguments, OMP_NUM_THREADS="1")
        assert server.end("again", within_s=DEADLINE_S) == "SUCCEEDED"
    pd.testing.assert_frame_equal(
        measures_of_cells(lab, CELL), measures_of_cells(finished_grid.lab, CELL)
    )
