"""Training on Ray Train + DeepSpeed: MNTP once a size, fine-tuning once a cell.

What a worker does is in `raylab.jobs.workers`, imported on the worker alone: this module is also
loaded by each run's Tune trial and Train controller, which need no model library (4 s each).
A run is named after its fingerprint, so the same run started again (after a killed worker, or a
killed driver) resumes from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from raylab.experiment.config import Execution
from raylab.jobs.cluster import arrow_filesystem, root_cause
from raylab.jobs.pool import room
from raylab.stages.train import RUNS, AdaptationJob, FineTuningJob, run_folder


def training_devices(execution: Execution) -> int:
    """Devices that training may hold now: of `concurrent_trials` runs, or (0) all of the cluster."""
    if execution.concurrent_trials:
        return execution.concurrent_trials * execution.workers
    return room("GPU" if execution.use_gpu else "CPU", 1.0)


class _FailuresTold(ray.train.UserCallback):
    """Tells the board of a run whose workers fail; called where Ray Train starts them again."""

    def __init__(self, board: Any, run: str):
        self.board, self.run = board, run

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if self.board is not None:
            self.board.workers_failed.remote(self.run)


def _work(config: dict[str, Any]) -> None:
    """Runs on every worker."""
    from raylab.jobs import workers  # see the top of this module

    workers.work(config["job"])


def train(job: AdaptationJob | FineTuningJob) -> None:
    """Run one training job to its committed artifact; its checkpoints are removed afterwards.

    Raises:
        The worker's own error, unwrapped, once `max_failures` restarts did not help.
    """
    execution, store = job.execution, job.store
    name = run_folder(job)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if execution.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=execution.workers,
            use_gpu=execution.use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if execution.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{store.root}/{RUNS}",
            storage_filesystem=None if store.is_local else arrow_filesystem(store),
            failure_config=ray.train.FailureConfig(max_failures=execution.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[_FailuresTold(job.board, job.run_name)],
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise root_cause(error) from None
    with contextlib.suppress(FileNotFoundError):
        store.files.remove_tree(f"{RUNS}/{name}")
