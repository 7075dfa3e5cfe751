"""One worker's training: step, account, report, checkpoint, resume. Nothing here imports ray.

The same loop serves MNTP and fine-tuning; what differs is the `Task`: which module, what loss a
step has, what the step costs. Whoever runs the worker gives a `Reporter`: where progress goes and
where checkpoints are kept.

Legend: Q queries, P passages, K listed passages a query, B blocks or texts, L tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from raylab.budget import Rows, Shape, adaptation_flops, train_flops
from raylab.config import Adaptation, Cell, HeadKind
from raylab.data.batches import MaskedBlocks, TrainingBatches
from raylab.distributed import gather_with_gradient, rank_and_world
from raylab.engine import (
    Optimization,
    make_engine,
    random_states,
    restore_random_state,
    save_engine,
)
from raylab.losses import (
    flops_regularizer,
    flops_weight,
    hybrid,
    info_nce,
    kl_distillation,
    listed_scores,
    margin_mse,
)
from raylab.models.backbone import hidden_states, output_weight
from raylab.models.heads import prune_top_k, represent

_HISTORY_POINTS = 100


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
    """What one training run does in a step."""

    @property
    def module(self) -> Any:
        """What is trained: a torch module."""
        ...

    @property
    def steps(self) -> int: ...

    def loss(self, engine: nn.Module, step: int) -> tuple[torch.Tensor, float, float]:
        """(loss, FLOPs, tokens) of a step, FLOPs and tokens counted over all workers.

        The loss is scaled so that its gradient, averaged over the workers, is that of the whole batch.
        """
        ...

    def describe(self, step: int) -> str:
        """What the batch of a step holds, for error messages."""
        ...


# ------------------------------------------------------------------------------------- tasks


class FineTuningModule(nn.Module):
    """Backbone and head as one module, so that ZeRO sees every use of a parameter."""

    def __init__(self, model: Any, head: HeadKind, top_k: tuple[int, ...] = (0, 0)):
        """`top_k`: of each kind of text that `forward` gets, for the sparse head; 0 keeps all terms."""
        super().__init__()
        self.model, self.top_k = model, top_k
        self.head: HeadKind = head

    def forward(self, *texts: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """(ids_BL, mask_BL) pairs into representations."""
        weight_VD = output_weight(self.model)
        all_reps = []
        for (ids, mask), k in zip(texts, self.top_k, strict=True):
            reps = represent(self.head, hidden_states(self.model, ids, mask), weight_VD, mask)
            all_reps.append((prune_top_k(reps, k) if self.head == "sparse" else reps).float())
        return tuple(all_reps)


@dataclass
class FineTuningTask:
    """CL, KD or CL+KD of one cell, over the gathered representations of all workers."""

    module: FineTuningModule
    cell: Cell
    shape: Shape
    batches: TrainingBatches
    steps: int

    def loss(self, engine: nn.Module, step: int) -> tuple[torch.Tensor, float, float]:
        rank, world = rank_and_world()
        draw = self.batches.draw(step)
        batch = self.batches.collate(draw, rank, world)
        device = next(self.module.parameters()).device
        tensors = [
            torch.from_numpy(array).to(device)
            for array in (
                batch.query_ids_QL,
                batch.query_mask_QL,
                batch.passage_ids_PL,
                batch.passage_mask_PL,
            )
        ]
        reps_q, reps_p = engine((tensors[0], tensors[1]), (tensors[2], tensors[3]))
        reps_q, reps_p = gather_with_gradient(reps_q), gather_with_gradient(reps_p)
        teacher = (
            None if batch.teacher_QK is None else torch.from_numpy(batch.teacher_QK).to(device)
        )
        excluded = torch.from_numpy(batch.excluded_QP).to(device)
        loss = objective_loss(self.cell, reps_q, reps_p, self.batches.passages, teacher, excluded)
        if self.cell.head == "sparse":
            tuning = self.cell.fine_tuning
            weight_q = flops_weight(step, self.steps, tuning.lambda_query)
            weight_p = flops_weight(step, self.steps, tuning.lambda_passage)
            loss = (
                loss + weight_q * flops_regularizer(reps_q) + weight_p * flops_regularizer(reps_p)
            )
        rows = [
            Rows(len(draw.groups_Q), draw.query_length),
            Rows(draw.rows_QK.size, draw.passage_length),
        ]
        tuning = self.cell.fine_tuning
        flops = train_flops(self.shape, rows, self.cell.head, tuning.lora, tuning.checkpointing)
        return loss * world, flops, sum(r.tokens for r in rows)

    def describe(self, step: int) -> str:
        names = [self.batches.groups.query_ids[g] for g in self.batches.draw(step).groups_Q[:8]]
        return f"queries {', '.join(names)}, ..."


def objective_loss(
    cell: Cell,
    reps_q: torch.Tensor,
    reps_p: torch.Tensor,
    passages: int,
    teacher_QK: torch.Tensor | None,
    excluded_QP: torch.Tensor,
) -> torch.Tensor:
    """The cell's objective over all queries [Q, D] and passages [Q K, D] of a step."""
    tuning = cell.fine_tuning
    scores_QP = reps_q @ reps_p.T
    if cell.objective == "kd":
        assert teacher_QK is not None
        own_QK = listed_scores(scores_QP, passages) / tuning.temperature
        return (kl_distillation if tuning.kd_loss == "kl" else margin_mse)(own_QK, teacher_QK)
    positive_Q = torch.arange(len(reps_q), device=reps_q.device) * passages
    contrastive = info_nce(scores_QP, positive_Q, tuning.temperature, excluded_QP)
    if cell.objective == "cl":
        return contrastive
    assert teacher_QK is not None
    own_QK = listed_scores(scores_QP, passages) / tuning.temperature
    return hybrid(contrastive, kl_distillation(own_QK, teacher_QK))


