"""One worker's training loop: step, account, report, checkpoint, resume. Nothing here imports ray.

The same loop serves pre-training, MNTP and fine-tuning; what differs is the `Task`: which module, how
a step's gradients come about, what the step costs. Whoever runs the worker gives a `Reporter`: where
progress goes and where checkpoints are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from raylab.training.distributed import rank_and_world
from raylab.training.engine import (
    Optimization,
    make_engine,
    random_states,
    restore_random_state,
    save_engine,
    take_step,
)
from raylab.training.faults import TrainingError
from raylab.training.pacing import Clock

_HISTORY_POINTS = 100
_MEASURED_TIMES = 4  # on the way, where a task names no steps to measure at
OVERSPEND = 1.02  # of a budget: real batches differ a little from those the steps were solved from
_STEP = "step"  # file of a checkpoint
History = list[dict[str, float]]


class StepCost(NamedTuple):
    """What a step takes over all workers: FLOPs, tokens without padding, and with."""

    flops: float
    tokens: float
    padded_tokens: float


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` of `steps`; of what it took, `shared_*` was taken for another run too.

    `measuring_*`: what measuring on held-out data took, which is in none of the others. `measures`: what was
    measured at this step; `warning`: what was found wrong, here or before.
    """

    step: int
    steps: int
    spent_flops: float
    tokens: float
    loss: float
    seconds: float
    shared_flops: float = 0.0
    shared_tokens: float = 0.0
    shared_seconds: float = 0.0
    measuring_flops: float = 0.0
    measuring_seconds: float = 0.0
    learning_rate: float | None = None  # of the step that was taken last; None: not told
    gradient_norm: float | None = None  # as well, before clipping
    measures: Mapping[str, float] = field(default_factory=dict)
    warning: str = ""
    padded_tokens: float = 0.0
    shared_padded_tokens: float = 0.0


class Reporter(Protocol):
    """Where a worker's progress goes and its checkpoints are kept."""

    def resume(self) -> AbstractContextManager[Path | None]:
        """The folder of the newest checkpoint, readable inside the context; None to start afresh."""
        ...

    def progress(self, progress: Progress) -> None: ...

    def checkpoint(self, write: Callable[[Path], None], progress: Progress) -> None:
        """Called on all workers: give `write` an empty folder, then keep it."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What a task measured on held-out data: values by name, what it took, and what is wrong ("": nothing)."""

    values: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0
    warning: str = ""


class Task(Protocol):
    """What one training run does in a step. All methods are called on all workers alike."""

    @property
    def module(self) -> Any:
        """What is trained: a torch module."""
        ...

    @property
    def steps(self) -> int: ...

    def cost(self, step: int) -> StepCost:
        """What a step takes, known before it is taken."""
        ...

    def backward(self, engine: Any, step: int) -> float:
        """Forward and backward of a step, through the engine; the optimizer's step is the loop's.

        Averaged over the workers, the engine's gradient must be that of the whole batch. Returns the
        loss of the whole batch, the same on all workers.
        """
        ...

    @property
    def measured_at(self) -> Collection[int] | None:
        """After which steps to measure on held-out data; None: at the start, at the end and four times between."""
        ...

    def evaluate(self, engine: Any) -> Evaluation:
        """Measures on held-out data, the same on all workers; nothing where there is none."""
        ...

    def describe(self, step: int) -> str:
        """What the batch of a step holds, for error messages."""
        ...


@dataclass(frozen=True)
class _State:
    """What a checkpoint keeps beside weights, optimizer and schedule."""

    step: int = 0
    spent: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    loss: float = math.nan
    padded: float = 0.0  # tokens with padding
    # FLOPs, tokens, seconds, tokens with padding at the last branch
    shared: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    measuring: tuple[float, float] = (0.0, 0.0)  # FLOPs, seconds; since the last branch

    def progress(self, steps: int) -> Progress:
        flops, tokens, seconds, padded = self.shared
        taken = self.step, steps, self.spent, self.tokens, self.loss, self.seconds
        told = Progress(*taken, flops, tokens, seconds, *self.measuring)
        return replace(told, padded_tokens=self.padded, shared_padded_tokens=padded)

    def after(self, cost: StepCost, seconds: float, loss: float) -> _State:
        """One step later."""
        return replace(
            self,
            step=self.step + 1,
            spent=self.spent + cost.flops,
            tokens=self.tokens + cost.tokens,
            padded=self.padded + cost.padded_tokens,
            seconds=self.seconds + seconds,
            loss=loss,
        )

    def measured(self, flops: float, seconds: float) -> _State:
        """After one more measurement."""
        return replace(self, measuring=(self.measuring[0] + flops, self.measuring[1] + seconds))

    def branched(self) -> _State:
        """What was taken so far is shared with the run that has just left."""
        shared = self.spent, self.tokens, self.seconds, self.padded
        return replace(self, shared=shared, measuring=(0.0, 0.0))


