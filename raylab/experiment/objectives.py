"""Objectives: what fine-tuning minimises. A new objective is one `Objective`, here or in a file of
one's own; nothing compares the names of objectives."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylab.experiment.config import ELSEWHERE, ConfigError, FineTuning, check
from raylab.experiment.references import check_reference


@dataclass(frozen=True)
class Objective:
    """One training objective; plain data, as a `raylab.experiment.heads.Head` is.

    Args:
        name: in cells, tables and files.
        loss: `package.module:function` of (`raylab.training.losses.StepScores`, `FineTuning`) to a scalar.
        needs_teacher: whether it compares with a teacher's scores of the listed passages.
        in_batch: whether a query is compared with the passages of all other queries of the step, or with
            the passages listed for it alone.
        recipe: the objective whose hyper-parameters it takes where a ladder's recipe has none for it;
            by default its own, else those of "kd" (with a teacher) or "cl".
        label: in tables and charts; the name by default.
    """

    name: str
    loss: str
    needs_teacher: bool
    in_batch: bool
    recipe: str = ""
    label: str = field(default="", metadata={ELSEWHERE: True})

    def __post_init__(self) -> None:
        right = "a word without blanks, slashes and commas"
        named = bool(self.name) and not set(self.name) & set(" /,*")
        check(named, "objective.name", self.name, right)
        check_reference("objective.loss", self.loss)

    @property
    def recipe_name(self) -> str:
        """Of the objective whose hyper-parameters it takes."""
        return self.recipe or ("kd" if self.needs_teacher else "cl")

    def passages(self, tuning: FineTuning) -> int:
        """Passages a query in a step: the positive and the listed negatives.

        MarginMSE on listed passages alone compares with one negative (2502.15526, Fine-tuning).
        """
        if not self.in_batch and tuning.kd_loss == "margin_mse":
            return 2
        return 1 + tuning.negatives


_LOSSES = "raylab.training.losses"
CL = Objective("cl", f"{_LOSSES}:contrastive", False, True, label="CL")
KD = Objective("kd", f"{_LOSSES}:distillation", True, False, label="KD")
CL_KD = Objective("cl+kd", f"{_LOSSES}:contrastive_and_distillation", True, True, label="CL+KD")
OBJECTIVES = {objective.name: objective for objective in (CL, KD, CL_KD)}


def find_objective(name: str) -> Objective:
    """A built-in objective by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"objective {name!r}: it must be one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
