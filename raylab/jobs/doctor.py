"""Look at every node of the cluster: a short task each, and one sum between all of them."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylab.experiment.config import Backbone
from raylab.jobs.cluster import root_cause
from raylab.jobs.demand import Request
from raylab.stages.inspection import PROBES, Inspected, inspect_node
from raylab.storage.store import Store

_NODE_S = 180.0
_SUM_S = 180.0
_SUMMED_BYTES = 64 * 2**20
_TIMES = 5


@dataclass(frozen=True)
class NodeReport:
    """What a node told, or why it did not; ``skew_s``: of its clock against the driver's."""

    name: str
    told: Inspected | None
    error: str
    skew_s: float


@dataclass(frozen=True)
class SumReport:
    """The all-reduce: between how many processes, on what, at how many bytes a second, or why not."""

    processes: int
    backend: str
    bytes_per_s: float
    error: str


def nodes() -> list[dict[str, Any]]:
    """Those that are there now."""
    return [node for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def mark_in(store: Store) -> Iterator[str]:
    """A file of the driver's in the storage, for nodes to see."""
    path, fresh = f"{PROBES}/driver-{uuid.uuid4().hex[:8]}", not os.path.exists(store.root)
    store.put_bytes(path, b"driver")
    try:
        yield path
    finally:
        store.files.remove(path)
        if store.is_local:
            with contextlib.suppress(OSError):  # others may look at the same time
                os.rmdir(store.files.full(PROBES))
                if fresh:
                    os.rmdir(store.root)


def look_at(
    store: Store,
    backbones: Sequence[Backbone] = (),
    models_dir: str | None = None,
    quick: bool = False,
) -> list[NodeReport]:
    """A report of every node, in the order of their names."""
    task: Any = ray.remote(num_cpus=0, max_retries=0)(inspect_node)
    with mark_in(store) as mark:
        asked = {
            node["NodeID"]: task.options(scheduling_strategy=_on(node)).remote(
                store, mark, backbones, models_dir, quick
            )
            for node in nodes()
        }
        reports = [
            _report(node, asked[node["NodeID"]]) for node in nodes() if node["NodeID"] in asked
        ]
    return sorted(reports, key=lambda report: report.name)


def _on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _report(node: dict[str, Any], asked: Any) -> NodeReport:
    name = f"{node['NodeManagerHostname']} {node['NodeID'][:8]}"
    try:
        told: Any = ray.get(asked, timeout=_NODE_S)
    except GetTimeoutError:
        return NodeReport(name, None, f"no answer in {_NODE_S:.0f} s", 0.0)
    except RayError as error:
        cause = root_cause(error)
        return NodeReport(
            name, None, f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}", 0.0
        )
    return NodeReport(name, told, "", _skew(node))


def _clock() -> float:
    return time.time()


def _skew(node: dict[str, Any]) -> float:
    """The node's clock less the driver's, by the quickest of some questions to a process that is there."""
    clock = ray.remote(num_cpus=0)(_clock)
    best, skew = float("inf"), 0.0
    for _ in range(3):
        before = time.time()
        there = ray.get(clock.options(scheduling_strategy=_on(node)).remote())
        took = time.time() - before
        if took < best:
            best, skew = took, there - (before + took / 2)
    return 0.0 if abs(skew) <= best / 2 else skew


# ------------------------------------------------------------------------------------- all-reduce


class _Adder:
    """One process of the sum."""

    def place(self) -> str:
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def add(self, place: str, rank: int, world: int, gpu: bool) -> float:
        """Seconds of the quickest sum of `_SUMMED_BYTES` over all processes; raises where it is wrong."""
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        limit = timedelta(seconds=_SUM_S)
        backend = "nccl" if gpu else "gloo"
        dist.init_process_group(
            backend, init_method=place, rank=rank, world_size=world, timeout=limit
        )
        try:
            quickest = float("inf")
            for _ in range(_TIMES):
                values = torch.ones(_SUMMED_BYTES // 4, device=device)
                started = time.perf_counter()
                dist.all_reduce(values)
                total = float(values[-1])  # waits for the device
                quickest = min(quickest, time.perf_counter() - started)
                if total != world:
                    raise RuntimeError(f"the sum of {world} ones is {total}")
            return quickest
        finally:
            dist.destroy_process_group()


def add_up(gpu: bool) -> SumReport:
    """One sum over all GPUs (NCCL), or over one process a node (gloo)."""
    backend = "nccl" if gpu else "gloo"
    places = [
        node for node in nodes() for _ in range(int(node["Resources"].get("GPU", 0)) if gpu else 1)
    ]
    if len(places) < 2:
        return SumReport(len(places), backend, 0.0, "")
    adder = ray.remote(num_cpus=0, num_gpus=1 if gpu else 0)(_Adder)
    adders: list[Any] = [adder.options(scheduling_strategy=_on(node)).remote() for node in places]
    try:
        place = ray.get(adders[0].place.remote(), timeout=_NODE_S)
        asked = [one.add.remote(place, rank, len(adders), gpu) for rank, one in enumerate(adders)]
        seconds = max(ray.get(asked, timeout=_SUM_S))
    except GetTimeoutError:
        return SumReport(len(places), backend, 0.0, f"no answer in {_SUM_S:.0f} s")
    except RayError as error:
        cause = root_cause(error)
        return SumReport(len(places), backend, 0.0, " ".join(str(cause).split())[:300])
    finally:
        for one in adders:
            ray.kill(one)
    world = len(adders)
    # What a ring moves over each link, whatever the algorithm: the figure that nccl-tests call bus bandwidth.
    moved = 2 * (world - 1) / world * _SUMMED_BYTES
    return SumReport(world, backend, moved / seconds, "")


# ---------------------------------------------------------------------------------------- growing


@contextlib.contextmanager
def grown(devices: int, gpu: bool, minutes: float, told: Callable[[str], None]) -> Iterator[None]:
    """A cluster that may grow is asked for so many devices, and lets go of them at the end."""
    kind = "GPU" if gpu else "CPU"
    if not devices:
        yield
        return
    request, until = Request(), time.monotonic() + 60 * minutes
    try:
        while True:
            request.ask([{kind: 1.0}] * devices)
            have = ray.cluster_resources().get(kind, 0)
            if have >= devices or time.monotonic() >= until:
                break
            told(f"waiting for {devices} {kind}s, the cluster has {have:.0f}")
            time.sleep(10)
        yield
    finally:
        request.withdraw()
