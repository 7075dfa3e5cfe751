"""What loggers are told of a storage: each point once, whatever began again; and which loggers there are."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from raylab.experiment.config import ConfigError
from raylab.live.sinks import sink as sinks
from raylab.live.sinks.sink import LOGGERS, LoggedRun, chosen_loggers
from raylab.pipeline.loggers import LABORATORY, Feed, flat, told
from raylab.storage.store import Store
from raylab.storage.tables import RESULTS
from tests.live.written import (
    CELL,
    EARLIER,
    ENVIRONMENT,
    FIRST,
    MNTP,
    SECOND,
    SMALL,
    Written,
)

pytestmark = pytest.mark.long


class Memory:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.told = defaultdict(list)
        self.configs = defaultdict(dict)
        self.measured, self.files, self.ended = {}, {}, []

    def last_step(self, run: LoggedRun) -> int:
        return max((point.step for point in self.told[run.key]), default=0)

    def config(self, run, values):
        self.configs[run.key] |= values

    def points(self, run, points):
        assert [point.step for point in points] == sorted({point.step for point in points})
        assert not points or points[0].step > self.last_step(run)
        self.told[run.key] += points

    def measures(self, run, values, step):
        self.measured[run.key] = dict(values), step

    def file(self, run, name, data):
        self.files[name] = data

    def end(self, run):
        self.ended.append(run.key)

    def close(self): ...

    def steps(self, key: str) -> list[int]:
        return [point.step for point in self.told[key]]


@pytest.fixture
def lab(tmp_path: Path) -> Written:
    return Written(tmp_path / "lab")


def test_points_are_told_once_though_a_run_began_again(lab):
    lab.plan()
    memory = Memory()
    feed = Feed(lab.store, memory)
    for step in (1, 10, 20):
        lab.point(step, FIRST)
    feed.refresh()
    feed.refresh()
    assert memory.steps(lab.key) == [1, 10, 20]
    for step in (11, 19, 21, 30):
        lab.point(step, SECOND)
    feed.refresh()
    Feed(lab.store, memory).finish()  # the command was killed, and run again
    assert memory.steps(lab.key) == [1, 10, 20, 21, 30]
    assert lab.key in memory.ended


def test_steps_go_back_within_what_is_read_at_once(lab):
    lab.plan()
    for session, steps in ((FIRST, (1, 10, 20)), (SECOND, (11, 19, 21))):
        for step in steps:
            lab.point(step, session)
    memory = Memory()
    Feed(lab.store, memory).finish()
    assert memory.steps(lab.key) == [1, 10, 20, 21]


def test_another_budget_under_the_same_name_is_another_run(lab):
    memory = Memory()
    lab.point(1, EARLIER, steps=50)
    lab.point(50, EARLIER, steps=50)
    lab.plan()
    feed = Feed(lab.store, memory)
    feed.refresh()
    assert not memory.told  # nobody knows of which budget they are
    lab.point(1, FIRST)
    feed.refresh()
    assert memory.steps(lab.key) == [1]


def test_points_of_another_budget_than_what_was_made_are_left_out(lab):
    lab.made(steps=100)
    lab.plan(lab.cell(CELL, 50))
    lab.point(50, FIRST, steps=50)
    memory = Memory()
    Feed(lab.store, memory).finish()
    assert not memory.told[lab.key]


def test_a_plan_of_an_earlier_command_is_not_followed(lab):
    lab.plan()
    lab.point(1, FIRST)
    memory = Memory()
    feed = Feed(lab.store, memory, since=SECOND[:15])
    feed.refresh()
    assert not memory.told
    feed.finish()
    assert memory.steps(lab.key) == [1]


def test_cells_of_one_run_have_their_own_curves(lab):
    lab.plan(lab.cell(SMALL, 50), lab.cell(CELL, 100))
    for step, steps in ((1, 100), (40, 100), (41, 50), (50, 50), (41, 100), (100, 100)):
        lab.point(step, FIRST, steps)
    memory = Memory()
    Feed(lab.store, memory).finish()
    assert memory.steps(lab.key) == [1, 40, 41, 100]
    assert memory.steps(SMALL) == [41, 50]


def test_config_identity_measures_and_files(lab):
    lab.plan()
    lab.point(100, FIRST)
    lab.point(1, FIRST, run=MNTP)
    memory = Memory()
    feed = Feed(lab.store, memory)
    feed.refresh()
    assert memory.configs[lab.key]["size"] == "tiny"
    assert memory.configs[lab.key]["planned_flops"] == 1e9
    fingerprint = lab.made()
    lab.measured()
    lab.report()
    feed.finish()
    config = memory.configs[lab.key]
    assert config["artifact.fingerprint"] == fingerprint
    assert config["fine_tuning.learning_rate"] == 0.002
    assert config["fine_tuning.targets"] == '["q"]'
    values = {"tiny/test/nDCG@10": 0.5, "spent_flops": 1e9, "seconds": 5.0}
    assert memory.measured[lab.key] == (values, 100)
    assert memory.measured[LABORATORY.key][0] == {"BM25/tiny/test/nDCG@10": 0.4}
    assert set(memory.files) == {"report/table.md", "report/scaling.png", RESULTS}
    assert set(memory.ended) == {lab.key, MNTP, LABORATORY.key}


def test_a_logger_that_fails_ends_nothing_and_warns_once(lab, caplog):
    class Broken(Memory):
        def points(self, run, points):
            raise RuntimeError("no\nanswer")

    lab.plan()
    other = Memory()
    with told(lab.store, {"broken": Broken(), "memory": other}):
        lab.point(1, FIRST)
    assert [one.message for one in caplog.records] == ["broken is not told everything: no answer"]
    assert other.steps(lab.key) == [1]


def test_nothing_is_told_of_nothing(tmp_path):
    memory = Memory()
    with told(Store(str(tmp_path / "none")), {"memory": memory}):
        pass
    assert not memory.configs
    assert not memory.files
    assert not memory.ended
    assert not (tmp_path / "none").exists()


def test_nested_values_have_names_with_dots():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": "[1]",
    }


# ------------------------------------------------------------------------------ what is chosen


@pytest.mark.parametrize("text", ["", "tensorbord", "mlflow,mlflow", "=x"])
def test_loggers_that_there_are_not(text, monkeypatch):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: object())
    right = r"it must name some of tensorboard, mlflow, wandb, each once$"
    with pytest.raises(ConfigError, match=right):
        chosen_loggers("--log", text)


def test_where_they_write_to(monkeypatch):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: object())
    text = "tensorboard=/runs, mlflow=http://host:5000/?a=b,wandb"
    chosen = {"tensorboard": "/runs", "mlflow": "http://host:5000/?a=b", "wandb": None}
    assert chosen_loggers("--log", text) == chosen


@pytest.mark.parametrize("name", LOGGERS)
def test_a_package_that_is_not_installed_is_one_line_that_names_the_extra(
    name, tmp_path, collection_folder
):
    """Before anything is trained, with status 2 and nothing left."""
    package = LOGGERS[name].packages[-1]
    every = [one for logger in LOGGERS.values() for one in logger.packages]
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: (\n"
        f"    None if name == {package!r} else object() if name in {every} else find(name, *a))\n"
        "from raylab.cli.main import app\n"
        "app()\n"
    )
    options = ["--collection", str(collection_folder), "--storage", str(tmp_path / "lab")]
    of_log = ["log", "--storage", "lab", "--to", name]
    for arguments, option in ((["run", *options, "--log", name], "--log"), (of_log, "--to")):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        line = f"the package {package} is not installed; pip install 'raylab[{name}]'"
        assert done.stderr == f"error: {option} {name}: {line}\n"
        assert not list(tmp_path.iterdir())


def test_a_storage_without_an_experiment_is_one_line(tmp_path):
    pytest.importorskip("tensorboard")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "raylab.cli.main",
            "log",
            "--storage",
            "none",
            "--to",
            "tensorboard",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --storage none: no experiment was run there\n"
    assert not list(tmp_path.iterdir())
