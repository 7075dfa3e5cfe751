"""The memory of a training step on one worker.

A step's memory is what is always there (weights, gradients, AdamW's state, as ZeRO shards them) and what
is there at its fullest moment, one of

    loss         activations kept for the backward pass, and the representations of all workers' texts
    head         the same activations, and the entries of the sparse head's gradient
    blocks       the same activations, and one layer's working set (with checkpointing: its recomputation)
    update       AdamW's temporaries, and nothing of the batch

With micro-batches (GradCache, `raylab.training.fine_tuning`) the loss is computed without any activations, and the
other two hold those of one micro-batch, beside this worker's representations and their gradients.
What the framework itself takes (CUDA context, workspaces, fragmentation) is left room for
(`raylab.planning.memory_fit`).

Legend: T tokens with padding, D hidden size, I intermediate size, A attention's width, V vocabulary,
b bytes of a weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raylab.experiment.config import Adaptation, Lora
from raylab.experiment.grid import Cell
from raylab.experiment.heads import Head
from raylab.planning.flops import (
    ACTIVE_SHARE,
    Rows,
    Shape,
    selected_tokens,
)

# DeepSpeed's defaults, which raylab leaves as they are: elements of a reduction bucket at most, and
# parameters that ZeRO 3 keeps gathered for the sake of their next use.
_BUCKET = 500_000_000
_GATHERED = 1_000_000_000
# Bytes of one entry of the sparse head's gradient: indices (int64), their order, values, in several copies.
_ENTRY_BYTES = 90.0
# Of the sparse head's forward pass on a CPU: a chunk of logits, and as much again to find where maxima are.
_CHUNKS_BYTES, _CHUNK_TOKENS = 20 * 2**20, 2048


@dataclass(frozen=True)
class Memory:
    """Bytes on a worker at the fullest moment of a step, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    representations: float  # of texts, or the logits of MNTP's selected tokens

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Load:
    """A training step as the memory model sees it.

    Args:
        head: None for MNTP.
        rows: the whole batch, of all workers, by texts that are encoded together.
        micro_batch: texts that a worker encodes at once with activations; 0: all of its share.
        shared: queries or blocks of the batch, which the number of workers divides; 0: as many as the fewest of `rows`.
        active_terms: entries of a text's sparse representation that a gradient flows through.
        pruned: whether Top-K prunes representations in training.
        predicted: tokens that MNTP predicts, of all workers.
    """

    shape: Shape
    head: Head | None
    lora: Lora | None
    checkpointing: bool
    rows: tuple[Rows, ...]
    workers: int = 1
    zero_stage: int = 1
    micro_batch: int = 0
    weight_bytes: int = 2
    active_terms: float = 0.0
    pruned: bool = False
    predicted: float = 0.0
    shared: int = 0

    @property
    def texts(self) -> float:
        """A worker's share."""
        return sum(rows.count for rows in self.rows) / self.workers

    @property
    def in_parts(self) -> bool:
        return 0 < self.micro_batch < self.texts

    def memory(self) -> Memory:
        """What a worker needs."""
        weights, gradients, optimizer, update = _states(self)
        moments = [*_moments(self), (0.0, 0.0)]
        activations, representations = max(moments, key=sum)
        if activations + representations < update:
            return Memory(weights, gradients, optimizer + update, 0.0, 0.0)
        return Memory(weights, gradients, optimizer, activations, representations)


def cell_load(
    cell: Cell,
    shape: Shape,
    rows: Sequence[Rows],
    workers: int = 1,
    zero_stage: int = 1,
    micro_batch: int = 0,
    weight_bytes: int = 2,
) -> Load:
    """A cell's fine-tuning step, whose texts are in the groups `rows` (`flops.fine_tuning_rows`).

    Without Top-K the worst is planned for: `ACTIVE_SHARE` of the vocabulary, as at the first step.
    """
    tuning = cell.fine_tuning
    top_k = tuning.top_k_passage
    active = min(top_k, shape.vocabulary) if top_k > 0 else ACTIVE_SHARE * shape.vocabulary
    return Load(
        shape,
        cell.head,
        tuning.lora,
        tuning.checkpointing,
        tuple(rows),
        workers,
        zero_stage,
        micro_batch,
        weight_bytes,
        active_terms=float(active),
        pruned=tuning.top_k_query > 0 or top_k > 0,
        shared=tuning.batch_queries,
    )


def adaptation_load(
    shape: Shape,
    adaptation: Adaptation,
    workers: int = 1,
    zero_stage: int = 1,
    weight_bytes: int = 2,
) -> Load:
    """A step of MNTP; it knows no micro-batches."""
    return Load(
        shape,
        None,
        adaptation.lora,
        adaptation.checkpointing,
        (Rows(adaptation.batch_blocks, adaptation.block_length),),
        workers,
        zero_stage,
        0,
        weight_bytes,
        predicted=selected_tokens(adaptation),
    )


# ---------------------------------------------------------------------------- what is always there


