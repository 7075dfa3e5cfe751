"""What is run: cells, what an experiment varies, the recipe of a ladder, the grid (rule 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from raylab.experiment.config import (
    ELSEWHERE,
    HEADS,
    LATER,
    OBJECTIVES,
    Adaptation,
    Backbone,
    ConfigError,
    Encoding,
    FineTuning,
    HeadKind,
    ObjectiveName,
    check,
    quarantined_kinds,
)

AdaptationCharge = Literal["shared", "charged"]
CHARGES: tuple[AdaptationCharge, ...] = ("shared", "charged")


@dataclass(frozen=True)
class Cell:
    """One point of the grid: Backbone x Head x Objective x seed (rule 1), and what it may cost.

    The contract is `budget_flops` FLOPs, or `epochs` over the training queries where these are set
    (`budget_flops` is then 0: what they cost follows). `adaptation` is the MNTP that the backbone has
    gone through, None the recipe's; with `charged_adaptation` its FLOPs are paid from the budget, in full,
    as if the retriever stood alone. `variant` names what an experiment changed.
    """

    backbone: Backbone
    head: HeadKind
    objective: ObjectiveName
    fine_tuning: FineTuning
    budget_flops: float
    seed: int = 0
    epochs: float | None = field(default=None, metadata={LATER: True})
    charged_adaptation: bool = field(default=False, metadata={LATER: True})
    adaptation: Adaptation | None = field(default=None, metadata={ELSEWHERE: True})
    variant: str = field(default="", metadata={ELSEWHERE: True})

    def __post_init__(self) -> None:
        check(self.head in HEADS, "cell.head", self.head, f"one of {HEADS}")
        check(
            self.objective in OBJECTIVES, "cell.objective", self.objective, f"one of {OBJECTIVES}"
        )
        flops, epochs = self.budget_flops, self.epochs
        if epochs is None:
            right = "a positive number of FLOPs"
            check(math.isfinite(flops) and flops > 0, "budget", flops, right)
        else:
            right = "a positive number of epochs"
            check(math.isfinite(epochs) and epochs > 0, "epochs", epochs, right)
            check(flops == 0, "budget", flops, "0 where epochs are given")
        right = "a budget in FLOPs: epochs leave nothing to charge MNTP to"
        check(epochs is None or not self.charged_adaptation, "charged_adaptation", True, right)

    @property
    def name(self) -> str:
        """What `--cells` filters match: `sparse-pico-2x128-cl+kd`, a variant's name at its end."""
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.head}-{self.backbone.name}-{self.objective}{variant}"

    @property
    def run_name(self) -> str:
        return f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class Variant:
    """A named change to the cells of a grid: what an experiment varies beside size, head and objective.

    `backbone`, `adaptation` and `fine_tuning` are fields of these configurations with other values;
    `heads` and `objectives` the cells that it is about.
    """

    name: str = ""
    backbone: Mapping[str, Any] = field(default_factory=dict)
    adaptation: Mapping[str, Any] = field(default_factory=dict)
    fine_tuning: Mapping[str, Any] = field(default_factory=dict)
    budget_flops: float | None = None
    heads: tuple[HeadKind, ...] = HEADS
    objectives: tuple[ObjectiveName, ...] = OBJECTIVES


@dataclass(frozen=True)
class Recipe:
    """How every cell of a ladder is adapted, tuned and encoded."""

    adaptation: Adaptation
    fine_tuning: Mapping[tuple[HeadKind, ObjectiveName], FineTuning]
    encoding: Encoding
    budget_flops: float
    # Batch sizes the paper chose by size: (size, objective) -> queries.
    batch_queries: Mapping[tuple[str, ObjectiveName], int] = field(default_factory=dict)
    # The paper's fixed budget as it was spent: (size, objective) -> epochs.
    epochs: Mapping[tuple[str, ObjectiveName], float] = field(default_factory=dict)

    def tuning(self, backbone: Backbone, head: HeadKind, objective: ObjectiveName) -> FineTuning:
        """The hyper-parameters of a cell."""
        tuning = self.fine_tuning[head, objective]
        batch = self.batch_queries.get((backbone.name, objective))
        return tuning if batch is None else dataclasses.replace(tuning, batch_queries=batch)


