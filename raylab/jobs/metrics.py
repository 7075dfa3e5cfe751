"""Publishes `raylab.live.metrics` through Ray, from the driver: each node of Ray serves what its processes told.

A gauge that is not told again vanishes from Ray's endpoint after some 20 s, so all of them are told every few seconds;
of a run that is over, step, loss and rates are not.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray
from ray.util.metrics import Counter, Gauge

from raylab.experiment.execution import Execution
from raylab.experiment.families import families
from raylab.jobs.cluster import peak_flops
from raylab.jobs.progress import Monitor, RunProgress
from raylab.live.metrics import METRICS, OF_MNTP, RUN_LABELS, CellState

log = logging.getLogger("raylab")
_EVERY_S = 5.0
_ANSWER_S = 5.0
_SHOWN_AFTER_S = 60.0  # a run that is over: longer than Prometheus takes to ask

Labels = tuple[str, ...]
Reading = tuple[str, Labels, float]  # name of the metric, values of its labels, value


@dataclass(frozen=True)
class _Rates:
    """Of a run: what was told when the rates were last known, and they."""

    flops: float
    tokens: float
    seconds: float
    flops_per_s: float
    tokens_per_s: float


class Readings:
    """What the metrics are, from what the monitor knows and the runs have told.

    Args:
        peak: FLOP/s of a device; None: not known.
        hour_price: of a device; None: not known.
    """

    def __init__(self, monitor: Monitor, peak: float | None, hour_price: float | None):
        self.monitor, self.peak, self.hour_price = monitor, peak, hour_price
        self.rates: dict[str, _Rates] = {}

    def of(self, runs: Mapping[str, RunProgress]) -> Iterator[Reading]:
        """All gauges that have a value."""
        labels, monitor = self._labels(runs), self.monitor
        for run, progress in runs.items():
            if not self._is_shown(progress):
                continue
            yield "raylab_run_step", labels[run], progress.step
            yield "raylab_run_loss", labels[run], progress.loss
            if (rates := self._rates(progress)) is None:
                continue
            yield "raylab_run_tokens_per_second", labels[run], rates.tokens_per_s
            devices = self._devices.get(progress.job)
            if self.peak is not None and devices is not None:
                yield "raylab_run_mfu", labels[run], rates.flops_per_s / (devices * self.peak)
        spent = {run: progress.spent_flops for run, progress in runs.items()} | monitor.spent
        for run, flops in spent.items():
            yield "raylab_run_flops_spent", labels[run], flops
        for run, flops in monitor.planned.items():
            yield "raylab_run_flops_planned", labels[run], flops
        for state, count in self._cells().items():
            yield "raylab_cells", (state,), count
        if self.hour_price is not None:
            yield "raylab_cost", (), self._device_hours(runs) * self.hour_price

    def labels_of(self, run: str, runs: Mapping[str, RunProgress]) -> Labels:
        """Values of `RUN_LABELS`."""
        return self._labels(runs).get(run, (run, "", "", ""))

    def _labels(self, runs: Mapping[str, RunProgress]) -> dict[str, Labels]:
        found = {
            cell.run_name: (cell.run_name, cell.backbone.name, cell.head.name, cell.objective.name)
            for cell in self.monitor.cells
        }
        sizes = {name: labels[1] for name, labels in found.items()}
        adapts = {name: sizes.get(i.name, "") for i in self.monitor.items for name in i.after}
        for run in (*runs, *adapts):
            found.setdefault(run, (run, adapts.get(run, ""), "", OF_MNTP))
        return found

    @property
    def _devices(self) -> dict[str, int]:
        return {item.name: item.devices for item in self.monitor.items}

    def _is_shown(self, progress: RunProgress) -> bool:
        over = progress.step >= progress.steps or progress.job in self.monitor.ended
        return not over or time.time() - progress.at < _SHOWN_AFTER_S

    def _rates(self, progress: RunProgress) -> _Rates | None:
        """Between the last two times that it was asked, where steps were taken; None before the first."""
        before = self.rates.get(progress.run)
        flops, tokens, seconds = progress.spent_flops, progress.tokens, progress.seconds
        if before is not None and seconds == before.seconds:
            return before
        began = before or _Rates(0.0, 0.0, 0.0, 0.0, 0.0)
        if seconds < began.seconds:  # it began again at a checkpoint
            began = _Rates(0.0, 0.0, 0.0, 0.0, 0.0)
        took = seconds - began.seconds
        if took <= 0:
            return None
        a_second = (flops - began.flops) / took, (tokens - began.tokens) / took
        self.rates[progress.run] = _Rates(flops, tokens, seconds, *a_second)
        return self.rates[progress.run]

    def _cells(self) -> dict[CellState, int]:
        monitor = self.monitor
        counts: dict[CellState, int] = dict.fromkeys(
            ("waiting", "running", "done", "failed", "left out"), 0
        )
        for family in families(monitor.cells):
            names = {cell.run_name for cell in family}
            for name in names:
                if name in monitor.spent:
                    counts["done"] += 1
                elif name not in monitor.planned:
                    counts["left out"] += 1
                elif names & monitor.failed:
                    counts["failed"] += 1
                elif names & monitor.running:
                    counts["running"] += 1
                else:
                    counts["waiting"] += 1
        return counts

    def _device_hours(self, runs: Mapping[str, RunProgress]) -> float:
        standing = self.monitor.standing(runs)
        return (
            sum(
                standing[item.name].elapsed_s * item.devices
                for item in self.monitor.items
                if item.name in standing
            )
            / 3600
        )


class Publisher:
    """Tells Ray the readings, again and again, in a thread; what fails is one warning."""

    def __init__(self, monitor: Monitor, execution: Execution):
        self.monitor, self.execution = monitor, execution
        self.readings: Readings | None = None
        self.told: dict[str, int] = {}  # failures of workers by run
        self.gauges: dict[str, Gauge] = {}
        self.retries: Counter | None = None
        self.warned = False
        self._stop = threading.Event()

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """While the block runs."""
        thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=2 * _ANSWER_S)

    def _serve(self) -> None:
        while True:
            stopping = self._stop.wait(_EVERY_S)
            try:
                self.publish()
            except Exception as fault:  # a picture may have gaps; training must not
                if not (self.warned or stopping):
                    log.warning("metrics are not published: %s", " ".join(str(fault).split()))
                self.warned = True
            if stopping:
                return

    def publish(self) -> None:
        """Once."""
        board = self.monitor.board
        if self.readings is None:
            self._declare()
        assert self.readings is not None
        assert self.retries is not None
        answers = [board.snapshot.remote(), board.worker_failures.remote()]
        runs, failures = ray.get(answers, timeout=_ANSWER_S)
        for name, labels, value in self.readings.of(runs):
            if math.isfinite(value):
                tags = dict(zip(METRICS[name].labels, labels, strict=True))
                self.gauges[name].set(float(value), tags)
        for run, count in failures.items():
            if (more := count - self.told.get(run, 0)) > 0:
                labels = self.readings.labels_of(run, runs)
                self.retries.inc(more, dict(zip(RUN_LABELS, labels, strict=True)))
                self.told[run] = count

    def _declare(self) -> None:
        for metric in METRICS.values():
            if metric.kind == "counter":
                self.retries = Counter(metric.name, metric.doc, metric.labels)
            else:
                self.gauges[metric.name] = Gauge(metric.name, metric.doc, metric.labels)
        peak, hour_price = peak_flops(self.execution), self.execution.device_hour_price
        self.readings = Readings(self.monitor, peak, hour_price)
