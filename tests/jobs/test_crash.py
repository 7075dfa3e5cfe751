"""Killed at any moment, the same command carries on and ends with the same table, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.jobs.commands import (
    ThisProcess,
    command,
    measures,
    measures_of_cells,
    run_disturbed,
    run_here,
)

# Several grids a test: a machine at work on other things takes its time.
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1_800)]
BUDGET = ("--budget", "3e10", "--checkpoint-minutes", "0")
DEADLINE_S = 240


DATA_STAGES = ("collection", "tokens", "candidates", "scores", "groups")


@pytest.fixture(scope="module", params=["sparse-*-cl", "*-cl"])
def cells(request) -> tuple[str, ...]:
    """One cell, and two at once."""
    return ("--cells", request.param, *BUDGET)


@pytest.fixture(scope="module")
def undisturbed_lab(finished_grid) -> Path:
    """The storage of a grid that nobody killed."""
    return finished_grid.lab


@pytest.fixture(scope="module")
def undisturbed(undisturbed_lab, cells) -> pd.DataFrame:
    """Its table, of the cells and what stands beside them."""
    return measures_of_cells(undisturbed_lab, cells[1])


def begin_after(done: Path, lab: Path, stages: tuple[str, ...]) -> None:
    """Start a storage with some stages done, to come to the moment in question sooner."""
    for stage in stages:
        shutil.copytree(done / stage, lab / stage)


def wait_for(
    found: Callable[[], object],
    driver: subprocess.Popen | ThisProcess,
    within_s: float = DEADLINE_S,
) -> object:
    """Poll until `found` gives something."""
    end = time.time() + within_s
    while time.time() < end:
        if thing := found():
            return thing
        if driver.poll() is not None:
            said = driver.stdout.read()[-2000:] if isinstance(driver, subprocess.Popen) else ""
            raise AssertionError(f"the driver ended before it could be disturbed: {said}")
        time.sleep(0.05)
    raise AssertionError("nothing to disturb came up in time")


def processes(driver: subprocess.Popen | ThisProcess, title: str) -> list[psutil.Process]:
    """Ray processes below the driver whose title begins so."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until_gone(children: list[psutil.Process]) -> None:
    """What a killed driver leaves ends by itself within seconds, but for two idle agents of Ray's, after a minute."""
    _, alive = psutil.wait_procs(children, timeout=15)
    for process in alive:
        process.kill()


def checkpointed(lab: Path) -> Callable[[], object]:
    return lambda: next(iter((lab / "train").glob("retriever-*/step-*/complete-*")), None)


@pytest.fixture
def small(
    tmp_path, collection_folder, ladder_file, teacher_folder, cells
) -> tuple[Path, list[str]]:
    lab = tmp_path / "lab"
    return lab, command(collection_folder, ladder_file, teacher_folder, lab, *cells)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["ingest", "train", "encode"])
