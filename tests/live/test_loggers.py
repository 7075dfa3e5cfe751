"""Loggers are told what a storage holds, each once: their own files, read back, are the facts and the tables."""

import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from raylab.experiment.config import ConfigError
from raylab.live import facts
from raylab.live.facts import LivePlan, PlannedCell, PlannedRun, Point, record
from raylab.live.sinks import sink as sinks
from raylab.live.sinks.sink import LOGGERS, LoggedRun, chosen_loggers, open_sinks, values_of
from raylab.pipeline.loggers import LABORATORY, Feed, flat, told
from raylab.stages.stage import Stage, write_list
from raylab.storage.artifacts import Address
from raylab.storage.merging import add_rows
from raylab.storage.store import Store
from raylab.storage.tables import RESULTS, Result

EARLIER, COMMAND = "000000000000100-000000100", "000000000000200-000000200"
FIRST, SECOND = "000000000000300-000000300", "000000000000400-000000400"
CELL, SMALL, MNTP = (
    "sparse-tiny-cl-seed0",
    "sparse-tiny-cl-half-seed0",
    "mntp-tiny-0123456789abcdef",
)
IDENTITY = {"head": {"name": "sparse"}, "fine_tuning": {"learning_rate": 0.002, "targets": ["q"]}}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


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


class Written:
    """A laboratory of one cell, as its driver and workers write it."""

    def __init__(self, root: Path):
        self.store = Store(str(root))
        self.address = Address("retriever", CELL, IDENTITY, {})
        self.key = self.address.path.rpartition("/")[2]
        self.lines: dict[str, list[str]] = defaultdict(list)
        write_list(self.store, [Stage("fine-tune", self.address, (), None)])

    def plan(self, *cells: PlannedCell, session: str = COMMAND) -> None:
        cells = cells or (self.cell(CELL, 100),)
        runs = [PlannedRun(run, "train", 9.0, 1, (), 0.0, 9.0) for run in {c.run for c in cells}]
        plan = LivePlan(session, 2.0, "tiny", cells, tuple(runs), 1, "cpu-core", 1.0)
        self.store.put_text(facts.PLAN, json.dumps(record(plan)))

    @staticmethod
    def cell(name: str, steps: int) -> PlannedCell:
        return PlannedCell(name, CELL, "tiny", "sparse", "cl", 0, "", 1e9, steps, 20_640)

    def point(self, step: int, session: str, steps: int = 100, run: str = CELL, **more) -> Point:
        point = Point(
            1e9 + step,
            step,
            steps,
            1e7 * step,
            1 / step,
            1e-3,
            10.0 * step,
            5.0,
            step,
            2**20,
            **more,
        )
        path = f"{facts.RUNS}/{run}/{session}-000000.jsonl"
        self.lines[path].append(json.dumps(record(point)))
        self.store.put_text(path, "\n".join(self.lines[path]) + "\n")
        return point

    def made(self, steps: int = 100) -> str:
        with self.store.draft(self.address) as draft:
            (draft.path / "weights").write_text("w")
            draft.meta["steps"] = steps
        return self.address.fingerprint

    def measured(self, value: float = 0.5) -> None:
        about = {"size": "tiny", "collection": "tiny", "split": "test", "measure": "nDCG@10"}
        about |= {"ci_low": 0.1, "ci_high": 0.9, "queries": 20, "parameters": 20_640}
        spent = {"budget_flops": 1e9, "spent_flops": 1e9, "steps": 100, "seconds": 5.0}
        cell = {"head": "sparse", "objective": "cl", "seed": 0}
        none = {"head": None, "objective": None, "seed": None}
        none |= dict.fromkeys(spent)
        rows = [
            Result(
                "trained",
                "sparse-tiny-cl",
                value=value,
                fingerprint=self.address.fingerprint,
                **about,
                **cell,
                **spent,
            ),
            Result("baseline", "BM25", value=0.4, fingerprint="0" * 64, **about, **none),
        ]
        add_rows(self.store, RESULTS, rows, Result)

    def report(self) -> None:
        self.store.put_text("report/table.md", "| a |\n|---|\n| 1 |\n")
        self.store.put_bytes("report/scaling.png", PNG)
        self.store.put_text("report/shown.json", "{}")


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


