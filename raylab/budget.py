"""The cost model: FLOPs of a step, a budget into steps, memory, hours, price (rule 5).

A multiply-add counts 2 FLOPs. Legend: T tokens of a batch with padding, L padded length of a row,
d hidden size, V vocabulary, N weights of the linear projections inside the blocks.

    forward      2 N T  +  4 sum(L^2) d_attention layers  (+ 2 T d V: sparse head or MNTP logits)
    backward     full: 2 x forward;  LoRA: 1 x linear (frozen weights need no weight gradient)
                 + 2 x attention + the adapters' own;  sparse head: only positive maxima flow back,
                 which is below 2 % of its forward pass and counted as nothing here
    checkpointing adds one more forward of the blocks; without LoRA it stops before each layer's last
    product (down_proj), whose result no gradient needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylab.config import Adaptation, Cell, ConfigError, FineTuning, HeadKind, Lora


@dataclass(frozen=True)
class Shape:
    """What of a decoder's configuration costs something."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers configuration of a Llama-like decoder."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
        )

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the seven projections of one layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(i * o for i, o in self.projections.values())

    @property
    def parameters(self) -> int:
        """Non-embedding parameters: projections and norms."""
        return self.linear_parameters + (2 * self.layers + 1) * self.hidden

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, lora: Lora) -> int:
        return self.layers * sum(
            lora.rank * (i + o) for name, (i, o) in self.projections.items() if name in lora.targets
        )


@dataclass(frozen=True)
class Rows:
    """A batch as the cost model sees it: `count` texts, all padded to `length` tokens.

    `real_tokens` is how many tokens the texts have without padding, in all; None: as many as with it.
    The blocks compute on padding too; the sparse head's projection does not.
    """

    count: float
    length: float
    real_tokens: float | None = None

    @property
    def tokens(self) -> float:
        """With padding."""
        return self.count * self.length

    @property
    def real(self) -> float:
        """Without padding."""
        return self.tokens if self.real_tokens is None else self.real_tokens


def block_forward_flops(shape: Shape, rows: Rows) -> tuple[float, float]:
    """(linear, attention) FLOPs of the blocks' forward pass over `rows`."""
    linear = 2.0 * shape.linear_parameters * rows.tokens
    attention = 4.0 * rows.count * rows.length**2 * shape.heads * shape.head_dim * shape.layers
    return linear, attention


def head_forward_flops(shape: Shape, rows: Rows, head: HeadKind | None) -> float:
    """FLOPs of projecting every real token on the vocabulary; none for the dense head."""
    return 2.0 * rows.real * shape.hidden * shape.vocabulary if head == "sparse" else 0.0


def encode_flops(shape: Shape, rows: Rows, head: HeadKind | None) -> float:
    """FLOPs of one forward pass with its head."""
    return sum(block_forward_flops(shape, rows)) + head_forward_flops(shape, rows, head)


def train_flops(
    shape: Shape,
    rows: Sequence[Rows],
    head: HeadKind | None,
    lora: Lora | None,
    checkpointing: bool,
    logits_backward: bool = False,
) -> float:
    """FLOPs of one optimizer step over `rows` (formula at the top of this module).

    `logits_backward` is for MNTP, whose loss flows back through all logits.
    """
    total = 0.0
    for part in rows:
        linear, attention = block_forward_flops(shape, part)
        vocabulary = head_forward_flops(shape, part, head)
        forward = linear + attention
        if lora is None:
            backward = 2 * forward
        else:
            adapters = 2.0 * shape.lora_parameters(lora) * part.tokens
            forward += adapters
            backward = linear + 2 * attention + 2 * adapters
        recomputed = forward
        if lora is None:
            inputs, outputs = shape.projections["down_proj"]
            recomputed -= 2.0 * shape.layers * inputs * outputs * part.tokens
        if logits_backward:
            frees_head = lora is None or lora.train_embeddings
            backward += vocabulary * (2 if frees_head else 1)
        total += forward + vocabulary + backward + (recomputed if checkpointing else 0.0)
    return total


def fine_tuning_rows(
    tuning: FineTuning,
    passages: int,
    query_tokens: float,
    passage_tokens: float,
    real_query_tokens: float | None = None,
    real_passage_tokens: float | None = None,
) -> list[Rows]:
    """The rows of one fine-tuning step: the queries, and `passages` for each of them.

    Args:
        query_tokens: padded length of a query, `passage_tokens` that of a passage.
        real_query_tokens: mean tokens of a query without padding (None: it is not padded); likewise
            `real_passage_tokens`.
    """
    queries = tuning.batch_queries

    def rows(count: int, length: float, real: float | None) -> Rows:
        return Rows(count, length, None if real is None else count * real)

    return [
        rows(queries, query_tokens, real_query_tokens),
        rows(queries * passages, passage_tokens, real_passage_tokens),
    ]


def passages_per_query(cell: Cell) -> int:
    """1 positive and the listed negatives; MarginMSE compares with one negative (paper.md)."""
    if cell.objective == "kd" and cell.fine_tuning.kd_loss == "margin_mse":
        return 2
    return 1 + cell.fine_tuning.negatives


