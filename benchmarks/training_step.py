"""One fine-tuning step at the paper's shapes on one GPU: seconds, share of the peak, memory.

    python benchmarks/training_step.py [--sizes 1B 3B 8B] [--heads sparse dense] [--micro-batch N]
    python benchmarks/training_step.py --tiny     # toy shapes on any machine: does it run

The step is raylab's own (`FineTuningTask`: encode, InfoNCE, FLOPS regulariser, backward) with plain
AdamW; neither Ray nor DeepSpeed is needed. Weights and tokens are random; the sparse head is set so
that `--active` of the vocabulary is active, as in a trained model.

Legend: Q queries, K passages a query, P passages of all queries, L tokens, D hidden size.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from raylab.data.supervision.batches import Batch, Draw, GroupTexts
from raylab.data.supervision.length_groups import length_groups
from raylab.experiment.config import Backbone, FineTuning, Lora
from raylab.experiment.grid import Cell
from raylab.experiment.heads import HEADS
from raylab.experiment.objectives import CL
from raylab.models.backbone import (
    add_lora,
    attention_for,
    final_norm,
    hidden_states,
    output_weight,
)
from raylab.planning.devices import DEVICES
from raylab.planning.flops import Rows, Shape, encode_flops, train_flops
from raylab.training.fine_tuning import FineTuningModule, FineTuningTask

LLAMA_3 = {
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Size:
    """A backbone's configuration and the paper's queries a GPU."""

    config: dict[str, Any]
    queries: int
    passages: int = 17
    query_length: int = 64
    passage_length: int = 128


SIZES = {
    "1B": Size(
        LLAMA_3
        | {
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
        queries=28,
    ),
    "3B": Size(
        LLAMA_3
        | {
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "intermediate_size": 8192,
            "num_attention_heads": 24,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
        queries=16,
    ),
    "8B": Size(
        LLAMA_3
        | {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "intermediate_size": 14_336,
            "num_attention_heads": 32,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
        queries=8,
    ),
}
TINY = Size(
    {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    queries=2,
    passages=3,
    query_length=8,
    passage_length=16,
)


class RandomBatches:
    """Stands in for `TrainingBatches`: full-length random tokens, no padding."""

    def __init__(self, size: Size, seed: int = 0):
        self.size, self.passages = size, size.passages
        self.random = np.random.default_rng(seed)

    def draw(self, step: int) -> Draw:
        size = self.size
        rows_QK = np.zeros((size.queries, size.passages), np.int64)
        return Draw(
            groups_Q=np.zeros(size.queries, np.int64),
            rows_QK=rows_QK,
            body_QK=np.zeros_like(rows_QK, bool),
            teacher_QK=None,
            length_groups=length_groups(
                np.repeat([size.query_length, size.passage_length], [size.queries, rows_QK.size]),
                size.queries,
            ),
        )

    def collate(self, draw: Draw, rank: int, world: int) -> Batch:
        cut = draw.length_groups
        groups = tuple(
            self._texts(places, int(length))
            for places, length in zip(cut.share(rank, world), cut.lengths_G, strict=True)
        )
        excluded_QP = np.zeros((len(draw.groups_Q), draw.rows_QK.size), bool)
        return Batch(groups, cut.dealt(world), None, excluded_QP)

    def _texts(self, places: np.ndarray, length: int) -> GroupTexts:
        ids_BL = self.random.integers(self.size.config["vocab_size"], size=(len(places), length))
        return GroupTexts(ids_BL, np.ones_like(ids_BL, bool), places, len(places))


class PlainEngine:
    """The part of a DeepSpeed engine that a task uses, over plain torch AdamW."""

    def __init__(self, module: FineTuningModule, learning_rate: float):
        self.module = module
        trainable = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=learning_rate)

    def __call__(self, *texts: Any) -> tuple[torch.Tensor, ...]:
        return self.module(*texts)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        pass

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_task(name: str, size: Size, head: str, args: argparse.Namespace) -> FineTuningTask:
    device = torch.device(args.device)
    config = LlamaConfig(**size.config, use_cache=False)
    config.is_causal = False
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=args.dtype, attn_implementation=attention_for(device)
        )
    tuning = FineTuning(
        batch_queries=size.queries,
        negatives=size.passages - 1,
        query_length=size.query_length,
        passage_length=size.passage_length,
        lora=Lora(),
        temperature=1.0 if head == "sparse" else 0.01,
    )
    if head == "sparse":
        set_active_terms(model, size, args.active)
    # DeepSpeed keeps adapters in the training dtype too; peft alone would make them fp32.
    model = add_lora(model, tuning.lora).to(args.dtype).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return FineTuningTask(
        FineTuningModule(model, HEADS[head]),
        Cell(Backbone(name, name, start="random"), HEADS[head], CL, tuning, budget_flops=1.0),
        Shape.of(config),
        RandomBatches(size),  # type: ignore[arg-type]
        steps=1000,
    )


@torch.no_grad()
def set_active_terms(model: Any, size: Size, share: float) -> None:
    """Make about `share` of the vocabulary active in a passage.

    Random states and weights have their largest logit above 0 for nearly all terms. One coordinate of
    the last states is fixed, and that of the weight moves all logits by the same amount; it is fixed
    to a large number, so that embeddings tied to the weight hardly change.
    """
    large = 1000.0

    def fix(_module: Any, _inputs: Any, states_BLD: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(states_BLD[..., :1], large), states_BLD[..., 1:]], dim=-1)

    final_norm(model).register_forward_hook(fix)
    weight_VD = output_weight(model)
    weight_VD[:, 0] = 0
    vocabulary, device = size.config["vocab_size"], weight_VD.device
    ids_BL = torch.randint(vocabulary, (4, size.passage_length), device=device)
    states_BLD = hidden_states(model, ids_BL, torch.ones_like(ids_BL))
    some = weight_VD[:: max(1, vocabulary // 4096)]
    maxima = (states_BLD @ some.T).amax(1).float().flatten()
    weight_VD[:, 0] = -(maxima.quantile(1 - share) / large).to(weight_VD.dtype)


def measure(task: FineTuningTask, args: argparse.Namespace) -> tuple[float, float]:
    """(median seconds of a step, peak bytes), after one step of warm-up."""
    engine = PlainEngine(task.module, task.cell.fine_tuning.learning_rate)
    seconds = []
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for step in range(args.steps + 1):
        began = time.perf_counter()
        task.backward(engine, step)
        engine.step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else float("nan")
    return statistics.median(seconds[1:]), peak


def fitting_measure(
    name: str, size: Size, head: str, args: argparse.Namespace
) -> tuple[FineTuningTask, float, float]:
    """Measure with the given micro-batch; one that does not fit is halved."""
    task = make_task(name, size, head, args)
    task.micro_batch_texts = args.micro_batch
    while True:
        try:
            return task, *measure(task, args)
        except torch.OutOfMemoryError:
            texts = size.queries * (1 + size.passages)
            task.micro_batch_texts = (task.micro_batch_texts or texts) // 2
            if task.micro_batch_texts == 0:
                raise
        task.module.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


def row(name: str, size: Size, head: str, args: argparse.Namespace) -> str:
    task, seconds, peak = fitting_measure(name, size, head, args)
    texts = size.queries * (1 + size.passages)
    rows = [
        Rows(size.queries, size.query_length),
        Rows(size.queries * size.passages, size.passage_length),
    ]
    tokens = sum(r.tokens for r in rows)
    lora = task.cell.fine_tuning.lora
    active = [args.active * task.shape.vocabulary] * 2
    model_flops, done_flops = (
        train_flops(task.shape, rows, HEADS[head], lora, checkpointing, active)
        for checkpointing in (False, True)
    )
    in_parts = 0 < task.micro_batch_texts < texts
    if in_parts:  # all texts are encoded once more
        done_flops += sum(encode_flops(task.shape, r, HEADS[head]) for r in rows)
    shares = "| - | - "
    if args.peak_flops:
        shares = (
            f"| {model_flops / seconds / args.peak_flops:.1%} "
            f"| {done_flops / seconds / args.peak_flops:.1%} "
        )
    memory = "-" if peak != peak else f"{peak / 2**30:.1f}"
    return (
        f"| {name} | {head} | {size.queries} x {1 + size.passages} | {tokens:,.0f} "
        f"| {task.micro_batch_texts if in_parts else 'whole'} | {seconds:.3f} "
        f"| {tokens / seconds:,.0f} | {done_flops / 1e12:.3g} {shares}| {memory} |"
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--micro-batch", type=int, default=0, help="texts at once; 0: all of them")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--active", type=float, default=0.005, help="share of active terms")
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=None,
        help="of the device in bf16; default: by its name",
    )
    parser.add_argument("--tiny", action="store_true", help="toy shapes, on any machine")
    args = parser.parse_args(argv)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device; --tiny runs toy shapes without one")
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    args.peak_flops = args.peak_tflops * 1e12 if args.peak_tflops else known_peak(args.device)
    return args


def known_peak(device: str) -> float | None:
    """The dense bf16 peak in FLOP/s of the card in hand, where raylab.planning.flops knows it."""
    if device != "cuda":
        return None
    card = torch.cuda.get_device_name().lower()
    return next((d.peak_flops for d in DEVICES.values() if d.name.partition("-")[0] in card), None)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{card}, {args.dtype}, torch {torch.__version__}, random weights, LoRA, checkpointing")
    if args.tiny:
        print("--tiny: toy shapes; the figures say that it runs, and nothing about speed")
    print(
        "\n| size | head | queries x texts | tokens | micro-batch | s a step | tokens/s "
        "| TFLOP done | MFU | of peak done | peak GiB |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    sizes = {"tiny": TINY} if args.tiny else {name: SIZES[name] for name in args.sizes}
    for name, size in sizes.items():
        for head in args.heads:
            print(row(name, size, head, args), flush=True)
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
    unwanted = {"ray", "deepspeed"} & set(sys.modules)
    if unwanted:
        print(f"imported though not needed: {', '.join(sorted(unwanted))}", file=sys.stderr)
    return 1 if unwanted else 0


if __name__ == "__main__":
    sys.exit(main())
