"""What is run: cells, what an experiment varies, the recipe of a ladder, the grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from raylab.experiment.config import (
    ELSEWHERE,
    Adaptation,
    Backbone,
    ComputeDtype,
    ConfigError,
    Encoding,
    FineTuning,
    check,
)
from raylab.experiment.faults import quarantined_kinds
from raylab.experiment.heads import HEADS, Head
from raylab.experiment.measures import OwnMeasure
from raylab.experiment.objectives import OBJECTIVES, Objective

AdaptationCharge = Literal["shared", "charged"]
Varied = Literal["", "budget", "recipe"]
CHARGES: tuple[AdaptationCharge, ...] = ("shared", "charged")


@dataclass(frozen=True)
class Cell:
    """One point of the grid: Backbone x Head x Objective x seed, and what it may cost.

    The contract is `budget_flops` FLOPs, or `epochs` over the training queries where these are set
    (`budget_flops` is then 0: what they cost follows). `adaptation` is the MNTP that the backbone has
    gone through, None the recipe's; with `charged_adaptation` its FLOPs are paid from the budget, in full,
    as if the retriever stood alone. `variant` names what an
    experiment changed, `varied` says what kind of change that is. `tuned`: whether the hyper-parameters were
    chosen for this cell, or transferred from others; None: the recipe does not say.
    """

    backbone: Backbone
    head: Head
    objective: Objective
    fine_tuning: FineTuning
    budget_flops: float
    seed: int = 0
    epochs: float | None = None
    charged_adaptation: bool = False
    adaptation: Adaptation | None = field(default=None, metadata={ELSEWHERE: True})
    variant: str = field(default="", metadata={ELSEWHERE: True})
    varied: Varied = field(default="", metadata={ELSEWHERE: True})
    tuned: bool | None = field(default=None, metadata={ELSEWHERE: True})

    def __post_init__(self) -> None:
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
        """What `--cells` filters match: `sparse-pico-1x192-cl+kd`, a variant's name at its end."""
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.head.name}-{self.backbone.name}-{self.objective.name}{variant}"

    @property
    def run_name(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def tuning_origin(self) -> str | None:
        """`tuned` or `transferred`; None where the recipe does not say."""
        return None if self.tuned is None else "tuned" if self.tuned else "transferred"


@dataclass(frozen=True)
class Variant:
    """A named change to the cells of a grid: what an experiment varies beside size, head and objective.

    `backbone`, `adaptation` and `fine_tuning` are fields of these configurations with other values;
    `heads` and `objectives` the cells that it is about. `stable`: all such variants of a cell, which differ in
    their budgets, are decays from one stable phase that they share; its warm-up and ramp are those of the
    smallest budget, and the recipe's `stable` fields hold.
    """

    name: str = ""
    backbone: Mapping[str, Any] = field(default_factory=dict)
    adaptation: Mapping[str, Any] = field(default_factory=dict)
    fine_tuning: Mapping[str, Any] = field(default_factory=dict)
    budget_flops: float | None = None
    heads: tuple[Head, ...] | None = None  # None: all of the grid
    objectives: tuple[Objective, ...] | None = None
    stable: bool = False

    @property
    def varied(self) -> Varied:
        """What kind of change it is: none, another budget, or another recipe."""
        if not self.name:
            return ""
        return "recipe" if self.budget_flops is None else "budget"

    def concerns(self, head: Head, objective: Objective) -> bool:
        """Whether cells of this head and objective are among those it changes."""
        return (self.heads is None or head in self.heads) and (
            self.objectives is None or objective in self.objectives
        )


@dataclass(frozen=True)
class Recipe:
    """How every cell of a ladder is adapted, tuned and encoded.

    `fine_tuning` is by the names of head and objective; `by_size` are fields of it that differ by size, `epochs`
    the paper's fixed budget as it was spent, both by the names of size and objective. `by_cell` are fields that were
    tuned for one cell, by the names of size, head and objective. `stable` are fields of
    `fine_tuning` in runs of several budgets, beside the schedule (`Variant.stable`).
    """

    adaptation: Adaptation
    fine_tuning: Mapping[tuple[str, str], FineTuning]
    encoding: Encoding
    budget_flops: float
    by_size: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    stable: Mapping[str, Any] = field(default_factory=dict)
    epochs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    by_cell: Mapping[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)

    def tuned(self, backbone: Backbone, head: Head, objective: Objective) -> bool | None:
        """Whether a cell's hyper-parameters were tuned for it; None where the recipe tells of no cell."""
        if not self.by_cell:
            return None
        return (backbone.name, head.name, objective.name) in self.by_cell

    def tuning(self, backbone: Backbone, head: Head, objective: Objective) -> FineTuning:
        """The hyper-parameters of a cell; those of a similar head or objective where it has none.

        Raises:
            ConfigError: neither.
        """
        heads = (head.name, head.recipe_name)
        objectives = (objective.name, objective.recipe_name)
        known = [(h, o) for h in heads for o in objectives if (h, o) in self.fine_tuning]
        if not known:
            raise ConfigError(f"the recipe has no fine_tuning for {heads} and {objectives}")
        changes = {
            **self.by_size.get((backbone.name, known[0][1]), {}),
            **self.by_cell.get((backbone.name, head.name, objective.name), {}),
        }
        return dataclasses.replace(self.fine_tuning[known[0]], **changes)


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
    own comes before all. `evaluation` are addresses of further collections that every system is measured on,
    beside the one that trains; `measures` are one's own, of every split beside those of its protocol.
    `adaptation_charge`: MNTP's FLOPs are shared by the cells of a size, beside their budgets, or charged to each.
    """

    ladder: Ladder
    collection: str
    budget_flops: float | None = None
    epochs: float | Literal["recipe"] | None = None
    sizes: tuple[str, ...] = ()
    heads: tuple[Head, ...] = tuple(HEADS.values())
    objectives: tuple[Objective, ...] = tuple(OBJECTIVES.values())
    seeds: tuple[int, ...] = (0,)
    variants: tuple[Variant, ...] = (Variant(),)
    cells_filter: str = "*"
    teacher: str | None = None
    total_budget_flops: float | None = None
    adaptation_charge: AdaptationCharge = "shared"
    on_fault: str = "error"  # see `quarantined_kinds`
    compute_dtype: ComputeDtype | None = None  # None: as the ladder's sizes say
    teacher_dtype: ComputeDtype = "float32"  # of a teacher that is a model
    evaluation: tuple[str, ...] = ()
    measures: tuple[OwnMeasure, ...] = ()

    def __post_init__(self) -> None:
        quarantined_kinds(self.on_fault)
        check(bool(self.seeds), "seeds", self.seeds, "at least one")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "distinct")
        names = [variant.name for variant in self.variants]
        check(bool(names) and len(set(names)) == len(names), "variants", names, "distinct names")
        own = [measure.name for measure in self.measures]
        check(len(set(own)) == len(own), "measures", own, "distinct names")
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
            if variant.concerns(head, objective)
            for seed in self.seeds
        ]
        patterns = [p.strip() for p in self.cells_filter.split(",")]
        chosen = tuple(c for c in cells if any(fnmatchcase(c.name, p) for p in patterns))
        if not chosen:
            names = ", ".join(dict.fromkeys(c.name for c in cells))
            raise ConfigError(f"cells_filter {self.cells_filter!r} matches none of: {names}")
        return chosen

    @property
    def _computed(self) -> dict[str, Any]:
        """What the grid says of every backbone."""
        return {} if self.compute_dtype is None else {"compute_dtype": self.compute_dtype}

    def _tuning(self, variant: Variant, plain: FineTuning) -> FineTuning:
        """The recipe's hyper-parameters of a cell, as the variant changes them."""
        if not variant.stable:
            return dataclasses.replace(plain, **variant.fine_tuning)
        budgets = [v.budget_flops for v in self.variants if v.stable and v.budget_flops is not None]
        changes = {**self.ladder.recipe.stable, **variant.fine_tuning}
        tuning = dataclasses.replace(plain, schedule="wsd", **changes)
        return tuning if tuning.extends else dataclasses.replace(tuning, pace_flops=min(budgets))

    def _cell(
        self,
        variant: Variant,
        backbone: Backbone,
        head: Head,
        objective: Objective,
        seed: int,
    ) -> Cell:
        recipe = self.ladder.recipe
        epochs = None if variant.budget_flops is not None else self.epochs
        if epochs == "recipe":
            key = backbone.name, objective.name
            if key not in recipe.epochs:
                raise ConfigError(
                    f"epochs: the recipe of ladder {self.ladder.name!r} lists none for "
                    f"{backbone.name} and {objective.name}; give a number, as in 3epochs"
                )
            epochs = recipe.epochs[key]
        given = (variant.budget_flops, self.budget_flops, recipe.budget_flops)
        flops = next(flops for flops in given if flops is not None)
        return Cell(
            backbone=dataclasses.replace(backbone, **{**self._computed, **variant.backbone}),
            head=head,
            objective=objective,
            fine_tuning=self._tuning(variant, recipe.tuning(backbone, head, objective)),
            budget_flops=0.0 if epochs is not None else flops,
            seed=seed,
            epochs=epochs,
            charged_adaptation=self.adaptation_charge == "charged",
            adaptation=dataclasses.replace(recipe.adaptation, **variant.adaptation),
            variant=variant.name,
            varied=variant.varied,
            tuned=recipe.tuned(backbone, head, objective),
        )