def _states(load: Load) -> tuple[float, float, float, float]:
    """Bytes of weights, gradients, AdamW's state, and of the temporaries of an update.

    Stage 1 shards the optimizer's state, 2 the gradients as well, 3 also the weights. From stage 1 on, and
    in half precision, AdamW works on an fp32 copy of the trained weights.
    """
    shape, stage, workers, b = load.shape, load.zero_stage, load.workers, float(load.weight_bytes)
    parameters = shape.parameters + shape.embedding_parameters
    trained = shape.trainable_parameters(load.lora)
    share = trained / workers if stage >= 1 else trained
    copies = 2 if stage == 0 and b == 4 else 3
    bucket = b * min(_BUCKET, trained) if stage >= 1 else 0.0
    weights, gradients = b * parameters, b * trained
    if stage >= 2:
        gradients /= workers
    if load.lora is None or load.lora.train_embeddings:
        # The embeddings' gradient of one batch, before it is added to that of another or of the head.
        gradients += b * shape.vocabulary * shape.hidden
    if stage == 3 and workers > 1:
        weights = weights / workers + b * min(_GATHERED, parameters)
    return weights, gradients + bucket, 4.0 * copies * share, 8.0 * share


# ---------------------------------------------------------------------------- moments of a step


def _moments(load: Load) -> Iterator[tuple[float, float]]:
    """(activations, representations) in bytes at the loss, in the head's and in the blocks' backward pass."""
    kept, working = _activations(load)
    if load.head is None:
        # fp32: the logits and their log-softmax, or the latter with its gradient and the logits'.
        yield kept, 12.0 * load.predicted / load.workers * load.shape.vocabulary
        yield kept + working, 0.0
        return
    sparse, width = load.head.is_sparse, load.shape.width(load.head)
    everyone = 4.0 * load.texts * load.workers * width
    local = everyone / load.workers
    # Groups of like length are passed through the layers one by one, and in parts where they are larger than those.
    at_once = max(rows.count for rows in load.rows) / load.workers
    encoded = min(load.micro_batch, at_once) if load.in_parts else load.texts
    state = encoded * _head_state(load)
    # Of the regulariser (its mean's, the signs, their product), which goes before the scores' own.
    gradients = (3.0 if sparse else 1.0) * everyone
    if load.in_parts:
        yield 0.0, 2 * local  # as encoded, and put together
        yield 0.0, local + everyone + gradients  # as encoded, in order, and what the latter get
        cached, gradient = 2 * local, 4.0 * encoded * width  # put together, and their gradients
    else:
        yield kept, state + everyone + gradients
        cached, gradient = 0.0, everyone
    if sparse:
        most = min(encoded, at_once)
        yield kept, cached + state + gradient + most * load.active_terms * _ENTRY_BYTES
        # raylab trains in fp32 on CPUs alone; on CUDA the forward kernel needs one tile.
        if load.weight_bytes == 4:
            logits = 4.0 * width * min(_CHUNK_TOKENS, most * max(r.length for r in load.rows))
            yield kept, cached + state + min(_CHUNKS_BYTES, 2.5 * logits)
    yield kept + working, cached


def _head_state(load: Load) -> float:
    """Bytes kept of a text: its representation, as it is computed, and in fp32 where that is another tensor.

    The sparse head keeps the places of its maxima as well (int16), and pruning which terms were kept.
    """
    b = load.weight_bytes
    if load.head is None or not load.head.is_sparse:
        return 4.0 * load.shape.hidden
    copied = 4 if load.pruned or b != 4 else 0
    return float(load.shape.vocabulary * (b + 2 + copied + (1 if load.pruned else 0)))


def _activations(load: Load) -> tuple[float, float]:
    """Bytes kept for the backward pass, and those that a layer's backward pass needs on top."""
    shape, b = load.shape, load.weight_bytes
    if load.in_parts:
        part, workers = load.micro_batch, load.workers
        tokens = at_once = max(min(part, r.count / workers) * r.length for r in load.rows)
    else:
        tokens = sum(rows.tokens for rows in load.rows) / load.workers
        at_once = max(rows.tokens for rows in load.rows) / load.workers
    layer = layer_activation_bytes(shape, load.lora, b)
    final = _norm_bytes(shape, load.lora, b) + b * shape.hidden
    transient = 2.0 * b * (shape.hidden + shape.intermediate)
    if not load.checkpointing:
        return tokens * (shape.layers * layer + final), at_once * transient
    kept = tokens * (shape.layers * b * shape.hidden + final)
    return kept, at_once * (layer + transient)


def layer_activation_bytes(shape: Shape, lora: Lora | None, weight_bytes: int) -> float:
    """Bytes a token that autograd keeps of one layer.

    Always: queries, keys, values (repeated to as many heads) and the attention's output; gate, its
    activation, and up. Trained projections keep their inputs: without adapters these are shared
    by those of one place, with dropout each adapter has its own and a mask.
    """
    b = weight_bytes
    attention, D = shape.heads * shape.head_dim, shape.hidden
    total = b * (4.0 * attention + 3.0 * shape.intermediate) + 4.0 * shape.heads
    total += 2 * _norm_bytes(shape, lora, b)
    if lora is None or not lora.dropout:
        targets = shape.projections if lora is None else lora.targets
        places = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
        total += b * D * sum(any(name in targets for name in place) for place in places)
        total += b * shape.intermediate * ("down_proj" in targets)
    else:
        mask = b if b == 4 else 1  # a CPU draws it in the states' dtype, CUDA in bytes
        inputs = sum(i for name, (i, _) in shape.projections.items() if name in lora.targets)
        total += (b + mask) * inputs
    return total + (b * lora.rank * len(lora.targets) if lora is not None else 0.0)


def _norm_bytes(shape: Shape, lora: Lora | None, weight_bytes: int) -> float:
    """Bytes a token of one norm: its input in fp32 and, where its weight is trained, the normed input."""
    return shape.hidden * (4.0 + (weight_bytes if lora is None else 0.0))
