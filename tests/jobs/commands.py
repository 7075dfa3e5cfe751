"""Run an experiment's own command line, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]


def command(
    collection: Path, ladder: Path, teacher: Path | None, lab: Path, *more: str
) -> list[str]:
    arguments = [
        sys.executable,
        str(ROOT / "experiments" / "grid.py"),
        "--plain",
        "--collection",
        str(collection),
        "--ladder",
        str(ladder),
        "--storage",
        str(lab),
        *more,
    ]
    return arguments + (["--teacher", str(teacher)] if teacher else [])


def run(arguments: list[str], cwd: Path, expect: int = 0, **environment: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == expect, done.stdout[-4000:]
    return done.stdout


def measures(lab: Path) -> pd.DataFrame:
    table = pd.read_parquet(lab / "results.parquet")
    return (
        table.drop(columns=["seconds", "query_ms"])  # times
        .sort_values(["system", "split", "measure", "seed"])
        .reset_index(drop=True)
    )
