"""A grid on a cluster that starts with no node: it grows to what runs need, loses a node, and goes back to none.

Ray's own fake provider starts every node as processes of this machine.
"""

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.jobs.commands import command, measures
from tests.jobs.test_crash import checkpointed, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]
MOST_NODES, CPUS = 3, 2
GRID = ("--cells", "dense-tiny-cl", "--budget", "1e11", "--concurrent", "0", "--encoders", "0")
ENDS_S = 900


def config_of(port: int) -> dict:
    """Of a head without CPUs, and up to three nodes of two."""
    node = {"CPU": CPUS, "object_store_memory": 150_000_000}
    lists = ("initialization_commands", "setup_commands", "head_setup_commands")
    lists += ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    lists += ("cluster_synced_files", "rsync_exclude", "rsync_filter")
    return {
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "gcs_address": f"127.0.0.1:{port}",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "head_resources": {"CPU": 0},
        },
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": 3},
        },
        "head_node_type": "head",
        **{name: [] for name in lists},
        **{name: {} for name in ("docker", "auth", "file_mounts")},
        "file_mounts_sync_continuously": False,
    }


class Growing:
    """The cluster, and how many nodes it had."""

    def __init__(self, address: str, folder: Path):
        self.address, self.folder = address, folder
        self.seen = [0]

    def processes(self, title: str) -> list[psutil.Process]:
        """Of this cluster: their command lines name its folder."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if str(self.folder) in line and title in line:
                found.append(process)
        return found

    def nodes(self) -> list[psutil.Process]:
        """The raylets, but for the head's."""
        raylets = self.processes("raylet/raylet --")
        return sorted(raylets, key=lambda raylet: raylet.create_time())[1:]

    def watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(0.5):
            if (count := len(self.nodes())) != self.seen[-1]:
                self.seen.append(count)


@pytest.fixture
def growing(monkeypatch) -> Iterator[Growing]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A longer path is none for a socket.
    with tempfile.TemporaryDirectory(prefix="rf", ignore_cleanup_errors=True) as folder:
        config = Path(folder, "cluster.yaml")
        config.write_text(yaml.safe_dump(config_of(port)))
        for name, value in {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "0",
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "disabled",
        }.items():
            monkeypatch.setenv(name, value)
        options = ("--num-cpus=0", f"--port={port}", "--include-dashboard=false")
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head"]
        subprocess.run([*ray, f"--autoscaling-config={config}", *options], check=True, timeout=120)
        cluster = Growing(f"127.0.0.1:{port}", Path(folder))
        stopped = threading.Event()
        thread = threading.Thread(target=cluster.watch, args=(stopped,))
        thread.start()
        try:
            yield cluster
        finally:
            stopped.set()
            thread.join()
            for process in cluster.processes(""):
                process.kill()


def back_to_none(cluster: Growing) -> None:
    end = time.time() + 180
    while cluster.nodes():
        assert time.time() < end, f"nodes that stay: {cluster.seen}"
        time.sleep(1)


def test_from_nothing_and_back_twice_once_with_a_node_lost(
    growing, tmp_path, collection_folder, ladder_file, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", growing.address)
    labs = [tmp_path / name / "lab" for name in ("first", "second")]
    for lab, lose in zip(labs, (False, True), strict=True):
        lab.parent.mkdir()
        more = ("--workers", "4", *(("--checkpoint-minutes", "0") if lose else ()))
        arguments = command(collection_folder, ladder_file, None, lab, *GRID, *more)
        driver = start(arguments, lab.parent)
        if lose:
            wait_for(checkpointed(lab), driver, ENDS_S)
            node = growing.nodes()[0]
            for process in [*node.children(recursive=True), node]:
                process.kill()
        output, _ = driver.communicate(timeout=ENDS_S)
        assert driver.returncode == 0, output[-3000:]
        assert "waiting for 4 CPUs, the cluster has" in output
        back_to_none(growing)
    assert max(growing.seen) >= 2, "four workers take two nodes"
    assert growing.seen[0] == growing.seen[-1] == 0
    # Four workers sum gradients in an order of their own: the last bits may differ.
    first, second = map(measures, labs)
    assert abs(first["value"] - second["value"]).max() < 0.05
