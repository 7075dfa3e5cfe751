"""Metrics: what they say of a grid, that Ray serves them, and that the dashboard asks for nothing else."""

import re
import time
import urllib.request
from types import SimpleNamespace

import pytest
import ray
import yaml

from docs.hooks import filled
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO
from raylab.jobs import cluster, metrics
from raylab.jobs.metrics import Publisher, Readings
from raylab.jobs.progress import Monitor, ProgressActor, RunProgress
from raylab.jobs.queue import RunQueue
from raylab.live.metrics import METRICS, RUN_LABELS
from raylab.planning.scheduling import Item
from tests.jobs.boards import MONITORING, expressions, metrics_of, variables

DONE, RUNNING, WAITING, LEFT_OUT = (
    "dense-pico-1x96-cl-seed0",
    "dense-pico-1x96-kd-seed0",
    "sparse-pico-1x96-cl-seed0",
    "sparse-pico-1x96-kd-seed0",
)
MNTP = "mntp-pico-1x96-0123"
OF_RAY = {"SessionName"}  # labels that Ray adds


@pytest.fixture
def monitor() -> Monitor:
    """Of four cells one is done, one has taken 40 of 100 steps on 2 devices, one waits, one is left out."""
    names = f"{DONE[:-6]},{RUNNING[:-6]},{WAITING[:-6]},{LEFT_OUT[:-6]}"
    monitor = Monitor("off")
    monitor.cells = Grid(PICO, "scifact", cells_filter=names).cells()
    assert {cell.run_name for cell in monitor.cells} == {DONE, RUNNING, WAITING, LEFT_OUT}
    monitor.planned = {DONE: 1e12, RUNNING: 1e12, WAITING: 1e12}
    monitor.spent = {DONE: 0.99e12}
    monitor.items = [
        Item(MNTP, "adapt", 10.0, 2),
        Item(RUNNING, "train", 100.0, 2, (MNTP,)),
        Item(WAITING, "train", 100.0, 2, (MNTP,)),
    ]
    now = time.time()
    monitor.began = {MNTP: now - 100, RUNNING: now - 90}
    monitor.ended = {MNTP: 10.0}
    return monitor


def told(run: str, step: int, job: str | None = None, seconds: float | None = None) -> RunProgress:
    """1e10 FLOPs and 500 tokens a step, half a second each."""
    took = step / 2 if seconds is None else seconds
    budget = not run.startswith("mntp")
    return RunProgress(
        run, step, 100, 1e10 * step, 2.5, time.time(), budget, job or run, 500.0 * step, took
    )


def read(readings: Readings, *runs: RunProgress) -> dict[tuple, float]:
    return {
        (name, labels): value
        for name, labels, value in readings.of({progress.run: progress for progress in runs})
    }


def test_they_say_where_every_cell_and_run_is(monitor):
    found = read(Readings(monitor, peak=1e11, hour_price=3.6), told(RUNNING, 40))
    run = RUNNING, "pico-1x96", "dense", "kd"
    assert found["raylab_run_step", run] == 40
    assert found["raylab_run_loss", run] == 2.5
    assert found["raylab_run_flops_spent", run] == 4e11
    assert found["raylab_run_tokens_per_second", run] == 1000
    assert found["raylab_run_mfu", run] == pytest.approx(2e10 / (2 * 1e11))
    of_done = DONE, "pico-1x96", "dense", "cl"
    assert found["raylab_run_flops_spent", of_done] == 0.99e12
    assert found["raylab_run_flops_planned", of_done] == 1e12
    assert {key: value for key, value in found.items() if key[0] == "raylab_cells"} == {
        ("raylab_cells", ("done",)): 1,
        ("raylab_cells", ("running",)): 1,
        ("raylab_cells", ("waiting",)): 1,
        ("raylab_cells", ("left out",)): 1,
        ("raylab_cells", ("failed",)): 0,
    }
    # 10 s and 90 s on two devices, at 3.6 an hour.
    assert found["raylab_cost", ()] == pytest.approx(0.2, rel=0.02)


def test_what_is_not_known_is_absent(monitor):
    found = read(Readings(monitor, peak=None, hour_price=None), told(RUNNING, 0, seconds=0.0))
    names = {name for name, _ in found}
    assert not names & {"raylab_run_mfu", "raylab_cost", "raylab_run_tokens_per_second"}
    assert ("raylab_run_step", (RUNNING, "pico-1x96", "dense", "kd")) in found


def test_rates_are_of_what_was_done_since_they_were_asked(monitor):
    readings = Readings(monitor, peak=1e11, hour_price=None)
    speed = "raylab_run_tokens_per_second", (RUNNING, "pico-1x96", "dense", "kd")
    assert read(readings, told(RUNNING, 40))[speed] == 1000
    assert read(readings, told(RUNNING, 50, seconds=40.0))[speed] == 250
    assert read(readings, told(RUNNING, 50, seconds=40.0))[speed] == 250
    # From a checkpoint on: all of the run up to there.
    assert read(readings, told(RUNNING, 30))[speed] == 1000


def test_mntp_has_the_size_of_the_cells_that_wait_for_it(monitor):
    found = read(Readings(monitor, None, None), told(MNTP, 40))
    assert found["raylab_run_step", (MNTP, "pico-1x96", "", "mntp")] == 40