@dataclass(frozen=True)
class Ladder:
    """Sizes, smallest first, and the recipe they share."""

    name: str
    backbones: tuple[Backbone, ...]
    recipe: Recipe
    default: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [b.name for b in self.backbones]
        check(
            len(set(names)) == len(names) and bool(names),
            "ladder.backbones",
            names,
            "distinct names",
        )
        unknown = set(self.default) - set(names)
        check(not unknown, "ladder.default", sorted(unknown), f"among {names}")

    def select(self, sizes: tuple[str, ...] = ()) -> tuple[Backbone, ...]:
        """The named sizes (default: the ladder's own choice, else all), in ladder order."""
        wanted = sizes or self.default or tuple(b.name for b in self.backbones)
        known = {b.name: b for b in self.backbones}
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ConfigError(
                f"unknown size {unknown[0]!r}: ladder {self.name!r} has {', '.join(known)}"
            )
        return tuple(b for b in self.backbones if b.name in wanted)


@dataclass(frozen=True)
class Grid:
    """The experiment as data: which cells, on which collection, under which budget a cell.

    The budget of a cell is `budget_flops`, or `epochs` over the training queries (`"recipe"`: as many
    as the recipe lists for its size and objective), or the recipe's FLOPs where neither is given; a variant's
    own comes before all. `adaptation_charge`: MNTP's FLOPs are shared by the cells of a size, beside
    their budgets, or charged to each.
    """

    ladder: Ladder
    collection: str
    budget_flops: float | None = None
    epochs: float | Literal["recipe"] | None = None
    sizes: tuple[str, ...] = ()
    heads: tuple[HeadKind, ...] = HEADS
    objectives: tuple[ObjectiveName, ...] = OBJECTIVES
    seeds: tuple[int, ...] = (0,)
    variants: tuple[Variant, ...] = (Variant(),)
    cells_filter: str = "*"
    teacher: str | None = None
    total_budget_flops: float | None = None
    adaptation_charge: AdaptationCharge = "shared"
    on_fault: str = "error"  # see `quarantined_kinds`

    def __post_init__(self) -> None:
        quarantined_kinds(self.on_fault)
        check(bool(self.seeds), "seeds", self.seeds, "at least one")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "distinct")
        names = [variant.name for variant in self.variants]
        check(bool(names) and len(set(names)) == len(names), "variants", names, "distinct names")
        charge = self.adaptation_charge
        check(charge in CHARGES, "adaptation_charge", charge, f"one of {CHARGES}")
        both = self.budget_flops is not None and self.epochs is not None
        check(not both, "budget", self.budget_flops, "FLOPs or epochs, not both")

    def cells(self) -> tuple[Cell, ...]:
        """All selected cells; `ConfigError` when the filter leaves none."""
        cells = [
            self._cell(variant, backbone, head, objective, seed)
            for backbone in self.ladder.select(self.sizes)
            for head in self.heads
            for objective in self.objectives
            for variant in self.variants
            if head in variant.heads and objective in variant.objectives
            for seed in self.seeds
        ]
        patterns = [p.strip() for p in self.cells_filter.split(",")]
        chosen = tuple(c for c in cells if any(fnmatchcase(c.name, p) for p in patterns))
        if not chosen:
            names = ", ".join(dict.fromkeys(c.name for c in cells))
            raise ConfigError(f"--cells {self.cells_filter!r} matches none of: {names}")
        return chosen

    def _cell(
        self,
        variant: Variant,
        backbone: Backbone,
        head: HeadKind,
        objective: ObjectiveName,
        seed: int,
    ) -> Cell:
        recipe = self.ladder.recipe
        epochs = None if variant.budget_flops is not None else self.epochs
        if epochs == "recipe":
            key = backbone.name, objective
            if key not in recipe.epochs:
                raise ConfigError(
                    f"--budget epochs: the recipe of ladder {self.ladder.name!r} lists none for "
                    f"{backbone.name} and {objective}; give a number, as in 3epochs"
                )
            epochs = recipe.epochs[key]
        given = (variant.budget_flops, self.budget_flops, recipe.budget_flops)
        flops = next(flops for flops in given if flops is not None)
        return Cell(
            backbone=dataclasses.replace(backbone, **variant.backbone),
            head=head,
            objective=objective,
            fine_tuning=dataclasses.replace(
                recipe.tuning(backbone, head, objective), **variant.fine_tuning
            ),
            budget_flops=0.0 if epochs is not None else flops,
            seed=seed,
            epochs=epochs,
            charged_adaptation=self.adaptation_charge == "charged",
            adaptation=dataclasses.replace(recipe.adaptation, **variant.adaptation),
            variant=variant.name,
        )