class MaskedModule(nn.Module):
    """Sum of masked next-token losses, and how many predictions were right."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self, ids_BL: torch.Tensor, targets_BL: torch.Tensor, selected_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token at a selected position i is predicted from the state at i - 1 (paper.md)."""
        hidden_BLD = hidden_states(self.model, ids_BL, torch.ones_like(ids_BL))
        before_ND = hidden_BLD[:, :-1][selected_BL[:, 1:]]
        logits_NV = (before_ND @ output_weight(self.model).T).float()
        targets_N = targets_BL[:, 1:][selected_BL[:, 1:]]
        loss = nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")
        return loss, (logits_NV.argmax(1) == targets_N).sum()


@dataclass
class AdaptationTask:
    """MNTP of one size."""

    module: MaskedModule
    adaptation: Adaptation
    shape: Shape
    blocks: MaskedBlocks
    accuracy: float = 0.0

    @property
    def steps(self) -> int:
        return self.adaptation.steps

    def loss(self, engine: nn.Module, step: int) -> tuple[torch.Tensor, float, float]:
        rank, world = rank_and_world()
        device = next(self.module.parameters()).device
        ids, targets, selected = (
            torch.from_numpy(a).to(device) for a in self.blocks.batch(step, rank, world)
        )
        total, right = engine(ids, targets, selected)
        count = selected[:, 1:].sum().float()
        if world > 1:
            torch.distributed.all_reduce(count)
        self.accuracy = float(right) * world / float(count)
        flops = adaptation_flops(self.shape, self.adaptation) / max(self.steps, 1)
        tokens = float(self.adaptation.batch_blocks * self.adaptation.block_length)
        return total / count * world, flops, tokens

    def describe(self, step: int) -> str:
        first = step * self.adaptation.batch_blocks
        return f"token blocks {first} to {first + self.adaptation.batch_blocks - 1}"


# ------------------------------------------------------------------------------------- the loop


def run(
    task: Task,
    optimization: Optimization,
    reporter: Reporter,
    checkpoints: int,
    budget_flops: float | None = None,
) -> tuple[Any, Progress, list[dict[str, float]]]:
    """Train to the task's last step, from the reporter's newest checkpoint.

    Args:
        checkpoints: how many checkpoints to keep on the way.
        budget_flops: ends the run before a step that would overspend it.

    Returns:
        engine, final progress, and the history: step, loss, spent FLOPs at up to 100 points.

    Raises:
        TrainingError: a loss that is not finite.
    """
    engine = make_engine(task.module, task.steps, optimization)
    start, spent, tokens, seconds, loss = 0, 0.0, 0.0, 0.0, math.nan
    history: list[dict[str, float]] = []
    now = Progress(0, task.steps, 0.0, 0.0, math.nan, 0.0)
    with reporter.resume() as folder:
        if folder is not None:
            _, state = engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)
            start, spent, tokens, seconds = (
                state["step"],
                state["spent"],
                state["tokens"],
                state["seconds"],
            )
            history, loss = state["history"], state["loss"]
            now = Progress(start, task.steps, spent, tokens, loss, seconds)
            restore_random_state(state["random"][rank_and_world()[0] % len(state["random"])])
    every = max(1, math.ceil(task.steps / (checkpoints + 1)))
    points = max(1, task.steps // _HISTORY_POINTS)
    engine.train()
    for step in range(start, task.steps):
        began = time.perf_counter()
        scaled, flops, step_tokens = task.loss(engine, step)
        if budget_flops is not None and spent + flops > budget_flops * 1.02:
            break
        loss = float(scaled.detach()) / rank_and_world()[1]
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {step} ({task.describe(step)})")
        engine.backward(scaled)
        engine.step()
        spent, tokens = spent + flops, tokens + step_tokens
        seconds += time.perf_counter() - began
        now = Progress(step + 1, task.steps, spent, tokens, loss, seconds)
        if step % points == 0 or step + 1 == task.steps:
            history.append({"step": step + 1, "loss": loss, "spent_flops": spent})
        reporter.progress(now)
        if (step + 1) % every == 0 and step + 1 < task.steps:
            state = {
                "step": step + 1,
                "spent": spent,
                "tokens": tokens,
                "seconds": seconds,
                "loss": loss,
                "history": history,
                "random": random_states(),
            }
            reporter.checkpoint(lambda path, state=state: save_engine(engine, path, state), now)
    return engine, now, history