def test_a_failed_run_and_one_that_is_long_over(monitor, monkeypatch):
    monitor.run_event("died", RUNNING)
    progress = told(RUNNING, 40)
    found = read(Readings(monitor, None, None), progress)
    assert found["raylab_cells", ("failed",)] == 1
    assert found["raylab_cells", ("running",)] == 0
    later = time.time() + 61
    monkeypatch.setattr("raylab.jobs.metrics.time.time", lambda: later)
    names = {name for name, _ in read(Readings(monitor, None, None), progress)}
    assert "raylab_run_loss" not in names
    assert "raylab_run_flops_spent" in names


def test_readings_have_the_labels_that_are_declared(monitor):
    for name, labels, _ in Readings(monitor, 1e11, 2.0).of({RUNNING: told(RUNNING, 40)}):
        assert len(METRICS[name].labels) == len(labels)


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_asks_only_for_what_there_is(expression):
    exported = {metric.exported: metric for metric in METRICS.values()}
    asked = metrics_of(expression)
    assert asked
    for name, labels in asked.items():
        assert name in exported
        assert labels <= {*exported[name].labels, *OF_RAY}
    grouped = re.findall(r"(?:by|on) \(([^)]+)\)", expression)
    for label in (label.strip() for group in grouped for label in group.split(",")):
        assert all(label in exported[name].labels for name in asked)


def test_the_dashboard_shows_every_metric():
    asked = {name for expression in expressions() for name in metrics_of(expression)}
    assert asked == {metric.exported for metric in METRICS.values()}
    for metric, label in variables().values():
        assert label in {*METRICS[metric.removeprefix("ray_")].labels, *OF_RAY}


def test_the_docs_name_every_metric():
    page = filled((MONITORING.parents[1] / "docs" / "monitoring.md").read_text())
    named = set(re.findall(r"`ray_(raylab_\w+)`", page))
    assert named == set(METRICS)


def test_configurations_are_what_prometheus_and_its_operator_read():
    scraped = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    assert scraped[0]["file_sd_configs"][0]["files"] == [
        "/tmp/ray/prom_metrics_service_discovery.json"
    ]
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"


# --------------------------------------------------------------------------------------- on Ray


def served() -> str:
    """What the nodes of this process' cluster serve; no token is sent."""
    pages = []
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            pages.append(answer.read().decode())
    return "\n".join(pages)


def test_ray_serves_all_of_them(ray_cluster, monitor, monkeypatch):
    monkeypatch.setattr(metrics, "_EVERY_S", 0.5)
    monitor.board = ProgressActor.remote()
    ray.get(monitor.board.note.remote(told(RUNNING, 40)))
    job = SimpleNamespace(board=monitor.board)
    queue = RunQueue([Item(RUNNING, "train", 1.0)], {RUNNING: job}, Execution())
    group = queue.start()
    queue.at_work(group)
    queue.at_work(group)  # its workers start again
    exported = {metric.exported for metric in METRICS.values()}
    found: dict[str, str] = {}
    until = time.time() + 60
    publisher = Publisher(monitor, Execution(device="h100", device_hour_price=2.0))
    with publisher.publishing():
        while time.time() < until and not exported <= found.keys():
            time.sleep(1)
            lines = [line for line in served().splitlines() if line.startswith("ray_raylab_")]
            found |= {line.partition("{")[0]: line for line in lines}
    assert exported == found.keys()
    for label, value in zip(RUN_LABELS, (RUNNING, "pico-1x96", "dense", "kd"), strict=True):
        assert f'{label}="{value}"' in found["ray_raylab_run_mfu"]
        assert f'{label}="{value}"' in found["ray_raylab_retries_total"]
    assert found["ray_raylab_retries_total"].endswith(" 1.0")
    assert found["ray_raylab_run_step"].endswith(" 40.0")


def test_a_failure_is_one_warning_and_ends_nothing(monitor, monkeypatch, caplog):
    monkeypatch.setattr(metrics, "_EVERY_S", 0.01)

    def no_answer():
        raise RuntimeError("the board\nis gone")

    lost = SimpleNamespace(remote=no_answer)
    monitor.board = SimpleNamespace(snapshot=lost, worker_failures=lost)
    with Publisher(monitor, Execution()).publishing():
        time.sleep(0.3)
    assert [record.message for record in caplog.records] == [
        "metrics are not published: the board is gone"
    ]


def test_the_peak_is_that_of_the_device_or_is_not_known(monkeypatch):
    assert cluster.peak_flops(Execution(device="h100")) == 989e12
    assert cluster.peak_flops(Execution()) == 76e9
    for kinds, peak in (
        (["H100"], 989e12),
        (["A100"], 312e12),  # of both sizes
        (["H100", "H200"], 989e12),
        (["H100", "A100"], None),
        (["H100", "GTX"], None),
        ([], None),
    ):
        nodes = [{"Resources": {f"accelerator_type:{kind}": 1.0}} for kind in kinds]
        monkeypatch.setattr(cluster.ray, "nodes", lambda nodes=nodes: nodes)
        assert cluster.peak_flops(Execution(use_gpu=True)) == peak