# -------------------------------------------------------------------------- loggers as they are


@pytest.fixture
def whole(lab) -> tuple[Written, list[Point]]:
    """Interrupted and gone on with; what a logger must hold of it."""
    lab.plan()
    curve = [
        lab.point(1, FIRST),
        lab.point(10, FIRST, held_out=2.5, active_terms=40.0, collapse=0.9),
    ]
    lab.point(9, SECOND)
    curve += [lab.point(11, SECOND, gradient_norm=1.5), lab.point(100, SECOND)]
    lab.made()
    lab.measured()
    lab.report()
    return lab, curve


def log_twice(lab: Written, name: str, where: str | None = None) -> None:
    for _ in range(2):
        sink = open_sinks("--to", {name: where}, lab.store)[name]
        Feed(lab.store, sink).finish()


def test_tensorboard_files_are_the_facts_and_the_tables(whole):
    pytest.importorskip("tensorboard", reason="pip install 'raylab[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lab, curve = whole
    log_twice(lab, "tensorboard")
    folder = Path(lab.store.root, "loggers", "tensorboard")
    read = EventAccumulator(str(folder / lab.key), {"scalars": 0}).Reload()
    for name in ("loss", "learning_rate", "flops", "held_out", "gradient_norm"):
        expected = [(p.step, p.at, values_of(p)[name]) for p in curve if name in values_of(p)]
        found = [(e.step, e.wall_time, e.value) for e in read.Scalars(name)]
        assert found == [(s, at, pytest.approx(value)) for s, at, value in expected]
    measure = read.Scalars("measures/tiny/test/nDCG-10")
    assert [(event.step, event.value) for event in measure] == [(100, 0.5)]
    (text,) = read.Tensors("config/text_summary")[-1].tensor_proto.string_val
    config = json.loads(text)
    assert config["artifact.fingerprint"] == lab.address.fingerprint
    assert config["seed"] == 0
    shared = EventAccumulator(str(folder / "laboratory")).Reload()
    assert [e.encoded_image_string for e in shared.Images("report/scaling")] == [PNG]
    (table,) = shared.Tensors("report/table/text_summary")
    assert table.tensor_proto.string_val == [b"| a |\n|---|\n| 1 |\n"]


@pytest.mark.long
def test_mlflow_holds_the_facts_and_the_tables(whole, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'raylab[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lab, curve = whole
    log_twice(lab, "mlflow")
    folder = Path(lab.store.root, "loggers", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(f"raylab {lab.store.uri}")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {CELL, "laboratory"}
    run = runs[CELL]
    assert run.info.status == "FINISHED"
    for name in ("loss", "tokens", "held_out", "collapse"):
        history = client.get_metric_history(run.info.run_id, name)
        expected = [
            (p.step, p.at * 1000, values_of(p)[name]) for p in curve if name in values_of(p)
        ]
        assert [(m.step, m.timestamp, m.value) for m in history] == expected
    assert run.data.metrics["tiny/test/nDCG-10"] == 0.5
    assert len(client.get_metric_history(run.info.run_id, "tiny/test/nDCG-10")) == 1
    assert run.data.params["artifact.fingerprint"] == lab.address.fingerprint
    assert run.data.params["head.name"] == "sparse"
    files = {f.path for f in client.list_artifacts(runs["laboratory"].info.run_id, "report")}
    assert files == {"report/table.md", "report/scaling.png"}
    copy = client.download_artifacts(runs["laboratory"].info.run_id, RESULTS)
    assert Path(copy).read_bytes() == lab.store.files.read(RESULTS)


@pytest.mark.long
def test_wandb_offline_files_hold_the_facts_and_the_tables(whole, monkeypatch):
    pytest.importorskip("wandb", reason="pip install 'raylab[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    from raylab.live.sinks.wandb_sink import offline_records

    lab, curve = whole
    log_twice(lab, "wandb")
    history: list[tuple[int, float]] = []
    held_out, summary, config = [], {}, {}
    files = sorted(Path(lab.store.root, "loggers", "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # the second time there was nothing to tell
    for one in offline_records(files):
        if one.WhichOneof("record_type") == "history":
            row = {
                i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in one.history.item
            }
            history.append((row["_step"], row["loss"]))
            held_out += [row["held_out"]] if "held_out" in row else []
        elif one.WhichOneof("record_type") == "summary":
            summary |= {i.key or "/".join(i.nested_key): i.value_json for i in one.summary.update}
        elif one.WhichOneof("record_type") in ("config", "run"):
            told = one.config if one.WhichOneof("record_type") == "config" else one.run.config
            config |= {i.key or "/".join(i.nested_key): i.value_json for i in told.update}
    assert history == [(point.step, pytest.approx(point.loss)) for point in curve]
    assert held_out == [2.5]
    assert json.loads(summary["tiny/test/nDCG@10"]) == 0.5
    assert json.loads(config["artifact.fingerprint"]) == lab.address.fingerprint


@pytest.mark.long
@pytest.mark.parametrize("ended", [True, False])
def test_what_wandb_had_not_written_when_it_was_killed_is_told_again(lab, ended, monkeypatch):
    """Offline it writes a block at a time: what the files hold decides, not what was told."""
    pytest.importorskip("wandb", reason="pip install 'raylab[wandb]'")
    from raylab.live.sinks.wandb_sink import history_of

    lab.plan()
    curve = [lab.point(step, FIRST) for step in range(1, 400)]
    script = (
        "import os, sys, time\n"
        "from raylab.live.sinks.sink import open_sinks\n"
        "from raylab.pipeline.loggers import Feed\n"
        "from raylab.storage.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "feed = Feed(store, open_sinks('--log', {'wandb': None}, store)['wandb'])\n"
        f"feed.{'finish' if ended else 'refresh'}()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    environment = {**ENVIRONMENT, "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", script, lab.store.root]
    subprocess.run(command, env=environment, check=False, capture_output=True)
    curve.append(lab.point(400, FIRST))
    Feed(lab.store, open_sinks("--log", {"wandb": None}, lab.store)["wandb"]).finish()
    files = Path(lab.store.root, "loggers", "wandb").glob("offline-run-*/*.wandb")
    rows = sorted(history_of(files), key=lambda row: row["_step"])
    assert [(row["_step"], row["loss"]) for row in rows] == [(p.step, p.loss) for p in curve]


def test_nobody_is_logged_in_at_wandb(lab, monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="pip install 'raylab[wandb]'")
    script = (
        "from raylab.live.sinks.sink import open_sinks\n"
        "from raylab.storage.store import Store\n"
        "open_sinks('--log', {'wandb': None}, Store('lab'))"
    )
    env = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**env, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "--log wandb: nobody is logged in; run `wandb login`, or set WANDB_MODE=offline" in (
        done.stderr
    )


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_storage_that_is_no_folder_needs_a_place(name, monkeypatch):
    pytest.importorskip(name, reason=f"pip install 'raylab[{name}]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    right = f"--log {name}: the storage is no folder; say where it writes to: {name}=FOLDER"
    with pytest.raises(ConfigError, match=right):
        open_sinks("--log", {name: None}, Store("memory://lab"))


def test_what_is_not_known_of_a_point_is_left_out():
    point = Point(1.0, 2, 3, 4.0, 5.0, None, 6.0, None, 7.0, None)
    assert values_of(point) == {"loss": 5.0, "flops": 4.0, "tokens": 6.0}
    assert all(math.isfinite(value) for value in values_of(point).values())