def test_kill_the_driver(small, undisturbed_lab, undisturbed, moment):
    """In `make test`, a train worker is killed (below), and shards of teaching, mining and measuring are."""
    lab, arguments = small
    if moment != "ingest":
        begin_after(undisturbed_lab, lab, (*DATA_STAGES, "backbone"))
    driver = start(arguments, lab.parent)
    moments = {
        "ingest": lambda: next(iter((lab / "collection").glob("*/attempt-*")), None),
        "train": checkpointed(lab),
        "encode": lambda: next(iter((lab / "embedding-part").glob("*/manifest.json")), None),
    }
    wait_for(moments[moment], driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until_gone(children)
    assert not (lab / "report" / "index.html").exists()  # rows of what was measured may be there
    run_here(arguments)
    pd.testing.assert_frame_equal(measures(lab), undisturbed)


def kill_one(title: str) -> Callable[[ThisProcess], None]:
    """Kills the first process of this title that comes up."""
    return lambda driver: wait_for(lambda: processes(driver, title), driver)[0].kill()


def test_a_damaged_checkpoint_is_named_and_made_again_though_its_worker_is_killed(
    finished_grid, tmp_path
):
    """One run shows both: what is damaged is told, the worker starts again, and the table is the same."""
    lab = shutil.copytree(finished_grid.lab, tmp_path / "lab")
    arguments = [a.replace(str(finished_grid.lab), str(lab)) for a in finished_grid.arguments]
    weights = next((lab / "retriever").glob("sparse-tiny-cl-*/attempt-*/model.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(bytes(damaged))

    def disturb(driver: ThisProcess) -> None:
        wait_for(checkpointed(lab), driver)
        kill_one("ray::RayTrainWorker")(driver)

    output = run_disturbed([*arguments, "--checkpoint-minutes", "0"], disturb)
    assert "damaged artifact retriever/sparse-tiny-cl-seed0" in output
    assert "model.safetensors does not match its checksum" in output
    pd.testing.assert_frame_equal(measures(lab), measures(finished_grid.lab))
    (manifest,) = (lab / "retriever").glob("sparse-tiny-cl-seed0-*/manifest.json")
    assert json.loads(manifest.read_text())["meta"]["retries"] == 1, "a worker died"


@pytest.mark.slow
def test_kill_a_train_worker(small, undisturbed_lab, undisturbed):
    """In `make test`, the worker that makes a damaged checkpoint again is killed (above)."""
    lab, arguments = small
    begin_after(undisturbed_lab, lab, (*DATA_STAGES, "backbone"))

    def disturb(driver: ThisProcess) -> None:
        wait_for(checkpointed(lab), driver)
        kill_one("ray::RayTrainWorker")(driver)

    run_disturbed(arguments, disturb)
    pd.testing.assert_frame_equal(measures(lab), undisturbed)
    ledger = pd.read_parquet(lab / "ledger.parquet")
    retries = ledger.loc[ledger["stage"] == "retriever", "retries"]
    assert retries.max() == 1, "the ledger tells of the worker that died"


@pytest.mark.slow
@pytest.mark.parametrize("title", ["ray::ImplicitFunc", "ray::TrainController"])
def test_kill_what_holds_a_run(small, undisturbed_lab, undisturbed, title):
    """The trial and Ray Train's controller: the run goes on from its checkpoint, and counts as one retried."""
    lab, arguments = small
    begin_after(undisturbed_lab, lab, (*DATA_STAGES, "backbone"))

    def disturb(driver: ThisProcess) -> None:
        wait_for(checkpointed(lab), driver)
        kill_one(title)(driver)

    run_disturbed(arguments, disturb)
    pd.testing.assert_frame_equal(measures(lab), undisturbed)
    ledger = pd.read_parquet(lab / "ledger.parquet")
    assert ledger.loc[ledger["stage"] == "retriever", "retries"].max() == 1


@pytest.mark.slow
def test_kill_an_encoding_actor(small, undisturbed_lab, undisturbed):
    """In `make test`, tests/jobs/test_evaluate.py kills one."""
    lab, arguments = small
    begin_after(undisturbed_lab, lab, (*DATA_STAGES, "backbone", "retriever"))
    run_disturbed(arguments, kill_one("ray::WorkActor.work"))
    pd.testing.assert_frame_equal(measures(lab), undisturbed)


@pytest.mark.slow
def test_kill_an_actor_that_scans_without_an_index(small, undisturbed_lab, undisturbed):
    """`--no-index`: the same table and the same run files, bit for bit, and no embedding of a passage."""
    lab, arguments = small
    begin_after(undisturbed_lab, lab, (*DATA_STAGES, "backbone", "retriever"))
    output = run_disturbed([*arguments, "--no-index"], kill_one("ray::WorkActor.work"))
    assert "bytes of embeddings not stored" in output
    pd.testing.assert_frame_equal(
        measures(lab).drop(columns="index_bytes"), undisturbed.drop(columns="index_bytes")
    )
    files = list(lab.glob("run/*/attempt-*/run.trec.gz"))
    assert files
    for file in files:
        (same,) = (undisturbed_lab / "run" / file.parents[1].name).glob("attempt-*/run.trec.gz")
        assert same.read_bytes() == file.read_bytes()
    assert all(index.name.startswith("bm25-") for index in (lab / "index").iterdir())
    ledger = pd.read_parquet(lab / "ledger.parquet")
    own = ledger[ledger["stage"] == "hits"]
    whole = pd.read_parquet(undisturbed_lab / "ledger.parquet")
    systems = tuple(f"{name}-" for name in set(own["name"]))
    passages = whole[(whole["stage"] == "embedding-part") & whole["name"].str.startswith(systems)]
    heads = undisturbed["head"].dropna().nunique()
    assert len(own) == passages["name"].str.rpartition("-")[0].nunique() == 2 * heads
    assert 0 < own["unstored_bytes"].sum() < passages["size_bytes"].sum()
    assert own["unstored_bytes"].sum() > 0.99 * passages["size_bytes"].sum()
