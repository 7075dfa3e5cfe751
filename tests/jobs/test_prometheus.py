"""Prometheus asks a real grid on a real cluster, and every query of the dashboard is answered."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.jobs.boards import MONITORING, expressions, variables
from tests.jobs.commands import command

PROMETHEUS = shutil.which("prometheus")
RAY = Path(sys.executable).parent / "ray"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on PATH (Debian: prometheus)"),
]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of one node with a dashboard, in a process group of its own: the environment of who joins it."""
    folder = Path("/tmp", f"ray-{os.getpid()}")  # its sockets' paths must be short
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    port, dashboard = free_port(), free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "DASHBOARD": f"http://127.0.0.1:{dashboard}",
        "FOLDER": str(folder),
        "TOKEN": token.read_text(),
        "OMP_NUM_THREADS": "1",
    }
    start = [
        *(str(RAY), "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
        *("--object-store-memory=300000000", "--disable-usage-stats"),
    ]
    unset = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(start, env=unset, stdout=log, stderr=log)
    try:
        wait_for(lambda: (folder / "prom_metrics_service_discovery.json").exists(), 90)
        yield environment
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            psutil.wait_procs(started, timeout=20)
            for one in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def prometheus(head: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """As shipped, but for the place of Ray's temporary folder and a shorter interval: its address."""
    shipped = (MONITORING / "prometheus.yaml").read_text()
    assert "/tmp/ray/" in shipped
    config = tmp_path / "prometheus.yaml"
    config.write_text(shipped.replace("/tmp/ray/", head["FOLDER"] + "/"))
    port = free_port()
    started = [
        *(str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = (tmp_path / "prometheus.log").open("w")
    process = subprocess.Popen(started, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for(holds, seconds: float) -> bool:
    until = time.time() + seconds
    while time.time() < until:
        if holds():
            return True
        time.sleep(1)
    return False


def answer(address: str, token: str | None = None, **query: str):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{address}?{urllib.parse.urlencode(query)}" if query else address
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as got:
        return json.load(got)


def test_every_query_of_the_dashboard_is_answered(
    head, prometheus, collection_folder, ladder_file, teacher_folder, tmp_path
):
    options = ["--cells", "*-cl", "--budget", "4e11", "--gpu-hour-rate", "2.5"]
    arguments = command(collection_folder, ladder_file, teacher_folder, tmp_path / "lab", *options)
    output = (tmp_path / "grid.log").open("w")
    grid = subprocess.Popen(arguments, env=head, stdout=output, stderr=output, cwd=tmp_path)
    asked = expressions()
    missing = list(asked)
    runs: set[str] = set()
    try:
        killed = False
        while grid.poll() is None:
            time.sleep(2)
            with contextlib.suppress(urllib.error.URLError):
                missing = [
                    one
                    for one in missing
                    if not answer(f"{prometheus}/api/v1/query", query=one)["data"]["result"]
                ]
                steps = answer(f"{prometheus}/api/v1/query", query="ray_raylab_run_step")
                found = steps["data"]["result"]
                runs |= {one["metric"]["run"] for one in found}
                killed = killed or (
                    any("-cl" in one["metric"]["run"] for one in found)
                    and kill_a_train_worker(head["FOLDER"])
                )
    finally:
        if grid.poll() is None:
            grid.terminate()
        grid.wait()
    said = (tmp_path / "grid.log").read_text()
    assert grid.returncode == 0, said[-3000:]
    assert not missing
    assert killed
    assert any(run.startswith("mntp-") for run in runs)
    retried = answer(
        f"{prometheus}/api/v1/query",
        query="max_over_time(sum(ray_raylab_retries_total)[10m:10s])",
    )["data"]["result"]
    assert [float(one["value"][1]) for one in retried] == [1.0]
    for metric, label in variables().values():
        values = answer(f"{prometheus}/api/v1/label/{label}/values", **{"match[]": metric})["data"]
        assert values

    # Ray's Train tab, which asks for the token.
    trains = f"{head['DASHBOARD']}/api/train/v2/runs/v1"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        answer(trains)
    shown = answer(trains, token=head["TOKEN"])["train_runs"]
    assert len(shown) == 3
    assert {run["status"] for run in shown} == {"FINISHED"}


def kill_a_train_worker(folder: str) -> bool:
    """One process of Ray Train on the cluster whose temporary folder it is; False: there is none."""
    for process in psutil.process_iter(["name", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if "RayTrainWorker" in title and folder in " ".join(process.parent().cmdline()):
                process.kill()
                return True
    return False
