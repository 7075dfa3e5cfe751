"""What it costs to feed a training step: draw and collate, against the step of the smallest model.

    python benchmarks/feeding.py [--size pico-1x96] [--groups 100000] [--negatives 200] [--passages 200000]
    python benchmarks/feeding.py --smoke     # a small store, fewer steps: does it run

Groups and passages are made at random in the lengths of MS MARCO; the steps are raylab's own
(`FineTuningTask`) with plain AdamW on one thread, under the embedded ladder's recipe. Times are CPU times,
medians over the steps; the step's is without its feeding. Also told: what a worker holds in memory of its
own for the batches, beside the arrays that are memory-mapped. Exits with 1 when feeding takes 5 % of a
step or more (not with --smoke).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from training_step import PlainEngine

from raylab.data.supervision.batches import TrainingBatches
from raylab.data.supervision.groups import Groups, Ragged, Strings
from raylab.data.tokens import PassageStore, write_store
from raylab.experiment.grid import Cell
from raylab.experiment.heads import HEADS
from raylab.experiment.ladders import LADDERS
from raylab.experiment.objectives import OBJECTIVES
from raylab.models.backbone import add_lora
from raylab.models.hub import load_base, load_tokenizer
from raylab.planning.flops import Shape, passages_per_query
from raylab.training.engine import seed_worker
from raylab.training.fine_tuning import FineTuningModule, FineTuningTask

LIMIT = 0.05
_SHARD = 50_000
_WORDS = ("what", "is", "the", "cost", "of", "a", "gene", "cell", "virus", "mouse", "heart", "dose")


def make_store(folder: Path, passages: int, vocabulary: int, rng: np.random.Generator):
    """Passages of 20 to 140 random tokens, the first 5 of each their title."""

    def shards():
        for start in range(0, passages, _SHARD):
            count = min(_SHARD, passages - start)
            ids = [f"{row:08d}" for row in range(start, start + count)]
            lengths = rng.integers(20, 140, count)
            flat = rng.integers(1, vocabulary, lengths.sum(), dtype=np.uint16)
            yield ids, np.split(flat, np.cumsum(lengths)[:-1]), [5] * count

    write_store(folder, shards(), np.uint16)
    return PassageStore(folder)


def make_groups(folder: Path, groups: int, negatives: int, passages: int, rng) -> Groups:
    """Groups of as many queries, half of them titles, with scores; mapped from files as a worker's are."""

    def mapped(name: str, array: np.ndarray) -> np.ndarray:
        np.save(folder / f"{name}.npy", array)
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

    def strings(name: str, texts: list[str]) -> Strings:
        made = Ragged.of([np.frombuffer(text.encode(), np.uint8) for text in texts], np.uint8)
        return Strings(Ragged(mapped(name, made.flat), mapped(f"{name}.offsets", made.offsets)))

    offsets = np.arange(groups + 1, dtype=np.int64) * negatives
    flat = rng.integers(passages, size=groups * negatives, dtype=np.int32)
    scores = rng.normal(size=groups * negatives).astype(np.float32)
    return Groups(
        query_ids=strings("query_ids", [f"q{number}" for number in range(groups)]),
        queries=strings(
            "queries", [" ".join(rng.choice(_WORDS, rng.integers(3, 12))) for _ in range(groups)]
        ),
        body_only=mapped("body_only", np.arange(groups) % 2 == 1),
        positives=mapped("positives", rng.integers(passages, size=groups, dtype=np.int32)),
        negatives=Ragged(mapped("negatives", flat), mapped("offsets", offsets)),
        mined=mapped("mined", np.full(groups, negatives // 2, np.int32)),
        positive_scores=mapped("positive_scores", rng.normal(size=groups).astype(np.float32)),
        negative_scores=Ragged(mapped("negative_scores", scores), offsets),
    )


def held_bytes() -> int:
    """Memory of this process that is no file's: what other workers do not share."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    )
    return 1024 * int(fields["Anonymous"].split()[0])


def show_memory(args, groups: Groups, store: PassageStore) -> None:
    backbone, recipe = LADDERS["pico"].backbones[0], LADDERS["pico"].recipe
    tokenizer = load_tokenizer(backbone, None)
    tokenizer.encode(["the tokenizer's own memory"])
    before = held_bytes()
    batches = TrainingBatches(
        groups, store, tokenizer, recipe.fine_tuning["sparse", "cl+kd"], 4, 0, needs_teacher=True
    )
    batches.collate(batches.draw(0))
    held = held_bytes() - before
    mapped = groups.negatives.flat.nbytes + groups.negatives.offsets.nbytes
    mapped += groups.negative_scores.flat.nbytes if groups.negative_scores else 0
    print(f"a worker holds {held / 2**20:.0f} MiB, and maps {mapped / 2**20:.0f} MiB of groups")


def measure(
    args, head: str, objective: str, groups: Groups, store: PassageStore
) -> tuple[float, float]:
    """Seconds (to feed a step, of its forward, backward and update)."""
    ladder = LADDERS["pico"]
    backbone = next(size for size in ladder.backbones if size.name == args.size)
    tuning = ladder.recipe.fine_tuning[head, objective]
    cell = Cell(backbone, HEADS[head], OBJECTIVES[objective], tuning, budget_flops=1.0)
    seed_worker(0)
    model, tokenizer = load_base(backbone, None)
    model = (add_lora(model, tuning.lora) if tuning.lora is not None else model).train()
    batches = TrainingBatches(
        groups, store, tokenizer, tuning, passages_per_query(cell), 0, cell.objective.needs_teacher
    )
    module = FineTuningModule(model, HEADS[head])
    task = FineTuningTask(module, cell, Shape.of(model.config), batches, steps=1000)
    engine = PlainEngine(module, tuning.learning_rate)
    feeding, training = [], []
    for step in range(args.steps + 2):
        began = time.process_time()
        draw = batches.draw(step)
        drawn = time.process_time()
        batches.collate(draw)
        fed = time.process_time()
        task.backward(engine, step)  # collates once more
        engine.step()
        feeding.append(fed - began)
        training.append(time.process_time() - fed - (fed - drawn))
    return statistics.median(feeding[2:]), statistics.median(training[2:])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="pico-1x96")
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--negatives", type=int, default=200)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.groups, args.passages, args.steps = 500, 1_000, 1
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(LADDERS["pico"].backbones[0], None)
        store = make_store(Path(folder, "store"), args.passages, tokenizer.vocabulary, rng)
        groups = make_groups(Path(folder), args.groups, args.negatives, args.passages, rng)
        print(
            f"{args.size}, {args.groups} groups of {args.negatives} negatives, "
            f"{args.passages} passages, one thread"
        )
        show_memory(args, groups, store)
        print("| head | objective | feed ms | step ms | feed / step |")
        print("|---|---|---|---|---|")
        for head in HEADS:
            for objective in OBJECTIVES:
                feed, step = measure(args, head, objective, groups, store)
                worst = max(worst, feed / step)
                print(
                    f"| {head} | {objective} | {1e3 * feed:.2f} | {1e3 * step:.1f} "
                    f"| {feed / step:.1%} |",
                    flush=True,
                )
    return 0 if args.smoke or worst < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
