"""Make the pico ladder that the package ships: one tokenizer, five sizes, from SciFact's abstracts.

python experiments/pretrain_ladder.py [--sizes pico-1x96,...] [--out raylab/assets/ladder]
"""

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from raylab.data.collections import read_passages
from raylab.data.sources import open_collection
from raylab.training.pretraining import Pretraining, Rung, pretrain, train_tokenizer

VOCABULARY = 4_096
LADDER = (
    Rung("pico-1x96", layers=1, hidden=96, heads=3, intermediate=192),
    Rung("pico-2x96", layers=2, hidden=96, heads=3, intermediate=192),
    Rung("pico-2x128", layers=2, hidden=128, heads=4, intermediate=384),
    Rung("pico-3x192", layers=3, hidden=192, heads=6, intermediate=512),
    Rung("pico-5x256", layers=5, hidden=256, heads=8, intermediate=704),
)
TEXT = "SciFact corpus (Wadden et al. 2020; abstracts from S2ORC, ODC-By 1.0)"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sizes", default=",".join(r.name for r in LADDER))
    options.add_argument("--out", type=Path, default=Path("raylab/assets/ladder"))
    options.add_argument("--steps", type=int, default=Pretraining().steps)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    passages = list(read_passages(open_collection("scifact").passages))
    existing = next(iter(sorted(chosen.out.glob("*/tokenizer.json"))), None)
    if existing:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(existing.parent))
    else:
        tokenizer = train_tokenizer((f"{p.title} {p.text}" for p in passages), VOCABULARY)
    for rung in LADDER:
        if rung.name in chosen.sizes.split(","):
            command = (
                f"python experiments/pretrain_ladder.py --sizes {rung.name} --steps {chosen.steps}"
            )
            pretrain(
                rung,
                tokenizer,
                [p.text for p in passages],
                Pretraining(steps=chosen.steps),
                chosen.out / rung.name,
                TEXT,
                command,
                say=lambda text, name=rung.name: print(name, text, flush=True),
            )


if __name__ == "__main__":
    main()
