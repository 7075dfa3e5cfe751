"""The losses of pre-training, which compose: a teacher's similarities, contrast, masked tokens.

A step sees two excerpts, a short and a long one, of each of B documents.

Legend: B documents, L tokens, D hidden size, V vocabulary, T dimensions of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from raylab.experiment.config import check
from raylab.experiment.heads import HEADS, SPARSE
from raylab.models.backbone import final_norm, hidden_states, output_weight
from raylab.models.heads import represent
from raylab.training.losses import flops_regularizer, info_nce, kl_distillation
from raylab.training.mntp import next_token_losses

Padded = tuple[torch.Tensor, torch.Tensor]  # ids_BL, mask_BL
Pair = tuple[torch.Tensor, torch.Tensor]  # of the short excerpts, of the long ones


@dataclass(frozen=True)
class Masked:
    """The long excerpts for MNTP: as the model sees them, as they are, which tokens are hidden, or shown and asked."""

    inputs_BL: torch.Tensor
    targets_BL: torch.Tensor
    selected_BL: torch.Tensor
    visible_BL: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """What a step trains on; `taught` are the teacher's embeddings of length 1."""

    short: Padded
    long: Padded
    taught: Pair
    masked: Masked | None = None


@dataclass
class Step:
    """A batch under the model: what its losses ask for is computed once.

    `bag`: the blocks are left out, which add nothing while their outputs are 0; a state is its token's embedding.
    """

    model: Any
    batch: Batch
    unigram_V: torch.Tensor | None = None  # log-probabilities
    bag: bool = False
    _represented: dict[str, Pair] = field(default_factory=dict)

    @cached_property
    def hidden(self) -> Pair:
        short, long = (self._states(*part) for part in self._parts)
        return short, long

    def _states(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        if self.bag:
            return final_norm(self.model)(self.model.get_input_embeddings()(ids_BL))
        return hidden_states(self.model, ids_BL, mask_BL)

    @property
    def _parts(self) -> tuple[Padded, Padded]:
        return self.batch.short, self.batch.long

    def reps(self, head: str) -> Pair:
        """Representations of short and long excerpts under a head, by its name."""
        if head not in self._represented:
            weight_VD = output_weight(self.model)
            short, long = (
                represent(HEADS[head], states, weight_VD, mask)
                for states, (_, mask) in zip(self.hidden, self._parts, strict=True)
            )
            self._represented[head] = short, long
        return self._represented[head]

    def scores(self, head: str, cosine: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """([B, B] of short with long, [B, B - 1] of long with the other long ones)."""
        short, long = self.reps(head)
        if cosine:
            short, long = F.normalize(short, dim=1), F.normalize(long, dim=1)
        return short @ long.T, _others(long @ long.T)

    @cached_property
    def taught(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's cosines, as `scores` has the student's."""
        short, long = self.batch.taught
        return short @ long.T, _others(long @ long.T)


def _others(square_BB: torch.Tensor) -> torch.Tensor:
    """[B, B - 1]: a square without its diagonal."""
    size = len(square_BB)
    return square_BB.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


class Loss(Protocol):
    """One term of the sum."""

    @property
    def weight(self) -> float: ...

    @property
    def heads(self) -> Sequence[str]:
        """The heads whose representations it needs."""
        ...

    @property
    def masks(self) -> bool:
        """Whether it needs the masked excerpts."""
        ...

    def __call__(self, step: Step) -> torch.Tensor: ...


@dataclass(frozen=True)
class Distillation:
    """KL from the softmax of the teacher's cosines to that of the student's scores over the documents of a step.

    Short excerpts against long ones, and long ones against the other long ones. The sparse head adds the FLOPS
    regulariser of both kinds.
    """

    head: str
    weight: float = 1.0
    temperature: float = 0.05
    teacher_temperature: float = 0.05
    cosine: bool = False  # of the student's scores, else dot products as in search
    flops_weight: float = 0.0
    masks = False

    def __post_init__(self) -> None:
        check(self.head in HEADS, "head", self.head, f"one of {', '.join(HEADS)}")
        for name in ("temperature", "teacher_temperature"):
            check(getattr(self, name) > 0, name, getattr(self, name), "positive")

    @property
    def heads(self) -> Sequence[str]:
        return (self.head,)

    def divergence(self, step: Step) -> torch.Tensor:
        """The two KLs' sum, in nats."""
        pairs = zip(step.scores(self.head, self.cosine), step.taught, strict=True)
        return sum(
            (kl_distillation(own / self.temperature, taught / self.teacher_temperature))
            for own, taught in pairs
        )  # type: ignore[return-value]

    def __call__(self, step: Step) -> torch.Tensor:
        loss = self.divergence(step)
        if self.flops_weight:
            density = sum(flops_regularizer(reps) for reps in step.reps(self.head))
            loss = loss + self.flops_weight * density
        return loss


@dataclass(frozen=True)
class Contrast:
    """InfoNCE: two excerpts of a document are a pair, those of the others its negatives (2112.09118)."""

    head: str
    weight: float = 1.0
    temperature: float = 0.05
    masks = False

    def __post_init__(self) -> None:
        check(self.head in HEADS, "head", self.head, f"one of {', '.join(HEADS)}")
        check(self.temperature > 0, "temperature", self.temperature, "positive")

    @property
    def heads(self) -> Sequence[str]:
        return (self.head,)

    def __call__(self, step: Step) -> torch.Tensor:
        short, long = step.reps(self.head)
        return info_nce(short @ long.T, torch.arange(len(short)), self.temperature)


@dataclass(frozen=True)
class MaskedTokens:
    """MNTP of the masked tokens of the long excerpts, and a share of it of some visible ones.

    The unigram log-probabilities of the text are a fixed bias of the logits, which is not saved: without it the
    states collapse on the direction of frequent tokens, through the tied embeddings.
    """

    weight: float = 1.0
    visible_weight: float = 0.5
    heads = ()
    masks = True

    def __call__(self, step: Step) -> torch.Tensor:
        masked = step.batch.masked
        if masked is None:
            raise ValueError("the batch has no masked excerpts")
        hidden_BL, shown_BL = masked.selected_BL[:, 1:], masked.visible_BL[:, 1:]
        asked_BL = masked.selected_BL | masked.visible_BL
        losses_N, _ = next_token_losses(
            step.model,
            masked.inputs_BL,
            masked.targets_BL,
            asked_BL,
            step.batch.long[1],
            step.unigram_V,
        )
        share_BL = hidden_BL / hidden_BL.sum().clamp(min=1)
        share_BL = share_BL + self.visible_weight * shown_BL / shown_BL.sum().clamp(min=1)
        return (losses_N * share_BL[hidden_BL | shown_BL]).sum()


class TaughtModule(nn.Module):
    """The weighted sum of the losses of a batch."""

    def __init__(
        self,
        model: Any,
        losses: Sequence[Loss],
        unigram_V: torch.Tensor | None = None,
        bag: bool = False,
    ):
        super().__init__()
        self.model, self.losses = model, tuple(losses)
        self.unigram_V, self.bag = unigram_V, bag

    def forward(self, batch: Batch) -> torch.Tensor:
        step = Step(self.model, batch, self.unigram_V, self.bag)
        return torch.stack([loss.weight * loss(step) for loss in self.losses]).sum()

    @torch.no_grad()
    def measures(self, batch: Batch) -> Mapping[str, float]:
        """KL to the teacher under every head that is taught, and the positive terms of a long excerpt."""
        step = Step(self.model, batch, self.unigram_V, self.bag)
        values = {}
        for loss in self.losses:
            if isinstance(loss, Distillation):
                values[f"held_out_kl_{loss.head}"] = float(loss.divergence(step))
                if HEADS[loss.head] == SPARSE:
                    terms = (step.reps(loss.head)[1] > 0).sum(1).float().mean()
                    values["held_out_active_terms"] = float(terms)
        return values


def log_unigrams(counts_V: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens counted in a text, one added to each count."""
    return torch.log((counts_V + 1.0) / (counts_V + 1.0).sum())
