"""What is asked of a cluster that grows; waits are told, and what can never run is refused."""

from contextlib import contextmanager

import pytest
import ray

from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.jobs import demand
from raylab.jobs.demand import Demand, check_room, grows
from tests.jobs.commands import command, run_here

WORKER, GPU_WORKER = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


def wanting(execution: Execution, runs: int = 0, busy: int = 0, tasks: int = 0) -> Demand:
    asked = Demand(execution, lambda text: None)
    asked.runs, asked.busy, asked.tasks = runs, busy, tasks
    return asked


@pytest.mark.parametrize(
    ("asked", "right"),
    [
        (wanting(Execution()), []),
        (wanting(Execution(workers=4), runs=2), [WORKER] * 8),
        (wanting(Execution(workers=4, max_devices=6), runs=2), [WORKER] * 4),
        (wanting(Execution(workers=4, max_devices=6), runs=2, busy=4), []),
        (wanting(Execution(workers=2, use_gpu=True), runs=1), [GPU_WORKER] * 2),
        (wanting(Execution(encoding_actors=0), tasks=3), [{"CPU": 1.0}] * 3),
        (wanting(Execution(encoding_actors=2, encoder_cpus=0.5), tasks=9), [{"CPU": 0.5}] * 2),
        (wanting(Execution(encoding_actors=0, use_gpu=True), tasks=2), [{"GPU": 1.0}] * 2),
        (wanting(Execution(encoding_actors=0, max_devices=3), runs=2, tasks=9), [WORKER] * 3),
    ],
)
def test_what_is_asked_for(asked, right):
    assert asked.bundles() == right


class Coordinator:
    """Keeps what it is asked."""

    def __init__(self):
        self.requests: list[list[dict[str, float]] | None] = []

    def request_resources(self, bundles, expires_s, priority):
        self.requests.append(bundles)

    def cancel_request(self):
        self.requests.append(None)


@contextmanager
def cluster_of(monkeypatch, **resources):
    clock = {"now": 1_000.0}
    monkeypatch.setattr(demand.ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(demand.time, "monotonic", lambda: clock["now"])
    yield clock


def test_a_wait_is_told_at_once_and_every_minute(monkeypatch):
    told = []
    asked = Demand(Execution(workers=8, use_gpu=True, max_devices=32), told.append)
    asked.request.coordinator, asked.runs, asked.may_grow = Coordinator(), 2, True
    with cluster_of(monkeypatch, CPU=4.0) as clock:
        for _ in range(130):
            asked.look()
            clock["now"] += 1.0
    line = "waiting for 8 GPUs, the cluster has 0 and may grow to 32"
    assert told == [line] * 3
    # Said again each time before it would expire.
    requests = asked.request.coordinator.requests
    assert all(bundles == [GPU_WORKER] * 16 for bundles in requests)
    assert 6 <= len(requests) <= 7


def test_where_there_is_room_nothing_is_told(monkeypatch):
    told = []
    asked = Demand(Execution(encoding_actors=0), told.append)
    asked.request.coordinator, asked.tasks, asked.may_grow = Coordinator(), 1, True
    with cluster_of(monkeypatch, CPU=4.0):
        asked.look()
    assert told == []


def test_a_cluster_that_does_not_grow_is_asked_for_nothing(monkeypatch):
    asked = Demand(Execution(encoding_actors=0), lambda text: None)
    asked.request.coordinator, asked.tasks = Coordinator(), 5
    monkeypatch.setattr(demand, "grows", lambda: False)
    with cluster_of(monkeypatch, CPU=4.0), asked.asking():
        asked.look()
    assert asked.request.coordinator.requests == []


def test_what_was_asked_for_is_withdrawn():
    asked = Demand(Execution(), lambda text: None)
    asked.request.coordinator = Coordinator()

    def fail() -> None:
        with asked.asking():
            asked.request.ask([WORKER])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert asked.request.coordinator.requests == [[WORKER], None]
    with asked.asking():
        pass
    assert asked.request.coordinator.requests == [[WORKER], None], "nothing was asked for"


def test_an_own_cluster_does_not_grow(ray_cluster):
    assert grows() is False
    check_room(Execution(workers=4))
    with pytest.raises(ConfigError, match=r"workers = 64: it must be at most the \d+ CPUs"):
        check_room(Execution(workers=64))
    assert ray.is_initialized()


def test_a_run_that_can_never_start_is_refused_in_one_line(
    ray_cluster, tmp_path, collection_folder, ladder_file
):
    arguments = ("--cells", "dense-tiny-cl", "--budget", "3e10", "--workers", "8")
    batches = ("adaptation.batch_blocks=8", "fine_tuning.batch_queries=8")
    changes = [part for batch in batches for part in ("--set", batch)]
    lab = tmp_path / "lab"
    arguments = command(collection_folder, ladder_file, None, lab, *arguments, *changes)
    output = run_here(arguments, expect=2)
    assert (
        "--workers = 8: it must be at most the 4 CPUs of this cluster, which does not grow"
        in output
    )
    assert not list(lab.glob("retriever/*"))
