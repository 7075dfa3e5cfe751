"""What a grid could use if it were there: asked of a cluster that grows, and withdrawn at the end.

Ray's autoscaler sees runs and actors that wait for room; but a grid starts as many as there is room for. What could
run besides is asked for through Ray's coordinator of such requests, which adds what Ray Data and Ray Train ask for. A
request that is not repeated expires by itself, also one of a driver that was killed. On a cluster that does not grow
it has no effect.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    ResourceRequestPriority,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    DefaultAutoscalingCoordinator,
)
from ray.experimental.internal_kv import _internal_kv_get

from raylab.experiment.config import check
from raylab.experiment.execution import Execution

log = logging.getLogger("raylab")
_EXPIRES_S = 60.0
_REPEATED_S = 20.0
_LOOK_S = 1.0
_SAID_S = 60.0  # how often a wait is told of
_MOST_ENCODERS = 1_000  # asked for at once


def grows() -> bool | None:
    """Whether nodes come to this cluster when they are asked for; None where nobody can tell.

    The types of nodes that no autoscaler has started are named after the nodes.
    """
    with contextlib.suppress(Exception):
        return any(kind != f"node_{node}" for node, kind in _node_types().items())
    return None


def _node_types() -> dict[str, str]:
    """The type of every node, by the node's id: as the autoscaler tells it, of either version."""
    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    report = status.get("autoscaler_report", {})
    if report.get("node_type_mapping"):
        return report["node_type_mapping"]
    found = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = [*found.active_nodes, *found.idle_nodes]
    return {str(node.node_id): node.ray_node_type_name for node in nodes}


def check_room(execution: Execution) -> None:
    """Refuse runs that this cluster can never hold.

    Raises:
        ConfigError: it does not grow, and has fewer devices than one run has workers.
    """
    kind = "GPU" if execution.use_gpu else "CPU"
    have = int(ray.cluster_resources().get(kind, 0))
    if have < execution.workers and grows() is False:
        right = f"at most the {have} {kind}s of this cluster, which does not grow"
        check(False, "workers", execution.workers, right)


class Request:
    """A request to the cluster's autoscaler: it stands until it is withdrawn, or not repeated for a minute."""

    def __init__(self) -> None:
        self.coordinator: Any = DefaultAutoscalingCoordinator(f"raylab-{uuid.uuid4().hex[:12]}")
        self.bundles: list[dict[str, float]] = []
        self.at = float("-inf")

    def ask(self, bundles: list[dict[str, float]]) -> None:
        """Call now and then, with all that is wanted: it is sent where it changed, or would expire."""
        now = time.monotonic()
        if bundles != self.bundles or (bundles and now - self.at > _REPEATED_S):
            self.coordinator.request_resources(
                bundles, _EXPIRES_S, priority=ResourceRequestPriority.LOW
            )
            self.bundles, self.at = bundles, now

    def withdraw(self) -> None:
        """Nothing is wanted any more."""
        if self.bundles:
            with contextlib.suppress(Exception):  # the connection may have ended
                self.coordinator.cancel_request()
            self.bundles = []


class Demand:
    """What the driver asks the cluster for; threads set what they could use, one of its own asks.

    Args:
        say: is told of a wait for devices, at once and every minute.
    """

    def __init__(self, execution: Execution, say: Callable[[str], None]):
        self.execution, self.say = execution, say
        self.runs = 0  # that could start if there were devices
        self.busy = 0  # devices that runs hold, or wait for
        self.tasks = 0  # of encoders, at work or waiting
        self.request = Request()
        self.said_at = float("-inf")
        self.may_grow: bool | None = None  # looked at when something is wanted
        self.stopped = threading.Event()

    @property
    def kind(self) -> str:
        """The resource that counts."""
        return "GPU" if self.execution.use_gpu else "CPU"

    def bundles(self) -> list[dict[str, float]]:
        """What is asked for beside what Ray Train asks for by itself: for runs first, then for encoders."""
        execution = self.execution
        most = float("inf") if execution.max_devices is None else execution.max_devices
        left = max(0.0, most - self.busy)
        worker = {"CPU": 1.0, **({"GPU": 1.0} if execution.use_gpu else {})}
        runs = int(min(self.runs, left // execution.workers)) * execution.workers
        encoder = {self.kind: 1.0 if execution.use_gpu else execution.encoder_cpus}
        wanted = min(self.tasks, execution.encoding_actors or _MOST_ENCODERS)
        encoders = int(min(wanted, (left - runs) // encoder[self.kind]))
        return [worker] * runs + [encoder] * encoders

    def look(self) -> None:
        """Ask, where something has changed or the last request will expire; tell of a wait."""
        bundles, now = self.bundles(), time.monotonic()
        if bundles and self.may_grow is None:
            self.may_grow = grows() is not False
        if self.may_grow:
            self.request.ask(bundles)
        have = int(ray.cluster_resources().get(self.kind, 0))
        need = self.execution.workers if self.runs or self.busy else min(self.tasks, 1)
        if have >= need:
            self.said_at = float("-inf")
        elif now - self.said_at >= _SAID_S:
            self.said_at = now
            most = self.execution.max_devices
            grow = f"may grow to {most}" if most is not None else "was asked for more"
            self.say(f"waiting for {need} {self.kind}s, the cluster has {have} and {grow}")

    def _serve(self) -> None:
        while not self.stopped.wait(_LOOK_S):
            try:
                self.look()
            except Exception as error:
                log.warning("the cluster could not be asked for more: %s", error)
                return

    @contextlib.contextmanager
    def asking(self) -> Iterator[Demand]:
        """Ask while the block runs."""
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stopped.set()
            thread.join()
            self.request.withdraw()
