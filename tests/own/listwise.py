"""An objective in one file outside the package: cross-entropy with the teacher's probabilities of listed passages."""

import torch

from raylab.experiment.config import FineTuning
from raylab.experiment.objectives import Objective
from raylab.training.losses import StepScores

LISTWISE = Objective(
    "listwise",
    "tests.own.listwise:soft_labels",
    needs_teacher=True,
    in_batch=False,
    label="Listwise",
)


def soft_labels(step: StepScores, tuning: FineTuning) -> torch.Tensor:
    """Cross-entropy of the student's probabilities under the teacher's, mean over queries."""
    student_QK = (step.own_QK / tuning.temperature).log_softmax(1)
    return -(step.taught_QK.softmax(1) * student_QK).sum(1).mean()
