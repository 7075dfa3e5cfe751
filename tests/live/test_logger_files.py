"""Loggers as they are: their own files, read back, hold the facts and the tables, each once."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from raylab.experiment.config import ConfigError
from raylab.live.facts import Point
from raylab.live.sinks.sink import open_sinks, values_of
from raylab.pipeline.loggers import Feed
from raylab.storage.store import Store
from raylab.storage.tables import RESULTS
from tests.live.written import (
    CELL,
    ENVIRONMENT,
    FIRST,
    PNG,
    SECOND,
    Written,
)


@pytest.fixture
def lab(tmp_path: Path) -> Written:
    return Written(tmp_path / "lab")


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
