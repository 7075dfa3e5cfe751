"""`raylab doctor` on a real cluster of two nodes on this machine."""

import json

import pytest
import ray
from typer.testing import CliRunner

from raylab.cli.main import app


@pytest.fixture
def doctor(two_nodes, monkeypatch, tmp_path):
    assert not ray.is_initialized()
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
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
    assert "13 checks on 2 nodes, 0 failed" in done.output
    (line,) = [line for line in done.output.splitlines() if "all-reduce (gloo)" in line]
    assert "2 processes" in line
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
    assert sum("disk" in line for line in lines) == 2
    assert any("0 GPUs" in line for line in lines)
    assert len(lines) == 3
    assert all("TMPDIR" in line or "GPUs" in line for line in lines)
