"""Frozen, validated dataclasses of a whole run; this module imports nothing of ours.

They come in two kinds, and the difference carries the laboratory:

* identity - what is computed (`Backbone`, `Adaptation`, `FineTuning`, `Encoding`, and the `Cell` of
  `raylab.experiment.grid`): its `identity()` enters fingerprints;
* execution - where and how it runs (`raylab.experiment.execution`): it never does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ComputeDtype = Literal["float32", "bfloat16", "float16"]
ScheduleName = Literal["linear", "wsd"]
Precision = Literal["float16", "float32"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("float32", "bfloat16", "float16")
SCHEDULES: tuple[ScheduleName, ...] = ("linear", "wsd")
PRECISIONS: tuple[Precision, ...] = ("float16", "float32")
# Marks a field that enters fingerprints elsewhere (as an input's content) or not at all (a name, a colour).
ELSEWHERE = "elsewhere"

# The version of the cost model (`raylab.planning.flops`): with another one a budget is another number of steps.
COST_MODEL = 3

# Tokens a text is cut to at inference where nothing says otherwise: as BEIR is encoded (2502.15526).
LONGEST_TEXT = 512

# The seven projections of a layer (2502.15526, training scripts).
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, its value and what is right."""


def check(condition: bool, where: str, value: object, right: str) -> None:
    """Raise `ConfigError` naming field, value and what would be right, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{where} = {value!r}: it must be {right}")


def identity(config: Any) -> Any:
    """A JSON-ready form of a (nested) dataclass, for fingerprints and manifests."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            f.name: identity(getattr(config, f.name))
            for f in dataclasses.fields(config)
            if not f.metadata.get(ELSEWHERE)
        }
    if isinstance(config, Mapping):
        return {str(key): identity(value) for key, value in sorted(config.items())}
    if isinstance(config, (list, tuple)):
        return [identity(value) for value in config]
    return config


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (peft) on linear projections; `train_embeddings` also frees the embeddings."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = LORA_TARGETS
    train_embeddings: bool = False

    def __post_init__(self) -> None:
        check(self.rank >= 1, "lora.rank", self.rank, "at least 1")
        check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True)
class Tokenization:
    """What stands around the tokens of a text: one contract for training, encoding and whoever loads it.

    A BOS token can act as an attention sink and collapse a max-pooled decoder (reference: tevatron,
    nDCG 0.02 with BOS and 0.65 without), so none is added by default. A prompt's tokens precede the
    text's; both count toward the length limits.
    """

    special_tokens: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""


@dataclass(frozen=True)
class Backbone:
    """One rung of a ladder: a decoder-only model, how it starts, and how texts are put to it.

    `source` is a local folder (safetensors, or a GGUF file and its tokenizer), a hub id, or
    `package:NAME/FOLDER` for a model inside an installed Python package. `layers` keeps only the
    first layers; `start="random"` draws the weights from `init_seed` instead of reading them.
    `bidirectional` False keeps the decoder's causal mask (an ablation). `compute_dtype` is what weights and
    activations are kept and multiplied in, in training and in encoding, on any device.
    """

    name: str = field(metadata={ELSEWHERE: True})
    source: str = field(metadata={ELSEWHERE: True})  # its content counts (`weights_fingerprint`)
    layers: int | None = None
    start: Literal["pretrained", "random"] = "pretrained"
    init_seed: int = 0
    tokenization: Tokenization = Tokenization()
    bidirectional: bool = True
    compute_dtype: ComputeDtype = "float32"

    def __post_init__(self) -> None:
        check(bool(self.name) and "/" not in self.name, "backbone.name", self.name, "a plain name")
        check(self.layers is None or self.layers >= 1, "backbone.layers", self.layers, "at least 1")
        check(
            self.start in ("pretrained", "random"),
            "backbone.start",
            self.start,
            "pretrained or random",
        )
        right = f"one of {COMPUTE_DTYPES}"
        check(self.compute_dtype in COMPUTE_DTYPES, "compute_dtype", self.compute_dtype, right)


def _check_schedule(where: str, config: Adaptation | FineTuning) -> None:
    """The learning rate's course: warm-up, then linear decay, or stable and decay (`engine.schedule`)."""
    warmup, decay = config.warmup_fraction, config.decay_fraction
    steps = config.warmup_steps
    right = "None (warmup_fraction), 0 or more"
    check(steps is None or steps >= 0, f"{where}.warmup_steps", steps, right)
    check(config.schedule in SCHEDULES, f"{where}.schedule", config.schedule, f"one of {SCHEDULES}")
    check(0 <= warmup < 1, f"{where}.warmup_fraction", warmup, "in [0, 1)")
    check(0 <= decay <= 1, f"{where}.decay_fraction", decay, "in [0, 1]")
    if config.schedule == "wsd":
        right = f"at most 1 - warmup_fraction = {1 - warmup:g}"
        check(warmup + decay <= 1, f"{where}.decay_fraction", decay, right)


