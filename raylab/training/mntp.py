"""MNTP, masked next-token prediction: the loss, and the adaptation of one size (2502.15526, Backbone).

Legend: B blocks or texts, L tokens, N tokens that are to be predicted, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from raylab.data.supervision.batches import MaskedBlocks
from raylab.experiment.config import Adaptation
from raylab.models.backbone import hidden_states, output_weight
from raylab.planning.flops import Shape, adaptation_flops
from raylab.training.distributed import rank_and_world, summed
from raylab.training.loop import Evaluation, StepCost


def next_token_losses(
    model: Any,
    inputs_BL: torch.Tensor,
    targets_BL: torch.Tensor,
    chosen_BL: torch.Tensor,
    mask_BL: torch.Tensor | None = None,
    bias_V: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses_N, right_N) of the chosen tokens, each predicted from the state one position before.

    Args:
        inputs_BL: token ids as the model sees them, masked.
        targets_BL: the true ids.
        chosen_BL: bool, which to predict; position 0, which nothing precedes, is left out.
        mask_BL: True at real tokens; None: there is no padding.
        bias_V: added to the logits.

    Returns:
        Float32 cross-entropies in nats, and whether the likeliest token was the true one.
    """
    mask_BL = torch.ones_like(inputs_BL) if mask_BL is None else mask_BL
    hidden_BLD = hidden_states(model, inputs_BL, mask_BL)
    before_ND = hidden_BLD[:, :-1][chosen_BL[:, 1:]]
    logits_NV = (before_ND @ output_weight(model).T).float()
    if bias_V is not None:
        logits_NV = logits_NV + bias_V
    targets_N = targets_BL[:, 1:][chosen_BL[:, 1:]]
    losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    return losses_N, logits_NV.detach().argmax(1) == targets_N


class MaskedModule(nn.Module):
    """Sum of the masked tokens' losses, and how many predictions were right."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self, inputs_BL: torch.Tensor, targets_BL: torch.Tensor, selected_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses_N, right_N = next_token_losses(self.model, inputs_BL, targets_BL, selected_BL)
        return losses_N.sum(), right_N.sum()


@dataclass
class AdaptationTask:
    """MNTP of one size (`raylab.training.loop.Task`)."""

    module: MaskedModule
    adaptation: Adaptation
    shape: Shape
    blocks: MaskedBlocks

    @property
    def steps(self) -> int:
        return self.adaptation.steps

    def cost(self, step: int) -> StepCost:
        """What a training step takes, unpadded as it is; measuring on held-out blocks is not counted."""
        flops = adaptation_flops(self.shape, self.adaptation) / max(self.steps, 1)
        tokens = float(self.adaptation.batch_blocks * self.adaptation.block_length)
        return StepCost(flops, tokens, tokens)

    def backward(self, engine: Any, step: int) -> float:
        """The mean over all masked tokens of all workers."""
        rank, world = rank_and_world()
        inputs, targets, selected = self._tensors(self.blocks.batch(step, rank, world))
        total, _ = engine(inputs, targets, selected)
        loss_sum, count = summed(total, selected[:, 1:].sum())
        engine.backward(total / count * world)
        return loss_sum / count

    @property
    def measured_at(self) -> None:
        """At the start, at the end and four times between."""
        return None

    @torch.no_grad()
    def evaluate(self, engine: Any) -> Evaluation:
        """Loss and accuracy of the masked tokens of the held-out blocks, shared by the workers."""
        rank, world = rank_and_world()
        device = self._device
        losses, right, count = torch.zeros(3, dtype=torch.float64, device=device)
        training = engine.training
        engine.eval()
        for arrays in self.blocks.held_out_batches(rank, world):
            inputs, targets, selected = self._tensors(arrays)
            total, hits = engine(inputs, targets, selected)
            losses, right, count = losses + total, right + hits, count + selected[:, 1:].sum()
        engine.train(training)
        loss_sum, right_sum, tokens = summed(losses, right, count)
        if not tokens:
            return Evaluation()
        values = {"held_out_loss": loss_sum / tokens, "held_out_accuracy": right_sum / tokens}
        return Evaluation(values)

    def _tensors(self, arrays: Any) -> list[torch.Tensor]:
        return [torch.from_numpy(a).to(self._device) for a in arrays]

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def describe(self, step: int) -> str:
        first = step * self.adaptation.batch_blocks
        return f"token blocks {first} to {first + self.adaptation.batch_blocks - 1}"


def held_out_summary(history: list[dict[str, float]]) -> dict[str, float]:
    """Held-out loss and accuracy at the end of a run, and before its first step."""
    measured = [point for point in history if "held_out_loss" in point]
    if not measured:
        return {}
    first, last = measured[0], measured[-1]
    names = ("held_out_loss", "held_out_accuracy")
    return {n: last[n] for n in names} | {f"{n}_before": first[n] for n in names}
