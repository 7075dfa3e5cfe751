"""Losses: pure functions of score matrices and representations (2502.15526, Fine-tuning).

Legend: Q queries, P passages of all queries, K listed passages a query (positive first), B texts,
V vocabulary. Scores are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from raylab.experiment.config import FineTuning, check
from raylab.experiment.objectives import Objective


@dataclass(frozen=True)
class Negatives:
    """How many negatives one query sees: its own listed ones, and those of other queries."""

    listed: int  # drawn for the query itself
    in_batch: int  # passages of the other queries on the same worker
    across_devices: int  # passages of the queries on other workers

    @property
    def total(self) -> int:
        return self.listed + self.in_batch + self.across_devices


def negatives_seen(
    objective: Objective, queries: int, passages: int, workers: int, pool: int | None = None
) -> Negatives:
    """The one place that says how many negatives each query really sees in a step.

    An objective that is not `in_batch` compares a query with its listed passages alone. Any other takes
    all passages of the step (of CL+KD its InfoNCE half): the sum does not depend on the number of
    workers, and is lowered only by the query's other positives, which are excluded.

    Args:
        queries: of the whole batch, over all workers.
        passages: listed a query, the positive included.
        pool: the queries whose passages are each other's negatives; None: all of the batch.

    Raises:
        ConfigError: no passage beside the positive, or queries that the workers cannot share.
    """
    check(passages >= 2, "passages", passages, "a positive and at least one negative")
    check(workers >= 1, "workers", workers, "at least 1")
    check(queries % workers == 0, "queries", queries, f"divisible by {workers} workers")
    if not objective.in_batch:
        return Negatives(passages - 1, 0, 0)
    pool = pool or queries
    share = min(queries // workers, pool)
    return Negatives(passages - 1, (share - 1) * passages, (pool - share) * passages)


@dataclass(frozen=True)
class StepScores:
    """The scores of one step, as an objective's loss sees them; K is `listed` passages a query.

    `scores_QP`: every query with every passage of the step. `excluded_QP`: false negatives among them.
    `teacher_QK`: the teacher's scores of each query's listed passages; None where none is needed.
    """

    scores_QP: torch.Tensor
    excluded_QP: torch.Tensor
    listed: int
    teacher_QK: torch.Tensor | None

    @property
    def positive_Q(self) -> torch.Tensor:
        """int64: the column of each query's positive, the first of its listed passages."""
        return torch.arange(len(self.scores_QP), device=self.scores_QP.device) * self.listed

    @property
    def own_QK(self) -> torch.Tensor:
        """Each query's scores of its own listed passages."""
        return listed_scores(self.scores_QP, self.listed)

    @property
    def taught_QK(self) -> torch.Tensor:
        """The teacher's scores.

        Raises:
            ValueError: the step has none.
        """
        if self.teacher_QK is None:
            raise ValueError("the objective compares with a teacher, and the batch has no scores")
        return self.teacher_QK


def contrastive(step: StepScores, tuning: FineTuning) -> torch.Tensor:
    """CL: InfoNCE over the passages of the whole step, or of each pool of its queries."""
    pool = tuning.in_batch_queries or len(step.scores_QP)
    losses = []
    for start in range(0, len(step.scores_QP), pool):
        queries = slice(start, start + pool)
        passages = slice(start * step.listed, (start + pool) * step.listed)
        losses.append(
            info_nce(
                step.scores_QP[queries, passages],
                step.positive_Q[:pool],
                tuning.temperature,
                step.excluded_QP[queries, passages],
            )
        )
    return with_gradient_share(torch.stack(losses).mean(), tuning.gathered_gradient)


def distillation(step: StepScores, tuning: FineTuning) -> torch.Tensor:
    """KD: MarginMSE or KL against the teacher on each query's listed passages."""
    loss = kl_distillation if tuning.kd_loss == "kl" else margin_mse
    return loss(step.own_QK / tuning.temperature, step.taught_QK)


def contrastive_and_distillation(step: StepScores, tuning: FineTuning) -> torch.Tensor:
    """CL+KD: the mean of InfoNCE over the step and KL over the listed passages."""
    distilled = kl_distillation(step.own_QK / tuning.temperature, step.taught_QK)
    return hybrid(contrastive(step, tuning), distilled)


