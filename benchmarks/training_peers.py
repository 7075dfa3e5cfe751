"""One training step beside sentence-transformers': the same model, texts, batch and optimizer.

    python benchmarks/training_peers.py [--vocabulary 4096,49152] [--heads dense,sparse] [--rounds 5]
    python benchmarks/training_peers.py --smoke     # a toy shape: does it run

A Llama of 4 layers and 256 hidden sizes, random and bidirectional, all weights trained in float32 by torch's AdamW.
A step has 16 queries with 4 passages each, random tokens of MS MARCO's lengths (`raylab.data.known_sizes`, at 1.33
tokens a word), cut to 64 and 128. Both compute InfoNCE of dot products over all passages of the step: raylab's
dense and sparse heads under CL, and `MultipleNegativesRankingLoss` over mean pooling, `SpladeLoss` over max
pooling. sentence-transformers' columns are padded each to its longest text, as its collator does; tokenising is
in neither. Each is a process of its own with one thread, and they take turns, step by step: seconds are CPU
seconds, the median of the rounds; memory is the peak resident set above that before the model was made.

Exits with 1 below the pass marks (not with --smoke): dense at least 1.3 times as fast; sparse, at the largest
vocabulary, at least 2.5 times, in at most half of the memory. Without sentence-transformers (the extra `test`)
it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from training_step import PlainEngine
from transformers import LlamaConfig, LlamaForCausalLM

from raylab.data.known_sizes import KNOWN_SIZES, Words
from raylab.data.supervision.batches import Batch, Draw, GroupTexts, pad
from raylab.data.supervision.length_groups import length_groups
from raylab.experiment.config import Backbone, FineTuning
from raylab.experiment.grid import Cell
from raylab.experiment.heads import HEADS
from raylab.experiment.objectives import CL
from raylab.models.heads import logit_scale
from raylab.planning.flops import Shape
from raylab.training.fine_tuning import FineTuningModule, FineTuningTask

SYSTEMS = ("raylab", "sentence-transformers")
DENSE_FASTER, SPARSE_FASTER, SPARSE_MEMORY = 1.3, 2.5, 0.5
TOKENS_A_WORD, QUERY_LIMIT, PASSAGE_LIMIT = 1.33, 64, 128
RATE, TEMPERATURE, QUERY_WEIGHT, PASSAGE_WEIGHT = 1e-4, 1.0, 0.05, 0.04


@dataclass(frozen=True)
class Size:
    """Of the model and of a step; `passages` a query."""

    vocabulary: int
    layers: int = 4
    hidden: int = 256
    queries: int = 16
    passages: int = 4


def model_of(size: Size) -> LlamaForCausalLM:
    """The same random weights in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64 or 1,
        num_key_value_heads=size.hidden // 64 or 1,
        tie_word_embeddings=True,
        use_cache=False,
    )
    config.is_causal = False
    return LlamaForCausalLM(config).train()


def texts_of(size: Size, step: int) -> list[np.ndarray]:
    """Token ids of the queries, then of each query's passages."""
    random, known = np.random.default_rng(step), KNOWN_SIZES["msmarco"]

    def lengths(words: Words, count: int, limit: int) -> list[int]:
        tokens = np.rint(random.choice(words.lengths(), count) * TOKENS_A_WORD)
        return np.clip(tokens, 1, limit).astype(int).tolist()

    listed = size.queries * size.passages
    counts = lengths(known.query_words, size.queries, QUERY_LIMIT)
    counts += lengths(known.passage_words, listed, PASSAGE_LIMIT)
    return [random.integers(1, size.vocabulary, count) for count in counts]


# ------------------------------------------------------------------------------------- raylab


class RandomTexts:
    """Stands in for `TrainingBatches`."""

    def __init__(self, size: Size):
        self.size, self.passages = size, size.passages

    def draw(self, step: int) -> Draw:
        size, texts = self.size, texts_of(self.size, step)
        rows_QK = np.zeros((size.queries, size.passages), np.int64)
        groups = length_groups(np.array([len(text) for text in texts]), size.queries)
        return Draw(np.full(size.queries, step), rows_QK, rows_QK > 0, None, groups)

    def collate(self, draw: Draw, rank: int, world: int) -> Batch:
        cut, texts = draw.length_groups, texts_of(self.size, int(draw.groups_Q[0]))
        groups = tuple(
            GroupTexts(*pad([texts[i] for i in places], int(length), 0), places, len(places))
            for places, length in zip(cut.share(rank, world), cut.lengths_G, strict=True)
        )
        excluded_QP = np.zeros((len(draw.groups_Q), draw.rows_QK.size), bool)
        return Batch(groups, cut.dealt(world), None, excluded_QP)


