"""The recipes of 2502.15526: as it trained, and with all that its code did on four devices.

Its text and its code differ in places; `paper_recipe` has the values that ran.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from raylab.experiment.config import Adaptation, Encoding, FineTuning, Lora
from raylab.experiment.grid import Recipe
from raylab.experiment.heads import HEADS
from raylab.experiment.objectives import OBJECTIVES

# Queries of a step and of a micro-batch over the four devices, as 2502.15526 ran: (size, contrastive or not).
_BATCHES = {
    ("1b", True): (112, 112),
    ("3b", True): (128, 64),
    ("8b", True): (128, 32),
    ("1b", False): (1024, 1024),
    ("3b", False): (512, 512),
    ("8b", False): (512, 256),
}
_DEVICES = 4


def paper_recipe() -> Recipe:
    """The hyper-parameters that ran for 2502.15526; one 8B epoch of CL is the budget.

    What its code did beside them, which depends on how many devices there were, is in `paper_as_run_recipe`.
    """
    # Fine-tuning goes on with the adapter of MNTP and its configuration, dropout included.
    lora = Lora(dropout=0.05)

    def tuning(head: str, objective: str) -> FineTuning:
        return FineTuning(
            batch_queries=512 if objective == "kd" else 128,
            negatives=16,
            weight_decay=0.0,
            temperature=0.01 if head == "dense" else 1.0,
            lora=lora,
        )

    return Recipe(
        # 32 blocks on each of four devices; the rate is laid out for the whole epoch.
        adaptation=Adaptation(batch_blocks=32 * _DEVICES, lora=lora, schedule_epochs=1.0),
        fine_tuning={(h, o): tuning(h, o) for h in HEADS for o in OBJECTIVES},
        encoding=Encoding(top_k_query=0, top_k_passage=0),
        budget_flops=5.5e19,
        by_size={
            key: {"batch_queries": batch}
            for key, (batch, _) in _by_objective(_BATCHES).items()
            if key[0] == "1b"
        },
        epochs=_paper_epochs(),
    )


def paper_as_run_recipe() -> Recipe:
    """`paper_recipe` with all that the code of 2502.15526 did on four devices, wanted or not.

    A micro-batch is its in-batch pool and one mean of the regulariser, whose ramp counts micro-batches; what
    is gathered from all devices keeps a gradient for one device's part, and is then averaged over all.
    """
    paper = paper_recipe()
    fine_tuning = {
        key: dataclasses.replace(tuning, regulariser_apart=True)
        if key[1] == "kd"
        else dataclasses.replace(tuning, gathered_gradient=1 / _DEVICES, keep_false_negatives=True)
        for key, tuning in paper.fine_tuning.items()
    }
    by_size = {
        (size, objective): _as_run(objective, batch, micro_batch)
        for (size, objective), (batch, micro_batch) in _by_objective(_BATCHES).items()
    }
    encoding = dataclasses.replace(paper.encoding, precision="float32")
    return dataclasses.replace(paper, fine_tuning=fine_tuning, by_size=by_size, encoding=encoding)


def _as_run(objective: str, batch: int, micro_batch: int) -> dict[str, Any]:
    """Fields of one size and objective, of the queries of a step and of a micro-batch."""
    fields = {"batch_queries": batch, "ramp_fraction": micro_batch / batch / 3}
    if objective == "kd":
        return fields | {"regulariser_queries": micro_batch // _DEVICES}
    return fields | {"in_batch_queries": micro_batch, "regulariser_queries": micro_batch}


def _by_objective(sizes: dict[tuple[str, bool], Any]) -> dict[tuple[str, str], Any]:
    """By size and objective, of what is by size and by whether the objective is contrastive."""
    return {
        (size, objective): value
        for (size, contrastive), value in sizes.items()
        for objective in (("cl", "cl+kd") if contrastive else ("kd",))
    }


def _paper_epochs() -> dict[tuple[str, str], float]:
    """The fixed budget as it was spent: (size, objective) -> epochs."""
    epochs: dict[tuple[str, str], float] = {}
    for size, contrastive, distilled in (("1b", 7, 56), ("3b", 3, 24), ("8b", 1, 8)):
        epochs[size, "cl"] = epochs[size, "cl+kd"] = contrastive
        epochs[size, "kd"] = distilled
    return epochs


WHY = {
    "in_batch_queries": (
        "Negatives came from one micro-batch over the devices, so from fewer queries the larger the model. "
        "The text compares with the passages of the whole batch, and so do all sizes alike here."
    ),
    "gathered_gradient": (
        "What is gathered from four devices carries a gradient for one device's part, and is then averaged: "
        "InfoNCE and the regulariser weigh a quarter of KL. Here they weigh what the formula says, on any "
        "number of devices."
    ),
    "ramp_fraction": (
        "The ramp counted micro-batches, so that it ended the sooner the more of them a step had. Here it "
        "counts steps."
    ),
    "regulariser_queries": (
        "The regulariser's mean was over a micro-batch, under KD over one device's. Here it is over the "
        "step, and does not depend on how the step is cut."
    ),
    "regulariser_apart": (
        "Under KD positives and negatives were regularised apart, and the two averaged. Here passages are "
        "one set."
    ),
    "keep_false_negatives": (
        "A query's other positives stayed among its in-batch negatives. Here they are left out."
    ),
    "precision": (
        "Representations were stored in float32. float16 takes half the space, and changes scores by less "
        "than 0.1 %."
    ),
}
"""Why `paper_recipe` does not do what `paper_as_run_recipe` does, by the name of the field."""


def differences() -> Iterator[tuple[str, str, Any, Any]]:
    """(where, field, its value as run, its value in `paper_recipe`) of all that differs."""
    paper, as_run = paper_recipe(), paper_as_run_recipe()
    for key, ran in _fields(as_run).items():
        ours = _fields(paper)[key]
        if ran != ours:
            yield (*key, ran, ours)


def _fields(recipe: Recipe) -> dict[tuple[str, str], Any]:
    """Values by (where, field): of every size and objective, and of the other parts."""
    parts: dict[str, Any] = {"MNTP": recipe.adaptation, "encoding": recipe.encoding}
    for head, objective in recipe.fine_tuning:
        for size in ("1b", "3b", "8b"):
            changes = recipe.by_size.get((size, objective), {})
            tuning = dataclasses.replace(recipe.fine_tuning[head, objective], **changes)
            parts[f"{size} {objective} {head}"] = tuning
    return {
        (where, field.name): getattr(part, field.name)
        for where, part in parts.items()
        for field in dataclasses.fields(part)
    }
