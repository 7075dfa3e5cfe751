"""The cost model: FLOPs of what the laboratory does, a budget into steps, hours of a device.

A multiply-add counts 2 FLOPs. What is counted is matrix products, as they are computed: padding
included in the blocks, and not in the sparse head. Not counted: embedding (a lookup; where embeddings
are trained, a scatter-add of T d additions), norms, rotations, softmax, activations, the optimizer's
update: these grow with d, or with what is trained, where products grow with d^2. A fused attention
kernel's own recomputation of the scores is how a device computes a step, and not counted either.

Legend: T tokens of a batch with padding (in fine-tuning to the longest text of each group of like length,
`raylab.data.supervision.length_groups`), R without, L padded length of a row, d hidden size, V vocabulary,
N weights of the linear projections inside the blocks, r LoRA's rank.

    forward      2 N T  +  4 sum(L^2) d_attention layers  (the whole square, causal or not)
                 sparse head: 2 R d V;  MNTP: 2 d V a selected token
    backward     full: 2 x forward
                 LoRA: 1 x linear (frozen weights need no weight gradient) + 2 x attention + 2 x the
                 adapters' own. Below the first adapter nothing needs a gradient: the first layer's
                 query, key and value projections have none of their inputs, unless the embeddings are
                 trained or checkpointing makes the inputs require one
                 sparse head: 2 d an entry (text, term) with a gradient for the hidden states, and as
                 many for the vocabulary's weight where it is trained; entries are at most Top-K a text,
                 or `ACTIVE_SHARE` of the vocabulary
    checkpointing adds one more forward of the blocks, which stops at the last product of a layer whose
                 operands a gradient needs: before `down_proj`, or before the last product of its adapter
    scores       6 Q P width of Q queries and P passages, forward and backward
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylab.data.supervision.length_groups import LengthGroups
from raylab.experiment.config import Adaptation, ConfigError, Lora
from raylab.experiment.grid import Cell
from raylab.experiment.heads import DENSE, Head

# Of the vocabulary, active in a text of an untrained model (docs/log.md); training without Top-K
# lowers it to below 1 %. What it stands for costs a third of one token's logits, or two thirds.
ACTIVE_SHARE = 0.32
# What a budget promises: what a cell spends is within this share of its plan, and cells of one budget of each other.
KEPT, ALIKE = 0.02, 0.01
# Encoders whose feed-forward has two projections, not a decoder's gated three.
_PLAIN_ENCODERS = {"bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta", "camembert"}


@dataclass(frozen=True)
class Shape:
    """What of a decoder's configuration (or a teacher's, an encoder's) costs something."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    gated: bool = True

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers configuration of a Llama-like decoder or a BERT-like encoder."""
        intermediate = getattr(config, "intermediate_size", None)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.hidden_dim if intermediate is None else intermediate,
            heads=config.num_attention_heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
            tied=bool(getattr(config, "tie_word_embeddings", True)),
            gated=config.model_type not in _PLAIN_ENCODERS,
        )

    def width(self, head: Head) -> int:
        """Entries of a representation under a head."""
        return head.width(self.hidden, self.vocabulary)

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the seven projections of one layer (six without a gate)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        gate = {"gate_proj": (self.hidden, self.intermediate)} if self.gated else {}
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            **gate,
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

    def trainable_parameters(self, lora: Lora | None) -> int:
        """Those that the optimizer holds; adapters may free the input embeddings, tied or not."""
        if lora is None:
            return self.parameters + self.embedding_parameters
        freed = self.vocabulary * self.hidden if lora.train_embeddings else 0
        return self.lora_parameters(lora) + freed

    def trains_vocabulary(self, lora: Lora | None) -> bool:
        """Whether the vocabulary projection's weight is trained."""
        return lora is None or (lora.train_embeddings and self.tied)


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


def head_forward_flops(shape: Shape, rows: Rows, head: Head | None) -> float:
    """FLOPs of projecting every real token on the vocabulary, where the head does."""
    projects = head is not None and head.is_sparse
    return 2.0 * rows.real * shape.hidden * shape.vocabulary if projects else 0.0


def encode_flops(shape: Shape, rows: Rows, head: Head | None) -> float:
    """FLOPs of one forward pass with its head."""
    return sum(block_forward_flops(shape, rows)) + head_forward_flops(shape, rows, head)


def train_flops(
    shape: Shape,
    rows: Sequence[Rows],
    head: Head | None,
    lora: Lora | None,
    checkpointing: bool,
    active_terms: Sequence[float] | None = None,
) -> float:
    """FLOPs of backbone and head over `rows` in one optimizer step (formulas: top of this module).

    Args:
        active_terms: of each of `rows`, entries of a text's sparse representation that a gradient flows
            through; None: `ACTIVE_SHARE` of the vocabulary.
    """
    if active_terms is None:
        active_terms = [ACTIVE_SHARE * shape.vocabulary] * len(rows)
    total = 0.0
    for part, terms in zip(rows, active_terms, strict=True):
        linear, attention = block_forward_flops(shape, part)
        last = 2.0 * shape.layers * shape.intermediate * shape.hidden * part.tokens
        forward = linear + attention
        if lora is None:
            backward = 2 * forward
        else:
            adapters = 2.0 * shape.lora_parameters(lora) * part.tokens
            forward += adapters
            backward = linear + 2 * attention + 2 * adapters
            if not (checkpointing or lora.train_embeddings):
                backward -= _below_first_adapter(shape, lora, part)
            if "down_proj" in lora.targets:
                last = 2.0 * shape.layers * lora.rank * shape.hidden * part.tokens
        recomputed = forward - last if checkpointing else 0.0
        vocabulary = head_forward_flops(shape, part, head)
        if head is not None and head.is_sparse:
            products = 2 if shape.trains_vocabulary(lora) else 1
            vocabulary += products * 2.0 * part.count * terms * shape.hidden
        total += forward + vocabulary + backward + recomputed
    return total