def raylab_step(head: str, size: Size) -> Callable[[int], float]:
    """A step of raylab: its loss."""
    model = model_of(size)
    tuning = FineTuning(
        batch_queries=size.queries,
        negatives=size.passages - 1,
        lora=None,
        checkpointing=False,
        temperature=TEMPERATURE,
        lambda_query=QUERY_WEIGHT,
        lambda_passage=PASSAGE_WEIGHT,
        ramp_steps=1,
    )
    module = FineTuningModule(model, HEADS[head])
    cell = Cell(Backbone("peer", "peer", start="random"), HEADS[head], CL, tuning, 1.0)
    batches: Any = RandomTexts(size)
    task = FineTuningTask(module, cell, Shape.of(model.config), batches, steps=1000)
    engine = PlainEngine(module, RATE)

    def take(step: int) -> float:
        loss = task.backward(engine, step)
        engine.step()
        return loss

    return take


# ---------------------------------------------------------------------- sentence-transformers


class States(nn.Module):
    """What its own `Transformer` module does: token states, or under the sparse head the scaled logits."""

    def __init__(self, model: LlamaForCausalLM, sparse: bool):
        super().__init__()
        self.model, self.sparse = model, sparse

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids, mask = features["input_ids"], features["attention_mask"]
        states = self.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.sparse:
            states = self.model.lm_head(states * logit_scale(states.shape[-1]))
        return features | {"token_embeddings": states}


class Normalised(nn.Module):
    """Token states of unit length, whose mean is raylab's dense head."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states = nn.functional.normalize(features["token_embeddings"], dim=-1)
        return features | {"token_embeddings": states}


def peer_step(head: str, size: Size) -> Callable[[int], float]:
    """A step of sentence-transformers: its loss."""
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sparse_encoder import losses as sparse_losses
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from sentence_transformers.util import dot_score

    model, sparse = model_of(size), head == "sparse"
    states = States(model, sparse)
    scale = 1 / TEMPERATURE
    encoder: Any
    loss_of: Any
    if sparse:
        encoder = nn.Sequential(states, SpladePooling("max"))
        ranking = sparse_losses.SparseMultipleNegativesRankingLoss(encoder, scale=scale)
        loss_of = sparse_losses.SpladeLoss(encoder, ranking, PASSAGE_WEIGHT, QUERY_WEIGHT)
    else:
        encoder = nn.Sequential(states, Normalised(), Pooling(size.hidden, pooling_mode="mean"))
        loss_of = losses.MultipleNegativesRankingLoss(encoder, scale, dot_score)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def take(step: int) -> float:
        texts = texts_of(size, step)
        columns = [texts[: size.queries]]
        columns += [
            texts[size.queries + column :: size.passages] for column in range(size.passages)
        ]
        features = []
        for column in columns:
            ids, mask = pad(column, max(map(len, column)), 0)
            tensors = torch.from_numpy(ids), torch.from_numpy(mask).long()
            features.append(dict(zip(("input_ids", "attention_mask"), tensors, strict=True)))
        found: Any = loss_of(features, None)
        loss: Any = sum(found.values()) if isinstance(found, dict) else found
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return take


# ---------------------------------------------------------------------------------- measuring


def held_bytes() -> tuple[int, int]:
    """(resident set, its peak since the last reset) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    resident, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return resident, peak


def work(system: str, head: str, size: Size) -> None:
    """A process that takes the steps it is asked for, a line each: loss, CPU seconds, peak bytes."""
    torch.set_num_threads(1)
    make = {"raylab": raylab_step, "sentence-transformers": peer_step}[system]
    if system == "sentence-transformers":
        import sentence_transformers.sparse_encoder  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, _ = held_bytes()
    take = make(head, size)
    for line in sys.stdin:
        began = time.process_time()
        loss = take(int(line))
        seconds = time.process_time() - began
        print(json.dumps([loss, seconds, held_bytes()[1] - before]), flush=True)


