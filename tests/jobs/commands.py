"""Run an experiment's own command line: in this process, on its Ray cluster, or in one of its own."""

import contextlib
import importlib.util
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pandas as pd

from raylab.cli.experiment import run_experiment
from raylab.cli.main import app
from raylab.storage.merging import of_cells

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
    """In a process of its own, as a user does: stdout and stderr. Ray starts anew there."""
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


def run_here(arguments: list[str], expect: int = 0) -> str:
    """The same command in this process, on the Ray cluster that it has (`ray_cluster`): stdout and stderr."""
    output = io.StringIO()
    logs = logging.StreamHandler(output)
    logs.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logs.setLevel(logging.WARNING)
    logging.getLogger().addHandler(logs)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = _status(arguments)
    finally:
        logging.getLogger().removeHandler(logs)
    assert status == expect, output.getvalue()[-4000:]
    return output.getvalue()


def _status(arguments: list[str]) -> int:
    """The exit status of `python FILE ...` or `python -m raylab.cli.main ...`."""
    if arguments[1] == "-m":
        assert arguments[2] == "raylab.cli.main"
        try:
            app(arguments[3:], prog_name="raylab")
        except SystemExit as end:
            return end.code or 0
        return 0
    spec = importlib.util.spec_from_file_location("experiment", arguments[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock.patch.object(sys, "argv", arguments[1:]):
        return run_experiment(module.__doc__, module.GRID)


class ThisProcess:
    """This process as a driver that something is done to, in the place of a `subprocess.Popen`."""

    pid = os.getpid()

    def __init__(self):
        self.ended = False

    def poll(self) -> int | None:
        return 0 if self.ended else None


def run_disturbed(arguments: list[str], disturb: Callable[[ThisProcess], None]) -> str:
    """`run_here` while `disturb` waits in a thread for its moment and does its harm; the output."""
    driver, faults = ThisProcess(), []

    def work() -> None:
        try:
            disturb(driver)
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        output = run_here(arguments)
    finally:
        driver.ended = True
        thread.join()
    if faults:
        raise faults[0]
    return output


def measures(lab: Path) -> pd.DataFrame:
    return without_times(pd.read_parquet(lab / "results.parquet"))


def measures_of_cells(lab: Path, cells: str) -> pd.DataFrame:
    """`measures` of the cells of a filter, and of what stands beside them."""
    return without_times(of_cells(pd.read_parquet(lab / "results.parquet"), cells))


def without_times(results: pd.DataFrame) -> pd.DataFrame:
    """What must be the same whenever a grid is run, in one order."""
    return (
        results.drop(columns=["seconds", "query_ms"])  # times
        .sort_values(["system", "split", "measure", "seed"])
        .reset_index(drop=True)
    )
