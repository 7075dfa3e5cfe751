"""Fine-tuning of one cell: CL, KD or CL+KD over the representations of all workers.

A step's texts, queries and passages together, are encoded in groups of like length
(`raylab.data.supervision.length_groups`), and their representations put back in order before the loss.

Legend: Q queries, P passages of all queries, K listed passages a query, B texts, L tokens, D size of a
representation, V vocabulary, W workers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from raylab.data.supervision.batches import Batch, TrainingBatches
from raylab.experiment.grid import Cell
from raylab.experiment.heads import Head
from raylab.experiment.references import load_reference
from raylab.models.backbone import hidden_states, output_weight
from raylab.models.heads import prune_top_k, represent
from raylab.planning.flops import Shape, fine_tuning_flops, fine_tuning_rows
from raylab.training.distributed import gather_in_order, rank_and_world
from raylab.training.engine import random_state, restore_random_state
from raylab.training.loop import Evaluation, StepCost
from raylab.training.losses import StepScores, ramp, regularisers
from raylab.training.validation import Validation

# (ids_BL, mask_BL, top_k_B) of texts that are encoded together. Top-K, int64 on the CPU, prunes each text under the
# sparse head, and 0 keeps all terms. Rows beyond those of top_k_B are encoded and dropped.
Texts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class FineTuningModule(nn.Module):
    """Backbone and head as one module, so that ZeRO sees every use of a parameter."""

    def __init__(self, model: Any, head: Head):
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, *texts: Texts) -> tuple[torch.Tensor, ...]:
        """Float32 representations [B, D] of each group of texts."""
        weight_VD = output_weight(self.model)
        all_reps = []
        for ids, mask, top_k_B in texts:
            reps = represent(self.head, hidden_states(self.model, ids, mask), weight_VD, mask)
            reps = reps[: len(top_k_B)]
            all_reps.append((prune_top_k(reps, top_k_B) if self.head.is_sparse else reps).float())
        return tuple(all_reps)


@dataclass
class FineTuningTask:
    """CL, KD or CL+KD of one cell (`raylab.training.loop.Task`).

    `micro_batch_texts` is how many texts a worker encodes at once, activations and all; 0: its
    whole share of the batch. `validation` is measured after the steps `measured_at`.
    """

    module: FineTuningModule
    cell: Cell
    shape: Shape
    batches: TrainingBatches
    steps: int
    micro_batch_texts: int = 0
    validation: Validation | None = None
    measured_at: Collection[int] = ()

    def cost(self, step: int) -> StepCost:
        """FLOPs and tokens of the plain step, whatever the micro-batch and the number of workers.

        Micro-batching encodes all texts once more and pads them less; that is how the step is
        executed and not what it computes, so it changes neither the plan nor the account.
        """
        groups = self.batches.draw(step).length_groups
        flops = fine_tuning_flops(self.cell, self.shape, fine_tuning_rows(groups))
        return StepCost(flops, groups.real_tokens, groups.padded_tokens)

    def backward(self, engine: Any, step: int) -> float:
        """The step's gradients, whole or by micro-batches: the same but for the order of sums."""
        rank, world = rank_and_world()
        batch = self.batches.collate(self.batches.draw(step), rank, world)
        if not 0 < self.micro_batch_texts < batch.places_WB.shape[1]:
            loss = self._loss(engine(*self._texts(batch)), batch, step)
            engine.backward(loss * world)
            return float(loss.detach())
        return self._backward_by_parts(engine, batch, step)

    def _backward_by_parts(self, engine: Any, batch: Batch, step: int) -> float:
        """GradCache (2101.06983): a contrastive batch of any size in the memory of a micro-batch.

        All texts are encoded without gradient; the loss gives the gradient of every representation;
        then each micro-batch is encoded again, from the random state (dropout) it had before, and
        its representations' gradients flow on into the weights.
        """
        parts = [
            part
            for texts, group in zip(self._texts(batch), batch.groups, strict=True)
            for part in micro_batches(texts, group.most, self.micro_batch_texts)
        ]
        states, encoded = [], []
        with torch.no_grad():
            for part in parts:
                states.append(random_state())
                encoded += engine(part)
        counts = [len(reps) for reps in encoded]
        leaf = torch.cat(encoded).requires_grad_()
        del encoded  # else the loss would have them beside it
        loss = self._loss([leaf], batch, step)
        (gradient,) = torch.autograd.grad(loss * rank_and_world()[1], [leaf])
        of_parts = zip(parts, states, gradient.split(counts), strict=True)
        for number, (part, state, gradients) in enumerate(of_parts, 1):
            restore_random_state(state)
            # ZeRO keeps adding up until the last one, then shares the sum among the workers.
            engine.set_gradient_accumulation_boundary(number == len(parts))
            (reps,) = engine(part)
            engine.backward((reps * gradients).sum())
        return float(loss.detach())

    def _texts(self, batch: Batch) -> list[Texts]:
        device, tuning, queries = self._device, self.cell.fine_tuning, len(batch.excluded_QP)
        return [
            (
                torch.from_numpy(group.ids_BL).to(device),
                torch.from_numpy(group.mask_BL).to(device),
                torch.from_numpy(
                    np.where(group.places_B < queries, tuning.top_k_query, tuning.top_k_passage)
                ),
            )
            for group in batch.groups
        ]

    def _loss(self, local_reps: Sequence[torch.Tensor], batch: Batch, step: int) -> torch.Tensor:
        """Loss of the whole batch from this worker's representations, in the order of its texts."""
        queries_QD, passages_PD = gather_in_order(
            local_reps, batch.places_WB, len(batch.excluded_QP)
        )
        teacher_QK = batch.teacher_QK
        loss = objective_loss(
            self.cell,
            queries_QD,
            passages_PD,
            self.batches.passages,
            None if teacher_QK is None else torch.from_numpy(teacher_QK).to(self._device),
            torch.from_numpy(batch.excluded_QP).to(self._device),
        )
        if self.cell.head.is_sparse:
            tuning, in_batch = self.cell.fine_tuning, self.cell.objective.in_batch
            risen = ramp(step, self.steps, tuning)
            listed = self.batches.passages
            for term in regularisers(queries_QD, passages_PD, listed, tuning, in_batch, risen):
                loss = loss + term
        return loss

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def evaluate(self, engine: Any) -> Evaluation:
        """How well validation queries are answered; the rest is measured by retrieval, when it is trained."""
        if self.validation is None:
            return Evaluation()
        values, warning = self.validation.measure(engine, self._device)
        return Evaluation(values, self.validation.flops, warning)

    def describe(self, step: int) -> str:
        groups = self.batches.draw(step).groups_Q
        names = ", ".join(self.batches.groups.query_ids[g] for g in groups[:8])
        return f"queries {names}{', ...' if len(groups) > 8 else ''}"


