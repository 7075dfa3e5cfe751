"""Making a small ladder: tokenizer, configurations, and unsupervised pre-training.

The loss is a weighted sum over random crops of passages:

* contrastive, under both heads: two crops of one passage are a positive pair, the crops of the
  others its negatives (Contriever, 2112.09118);
* MNTP: the masked tokens of a crop, each from the state before it, and a tenth of its visible ones.

MNTP alone leaves the states of such small models in a narrow cone where neither head can rank, and
contrast alone gives starts that distillation cannot better (docs/log.md). No query, title or judgement
is seen.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raylab.data.supervision.batches import mask_tokens, pad
from raylab.data.tokenizer import MASK_TOKEN
from raylab.experiment.heads import SPARSE
from raylab.models.backbone import hidden_states, output_weight
from raylab.models.heads import dense_reps, represent
from raylab.models.hub import save_weights, state_to_save
from raylab.planning.flops import Rows, Shape, head_forward_flops, train_flops
from raylab.training.distributed import ensure_process_group
from raylab.training.engine import Optimization
from raylab.training.loop import Evaluation, Progress, StepCost, run
from raylab.training.losses import flops_regularizer, info_nce
from raylab.training.mntp import held_out_summary, next_token_losses

PAD_TOKEN = "<pad>"


@dataclass(frozen=True)
class Rung:
    """One size of a ladder made from scratch."""

    name: str
    layers: int
    hidden: int
    heads: int
    intermediate: int

    def config(self, vocabulary: int) -> LlamaConfig:
        """A tied, bidirectional Llama of this size, without BOS or EOS."""
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            is_causal=False,  # type: ignore[call-arg]
            architectures=["LlamaForCausalLM"],
        )


@dataclass(frozen=True)
class Pretraining:
    """Hyper-parameters, shared by all sizes."""

    steps: int = 400
    batch: int = 48
    shortest_crop: int = 12  # tokens of the query-like crop: uniform from here ...
    longest_crop: int = 32  # ... to here
    passage_crop: int = 64
    masked_fraction: float = 0.2
    visible_fraction: float = 0.1
    dense_weight: float = 2.0
    sparse_weight: float = 0.3
    flops_weight: float = 3e-4  # of the sparse head's regulariser
    mntp_weight: float = 1.0
    visible_weight: float = 0.5  # of the visible tokens, beside the masked ones
    learning_rate: float = 1e-3
    warmup_fraction: float = 0.04
    temperature: float = 0.05  # of the dense head; the sparse one has 1
    held_out: int = 0  # passages kept from training, to measure MNTP on
    seed: int = 0


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A lower-casing byte-level BPE with `<pad>` as id 0; `_`, the mask token, is in its alphabet."""
    raw = RawTokenizer(models.BPE())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD_TOKEN],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=PAD_TOKEN)


