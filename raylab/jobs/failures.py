"""Failures of a training run that no restart mends: bad input, a loss that is not finite, a damaged artifact."""

from __future__ import annotations

from typing import Any

import ray.train

from raylab.jobs.cluster import root_cause

# By name: their modules load the model libraries, which a run's controller does without.
LASTING = {
    "raylab.experiment.config.ConfigError",
    "raylab.data.faults.CollectionError",
    "raylab.training.loop.TrainingError",
    "raylab.storage.artifacts.DamagedArtifact",
}


def is_lasting(error: BaseException) -> bool:
    """Whether a run that failed by this error would fail by it again."""
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return not LASTING.isdisjoint(kinds)


class EndAtOnce(ray.train.UserCallback):
    """Ends a run at a lasting failure of any worker; Ray Train would start the workers again, `max_failures` times."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            cause = root_cause(error)
            if is_lasting(cause):
                raise cause