def adaptation_flops(shape: Shape, adaptation: Adaptation) -> float:
    """FLOPs of the whole MNTP run; its vocabulary projection covers the selected tokens only."""
    rows = Rows(adaptation.batch_blocks, adaptation.block_length)
    blocks = train_flops(shape, [rows], None, adaptation.lora, adaptation.checkpointing)
    selected = Rows(adaptation.batch_blocks * adaptation.selected_fraction, adaptation.block_length)
    frees_head = adaptation.lora is None or adaptation.lora.train_embeddings
    logits = head_forward_flops(shape, selected, "sparse") * (3 if frees_head else 2)
    return adaptation.steps * (blocks + logits)


@dataclass(frozen=True)
class CellPlan:
    """What a cell will take: solved from its budget, before anything runs."""

    cell: str
    steps: int
    tokens: float
    step_flops: float
    flops: float
    memory_bytes: float
    parameters: int


def solve_steps(cell: Cell, step_flops: float) -> int:
    """Steps that fit the cell's budget.

    Raises:
        ConfigError: the budget is too small for one step.
    """
    steps = int(cell.budget_flops // step_flops)
    if steps < 1:
        raise ConfigError(
            f"budget {cell.budget_flops:.3g} FLOPs is too small for {cell.run_name}: "
            f"one step costs {step_flops:.3g} FLOPs; give --budget at least that"
        )
    return steps


def plan_cell(
    cell: Cell,
    shape: Shape,
    query_tokens: float,
    passage_tokens: float,
    workers: int = 1,
    zero_stage: int = 1,
    weight_bytes: int = 4,
    micro_batch_texts: int = 0,
) -> CellPlan:
    """Solve a cell's budget into steps, given mean padded lengths in tokens.

    `micro_batch_texts` (0: all) bounds the texts a worker holds activations of; it changes no FLOPs.
    """
    tuning = cell.fine_tuning
    rows = fine_tuning_rows(tuning, passages_per_query(cell), query_tokens, passage_tokens)
    step = train_flops(shape, rows, cell.head, tuning.lora, tuning.checkpointing)
    steps = solve_steps(cell, step)
    tokens = sum(r.tokens for r in rows)
    held = tokens / workers
    if micro_batch_texts:
        held = min(held, micro_batch_texts * max(query_tokens, passage_tokens))
    return CellPlan(
        cell=cell.run_name,
        steps=steps,
        tokens=steps * tokens,
        step_flops=step,
        flops=steps * step,
        memory_bytes=memory_bytes(
            shape, tuning, held, rows, cell.head, workers, zero_stage, weight_bytes
        ),
        parameters=shape.parameters,
    )


def memory_bytes(
    shape: Shape,
    tuning: FineTuning,
    tokens: float,
    batch: Sequence[Rows],
    head: HeadKind,
    workers: int,
    zero_stage: int,
    weight_bytes: int,
) -> float:
    """Estimated peak bytes a worker: weights, gradients and AdamW state (as ZeRO shards them), activations.

    Every worker holds the fp32 representations of the whole `batch`, and gradients of its own share;
    it holds activations of `tokens`: a layer, 1 hidden state a token with checkpointing, else about 10
    hidden and 3 intermediate ones; with checkpointing one layer is live on top.
    """
    weights = shape.parameters + shape.embedding_parameters
    trainable = weights if tuning.lora is None else shape.lora_parameters(tuning.lora)
    if tuning.lora is not None and tuning.lora.train_embeddings:
        trainable += shape.embedding_parameters
    state = 12.0 * trainable / (workers if zero_stage >= 1 else 1)  # fp32 master copy, m, v
    gradients = float(weight_bytes) * trainable / (workers if zero_stage >= 2 else 1)
    weights_held = float(weight_bytes) * weights / (workers if zero_stage >= 3 else 1)
    layer = (10 * shape.hidden + 3 * shape.intermediate) * tokens * weight_bytes
    kept = shape.layers * shape.hidden * tokens * weight_bytes
    activations = kept + layer if tuning.checkpointing else shape.layers * layer
    width = shape.vocabulary if head == "sparse" else shape.hidden
    reps = width * 4.0 * sum(rows.count for rows in batch) * (1 + 1 / workers)
    return weights_held + gradients + state + activations + reps


@dataclass(frozen=True)
class Device:
    """A device to plan for: dense peak in its training dtype, and the share of it one may hope for."""

    name: str
    peak_flops: float
    memory_bytes: float
    efficiency: float = 0.4


# Dense bf16 peaks from the vendors' data sheets; the CPU figure was measured on one thread (docs/log.md).
DEVICES = {
    "a100-80gb": Device("a100-80gb", 312e12, 80 * 2**30),
    "h100": Device("h100", 989e12, 80 * 2**30),
    "h200": Device("h200", 989e12, 141 * 2**30),
    "cpu-core": Device("cpu-core", 30e9, 4 * 2**30),
}


def device_hours(flops: float, device: Device) -> float:
    """Hours one such device needs for `flops` at its efficiency."""
    return flops / (device.peak_flops * device.efficiency) / 3600
