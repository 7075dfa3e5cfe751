"""What the experiments vary: named changes to the cells of a grid (`raylab.experiment.grid.Variant`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raylab.experiment.config import ConfigError
from raylab.experiment.grid import Variant
from raylab.experiment.heads import SPARSE
from raylab.experiment.objectives import CL_KD, KD


def budget_variants(
    budgets_flops: Sequence[float], changes: Mapping[str, Any] | None = None
) -> tuple[Variant, ...]:
    """One variant a budget; all of a cell's are decays from one stable phase (WSD, 2405.18392).

    ``changes``: fields of `fine_tuning` that all of them change.
    """
    return tuple(
        Variant(f"{flops:g}", fine_tuning=changes or {}, budget_flops=flops, stable=True)
        for flops in sorted(budgets_flops)
    )


def with_budgets(
    variants: Sequence[Variant], budgets_flops: Sequence[float]
) -> tuple[Variant, ...]:
    """Variants of other budgets: the plain recipe's, or these where they vary in nothing but the budget.

    Raises:
        ConfigError: the variants vary in something else, which would be lost.
    """
    if tuple(variants) == (Variant(),):
        return budget_variants(budgets_flops)
    alike = {repr(replace(variant, name="", budget_flops=None)) for variant in variants}
    if len(alike) > 1 or any(variant.budget_flops is None for variant in variants):
        names = ", ".join(variant.name or "the plain recipe" for variant in variants)
        raise ConfigError(f"budgets: the experiment has variants already: {names}")
    return tuple(
        replace(variants[0], name=f"{flops:g}", budget_flops=flops)
        for flops in sorted(budgets_flops)
    )


def corruption_variants(shares: Sequence[float]) -> tuple[Variant, ...]:
    """A share of the training positives, and of the queries' teacher scores, is wrong; 0 is the plain recipe."""
    return tuple(
        Variant(
            f"wrong{share:g}",
            fine_tuning={"corrupted_positives": share, "corrupted_scores": share},
        )
        if share
        else Variant()
        for share in shares
    )


def ablation_variants() -> tuple[Variant, ...]:
    """One thing left out or changed at a time; the first is the recipe as it is."""
    return (
        Variant(),
        Variant("no-mntp", adaptation={"steps": 0}),
        Variant("causal", backbone={"bidirectional": False}),
        Variant("random-negatives", fine_tuning={"random_fraction": 1.0}),
        *(
            Variant(
                f"flops-{weight:g}",
                fine_tuning={"lambda_query": weight, "lambda_passage": weight},
                heads=(SPARSE,),
            )
            for weight in (0.0, 1e-4, 1e-2, 1e-1)
        ),
        *(
            Variant(
                f"wrong-scores-{share:g}",
                fine_tuning={"corrupted_scores": share},
                objectives=(KD, CL_KD),
            )
            for share in (0.25, 0.5)
        ),
    )
