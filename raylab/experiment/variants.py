"""What the experiments vary: named changes to the cells of a grid (`raylab.experiment.config.Variant`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raylab.experiment.grid import Variant

# The shared stable phase of WSD: what else depends on a run's length is said in steps (2405.18392). Small
# batches, so that whole steps of the largest size come near the smallest budget.
STABLE: dict[str, Any] = {
    "batch_queries": 8,
    "learning_rate": 1e-3,
    "schedule": "wsd",
    "decay_fraction": 0.2,
    "warmup_steps": 4,
    "ramp_steps": 20,
}


def budget_variants(
    budgets_flops: Sequence[float], stable: dict[str, Any] = STABLE
) -> tuple[Variant, ...]:
    """One variant a budget; all of a cell's are decays from one stable phase."""
    return tuple(
        Variant(f"{flops:g}", fine_tuning=stable, budget_flops=flops)
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
                heads=("sparse",),
            )
            for weight in (0.0, 1e-4, 1e-2, 1e-1)
        ),
        *(
            Variant(
                f"wrong-scores-{share:g}",
                fine_tuning={"corrupted_scores": share},
                objectives=("kd", "cl+kd"),
            )
            for share in (0.25, 0.5)
        ),
    )
