"""Connect to Ray: a cluster when there is one, else one of our own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow.fs
import ray
from ray.exceptions import RayTaskError

from raylab.experiment.execution import Execution
from raylab.jobs.starting import cannot_start, check_address, workers_environment
from raylab.planning.devices import DEVICES, Device
from raylab.storage.store import Store

log = logging.getLogger("raylab")
T = TypeVar("T")
_HEAD = "node:__internal_head__"  # a resource that the head node alone has
_ACCELERATOR = "accelerator_type:"
_STATE_TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"  # where a trainer is made: Ray's dashboard then shows its runs
_RETRY_ADVICE = "\nFailed to apply UDF "

# One thread a worker: several single-threaded workers beat one that shares the cores.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own in the place of the process's, which ends it with status 15."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    finally:
        if callable(before):
            signal.signal(signal.SIGTERM, before)


@contextmanager
def connect(execution: Execution) -> Iterator[None]:
    """A connection to `RAY_ADDRESS` (or the cluster this job was submitted to), else an own local cluster."""
    started = not ray.is_initialized()
    if started:
        environment = dict(_WORKER_ENVIRONMENT)
        if path := os.environ.get("PYTHONPATH"):
            environment["PYTHONPATH"] = path  # modules beside an experiment's file
        if not execution.use_gpu:
            environment["DS_ACCELERATOR"] = "cpu"
        if os.environ.get("RAY_ADDRESS") or execution.ray_options.get("include_dashboard"):
            environment[_STATE_TRACKING] = os.environ.get(_STATE_TRACKING, "1")
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        # Tune would swallow an interrupt, and what follows would take the grid for trained.
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        # A thread that still waits when the connection has ended would start a cluster.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": workers_environment(environment)},
            "log_to_driver": False,
            "logging_level": logging.WARNING,
        }
        if address := os.environ.get("RAY_ADDRESS"):
            check_address(address)
        else:
            # Ray tells of its token authentication, which a cluster of this process alone has on as well.
            logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
            # Actors that hold a core each must leave room for Ray Data's tasks.
            # "local": a cluster that happens to run on this machine is joined only when asked for.
            options |= {
                "address": "local",
                "num_cpus": max(4, os.cpu_count() or 1),
                "object_store_memory": 400 * 2**20,
                "include_dashboard": False,
            }
        options |= execution.ray_options
        try:
            with _own_sigterm():
                ray.init(**options)
        except Exception as error:  # Ray raises what its parts do, bare `Exception` among it
            ray.shutdown()
            raise cannot_start(error) from error
    from ray.data import DataContext  # two seconds, which workers that never use it need not wait

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.raise_original_map_exception = True  # else it is lost on its way to the driver
    # Ray Data logs every failure with its stack, then raises it: the driver says it once, in one line.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def connected() -> bool:
    """Whether this process is connected to Ray."""
    return ray.is_initialized()


def on_head() -> dict[str, Any]:
    """Options of an actor that lives as long as the driver's cluster: it holds nothing but its place on the head."""
    has_head = _HEAD in ray.cluster_resources()
    return {"num_cpus": 0, "resources": {_HEAD: 0.001} if has_head else {}}


def core() -> float:
    """How many of Ray's CPUs stand for one core: more than one on an own cluster of few cores."""
    cores = sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return max(1.0, cores / (os.cpu_count() or 1)) if len(ray.nodes()) == 1 else 1.0


def device_bytes(execution: Execution, devices: int) -> float | None:
    """Memory of what a worker runs on; None where nobody can tell.

    Of the device that `execution` names, of the smallest GPU that the nodes tell of, or a share of the
    cluster's memory, on CPUs of which `devices` train at once.
    """
    if execution.device is not None:
        return DEVICES[execution.device].memory_bytes
    if not execution.use_gpu:
        return ray.cluster_resources().get("memory", 0.0) / max(devices, 1) or None
    # Ray tells A100 of both sizes: the smaller one counts.
    known = [device.memory_bytes for devices in _told_gpus() for device in devices]
    return min(known, default=None)


def peak_flops(execution: Execution) -> float | None:
    """Peak FLOP/s of what a worker runs on; None where nobody can tell, or nodes have GPUs of several peaks."""
    if execution.device is not None:
        return DEVICES[execution.device].peak_flops
    if not execution.use_gpu:
        return DEVICES["cpu-core"].peak_flops
    told = _told_gpus()
    peaks = {device.peak_flops for devices in told for device in devices}
    return peaks.pop() if all(told) and len(peaks) == 1 else None


def _told_gpus() -> list[list[Device]]:
    """Of each kind of GPU that the nodes tell of, the devices that it may be; none of an unknown kind."""
    kinds = {
        key.removeprefix(_ACCELERATOR).lower()
        for node in ray.nodes()
        for key in node["Resources"]
        if key.startswith(_ACCELERATOR)
    }
    return [[d for d in DEVICES.values() if d.name.startswith(kind)] for kind in sorted(kinds)]


def unwrapped(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call, and raise the error of a remote function as itself, without Ray's wrapping."""
    try:
        return call(*args, **kwargs)
    except RayTaskError as error:
        cause = root_cause(error)
        if cause.args and isinstance(cause.args[0], str):
            # Ray Data appends advice on retries to the message of whatever a function raised.
            cause.args = (cause.args[0].split(_RETRY_ADVICE)[0], *cause.args[1:])
        raise cause from None


def root_cause(error: BaseException) -> BaseException:
    """The innermost error that a remote function raised."""
    while True:
        failures = getattr(error, "worker_failures", None)  # of a Ray Train worker group, by rank
        inner = (
            next(iter(failures.values()))
            if failures
            else getattr(error, "controller_failure", None)
            or getattr(error, "cause", None)
            or error.__cause__
        )
        if not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner


def arrow_filesystem(store: Store) -> pyarrow.fs.FileSystem:
    """The store's filesystem as pyarrow and Ray want it."""
    if store.is_local:
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs))
