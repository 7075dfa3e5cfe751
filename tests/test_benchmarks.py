"""Every benchmark command runs: a smoke at toy shapes, which checks numbers and memory but no time.

In this process, but for one that looks at what it imports; those on Ray are in tests/jobs/test_benchmarks.py.
"""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SEISMIC = importlib.util.find_spec("seismic") is not None  # optional: its rows come where it is

# Of the cases and steps that one command goes through, some; `make test-slow` runs all.
ONE_CASE = ("--activity", "trained", "--gradients", "LoRA")
STEPS = ["groups", "runs", "make", "collect"]
SLOW_STEPS = ["groups", "runs", "make", "collect", "again", "read", "tests", "laws", "report"]

pytestmark = pytest.mark.long


def printed_by(command: list[str], monkeypatch, capsys) -> str:
    """What `python benchmarks/FILE ...` prints; it must end well."""
    pytest.importorskip("sentence_transformers")
    path = ROOT / "benchmarks" / command[0]
    monkeypatch.syspath_prepend(path.parent)  # as Python does
    monkeypatch.setattr(sys, "argv", [str(path), *command[1:]])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # one sets it; this undoes it at the end
    threads, status = torch.get_num_threads(), None
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        status = end.code
    finally:
        torch.set_num_threads(threads)
    assert not status
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["sparse_head.py", "--smoke", *ONE_CASE], "sentence-transformers"),
        (["feeding.py", "--smoke"], "| dense | cl+kd |"),
        # Its answers are held in tests/index; that it goes through all is below.
        (["sparse_search.py", "--help"], "--approximate"),
        (["dense_search.py", "--smoke"], "pass: answers"),
        (["faults.py", "--smoke"], "pass: at least"),
        (["scheduling.py"], "| the paper's epochs | 64 |"),
    ],
    ids=["sparse_head", "feeding", "sparse_search", "dense_search", "faults", "scheduling"],
)
def test_the_command_prints_its_table(command, told, monkeypatch, capsys):
    assert told in printed_by(command, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("sparse_head.py", "sentence-transformers"),
        ("sparse_search.py", "| 100 | seismic |" if SEISMIC else "pass: answers"),
    ],
)
def test_the_command_goes_through_all_its_cases(file, told, monkeypatch, capsys):
    assert told in printed_by([file, "--smoke"], monkeypatch, capsys)


def test_a_training_step_is_timed_without_ray_and_deepspeed():
    command = [sys.executable, ROOT / "benchmarks" / "training_step.py", "--tiny"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "| tiny | sparse |" in result.stdout


def test_a_training_step_is_timed_beside_sentence_transformers():
    """Both compute the same loss, or the command fails."""
    command = [sys.executable, ROOT / "benchmarks" / "training_peers.py", "--smoke"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| sentence-transformers |") == 2


@pytest.mark.slow  # in `make test`, tests/jobs/test_object_storage.py counts what asking again takes
@pytest.mark.parametrize("server", [False, True])
def test_a_finished_grid_asked_again_does_nothing(server):
    """A two-thousandth of the paper's passages and queries; the limits are those of the whole."""
    command = [sys.executable, ROOT / "benchmarks" / "finished_grid.py", "--scale", "0.0005"]
    command += ["--s3", "--wait", "0"] if server else []
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    where = "on a server, 0 ms a request" if server else "on a folder"
    assert result.stdout.splitlines()[-1].startswith(f"nothing to do, {where}: ")


@pytest.mark.parametrize("chosen", [STEPS, pytest.param(SLOW_STEPS, marks=pytest.mark.slow)])
def test_a_driver_goes_through_its_steps(chosen):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "driver_side.py",
        "--smoke",
        "--steps",
        *chosen,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    steps = [
        line.split(" | ")[0].strip("| ") for line in result.stdout.splitlines() if " | " in line
    ]
    assert steps[1:-1] == chosen