@dataclass(frozen=True)
class Adaptation:
    """MNTP, masked next-token prediction, once a size (2502.15526, Backbone).

    `held_out_blocks` (at most a tenth of all blocks) are kept from training, to measure on.
    `schedule_epochs`, when set, is how many epochs over the blocks the learning rate's course is laid out
    for; the run still ends after `steps`, wherever the rate is then.
    """

    steps: int = 10_000
    batch_blocks: int = 32
    block_length: int = 512
    selected_fraction: float = 0.2
    held_out_blocks: int = 64
    learning_rate: float = 5e-5
    warmup_fraction: float = 0.0
    schedule: ScheduleName = "linear"
    decay_fraction: float = 0.2
    clip_norm: float = 1.0
    lora: Lora | None = Lora(dropout=0.05)
    checkpointing: bool = True
    warmup_steps: int | None = None
    schedule_epochs: float | None = None

    def __post_init__(self) -> None:
        epochs = self.schedule_epochs
        right = "None or positive"
        check(epochs is None or epochs > 0, "adaptation.schedule_epochs", epochs, right)
        check(self.steps >= 0, "adaptation.steps", self.steps, "0 (no MNTP) or more")
        check(
            0 < self.selected_fraction < 1,
            "adaptation.selected_fraction",
            self.selected_fraction,
            "in (0, 1)",
        )
        held_out = self.held_out_blocks
        check(held_out >= 0, "adaptation.held_out_blocks", held_out, "0 or more")
        _check_schedule("adaptation", self)