def _below_first_adapter(shape: Shape, lora: Lora, rows: Rows) -> float:
    """FLOPs of the first layer's input gradients that no adapter before them needs."""
    saved = 0.0
    for names in (
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    ):
        adapted = [name for name in names if name in lora.targets]
        saved += sum(math.prod(shape.projections[name]) for name in names)
        saved += sum(lora.rank * shape.projections[name][0] for name in adapted)
        if adapted:
            break
        if "q_proj" in names:
            saved += block_forward_flops(shape, rows)[1] / shape.layers / rows.tokens
    return 2.0 * saved * rows.tokens


def score_flops(queries: float, passages: float, width: float) -> float:
    """FLOPs of the scores of all pairs and of their gradients, counted once for all workers."""
    return 6.0 * queries * passages * width


def fine_tuning_flops(cell: Cell, shape: Shape, rows: Sequence[Rows]) -> float:
    """FLOPs of one fine-tuning step of a cell: its `rows` are the groups of its texts."""
    tuning, listed = cell.fine_tuning, passages_per_query(cell)
    query, passage = (
        min(float(k), float(shape.vocabulary)) if k > 0 else ACTIVE_SHARE * shape.vocabulary
        for k in (tuning.top_k_query, tuning.top_k_passage)
    )
    # A text's mean: how many of a group are queries changes nothing of the sum over all groups.
    active = [(query + listed * passage) / (1 + listed)] * len(rows)
    queries, width = tuning.batch_queries, shape.width(cell.head)
    return train_flops(
        shape, rows, cell.head, tuning.lora, tuning.checkpointing, active
    ) + score_flops(queries, queries * listed, width)


def fine_tuning_rows(groups: LengthGroups) -> list[Rows]:
    """The rows of one fine-tuning step: its texts, group by group."""
    of_groups = zip(groups.counts_G, groups.lengths_G, groups.real_G, strict=True)
    return [Rows(int(count), float(length), float(real)) for count, length, real in of_groups]


def passages_per_query(cell: Cell) -> int:
    """Of a cell's step: 1 positive and the listed negatives."""
    return cell.objective.passages(cell.fine_tuning)


def adaptation_flops(shape: Shape, adaptation: Adaptation) -> float:
    """FLOPs of the whole MNTP run; its vocabulary projection covers the selected tokens only.

    The first token of a block is never selected: no state precedes it.
    """
    rows = Rows(adaptation.batch_blocks, adaptation.block_length)
    blocks = train_flops(shape, [rows], None, adaptation.lora, adaptation.checkpointing)
    logits = 2.0 * selected_tokens(adaptation) * shape.hidden * shape.vocabulary
    passes = 3 if shape.trains_vocabulary(adaptation.lora) else 2
    return adaptation.steps * (blocks + passes * logits)


def selected_tokens(adaptation: Adaptation) -> float:
    """Tokens that an MNTP step predicts, on average."""
    return adaptation.batch_blocks * (adaptation.block_length - 1) * adaptation.selected_fraction


def sparse_search_flops(queries: float, passages: float, shared_terms: float) -> float:
    """FLOPs of exhaustive search by an inverted index: 2 a posting touched.

    Args:
        shared_terms: mean terms that a query and a passage have in common
            (`raylab.evaluation.efficiency.retrieval_flops`): so many postings a query and passage.
    """
    return 2.0 * queries * passages * shared_terms


def dense_search_flops(queries: float, passages: float, width: float) -> float:
    """FLOPs of exhaustive search among vectors of `width` components."""
    return 2.0 * queries * passages * width


def cross_encoder_flops(shape: Shape, pairs: Rows) -> float:
    """FLOPs of a cross-encoder's scores of so many pairs, padded (query, passage) texts of one length.

    Its classifier, and a pooler, see one token a pair and are not counted.
    """
    return encode_flops(shape, pairs, None)


def bi_encoder_flops(
    shape: Shape, texts: Sequence[Rows], pairs: float, head: Head | None = DENSE
) -> float:
    """FLOPs of a bi-encoder's (or sparse encoder's) scores: every text once, and a product a pair."""
    width = shape.width(head) if head is not None else shape.hidden
    return sum(encode_flops(shape, rows, head) for rows in texts) + 2.0 * pairs * width


def planned_steps(
    cell: Cell, step_flops: float, training_queries: float, adaptation_flops: float = 0.0
) -> int:
    """Steps that spend the cell's budget to the nearest: within half a step; or its epochs.

    Args:
        training_queries: of an epoch, titles that stand in for queries not among them; of no account
            where the budget is FLOPs.
        adaptation_flops: of the backbone's MNTP, paid first where the cell is charged for it.

    Raises:
        ConfigError: the budget is too small for half a step.
    """
    if cell.epochs is not None:
        batch, titles = cell.fine_tuning.batch_queries, cell.fine_tuning.pseudo_fraction
        return max(1, round(cell.epochs * training_queries / max(batch - round(batch * titles), 1)))
    left = cell.budget_flops - (adaptation_flops if cell.charged_adaptation else 0.0)
    if left < step_flops / 2:
        charged = ", of which MNTP is paid first," if cell.charged_adaptation else ""
        raise ConfigError(
            f"budget {cell.budget_flops:.3g} FLOPs{charged} is too small for {cell.run_name}: "
            f"one step costs {step_flops:.3g} FLOPs; the budget must be at least that"
        )
    return max(1, round(left / step_flops))