def with_gradient_share(loss: torch.Tensor, share: float) -> torch.Tensor:
    """The loss as it is, whose gradient is `share` of its own."""
    return loss if share == 1 else share * loss + (1 - share) * loss.detach()


def info_nce(
    scores_QP: torch.Tensor,
    positive_Q: torch.Tensor,
    temperature: float,
    excluded_QP: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of each query's positive against all passages, mean over queries (2502.15526).

    Args:
        scores_QP: of every query with every passage that it sees (`negatives_seen`).
        positive_Q: int64, the column of each query's positive.
        excluded_QP: bool, false negatives to leave out; never a query's positive.
    """
    logits_QP = scores_QP / temperature
    if excluded_QP is not None:
        logits_QP = logits_QP.masked_fill(excluded_QP, -torch.inf)
    return F.cross_entropy(logits_QP, positive_Q)


def margin_mse(scores_QK: torch.Tensor, teacher_QK: torch.Tensor) -> torch.Tensor:
    """Mean squared error of (positive - negative) margins against the teacher's (2010.02666).

    The positive is column 0; the mean is over queries and their K - 1 negatives.
    """
    student = scores_QK[:, :1] - scores_QK[:, 1:]
    teacher = teacher_QK[:, :1] - teacher_QK[:, 1:]
    return F.mse_loss(student, teacher)


def kl_distillation(scores_QK: torch.Tensor, teacher_QK: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of softmaxes over each query's own K passages, mean over queries."""
    return F.kl_div(
        scores_QK.log_softmax(1), teacher_QK.log_softmax(1), reduction="batchmean", log_target=True
    )


def hybrid(contrastive: torch.Tensor, distillation: torch.Tensor) -> torch.Tensor:
    """CL+KD: 0.5 * (InfoNCE + KL) (2502.15526, Fine-tuning)."""
    return 0.5 * (contrastive + distillation)


def flops_regularizer(reps_BV: torch.Tensor) -> torch.Tensor:
    """sum_v (mean_b |rep[b, v]|)^2 over the texts of all workers (2004.05665)."""
    return reps_BV.abs().mean(0).square().sum()


def regularisers(
    queries_QV: torch.Tensor,
    passages_PV: torch.Tensor,
    listed: int,
    tuning: FineTuning,
    in_batch: bool,
    risen: float,
) -> list[torch.Tensor]:
    """The weighted FLOPS regularisers of a step's queries, and of their `listed` passages each.

    `tuning.regulariser_queries` and `regulariser_apart` say over which texts a mean is. `risen` is the ramp's
    factor on both weights (`ramp`).
    """
    part = tuning.regulariser_queries or len(queries_QV)
    of_queries = [flops_regularizer(texts) for texts in queries_QV.split(part)]
    of_passages = []
    for texts in passages_PV.split(part * listed):
        positive = torch.arange(len(texts), device=texts.device) % listed == 0
        kinds = (texts[positive], texts[~positive]) if tuning.regulariser_apart else (texts,)
        of_passages += [flops_regularizer(kind) for kind in kinds]
    share = tuning.gathered_gradient if in_batch else 1.0
    return [
        with_gradient_share(weight * risen * torch.stack(losses).mean(), share)
        for weight, losses in (
            (tuning.lambda_query, of_queries),
            (tuning.lambda_passage, of_passages),
        )
    ]


def ramp(step: int, steps: int, tuning: FineTuning) -> float:
    """The factor on the regulariser's weights at an optimizer step: it rises quadratically from 0 to 1.

    Over `tuning.ramp_steps`, or its `ramp_fraction` of the steps (2502.15526: a third).
    """
    # A third is no float, and 3 is.
    by_length = steps / (1 / tuning.ramp_fraction)
    rise = by_length if tuning.ramp_steps is None else tuning.ramp_steps
    return min(step / max(rise, 1.0), 1.0) ** 2


def listed_scores(scores_QP: torch.Tensor, passages: int) -> torch.Tensor:
    """Each query's scores of its own K listed passages, [Q, K], out of the full [Q, Q K] matrix."""
    Q = len(scores_QP)
    return scores_QP.view(Q, Q, passages)[torch.arange(Q), torch.arange(Q)]