Finished = Callable[[int, Progress, History], None]
"""What to do at an end of a run: its number of steps, the final progress, the history."""


def run(
    task: Task,
    optimization: Optimization,
    reporter: Reporter,
    checkpoints: Clock | int,
    budget_flops: float | None = None,
) -> tuple[Any, Progress, History]:
    """Train to the task's last step, from the reporter's newest checkpoint.

    A run that is stopped and resumed takes the same steps as one that never stopped: the batches and
    the schedule follow from the step, and the random state of every worker is in the checkpoint.

    Args:
        checkpoints: when to keep one on the way; a number: so many, at even steps.
        budget_flops: ends the run before a step that would overspend it.

    Returns:
        engine, final progress, and the history: loss, learning rate and spent FLOPs at up to 100
        steps, and the task's held-out measures at the steps that it names (`Task.measured_at`).

    Raises:
        TrainingError: a loss or a gradient that is not finite.
    """
    loop = _Loop(task, optimization, reporter, checkpoints)
    loop.advance(task.steps, budget_flops=budget_flops)
    return loop.engine, loop.state.progress(task.steps), loop.ended()


def run_branches(
    task: Task,
    optimization: Optimization,
    reporter: Reporter,
    checkpoints: Clock | int,
    ends: Mapping[int, float | None],
    finished: Finished,
) -> None:
    """Train runs of several lengths that share their stable phase (`wsd`): each leaves it to decay.

    Every end has the weights that a run of its own would have, bit for bit. Resumed, it goes on from
    the newest checkpoint: of the stable phase, or of the last run's decay.

    Args:
        ends: the runs that are to be made, by their steps, and the FLOPs that end each before a step
            that would overspend them; `task.steps` is at least the largest.
        finished: called on all workers when the engine has a run's final weights.

    Raises:
        TrainingError: a loss or a gradient that is not finite.
        ValueError: another schedule than `wsd`.
    """
    if optimization.schedule != "wsd":
        raise ValueError(f"schedule = {optimization.schedule!r}: only wsd has a phase to share")
    last = max(ends)
    starts = [optimization.decay_start(end) for end in ends if end < last]
    # A checkpoint past a decay that is still to come is of another set of runs.
    loop = _Loop(task, optimization, reporter, checkpoints, newest=min([*starts, last]))
    for end, budget_flops in sorted(ends.items()):
        loop.advance(optimization.decay_start(end), last)
        if end < last:
            loop.checkpoint()
            loop.advance(end, end, False, budget_flops)
        else:
            loop.advance(end, end, True, budget_flops)
        finished(end, loop.state.progress(end), loop.ended())
        if end < last:
            loop.restore()
            loop.state = loop.state.branched()