def micro_batches(texts: Texts, most: int, at_once: int) -> list[Texts]:
    """A group's texts, cut into micro-batches of at most `at_once` that are padded to their own longest.

    All workers make as many, which ZeRO's exchanges need: as the one with the `most` texts of the group does. One
    that has no text left encodes a token and drops it.
    """
    ids_BL, mask_BL, top_k_B = texts
    parts = []
    for start in range(0, most, at_once):
        rows = slice(start, start + at_once)
        top_k = top_k_B[rows]
        kept, longest = (rows, int(mask_BL[rows].sum(1).max())) if len(top_k) else (slice(1), 1)
        parts.append((ids_BL[kept, :longest], mask_BL[kept, :longest], top_k))
    return parts


def objective_loss(
    cell: Cell,
    queries_QD: torch.Tensor,
    passages_PD: torch.Tensor,
    listed: int,
    teacher_QK: torch.Tensor | None,
    excluded_QP: torch.Tensor,
) -> torch.Tensor:
    """The cell's objective over a step's queries and their `listed` passages each.

    Which of the passages are a query's negatives: `raylab.training.losses.negatives_seen`.
    """
    step = StepScores(queries_QD @ passages_PD.T, excluded_QP, listed, teacher_QK)
    return load_reference(cell.objective.loss)(step, cell.fine_tuning)
