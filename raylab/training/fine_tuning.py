"""Fine-tuning of one cell: CL, KD or CL+KD over the representations of all workers.

Legend: Q queries, P passages of all queries, K listed passages a query, B texts, L tokens, D size of a
representation, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raylab.data.supervision.batches import Batch, TrainingBatches
from raylab.experiment.grid import Cell
from raylab.experiment.heads import Head
from raylab.experiment.references import load_reference
from raylab.models.backbone import hidden_states, output_weight
from raylab.models.heads import prune_top_k, represent
from raylab.planning.flops import Rows, Shape, fine_tuning_flops
from raylab.training.distributed import gather_with_gradient, rank_and_world
from raylab.training.engine import random_state, restore_random_state
from raylab.training.loop import Evaluation
from raylab.training.losses import StepScores, ramp, regularisers
from raylab.training.validation import Validation

# (ids_BL, mask_BL, Top-K) of texts of one kind; Top-K prunes the sparse head, and 0 keeps all terms.
Texts = tuple[torch.Tensor, torch.Tensor, int]


class FineTuningModule(nn.Module):
    """Backbone and head as one module, so that ZeRO sees every use of a parameter."""

    def __init__(self, model: Any, head: Head):
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, *texts: Texts) -> tuple[torch.Tensor, ...]:
        """Float32 representations [B, D] of each kind of texts."""
        weight_VD = output_weight(self.model)
        all_reps = []
        for ids, mask, k in texts:
            reps = represent(self.head, hidden_states(self.model, ids, mask), weight_VD, mask)
            all_reps.append((prune_top_k(reps, k) if self.head.is_sparse else reps).float())
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

    def cost(self, step: int) -> tuple[float, float]:
        """FLOPs and real tokens of the plain step, whatever the micro-batch.

        Micro-batching encodes all texts once more and pads them less; that is how the step is
        executed and not what it computes, so it changes neither the plan nor the account.
        """
        draw = self.batches.draw(step)
        rows = [
            Rows(len(draw.groups_Q), draw.query_length, draw.query_tokens),
            Rows(draw.rows_QK.size, draw.passage_length, draw.passage_tokens),
        ]
        flops = fine_tuning_flops(self.cell, self.shape, rows)
        return flops, float(draw.query_tokens + draw.passage_tokens)

    def backward(self, engine: Any, step: int) -> float:
        """The step's gradients, whole or by micro-batches: the same but for the order of sums."""
        rank, world = rank_and_world()
        batch = self.batches.collate(self.batches.draw(step), rank, world)
        texts = self._texts(batch)
        if not 0 < self.micro_batch_texts < sum(len(ids) for ids, _, _ in texts):
            loss = self._loss(engine(*texts), batch, step)
            engine.backward(loss * world)
            return float(loss.detach())
        return self._backward_by_parts(engine, texts, batch, step)

    def _backward_by_parts(
        self, engine: Any, texts: Sequence[Texts], batch: Batch, step: int
    ) -> float:
        """GradCache (2101.06983): a contrastive batch of any size in the memory of a micro-batch.

        All texts are encoded without gradient; the loss gives the gradient of every representation;
        then each micro-batch is encoded again, from the random state (dropout) it had before, and
        its representations' gradients flow on into the weights.
        """
        device = texts[0][0].device
        parts = [
            (kind, torch.from_numpy(places).to(device))
            for kind, (_, mask, _) in enumerate(texts)
            for places in micro_batches(mask.sum(1).tolist(), self.micro_batch_texts)
        ]
        states, encoded = [], []
        with torch.no_grad():
            for kind, places in parts:
                states.append(random_state())
                encoded += engine(_take(texts[kind], places))
        leaves = []
        for kind, (ids, _, _) in enumerate(texts):
            of_kind = [(p, reps) for (k, p), reps in zip(parts, encoded, strict=True) if k == kind]
            reps = of_kind[0][1].new_empty(len(ids), of_kind[0][1].shape[1])
            for places, part in of_kind:
                reps[places] = part
            leaves.append(reps.requires_grad_())
        del encoded, of_kind, part  # else the loss would have them beside it
        loss = self._loss(leaves, batch, step)
        gradients = torch.autograd.grad(loss * rank_and_world()[1], leaves)
        for number, ((kind, places), state) in enumerate(zip(parts, states, strict=True)):
            restore_random_state(state)
            # ZeRO keeps adding up until the last one, then shares the sum among the workers.
            engine.set_gradient_accumulation_boundary(number + 1 == len(parts))
            (reps,) = engine(_take(texts[kind], places))
            engine.backward((reps * gradients[kind][places]).sum())
        return float(loss.detach())

    def _texts(self, batch: Batch) -> tuple[Texts, Texts]:
        device, tuning = self._device, self.cell.fine_tuning
        query_ids, query_mask, passage_ids, passage_mask = (
            torch.from_numpy(array).to(device)
            for array in (
                batch.query_ids_QL,
                batch.query_mask_QL,
                batch.passage_ids_PL,
                batch.passage_mask_PL,
            )
        )
        return (
            (query_ids, query_mask, tuning.top_k_query),
            (passage_ids, passage_mask, tuning.top_k_passage),
        )

    def _loss(self, local_reps: Sequence[torch.Tensor], batch: Batch, step: int) -> torch.Tensor:
        """Loss of the whole batch from this worker's representations (queries, passages)."""
        queries_QD, passages_PD = (gather_with_gradient(reps) for reps in local_reps)
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


def micro_batches(lengths: Sequence[int], texts: int) -> list[Any]:
    """Places of texts, shortest first, cut into micro-batches of at most `texts`.

    Their number depends on the number of texts alone: all workers, having as many, make as many,
    which ZeRO's exchanges need.
    """
    order = torch.tensor(lengths).argsort(stable=True).numpy()
    return [order[start : start + texts] for start in range(0, len(order), texts)]


def _take(texts: Texts, places: torch.Tensor) -> Texts:
    """Some of the texts, padded to the longest of them."""
    ids_BL, mask_BL, top_k = texts
    mask = mask_BL[places]
    longest = int(mask.sum(1).max())
    return ids_BL[places, :longest], mask[:, :longest], top_k


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