class _Loop:
    """One worker's engine, and where it stands."""

    def __init__(
        self,
        task: Task,
        optimization: Optimization,
        reporter: Reporter,
        checkpoints: Clock | int,
        newest: int | None = None,
    ):
        self.task, self.reporter, self.checkpoints = task, reporter, checkpoints
        self.horizon = task.steps  # of the run whose schedule is followed
        self.engine = make_engine(task.module, lambda: self.horizon, optimization)
        self.measured_every = _apart(task.steps, _MEASURED_TIMES)
        self.points = max(1, task.steps // _HISTORY_POINTS)
        self.state, self.history = _State(), History()
        self.kept_at = self.measured_at = -1
        self.warning = ""
        if not self.restore(newest) and task.measured_at is None:
            self.measure()
        self.engine.train()

    def restore(self, newest: int | None = None) -> bool:
        """Go back to the newest checkpoint; False where there is none, or none up to step `newest`."""
        with self.reporter.resume() as folder:
            if folder is None:
                return False
            if newest is not None and int((folder / _STEP).read_text()) > newest:
                return False
            _, kept = self.engine.load_checkpoint(
                str(folder), tag="engine", load_module_strict=False
            )
            self.state, self.history = _State(**kept["state"]), kept["history"]
            self.kept_at = self.state.step
            restore_random_state(kept["random"][rank_and_world()[0] % len(kept["random"])])
        return True

    def checkpoint(self) -> None:
        """Keep where the loop stands."""
        if self.kept_at == self.state.step:
            return
        self.kept_at = self.state.step
        kept = {"state": vars(self.state), "history": self.history, "random": random_states()}

        def write(path: Path) -> None:
            save_engine(self.engine, path, kept)
            (path / _STEP).write_text(str(self.state.step))

        began = time.perf_counter()
        self.reporter.checkpoint(write, self.state.progress(self.horizon))
        if isinstance(self.checkpoints, Clock):
            self.checkpoints.kept(time.perf_counter() - began)

    def checkpoint_is_due(self) -> bool:
        """Whether to keep one after the step just taken. Call after every step, on all workers."""
        if isinstance(self.checkpoints, Clock):
            return self.checkpoints.is_due()
        return self.state.step % _apart(self.task.steps, self.checkpoints) == 0

    def advance(
        self,
        to: int,
        horizon: int | None = None,
        keep: bool = True,
        budget_flops: float | None = None,
    ) -> None:
        """Take all steps before `to` that the budget holds, of a run of `horizon` steps.

        `keep`: with checkpoints on the way.
        """
        task, self.horizon = self.task, horizon or self.horizon
        limit = math.inf if budget_flops is None else budget_flops * OVERSPEND
        while self.state.step < to:
            began, step = time.perf_counter(), self.state.step
            cost = task.cost(step)
            if self.state.spent + cost.flops > limit:
                break
            rate = self.engine.get_lr()[0]
            loss, norm = _step(task, self.engine, step)
            self.state = self.state.after(cost, time.perf_counter() - began, loss)
            measures = {}
            noted = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
            if task.measured_at is not None and self.state.step in task.measured_at:
                _note(self.history, self.state, **noted)
                measures = self.measure()
            elif step % self.points == 0 or self.state.step == self.horizon:
                _note(self.history, self.state, **noted)
            told = replace(
                self.state.progress(self.horizon),
                learning_rate=rate,
                gradient_norm=norm,
                measures=measures,
                warning=self.warning,
            )
            self.reporter.progress(told)
            on_the_way = keep and self.state.step < task.steps
            if (
                on_the_way
                and task.measured_at is None
                and not self.state.step % self.measured_every
            ):
                self.measure()
            if on_the_way and self.checkpoint_is_due():
                self.checkpoint()

    def measure(self) -> Mapping[str, float]:
        """Measure on held-out data where the run stands, and note it; what was measured."""
        began = time.perf_counter()
        found = self.task.evaluate(self.engine)
        self.measured_at = self.state.step
        if found.values:
            self.state = self.state.measured(found.flops, time.perf_counter() - began)
            _note(self.history, self.state, **found.values)
        self.warning = "; ".join(filter(None, (self.warning, found.warning)))
        return found.values

    def ended(self) -> History:
        """The history, with the task's measures at its end."""
        places = self.task.measured_at
        # Its budget may have ended it before its last step.
        wanted = places is None or (self.state.step < self.horizon and self.horizon in places)
        if wanted and self.state.step and self.measured_at != self.state.step:
            self.measure()
        return self.history


def _step(task: Task, engine: Any, step: int) -> tuple[float, float]:
    """One optimizer step: (loss, norm of the gradient); a loss that is not finite leaves the weights as they are."""
    loss = task.backward(engine, step)
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step} ({task.describe(step)})")
    norm = take_step(engine)
    if not math.isfinite(norm):
        raise TrainingError(
            f"the gradient is not finite at step {step}, where the loss is {loss} "
            f"({task.describe(step)})"
        )
    return loss, norm


def _apart(steps: int, times: int) -> int:
    """Steps between what is done so many times on the way."""
    return max(1, math.ceil(steps / (times + 1)))


def _note(history: History, state: _State, **values: float) -> None:
    """Add values to the history's point of this step."""
    if not history or history[-1]["step"] != state.step:
        history.append({"step": state.step, "spent_flops": state.spent, "tokens": state.tokens})
    history[-1].update(values)