@dataclass(frozen=True)
class FineTuning:
    """Hyper-parameters of one (head, objective), shared by all sizes unless a recipe says otherwise.

    `negatives` are the listed negatives a query (the objective `kd` of the paper draws 1), a share
    `random_fraction` of which is drawn from all passages rather than mined; `top_k_query` and
    `top_k_passage` prune sparse representations in training as `Encoding` does at inference (0: not);
    `pseudo_fraction` is the share of a batch whose queries are passage titles, where the
    collection has titles; `lr_reference_hidden`, when set, scales the learning rate by
    reference / hidden size; `schedule` and `decay_fraction` are the learning rate's
    (`raylab.training.engine.schedule`). `warmup_steps` and `ramp_steps`, when set, say in steps what else
    follows from the run's length: the warm-up, and the rise of the FLOPS weights (a third of it). With
    both and `schedule="wsd"` a run is the beginning of every longer one until its decay begins.

    `ramp_fraction`: the part of the steps over which the FLOPS weights rise. `pace_flops`, when set, is the
    budget whose steps the fractions of warm-up and ramp are of, in place of the run's own: runs of several
    budgets then begin alike.

    `corrupted_positives` is the share of training queries whose positive is another query's, and
    `corrupted_scores` the share whose teacher scores are put to the wrong passages
    (`raylab.data.supervision.corruption`).

    The rest are what the code of 2502.15526 did beside its text, all off by default: `in_batch_queries`,
    the queries whose passages are each other's negatives (None: the whole batch); `gathered_gradient`, the share
    of the gradient of what is computed over the passages of all devices (InfoNCE, and the regulariser beside it);
    `regulariser_queries`, the queries whose texts one mean of the regulariser is over (None: the whole
    batch), `regulariser_apart`, of positives and negatives apart; `keep_false_negatives`, a query's other
    positives stay among its negatives.
    """

    batch_queries: int = 112
    negatives: int = 16
    random_fraction: float = 0.0
    learning_rate: float = 1e-4
    lr_reference_hidden: int | None = None
    weight_decay: float = 0.01
    warmup_fraction: float = 0.04
    schedule: ScheduleName = "linear"
    decay_fraction: float = 0.2
    clip_norm: float = 1.0
    temperature: float = 1.0
    lambda_query: float = 0.05
    lambda_passage: float = 0.04
    top_k_query: int = 0
    top_k_passage: int = 0
    kd_loss: Literal["margin_mse", "kl"] = "margin_mse"
    teacher_scale: float = 1.0
    query_length: int = 64
    passage_length: int = 128
    pseudo_fraction: float = 0.0
    lora: Lora | None = Lora()
    checkpointing: bool = True
    warmup_steps: int | None = None
    ramp_steps: int | None = None
    corrupted_positives: float = 0.0
    corrupted_scores: float = 0.0
    ramp_fraction: float = 1 / 3
    pace_flops: float | None = None
    in_batch_queries: int | None = None
    gathered_gradient: float = 1.0
    regulariser_queries: int | None = None
    regulariser_apart: bool = False
    keep_false_negatives: bool = False

    def __post_init__(self) -> None:
        check(
            self.batch_queries >= 1, "fine_tuning.batch_queries", self.batch_queries, "at least 1"
        )
        check(self.negatives >= 1, "fine_tuning.negatives", self.negatives, "at least 1")
        check(
            0 <= self.random_fraction <= 1,
            "fine_tuning.random_fraction",
            self.random_fraction,
            "in [0, 1]",
        )
        check(self.temperature > 0, "fine_tuning.temperature", self.temperature, "positive")
        check(
            0 <= self.pseudo_fraction <= 1,
            "fine_tuning.pseudo_fraction",
            self.pseudo_fraction,
            "in [0, 1]",
        )
        check(self.learning_rate > 0, "fine_tuning.learning_rate", self.learning_rate, "positive")
        ramp = self.ramp_steps
        check(ramp is None or ramp >= 0, "fine_tuning.ramp_steps", ramp, "None, 0 or more")
        for name in ("corrupted_positives", "corrupted_scores"):
            share = getattr(self, name)
            check(0 <= share <= 1, f"fine_tuning.{name}", share, "in [0, 1]")
        for name in ("ramp_fraction", "gathered_gradient"):
            share = getattr(self, name)
            check(0 < share <= 1, f"fine_tuning.{name}", share, "above 0 and at most 1")
        pace = self.pace_flops
        check(pace is None or pace > 0, "fine_tuning.pace_flops", pace, "None or positive")
        for name in ("in_batch_queries", "regulariser_queries"):
            part, whole = getattr(self, name), self.batch_queries
            right = f"None, or a divisor of fine_tuning.batch_queries = {whole}"
            fits = part is None or (part >= 1 and whole % part == 0)
            check(fits, f"fine_tuning.{name}", part, right)
        _check_schedule("fine_tuning", self)

    @property
    def extends(self) -> bool:
        """Whether a longer run begins as a shorter one does, up to the shorter one's decay."""
        ramped = self.ramp_steps is None and bool(self.lambda_query or self.lambda_passage)
        by_length = self.pace_flops is None and (self.warmup_steps is None or ramped)
        return self.schedule == "wsd" and not by_length

    def paced(self, steps: int) -> FineTuning:
        """With warm-up and ramp in steps: the fractions of `steps`, where they are not set already."""
        warmup, ramp = self.warmup_steps, self.ramp_steps
        return dataclasses.replace(
            self,
            warmup_steps=math.ceil(steps * self.warmup_fraction) if warmup is None else warmup,
            ramp_steps=round(steps * self.ramp_fraction) if ramp is None else ramp,
            pace_flops=None,
        )


@dataclass(frozen=True)
class Encoding:
    """Lengths and pruning at inference; Top-K 0 keeps every positive term (SPLARE, 2603.13277).

    A length that is None is the collection's own (`raylab.data.registry.encoding_for`). Representations are
    stored, and therefore searched, in `precision`.
    """

    query_length: int | None = None
    passage_length: int | None = None
    top_k_query: int = 40
    top_k_passage: int = 400
    precision: Precision = "float16"

    def __post_init__(self) -> None:
        for name in ("query_length", "passage_length"):
            length = getattr(self, name)
            right = "at least 1, or none for the collection's own"
            check(length is None or length >= 1, f"encoding.{name}", length, right)
        for name in ("top_k_query", "top_k_passage"):
            value = getattr(self, name)
            check(value >= 0, f"encoding.{name}", value, "0 (no pruning) or more")
        check(
            self.precision in PRECISIONS,
            "encoding.precision",
            self.precision,
            f"one of {PRECISIONS}",
        )

    @property
    def query_limit(self) -> int:
        """The tokens a query is cut to."""
        return LONGEST_TEXT if self.query_length is None else self.query_length

    @property
    def passage_limit(self) -> int:
        """The tokens a passage is cut to."""
        return LONGEST_TEXT if self.passage_length is None else self.passage_length

    def changed(self, **changes: int | str | None) -> Encoding:
        """This encoding with what is not None put in its place.

        Raises:
            ConfigError: a value that cannot be.
        """
        given: dict[str, Any] = {name: v for name, v in changes.items() if v is not None}
        return dataclasses.replace(self, **given)