class Worker:
    """One system in a process of its own."""

    def __init__(self, system: str, head: str, size: Size):
        arguments = ["--work", system, head, json.dumps(vars(size))]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.seconds: list[float] = []
        self.loss, self.peak = float("nan"), 0

    def step(self, number: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args}: ended with {self.process.wait()}")
        loss, seconds, self.peak = json.loads(line)
        self.seconds.append(seconds)
        if len(self.seconds) == 1:
            self.loss = loss  # of equal weights

    def end(self) -> None:
        self.process.communicate()


def compare(head: str, size: Size, rounds: int) -> tuple[float, float]:
    """(how many times as fast raylab is, its share of the other's memory); prints both.

    Raises:
        RuntimeError: the two do not compute the same loss.
    """
    workers = {system: Worker(system, head, size) for system in SYSTEMS}
    for number in range(1, rounds + 2):
        for worker in workers.values():
            worker.step(number)
    for worker in workers.values():
        worker.end()
    ours, theirs = workers.values()
    if not np.isclose(ours.loss, theirs.loss, rtol=1e-4):
        raise RuntimeError(f"{head}: losses differ: {ours.loss} and {theirs.loss}")
    times = {name: worker.seconds[1:] for name, worker in workers.items()}
    faster = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    memory = ours.peak / theirs.peak
    for name, worker in workers.items():
        seconds = statistics.median(times[name])
        ratios = f"{faster:.2f} | {memory:.2f}" if worker is ours else "1.00 | 1.00"
        print(
            f"| {head} | {size.vocabulary:,} | {name} | {seconds:.3f} | {worker.peak / 2**20:,.0f} | {ratios} |",
            flush=True,
        )
    return faster, memory


def padding(size: Size, rounds: int) -> str:
    """What both multiply, of the same steps."""
    real = ours = theirs = 0.0
    for step in range(2, rounds + 2):
        lengths = np.array([len(text) for text in texts_of(size, step)])
        passages = lengths[size.queries :]
        real += lengths.sum()
        ours += length_groups(lengths, size.queries).padded_tokens
        theirs += size.queries * lengths[: size.queries].max() + len(passages) * passages.max()
    return f"tokens multiplied a real one: raylab {ours / real:.3f}, sentence-transformers {theirs / real:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocabulary", default="4096,49152")
    parser.add_argument("--heads", default="dense,sparse")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        system, head, size = args.work
        work(system, head, Size(**json.loads(size)))
        return 0
    if importlib.util.find_spec("sentence_transformers") is None:
        print('sentence-transformers is not installed: pip install "raylab[test]"', file=sys.stderr)
        return 2
    vocabularies = [int(v) for v in args.vocabulary.split(",")]
    small = {"layers": 2, "hidden": 64, "queries": 4, "passages": 2} if args.smoke else {}
    rounds = 1 if args.smoke else args.rounds
    sizes = [Size(512, **small)] if args.smoke else [Size(v) for v in vocabularies]
    print(padding(sizes[0], rounds))
    print(
        "| head | vocabulary | system | CPU s a step | peak MiB | times as fast | share of memory |"
    )
    print("|---|--:|---|--:|--:|--:|--:|", flush=True)
    failed = []
    for head in args.heads.split(","):
        for size in sizes:
            faster, memory = compare(head, size, rounds)
            if head == "dense" and faster < DENSE_FASTER:
                failed.append(f"dense, V = {size.vocabulary:,}: {faster:.2f} times as fast")
            slow = faster < SPARSE_FASTER or memory > SPARSE_MEMORY
            if head == "sparse" and size.vocabulary == max(vocabularies) and slow:
                failed.append(
                    f"sparse, V = {size.vocabulary:,}: {faster:.2f} times as fast, in {memory:.2f} of the memory"
                )
    for line in [] if args.smoke else failed:
        print(f"below the pass mark: {line}", file=sys.stderr)
    return 1 if failed and not args.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
