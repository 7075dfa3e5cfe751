"""Where a train worker's progress goes, and where its checkpoints are kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from raylab.jobs.progress import RunProgress
from raylab.live.logs import RunLog
from raylab.stages.train import RUNS, AdaptationJob, FineTuningJob, run_folder
from raylab.storage.checkpoints import Checkpoints
from raylab.training.distributed import barrier, from_first, rank_and_world
from raylab.training.energy import Meter
from raylab.training.journal import Journal
from raylab.training.loop import Progress

_NOTE_EVERY_S = 1.0


def _run_log(job: AdaptationJob | FineTuningJob) -> RunLog | None:
    """Where rank 0 tells how far the run is; None on other ranks."""
    if rank_and_world()[0]:
        return None
    return RunLog(job.store, job.run_name, job.execution.use_gpu)


class RayReporter:
    """Progress to the board and the journal, checkpoints to the storage (`raylab.training.loop.Reporter`).

    Args:
        names: of the runs, by their steps.
        taken_at: when the run was given to this worker's group, in Unix seconds.
    """

    def __init__(self, job: AdaptationJob | FineTuningJob, names: dict[int, str], taken_at: float):
        self.names, self.board, self.job = names, job.board, job.run_name
        self.spends_budget = isinstance(job, FineTuningJob)
        self.live = _run_log(job)
        rank, world = rank_and_world()
        folder = f"{RUNS}/{run_folder(job)}"
        self.journal = Journal(job.store, folder, rank == 0, taken_at)
        self.checkpoints = Checkpoints(job.store, folder, rank, world)
        self.meter = Meter(torch.cuda.current_device() if job.execution.use_gpu else None)
        self.last = 0.0

    def ended(self) -> None:
        """The run took its last step; no checkpoint of it is on its way any more."""
        if self.live is not None:
            self.live.close()
        with contextlib.suppress(OSError):  # it is not needed any more
            self.checkpoints.wait()

    @contextlib.contextmanager
    def resume(self) -> Iterator[Path | None]:
        self.checkpoints.wait()
        barrier()  # all have stored theirs
        leads = rank_and_world()[0] == 0
        step = from_first(self.checkpoints.remove_unfinished() if leads else None)
        if step is None:
            yield None
        else:
            with self.checkpoints.opened(step) as folder:
                yield folder

    def progress(self, progress: Progress) -> None:
        self.journal.note(progress)
        if self.live is not None:
            self.live.note(
                progress.step,
                progress.steps,
                progress.spent_flops,
                progress.tokens,
                progress.loss,
                progress.learning_rate,
                progress.seconds,
                progress.gradient_norm,
                progress.measures,
            )
        now = time.time()
        last_step = progress.step == progress.steps
        if (
            self.board is None
            or rank_and_world()[0]
            or (now - self.last < _NOTE_EVERY_S and not last_step and not progress.measures)
        ):
            return
        self.last = now
        name = self.names.get(progress.steps, self.names[max(self.names)])
        self.board.note.remote(
            RunProgress(
                name,
                progress.step,
                progress.steps,
                progress.spent_flops,
                progress.loss,
                now,
                self.spends_budget,
                self.job,
                progress.tokens,
                progress.seconds,
                progress.warning,
            )
        )

    def checkpoint(self, write: Callable[[Path], None], progress: Progress) -> None:
        self.checkpoints.keep(write, progress.step)