class PretrainingModule(nn.Module):
    """The losses of a batch of crops."""

    def __init__(self, model: LlamaForCausalLM, config: Pretraining):
        super().__init__()
        self.model, self.config = model, config

    def forward(
        self,
        short: tuple[torch.Tensor, torch.Tensor],
        long: tuple[torch.Tensor, torch.Tensor],
        inputs_BL: torch.Tensor,
        selected_BL: torch.Tensor,
        visible_BL: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of (ids, mask) crops; `inputs_BL` is the long crop with its masks."""
        loss = self.contrast(short, long)
        if self.config.mntp_weight:
            masked = self.next_tokens(inputs_BL, long[0], selected_BL, visible_BL)
            loss = loss + self.config.mntp_weight * masked
        return loss

    def next_tokens(
        self,
        inputs_BL: torch.Tensor,
        targets_BL: torch.Tensor,
        selected_BL: torch.Tensor,
        visible_BL: torch.Tensor,
    ) -> torch.Tensor:
        """MNTP of the masked tokens, plus its weighted like of the visible ones."""
        masked_BL, shown_BL = selected_BL[:, 1:], visible_BL[:, 1:]
        losses_N, _ = next_token_losses(self.model, inputs_BL, targets_BL, selected_BL | visible_BL)
        share_BL = masked_BL / masked_BL.sum().clamp(min=1)
        share_BL = share_BL + self.config.visible_weight * shown_BL / shown_BL.sum().clamp(min=1)
        return (losses_N * share_BL[masked_BL | shown_BL]).sum()

    def contrast(
        self, short: tuple[torch.Tensor, torch.Tensor], long: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """InfoNCE of the short crops against the long ones, under both heads."""
        config, weight_VD = self.config, output_weight(self.model)
        diagonal = torch.arange(len(short[0]))
        hidden_s, hidden_l = (hidden_states(self.model, *crops) for crops in (short, long))
        dense_s, dense_l = dense_reps(hidden_s, short[1]), dense_reps(hidden_l, long[1])
        loss = config.dense_weight * info_nce(dense_s @ dense_l.T, diagonal, config.temperature)
        if config.sparse_weight:
            sparse_s = represent(SPARSE, hidden_s, weight_VD, short[1])
            sparse_l = represent(SPARSE, hidden_l, weight_VD, long[1])
            density = flops_regularizer(sparse_s) + flops_regularizer(sparse_l)
            loss = loss + config.sparse_weight * info_nce(sparse_s @ sparse_l.T, diagonal, 1.0)
            loss = loss + config.flops_weight * density
        return loss


Padded = tuple[torch.Tensor, torch.Tensor]  # ids_BL, mask_BL


@dataclass(frozen=True)
class CropBatch:
    """Crops of a step, and which tokens of the long ones are hidden, or shown and to be predicted."""

    short: Padded
    long: Padded
    inputs_BL: torch.Tensor  # the long crops as the model sees them
    selected_BL: torch.Tensor
    visible_BL: torch.Tensor


@dataclass
class CropTask:
    """Pre-training on random crops (`raylab.training.loop.Task`), on one worker."""

    module: PretrainingModule
    shape: Shape
    passages: list[np.ndarray]
    config: Pretraining
    mask_id: int
    held_out: list[np.ndarray] = field(default_factory=list)
    _last: tuple[int, CropBatch] | None = None

    @property
    def steps(self) -> int:
        return self.config.steps

    def cost(self, step: int) -> StepCost:
        batch = self.batch(step)
        short, long = (Rows(*crops[0].shape) for crops in (batch.short, batch.long))
        head = SPARSE if self.config.sparse_weight else None
        flops = train_flops(self.shape, [short, long], head, None, checkpointing=False)
        flops += train_flops(self.shape, [long], None, None, checkpointing=False)
        predicted = Rows(float(batch.selected_BL.sum() + batch.visible_BL.sum()), 1)
        flops += 3 * head_forward_flops(self.shape, predicted, SPARSE)
        tokens = float(short.tokens + long.tokens)
        return StepCost(flops, tokens, tokens)

    def backward(self, engine: Any, step: int) -> float:
        batch = self.batch(step)
        loss = engine(batch.short, batch.long, batch.inputs_BL, batch.selected_BL, batch.visible_BL)
        engine.backward(loss)
        return float(loss.detach())

    @property
    def measured_at(self) -> None:
        """At the start, at the end and four times between."""
        return None

    @torch.no_grad()
    def evaluate(self, engine: Any) -> Evaluation:
        """MNTP's loss and accuracy on the starts of the held-out passages, masked alike every time."""
        config, sums = self.config, np.zeros(3)
        training = engine.training
        engine.eval()
        for start in range(0, len(self.held_out), config.batch):
            rng = np.random.default_rng([config.seed, 3, start])
            texts = self.held_out[start : start + config.batch]
            ids = np.stack([text[: config.passage_crop] for text in texts]).astype(np.int64)
            selected = rng.random(ids.shape) < config.masked_fraction
            inputs = mask_tokens(ids, selected, self.mask_id, self.shape.vocabulary, rng)
            arrays = (torch.from_numpy(array) for array in (inputs, ids, selected))
            losses_N, right_N = next_token_losses(self.module.model, *arrays)
            sums += [float(losses_N.double().sum()), int(right_N.sum()), len(right_N)]
        engine.train(training)
        if not sums[2]:
            return Evaluation()
        values = {"held_out_loss": sums[0] / sums[2], "held_out_accuracy": sums[1] / sums[2]}
        return Evaluation(values)

    def batch(self, step: int) -> CropBatch:
        """What a step trains on, from seed and step alone; the last one is kept."""
        if self._last is None or self._last[0] != step:
            self._last = step, self._draw(step)
        return self._last[1]

    def _draw(self, step: int) -> CropBatch:
        config = self.config
        (short, short_mask), (long, long_mask) = (
            pad(texts, max(map(len, texts)), 0) for texts in self._crops(step)
        )
        rng = np.random.default_rng([config.seed, 2, step])
        selected = rng.random(long.shape) < config.masked_fraction
        selected[:, 0] = False
        visible = ~selected & (rng.random(long.shape) < config.visible_fraction)
        inputs = mask_tokens(long, selected, self.mask_id, self.shape.vocabulary, rng)
        return CropBatch(
            (torch.from_numpy(short), torch.from_numpy(short_mask)),
            (torch.from_numpy(long), torch.from_numpy(long_mask)),
            *(torch.from_numpy(array) for array in (inputs, selected, visible)),
        )

    def _crops(self, step: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        config, short, long = self.config, [], []
        for place in range(step * config.batch, (step + 1) * config.batch):
            epoch, position = divmod(place, len(self.passages))
            order = np.random.default_rng([config.seed, epoch]).permutation(len(self.passages))
            rng = np.random.default_rng([config.seed, 1, place])
            text = self.passages[order[position]]
            length = int(rng.integers(config.shortest_crop, config.longest_crop + 1))
            short.append(_crop(text, length, rng))
            long.append(_crop(text, config.passage_crop, rng))
        return short, long

    def describe(self, step: int) -> str:
        return f"crops {step * self.config.batch} and on"


def _crop(text: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(0, max(1, len(text) - length)))
    return text[start : start + length]


@dataclass
class PrintingReporter:
    """Progress as lines, no checkpoints: pre-training a rung takes minutes."""

    say: Callable[[str], None]
    every: int = 50

    def resume(self) -> contextlib.AbstractContextManager[Path | None]:
        return contextlib.nullcontext(None)

    def progress(self, progress: Progress) -> None:
        if progress.step % self.every == 0 or progress.step == progress.steps:
            self.say(
                f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  {progress.seconds:.0f} s"
            )

    def checkpoint(self, write: Callable[[Path], None], progress: Progress) -> None:
        """Nothing is kept."""


def pretrain(
    rung: Rung,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    config: Pretraining,
    folder: Path,
    text_name: str,
    command: str,
    say: Callable[[str], None] = print,
) -> Progress:
    """Pre-train a rung on `texts` (passage bodies) and write it as a model folder with its card.

    The last `config.held_out` of a seeded permutation of the passages are measured on, not trained on.
    """
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(rung.config(len(tokenizer)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight /= (2 * rung.layers) ** 0.5  # GPT-2's: the residual stream keeps the token
    shape = Shape.of(model.config)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    passages = [np.asarray(ids) for ids in encoded if len(ids) >= config.passage_crop]
    held_out = []
    if config.held_out:
        order = np.random.default_rng([config.seed, 4]).permutation(len(passages))
        held_out = [passages[i] for i in order[-config.held_out :]]
        passages = [passages[i] for i in sorted(order[: -config.held_out])]
    model.train()
    task = CropTask(
        PretrainingModule(model, config),
        shape,
        passages,
        config,
        int(tokenizer.convert_tokens_to_ids(MASK_TOKEN)),  # type: ignore[arg-type]
        held_out,
    )
    optimization = Optimization(
        config.learning_rate, 0.0, config.warmup_fraction, 1.0, zero_stage=0
    )
    started = time.process_time()
    ensure_process_group()
    _, done, history = run(task, optimization, PrintingReporter(say), checkpoints=0)
    measured = held_out_summary(history)
    model.config.dtype = torch.float16  # half the size; training and encoding on CPU load float32
    halves = {name: tensor.half() for name, tensor in state_to_save(model).items()}
    save_weights(model, halves, folder)
    tokenizer.save_pretrained(str(folder))
    card = _CARD.format(
        name=rung.name,
        parameters=shape.parameters,
        embeddings=shape.embedding_parameters,
        rung=asdict(rung),
        text=text_name,
        passages=len(passages),
        tokens=done.tokens,
        loss=done.loss,
        held_out=_HELD_OUT.format(passages=len(held_out), **measured) if measured else "",
        config=json.dumps(asdict(config)),
        seconds=time.process_time() - started,
        flops=done.spent_flops,
        command=command,
    )
    (folder / "README.md").write_text(card)
    return done


_HELD_OUT = """| MNTP on {passages} held-out passages | loss {held_out_loss:.3f} (before: \
{held_out_loss_before:.3f}), accuracy {held_out_accuracy:.3f} (before: {held_out_accuracy_before:.3f}) |
"""
_CARD = """---
license: odc-by
library_name: transformers
tags: [raylab, retrieval, bidirectional]
---
# {name}

A bidirectional Llama of {parameters:,} non-embedding parameters (and {embeddings:,} of tied embeddings),
one rung of raylab's pico ladder: {rung}.

| | |
|---|---|
| text | {text}: {passages:,} abstracts, without titles; no query or judgement |
| objective | InfoNCE over two random crops of a passage (2112.09118) under both heads, plus MNTP |
| recipe | `{config}` |
| tokens | {tokens:.3g} (with padding) |
| last batch's loss | {loss:.3f} |
{held_out}| FLOPs | {flops:.3g} |
| CPU seconds, one thread | {seconds:.0f} |
| command | `{command}` |

It starts experiments on a laptop. It is no model to deploy.
"""
