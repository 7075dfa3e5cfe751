"""Every benchmark command runs: a smoke at toy shapes, which checks numbers and memory but no time."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SEISMIC = importlib.util.find_spec("seismic") is not None  # optional: its rows come where it is


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["sparse_head.py", "--smoke"], "sentence-transformers"),
        (["training_step.py", "--tiny"], "sparse"),
        (["feeding.py", "--smoke"], "| dense | cl+kd |"),
        (["ingest.py", "--smoke"], "| 300 | both |"),
        (["encoding.py", "--smoke"], "| dense | actor through Ray |"),
        (["sparse_search.py", "--smoke"], "| 100 | seismic |" if SEISMIC else "pass: answers"),
        (["dense_search.py", "--smoke"], "pass: answers"),
        (["scheduling.py"], "| the paper's epochs | 64 |"),
    ],
    ids=[
        "sparse_head",
        "training_step",
        "feeding",
        "ingest",
        "encoding",
        "sparse_search",
        "dense_search",
        "scheduling",
    ],
)
def test_the_command_prints_its_table(command, told):
    pytest.importorskip("sentence_transformers")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert told in done.stdout
