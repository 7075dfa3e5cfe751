"""The metrics that a driver publishes for Prometheus: names, labels and meaning.

`raylab.jobs.metrics` fills them; docs are made from them, and the dashboard is checked against them. Ray puts `ray_`
before each name and adds labels of its own, such as `SessionName`. What is not known is absent, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RUN_LABELS = ("run", "size", "head", "objective")
OF_MNTP = "mntp"  # the label `objective` of a run that adapts a size; its `head` is empty
CellState = Literal["waiting", "running", "done", "failed", "left out"]


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    doc: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("raylab_run_step", "steps that a run has taken", RUN_LABELS),
        Metric("raylab_run_loss", "training loss of a run's last step that was told", RUN_LABELS),
        Metric(
            "raylab_run_flops_spent",
            "FLOPs of a run since its first step, and of the cells that are trained",
            RUN_LABELS,
        ),
        Metric(
            "raylab_run_flops_planned",
            "FLOPs that a cell is to take, by the plan; MNTP has none",
            RUN_LABELS,
        ),
        Metric(
            "raylab_run_mfu",
            "FLOPs a second of a run's steps over the peak of its devices, 0 to 1; only where the peak of the device "
            "is known",
            RUN_LABELS,
        ),
        Metric(
            "raylab_run_tokens_per_second",
            "tokens without padding a second of a run's steps",
            RUN_LABELS,
        ),
        Metric(
            "raylab_cells", "cells by state: waiting, running, done, failed, left out", ("state",)
        ),
        Metric(
            "raylab_retries_total",
            "failures of a run's workers; after each it is started again, up to the limit",
            RUN_LABELS,
            "counter",
        ),
        Metric(
            "raylab_cost",
            "price of the device hours that this command's training has taken; only with --gpu-hour-rate",
        ),
    )
}
