"""A node is lost while a cell trains on it: the cell goes on elsewhere from its checkpoint, over the same batches."""

import json
import os

import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.jobs.commands import command, measures, run
from tests.jobs.test_crash import DEADLINE_S, checkpointed, start, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1800)]
CELL = ("--cells", "dense-tiny-cl", "--budget", "1.5e11", "--workers", "2")
OFTEN = ("--checkpoint-minutes", "0")


@pytest.fixture
def cluster(monkeypatch):
    """A head that has no room for two train workers, and two nodes that have."""
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=2)
    yield made
    made.shutdown()


def train_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def lose_the_node_of(worker: psutil.Process, cluster: Cluster) -> None:
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    above = next(parent for parent in worker.parents() if parent.pid in raylets)
    below = above.children(recursive=True)
    cluster.remove_node(raylets[above.pid], allow_graceful=False)
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def history(lab) -> np.ndarray:
    (manifest,) = (lab / "retriever").glob("dense-tiny-cl-*/manifest.json")
    points = json.loads(manifest.read_text())["meta"]["history"]
    return np.array([[point["step"], point["loss"]] for point in points])


def test_a_node_lost_in_mid_epoch(
    cluster, tmp_path, collection_folder, ladder_file, teacher_folder
):
    expected = tmp_path / "undisturbed" / "lab"
    expected.parent.mkdir()
    run(command(collection_folder, ladder_file, teacher_folder, expected, *CELL), expected.parent)
    lab = tmp_path / "lab"
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        driver = start(
            command(collection_folder, ladder_file, teacher_folder, lab, *CELL, *OFTEN), tmp_path
        )
    finally:
        del os.environ["RAY_ADDRESS"]
    wait_for(checkpointed(lab), driver)
    worker = wait_for(train_workers, driver)
    lose_the_node_of(worker[0], cluster)
    output, _ = driver.communicate(timeout=2 * DEADLINE_S)
    assert driver.returncode == 0, output[-3000:]
    assert len(cluster.worker_nodes) == 1
    # Two workers sum gradients in an order of their own: the last bits may differ.
    np.testing.assert_allclose(history(lab), history(expected), rtol=1e-4)
    ours, theirs = measures(lab), measures(expected)
    np.testing.assert_allclose(ours["value"], theirs["value"], atol=0.05)
