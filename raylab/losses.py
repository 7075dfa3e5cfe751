"""Losses: pure functions of score matrices and representations (paper.md, Fine-tuning).

Legend: Q queries, P passages of all queries, K listed passages a query (positive first), B texts,
V vocabulary. Scores are float32.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def info_nce(
    scores_QP: torch.Tensor,
    positive_Q: torch.Tensor,
    temperature: float,
    excluded_QP: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of each query's positive against all passages; `excluded_QP` drops false negatives."""
    logits_QP = scores_QP / temperature
    if excluded_QP is not None:
        logits_QP = logits_QP.masked_fill(excluded_QP, -torch.inf)
    return F.cross_entropy(logits_QP, positive_Q)


def margin_mse(scores_QK: torch.Tensor, teacher_QK: torch.Tensor) -> torch.Tensor:
    """Mean squared error of (positive - negative) margins against the teacher's (2010.02666)."""
    student = scores_QK[:, :1] - scores_QK[:, 1:]
    teacher = teacher_QK[:, :1] - teacher_QK[:, 1:]
    return F.mse_loss(student, teacher)


def kl_distillation(scores_QK: torch.Tensor, teacher_QK: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of softmaxes over each query's own passages, mean over queries."""
    return F.kl_div(
        scores_QK.log_softmax(1), teacher_QK.log_softmax(1), reduction="batchmean", log_target=True
    )


def hybrid(contrastive: torch.Tensor, distillation: torch.Tensor) -> torch.Tensor:
    """CL+KD: 0.5 * (InfoNCE + KL)."""
    return 0.5 * (contrastive + distillation)


def flops_regularizer(reps_BV: torch.Tensor) -> torch.Tensor:
    """sum_v (mean_b |rep[b, v]|)^2 (2004.05665)."""
    return reps_BV.abs().mean(0).square().sum()


def flops_weight(step: int, steps: int, weight: float) -> float:
    """The regulariser's weight at an optimizer step: quadratic from 0 over the first third of the steps.

    The paper's code counts micro-batches; counted in optimizer steps it does not depend on accumulation.
    """
    ramp = max(steps / 3, 1.0)
    return weight * min(step / ramp, 1.0) ** 2


def listed_scores(scores_QP: torch.Tensor, passages: int) -> torch.Tensor:
    """Each query's scores of its own K listed passages, [Q, K], out of the full [Q, Q K] matrix."""
    Q = len(scores_QP)
    return scores_QP.view(Q, Q, passages)[torch.arange(Q), torch.arange(Q)]
