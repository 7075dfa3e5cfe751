"""`raylab doctor` on a real cluster of three nodes on this machine."""

import json

import pytest
import ray
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from raylab.cli.main import app


@pytest.fixture(scope="module")
def address():
    assert not ray.is_initialized()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20},
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def doctor(address, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", address)
    lab = tmp_path / "lab"

    def run(*options: str):
        done = CliRunner().invoke(app, ["doctor", "--storage", str(lab), *options])
        assert not ray.is_initialized()
        assert not lab.exists()
        return done

    return run


def test_every_node_is_looked_at_and_they_add_up(doctor):
    """A head of 0 CPUs too."""
    done = doctor("--disk-gib", "0", "--sizes", "pico-1x96")
    assert done.exit_code == 0, done.output
    assert "19 checks on 3 nodes, 0 failed" in done.output
    (line,) = [line for line in done.output.splitlines() if "all-reduce (gloo)" in line]
    assert "3 processes" in line
    assert " 0.00 GB/s" not in line


@pytest.mark.slow
def test_what_fails_is_told_of_every_node_with_status_1(doctor, model_folder, tmp_path):
    ladder = tmp_path / "own.toml"
    ladder.write_text(
        f'name = "own"\nrecipe = "pico"\n[[size]]\nname = "own"\nsource = {json.dumps(str(model_folder))}\n'
    )
    done = doctor("--disk-gib", "1e9", "--ladder", str(ladder), "--gpu")
    assert done.exit_code == 1
    lines = [line for line in done.output.splitlines() if "FAIL" in line]
    assert sum("disk" in line for line in lines) == 3
    assert any("0 GPUs" in line for line in lines)
    assert len(lines) == 4
    assert all("TMPDIR" in line or "GPUs" in line for line in lines)
