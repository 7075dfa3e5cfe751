"""Pre-training of the rungs of a small ladder: the same texts, losses and steps for all, rates by width.

A random model without a bulk (`raylab.training.rungs`) learns a teacher's similarities between excerpts of documents
(`raylab.training.excerpts`, `raylab.training.teaching`). No query, judgement or score of a collection is seen.

Legend: N documents, S short excerpts a document, B documents of a step, T dimensions of the teacher, V vocabulary.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from raylab.data.supervision.batches import mask_tokens, pad
from raylab.data.tokenizer import MASK_TOKEN
from raylab.experiment.config import check
from raylab.experiment.heads import HEADS, SPARSE
from raylab.models.hub import save_weights, state_to_save
from raylab.planning.flops import Rows, Shape, head_forward_flops, train_flops
from raylab.training.distributed import ensure_process_group
from raylab.training.engine import Optimization
from raylab.training.excerpts import Texts
from raylab.training.loop import Evaluation, History, Progress, run
from raylab.training.rungs import Rung, give_meaning, start, token_meanings
from raylab.training.teaching import Batch, Distillation, Loss, Masked, TaughtModule, log_unigrams

_CHECKPOINTS = 10


@dataclass(frozen=True)
class Pretraining:
    """Hyper-parameters, shared by all rungs.

    The learning rate of embeddings and norms is the same at every width; that of the blocks' matrices is
    `learning_rate` at `reference_hidden` and falls as 1 / width (2203.03466).
    """

    losses: tuple[Loss, ...] = (
        Distillation("dense"),
        Distillation("sparse", temperature=1.0, flops_weight=3e-4),
    )
    steps: int = 300
    batch: int = 128  # documents
    learning_rate: float = 2e-3
    reference_hidden: int = 96
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_fraction: float = 0.05
    residual_scale: float = 0.0
    meaning_share: float = 1.0  # of the embeddings' start; 0: random
    masked_fraction: float = 0.2
    visible_fraction: float = 0.1
    limit: int = 128  # tokens of an excerpt
    held_out: int = 256  # documents kept from training, to measure the fit on
    seed: int = 0

    def __post_init__(self) -> None:
        check(bool(self.losses), "losses", self.losses, "at least one")
        for name in ("steps", "batch", "limit", "reference_hidden"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")

    def optimization(self, hidden: int) -> Optimization:
        """The optimizer of a rung of this width."""
        return Optimization(
            self.learning_rate,
            0.0,
            self.warmup_fraction,
            1.0,
            zero_stage=0,
            matrix_rate=self.reference_hidden / hidden,
            betas=self.betas,
        )


@dataclass(frozen=True)
class Lessons:
    """The tokens of all excerpts, whose they are (`Texts`), and the teacher's embeddings of them."""

    ids: Sequence[np.ndarray]
    texts: Texts
    taught_NT: np.ndarray

    @classmethod
    def of(
        cls, texts: Texts, taught_NT: np.ndarray, tokenizer: PreTrainedTokenizerFast, limit: int
    ) -> Lessons:
        """Excerpts as the rungs' tokenizer sees them."""
        encoded = tokenizer(texts.texts, add_special_tokens=False)["input_ids"]
        return cls([np.asarray(ids[:limit], np.int64) for ids in encoded], texts, taught_NT)

    def split(self, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(documents to train on, documents held out), disjoint, the same for every rung.

        Raises:
            ConfigError: nothing is left to train on.
        """
        check(held_out < len(self.texts), "held_out", held_out, f"below {len(self.texts)}")
        order = np.random.default_rng([seed, 4]).permutation(len(self.texts))
        return np.sort(order[: len(order) - held_out]), order[len(order) - held_out :]

    def excerpts_of(self, documents: np.ndarray) -> np.ndarray:
        """Places in `ids` of every excerpt of some documents."""
        return np.concatenate(
            [self.texts.short_NS[documents].ravel(), self.texts.long_NL[documents].ravel()]
        )


@dataclass
class TaughtTask:
    """Pre-training of one rung (`raylab.training.loop.Task`), on one worker."""

    module: TaughtModule
    shape: Shape
    lessons: Lessons
    config: Pretraining
    mask_id: int
    documents: np.ndarray
    held_out: np.ndarray
    _last: tuple[int, Batch] | None = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        return self.config.steps

    @property
    def measured_at(self) -> None:
        """At the start, at checkpoints and at the end."""
        return None

    def cost(self, step: int) -> tuple[float, float]:
        batch = self.batch(step)
        rows = [Rows(*ids.shape, float(mask.sum())) for ids, mask in (batch.short, batch.long)]
        sparse = any(HEADS[head].is_sparse for loss in self.config.losses for head in loss.heads)
        head = SPARSE if sparse else None
        flops = train_flops(self.shape, rows, head, None, checkpointing=False)
        if batch.masked is not None:
            flops += train_flops(self.shape, rows[1:], None, None, checkpointing=False)
            asked = batch.masked.selected_BL | batch.masked.visible_BL
            flops += 3 * head_forward_flops(self.shape, Rows(float(asked.sum()), 1), SPARSE)
        return flops, sum(part.tokens for part in rows)

    def backward(self, engine: Any, step: int) -> float:
        loss = engine(self.batch(step))
        engine.backward(loss)
        return float(loss.detach())

    def evaluate(self, engine: Any) -> Evaluation:
        """The fit to the teacher on the held-out documents, in groups as large as a step's."""
        training, sums, groups = engine.training, dict[str, float](), 0
        engine.eval()
        for begin in range(0, len(self.held_out), self.config.batch):
            group = self.held_out[begin : begin + self.config.batch]
            if len(group) < 2:
                continue
            rng = np.random.default_rng([self.config.seed, 3, begin])
            for name, value in self.module.measures(self._batch(group, rng)).items():
                sums[name] = sums.get(name, 0.0) + value
            groups += 1
        engine.train(training)
        return Evaluation({name: value / groups for name, value in sums.items()})

    def batch(self, step: int) -> Batch:
        """What a step trains on, from seed and step alone; the last one is kept."""
        if self._last is None or self._last[0] != step:
            rng = np.random.default_rng([self.config.seed, 1, step])
            self._last = step, self._batch(self._documents(step), rng)
        return self._last[1]

    def _documents(self, step: int) -> np.ndarray:
        """Every document once an epoch, in an order of its own."""
        size, count = self.config.batch, len(self.documents)
        places = np.arange(step * size, (step + 1) * size)
        orders = {
            int(epoch): np.random.default_rng([self.config.seed, 2, int(epoch)]).permutation(count)
            for epoch in np.unique(places // count)
        }
        return self.documents[[orders[int(place // count)][place % count] for place in places]]

    def _batch(self, documents: np.ndarray, rng: np.random.Generator) -> Batch:
        """One short and one long excerpt of each document."""
        texts = self.lessons.texts
        parts, taught = [], []
        for places_NS in (texts.short_NS, texts.long_NL):
            drawn = rng.integers(0, places_NS.shape[1], len(documents))
            places = places_NS[documents, drawn]
            ids = [self.lessons.ids[place] for place in places]
            arrays = pad(ids, max(map(len, ids)), 0)
            parts.append(tuple(torch.from_numpy(array) for array in arrays))
            rows = self.lessons.taught_NT[places].astype(np.float32)
            taught.append(torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)))
        masked = None
        if any(loss.masks for loss in self.config.losses):
            masked = self._masked(*parts[1], rng)
        return Batch(parts[0], parts[1], (taught[0], taught[1]), masked)

    def _masked(
        self, ids_BL: torch.Tensor, mask_BL: torch.Tensor, rng: np.random.Generator
    ) -> Masked:
        config, real_BL = self.config, mask_BL.numpy().astype(bool)
        selected = real_BL & (rng.random(ids_BL.shape) < config.masked_fraction)
        selected[:, 0] = False
        visible = real_BL & ~selected & (rng.random(ids_BL.shape) < config.visible_fraction)
        inputs = mask_tokens(ids_BL.numpy(), selected, self.mask_id, self.shape.vocabulary, rng)
        arrays = (torch.from_numpy(array) for array in (inputs, selected, visible))
        inputs_BL, selected_BL, visible_BL = arrays
        return Masked(inputs_BL, ids_BL, selected_BL, visible_BL)

    def describe(self, step: int) -> str:
        return f"documents {step * self.config.batch} and on"


@dataclass
class FolderReporter:
    """Progress as lines, and the newest checkpoint in a folder, from which a stopped run goes on."""

    folder: Path
    say: Callable[[str], None]
    every: int = 10

    @contextmanager
    def resume(self) -> Iterator[Path | None]:
        newest = self.folder / "newest"
        yield newest if newest.is_dir() else None

    def progress(self, progress: Progress) -> None:
        if progress.step % self.every == 0 or progress.step == progress.steps:
            self.say(
                f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  {progress.seconds:.0f} s"
            )

    def checkpoint(self, write: Callable[[Path], None], progress: Progress) -> None:
        aside, newest = self.folder / "aside", self.folder / "newest"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        shutil.rmtree(newest, ignore_errors=True)
        aside.rename(newest)


@dataclass(frozen=True)
class Trained:
    """What came of a rung: where it ended, how it came there, and on how much."""

    progress: Progress
    history: History
    shape: Shape
    documents: int
    held_out: int
    cpu_seconds: float

    def fit(self) -> list[dict[str, float]]:
        """The points of the history at which the held-out documents were measured."""
        return [p for p in self.history if any(name.startswith("held_out") for name in p)]


def beginning(
    rung: Rung,
    tokenizer: PreTrainedTokenizerFast,
    lessons: Lessons,
    documents: np.ndarray,
    config: Pretraining,
) -> Any:
    """A rung before its first step."""
    model = start(rung, len(tokenizer), config.seed, config.residual_scale)
    if config.meaning_share:
        places = lessons.excerpts_of(documents)
        taught_NT = lessons.taught_NT[places]
        meanings_VT = token_meanings([lessons.ids[p] for p in places], taught_NT, len(tokenizer))
        give_meaning(model, meanings_VT, taught_NT, config.meaning_share)
    return model


def pretrain(
    rung: Rung,
    tokenizer: PreTrainedTokenizerFast,
    lessons: Lessons,
    config: Pretraining,
    folder: Path,
    work: Path,
    say: Callable[[str], None] = print,
) -> Trained:
    """Pre-train a rung and write it as a model folder, without a card; checkpoints are kept under `work`.

    Raises:
        TrainingError: a loss or a gradient that is not finite.
    """
    began = time.process_time()
    documents, held_out = lessons.split(config.held_out, config.seed)
    model = beginning(rung, tokenizer, lessons, documents, config)
    model.train()
    counts_V = np.bincount(
        np.concatenate([lessons.ids[p] for p in lessons.excerpts_of(documents)]),
        minlength=len(tokenizer),
    )
    module = TaughtModule(model, config.losses, log_unigrams(torch.from_numpy(counts_V).float()))
    mask_id = tokenizer.convert_tokens_to_ids(MASK_TOKEN)
    shape = Shape.of(model.config)
    task = TaughtTask(module, shape, lessons, config, int(mask_id), documents, held_out)  # type: ignore[arg-type]
    ensure_process_group()
    reporter = FolderReporter(work, say)
    _, done, history = run(task, config.optimization(rung.hidden), reporter, _CHECKPOINTS)
    model.config.dtype = torch.float16  # half the size; training and encoding on CPU load float32
    halves = {name: tensor.half() for name, tensor in state_to_save(model).items()}
    save_weights(model, halves, folder)
    tokenizer.save_pretrained(str(folder))
    shutil.rmtree(work, ignore_errors=True)
    seconds = time.process_time() - began
    return Trained(done, history, shape, len(documents), len(held_out), seconds)
