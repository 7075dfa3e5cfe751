"""Recipes: how every size of a ladder is adapted, tuned and encoded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from raylab.experiment.config import Adaptation, ConfigError, Encoding, FineTuning, Lora
from raylab.experiment.grid import Recipe
from raylab.experiment.heads import HEADS
from raylab.experiment.objectives import OBJECTIVES
from raylab.experiment.paper import paper_as_run_recipe, paper_recipe
from raylab.experiment.recipe_file import read_recipe


def pico_recipe() -> Recipe:
    """The embedded default's recipe, tuned on SciFact's validation queries (docs/log.md)."""
    lora = Lora(dropout=0.0, train_embeddings=True)

    def tuning(head: str, objective: str) -> FineTuning:
        contrastive, dense = objective == "cl", head == "dense"
        return FineTuning(
            # The sparse head's vocabulary projection costs most of a step: smaller steps, more of them.
            batch_queries=(64 if dense else 24) if contrastive else (16 if dense else 12),
            negatives=1 if contrastive else 3,
            random_fraction=0.0 if contrastive else 0.5,
            learning_rate=2e-3,
            weight_decay=0.0,
            temperature=0.05 if dense else 0.5 if contrastive else 1.0,
            lambda_query=1e-3,
            lambda_passage=1e-3,
            top_k_query=40,
            top_k_passage=400,
            kd_loss="kl",
            teacher_scale=30.0,
            query_length=32,
            passage_length=64 if dense and not contrastive else 48,
            pseudo_fraction=0.5,
            lora=lora,
            checkpointing=False,
        )

    return Recipe(
        adaptation=Adaptation(
            steps=30,
            batch_blocks=32,
            block_length=64,
            learning_rate=3e-4,
            lora=lora,
            checkpointing=False,
        ),
        fine_tuning={(h, o): tuning(h, o) for h in HEADS for o in OBJECTIVES},
        encoding=Encoding(passage_length=128),
        budget_flops=1.0e12,
        # The cells' own batches and rates. Of the largest size a step is 7 % of the smallest budget of isoflop.py.
        stable={"warmup_steps": 4, "ramp_steps": 20},
    )


def smollm2_recipe() -> Recipe:
    """The paper's recipe in steps that one workstation takes: shorter MNTP, smaller batches, shorter texts."""
    paper = paper_recipe()
    smaller = {"batch_queries": 8, "negatives": 3, "passage_length": 128, "checkpointing": False}
    return dataclasses.replace(
        paper,
        adaptation=Adaptation(steps=50, batch_blocks=8, block_length=128, checkpointing=False),
        fine_tuning={
            key: dataclasses.replace(tuning, **smaller)  # type: ignore[arg-type]
            for key, tuning in paper.fine_tuning.items()
        },
        encoding=Encoding(passage_length=256),
        budget_flops=3e13,
        by_size={},
    )


RECIPES = {
    "paper": paper_recipe,
    "paper-as-run": paper_as_run_recipe,
    "pico": pico_recipe,
    "smollm2": smollm2_recipe,
}


def find_recipe(name_or_file: str) -> Recipe:
    """A recipe by its name, or from a TOML file of tuned cells (`raylab.experiment.recipe_file`).

    Raises:
        ConfigError: there is none, or a file with a mistake.
    """
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]()
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        names = ", ".join(RECIPES)
        raise ConfigError(f"recipe = {name_or_file!r}: it must be one of {names}, or a TOML file")
    return read_recipe(path, lambda name: RECIPES[name](), tuple(RECIPES))
