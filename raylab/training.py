"""One worker's training loop: step, account, report, checkpoint, resume. Nothing here imports ray.

The same loop serves pre-training, MNTP and fine-tuning; what differs is the `Task`: which module, how
a step's gradients come about, what the step costs. Whoever runs the worker gives a `Reporter`: where
progress goes and where checkpoints are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raylab.distributed import rank_and_world
from raylab.engine import (
    Optimization,
    make_engine,
    random_states,
    restore_random_state,
    save_engine,
    take_step,
)

_HISTORY_POINTS = 100
_OVERSPEND = 1.02  # of a budget: real batches differ a little from those the steps were solved from


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and the batch."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` of `steps`."""

    step: int
    steps: int
    spent_flops: float
    tokens: float
    loss: float
    seconds: float


class Reporter(Protocol):
    """Where a worker's progress goes and its checkpoints are kept."""

    def resume(self) -> AbstractContextManager[Path | None]:
        """The folder of the newest checkpoint, readable inside the context; None to start afresh."""
        ...

    def progress(self, progress: Progress) -> None: ...

    def checkpoint(self, write: Callable[[Path], None], progress: Progress) -> None:
        """Called on all workers: give `write` an empty folder, then keep it."""
        ...


class Task(Protocol):
    """What one training run does in a step. All methods are called on all workers alike."""

    @property
    def module(self) -> Any:
        """What is trained: a torch module."""
        ...

    @property
    def steps(self) -> int: ...

    def cost(self, step: int) -> tuple[float, float]:
        """(FLOPs, tokens) of a step over all workers, known before it is taken."""
        ...

    def backward(self, engine: Any, step: int) -> float:
        """Forward and backward of a step, through the engine; the optimizer's step is the loop's.

        Averaged over the workers, the engine's gradient must be that of the whole batch. Returns the
        loss of the whole batch, the same on all workers.
        """
        ...

    def evaluate(self, engine: Any) -> dict[str, float]:
        """Measures on held-out data, the same on all workers; nothing where there is none."""
        ...

    def describe(self, step: int) -> str:
        """What the batch of a step holds, for error messages."""
        ...


@dataclass
class _State:
    """What a checkpoint keeps beside weights, optimizer and schedule."""

    step: int = 0
    spent: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    loss: float = math.nan

    def progress(self, steps: int) -> Progress:
        return Progress(self.step, steps, self.spent, self.tokens, self.loss, self.seconds)


def run(
    task: Task,
    optimization: Optimization,
    reporter: Reporter,
    checkpoints: int,
    budget_flops: float | None = None,
) -> tuple[Any, Progress, list[dict[str, float]]]:
    """Train to the task's last step, from the reporter's newest checkpoint.

    A run that is stopped and resumed takes the same steps as one that never stopped: the batches and
    the schedule follow from the step, and the random state of every worker is in the checkpoint.

    Args:
        checkpoints: how many checkpoints to keep on the way.
        budget_flops: ends the run before a step that would overspend it.

    Returns:
        engine, final progress, and the history: loss, learning rate and spent FLOPs at up to 100
        steps, and the task's held-out measures at the start (step 0), at checkpoints and at the end.

    Raises:
        TrainingError: a loss or a gradient that is not finite.
    """
    engine = make_engine(task.module, task.steps, optimization)
    state, history = _State(), []
    with reporter.resume() as folder:
        if folder is not None:
            _, kept = engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)
            state, history = _State(**kept["state"]), kept["history"]
            restore_random_state(kept["random"][rank_and_world()[0] % len(kept["random"])])
    every = max(1, math.ceil(task.steps / (checkpoints + 1)))
    points = max(1, task.steps // _HISTORY_POINTS)
    if folder is None:
        _measure(task, engine, history, state)
    engine.train()
    while state.step < task.steps:
        began, step = time.perf_counter(), state.step
        flops, tokens = task.cost(step)
        if budget_flops is not None and state.spent + flops > budget_flops * _OVERSPEND:
            break
        rate = engine.get_lr()[0]
        loss = _step(task, engine, step)
        state = _State(
            step + 1,
            state.spent + flops,
            state.tokens + tokens,
            state.seconds + time.perf_counter() - began,
            loss,
        )
        if step % points == 0 or state.step == task.steps:
            _note(history, state, loss=loss, learning_rate=rate)
        reporter.progress(state.progress(task.steps))
        if state.step % every == 0 and state.step < task.steps:
            _measure(task, engine, history, state)
            kept = {"state": vars(state), "history": history, "random": random_states()}
            reporter.checkpoint(
                lambda path, kept=kept: save_engine(engine, path, kept), state.progress(task.steps)
            )
    if state.step:
        _measure(task, engine, history, state)
    return engine, state.progress(task.steps), history


def _step(task: Task, engine: Any, step: int) -> float:
    """One optimizer step; a loss that is not finite leaves the weights as they are."""
    loss = task.backward(engine, step)
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step} ({task.describe(step)})")
    if not take_step(engine):
        raise TrainingError(
            f"the gradient is not finite at step {step}, where the loss is {loss} "
            f"({task.describe(step)})"
        )
    return loss


def _measure(task: Task, engine: Any, history: list[dict[str, float]], state: _State) -> None:
    measures = task.evaluate(engine)
    if measures:
        _note(history, state, **measures)


def _note(history: list[dict[str, float]], state: _State, **values: float) -> None:
    """Add values to the history's point of this step."""
    if not history or history[-1]["step"] != state.step:
        history.append({"step": state.step, "spent_flops": state.spent})
    history[-1].update(values)
