"""What the nodes of a cluster told, as passes and failures with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raylab.experiment.config import ConfigError
from raylab.jobs.doctor import NodeReport, SumReport, look_at
from raylab.stages.inspection import versions
from raylab.storage.store import Store

MOST_SKEW_S = 5.0
LEAST_SHARED_MEMORY = 1 * 2**30  # a container without more has Docker's 64 MiB
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One check, on one node or between all: what was seen, and what to do where it failed."""

    name: str
    where: str
    passed: bool
    seen: str
    remedy: str = ""


def checks(reports: Sequence[NodeReport], disk_gib: float, gpu: bool, shared: bool) -> list[Check]:
    """Of every node.

    Args:
        disk_gib: that must be free for copies.
        gpu: whether a run is to use GPUs.
        shared: whether the storage is a folder, which all nodes must share.
    """
    return [check for report in reports for check in _of_node(report, disk_gib, gpu, shared)]


def _of_node(report: NodeReport, disk_gib: float, gpu: bool, shared: bool) -> list[Check]:
    told = report.told
    if told is None:
        remedy = (
            "install the same raylab on every node (cluster/Dockerfile), or look at the node's logs"
        )
        return [Check("raylab runs", report.name, False, report.error, remedy)]
    found = [_versions(report), *_storage(report, shared), *_memory(report, disk_gib)]
    if gpu and told.gpus:
        kinds = Counter(told.gpus)
        seen = "; ".join(f"{count} x {kind}" for kind, count in kinds.items())
        found.append(Check("GPUs", report.name, True, seen))
    for size, fault in told.models.items():
        found.append(
            Check(
                f"model {size}",
                report.name,
                not fault,
                fault or "can be had",
                fault and "see there",
            )
        )
    skew = abs(report.skew_s)
    remedy = "let chrony or systemd-timesyncd set its clock"
    found.append(
        Check("clock", report.name, skew <= MOST_SKEW_S, f"{report.skew_s:+.1f} s", remedy)
    )
    return found


def _versions(report: NodeReport) -> Check:
    assert report.told is not None
    ours, theirs = versions(), report.told.versions
    other = [
        f"{name} {theirs.get(name)}, not {ours[name]}"
        for name in ours
        if theirs.get(name) != ours[name]
    ]
    seen = (
        "; ".join(other)
        or f"raylab {theirs['raylab']}, ray {theirs['ray']}, torch {theirs['torch']}"
    )
    return Check(
        "versions", report.name, not other, seen, "use one image, or one environment, on every node"
    )


def _storage(report: NodeReport, shared: bool) -> list[Check]:
    told = report.told
    assert told is not None
    if told.storage:
        remedy = "give the node's role or keys the rights to read, write, delete and list there"
        return [Check("storage", report.name, False, told.storage, remedy)]
    if not told.sees_driver:
        remedy = (
            "name an object storage or a folder that every node mounts"
            if shared
            else "look at its consistency"
        )
        return [Check("storage", report.name, False, "what the driver wrote is not there", remedy)]
    times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in told.latency_ms.items())
    return [Check("storage", report.name, True, times or "seen")]


def _memory(report: NodeReport, disk_gib: float) -> list[Check]:
    told = report.told
    assert told is not None
    shared, free = told.shared_memory_bytes, told.disk_free_bytes
    remedy = "give the container more: --shm-size, or an emptyDir of medium Memory at /dev/shm"
    enough = shared >= LEAST_SHARED_MEMORY
    found = [Check("shared memory", report.name, enough, f"{shared / GIB:.1f} GiB", remedy)]
    remedy = "free it, put TMPDIR on a larger disk, or bound the copies by --cache-gib"
    seen = f"{free / GIB:.0f} GiB free in {told.cache}"
    return [*found, Check("disk", report.name, free >= disk_gib * GIB, seen, remedy)]


def gpus_check(reports: Sequence[NodeReport]) -> Check:
    """Whether there is a GPU at all, and one driver on all nodes."""
    told = [gpu for report in reports if report.told for gpu in report.told.gpus]
    drivers = {gpu.split(", ")[1] for gpu in told if ", " in gpu}
    remedy = "add nodes with GPUs (--devices N asks the cluster for them), of one image and driver"
    seen = f"{len(told)} GPUs" + (f", drivers {', '.join(sorted(drivers))}" if drivers else "")
    return Check("GPUs", "cluster", bool(told) and len(drivers) <= 1, seen, remedy)


def sum_check(report: SumReport) -> Check:
    """The all-reduce."""
    name = f"all-reduce ({report.backend})"
    if report.error:
        remedy = "open all ports between the nodes; name the network card by NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
        return Check(name, "cluster", False, report.error, remedy)
    if report.processes < 2:
        return Check(name, "cluster", True, "one process: nothing to add up")
    seen = f"{report.processes} processes, {report.bytes_per_s / 1e9:.2f} GB/s"
    return Check(name, "cluster", True, seen)


def check_cheaply(store: Store) -> None:
    """Before a run, in a second or two: the nodes that are there run the same raylab and see the storage.

    Raises:
        ConfigError: names the first node that does not, and what to do.
    """
    kept = ("raylab runs", "versions", "storage")
    found = checks(look_at(store, quick=True), 0.0, False, store.is_local)
    for check in found:
        if check.name in kept and not check.passed:
            raise ConfigError(f"node {check.where}: {check.name}: {check.seen}; {check.remedy}")
