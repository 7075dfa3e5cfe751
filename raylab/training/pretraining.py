"""Pre-training of the rungs of a small ladder: the same texts, losses and steps for all, rates by width.

A random model without a bulk (`raylab.training.rungs`) learns a teacher's similarities between excerpts of documents
(`raylab.training.excerpts`, `raylab.training.teaching`). No query, judgement or score of a collection is seen.

Legend: N documents, S short excerpts a document, B documents of a step, T dimensions of the teacher, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from raylab.data.supervision.batches import mask_tokens, pad
from raylab.data.tokenizer import MASK_TOKEN
from raylab.experiment.config import check
from raylab.experiment.heads import HEADS, SPARSE
from raylab.models.hub import save_weights, state_to_save
from raylab.planning.flops import Rows, Shape, head_forward_flops, score_flops, train_flops
from raylab.training.distributed import ensure_process_group
from raylab.training.engine import Optimization
from raylab.training.lessons import Lessons
from raylab.training.loop import Evaluation, History, Progress, StepCost, run
from raylab.training.rungs import Rung, give_meaning, start, token_meanings
from raylab.training.teaching import (
    Batch,
    Contrast,
    Distillation,
    Loss,
    Masked,
    TaughtModule,
    log_unigrams,
)

_CHECKPOINTS = 10


@dataclass(frozen=True)
class Phase:
    """A part of pre-training: losses, steps and a schedule of its own.

    `bag`: embeddings alone are trained, and a text is a bag of them. Blocks that add nothing yet are left out, which
    makes a step as cheap at any width as looking its tokens up.
    """

    losses: tuple[Loss, ...]
    steps: int
    bag: bool = False
    batch: int = 128  # documents
    learning_rate: float = 2e-3
    warmup_fraction: float = 0.05

    def __post_init__(self) -> None:
        check(bool(self.losses), "losses", self.losses, "at least one")
        for name in ("steps", "batch"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")


@dataclass(frozen=True)
class Pretraining:
    """Hyper-parameters, shared by all rungs.

    The learning rate of embeddings and norms is the same at every width; that of the blocks' matrices is the
    phase's at `reference_hidden` and falls as 1 / width (2203.03466).
    """

    phases: tuple[Phase, ...] = (
        Phase((Distillation("dense", cosine=True),), steps=1_000, bag=True),
        Phase((Distillation("dense"), Contrast("dense", weight=0.5)), steps=150, batch=64),
    )
    reference_hidden: int = 96
    betas: tuple[float, float] = (0.9, 0.98)
    residual_scale: float = 0.0
    meaning_share: float = 1.0  # of the embeddings' start; 0: random
    masked_fraction: float = 0.2
    visible_fraction: float = 0.1
    limit: int = 64  # tokens of an excerpt
    held_out: int = 256  # documents kept from training, to measure the fit on
    seed: int = 0

    def __post_init__(self) -> None:
        check(bool(self.phases), "phases", self.phases, "at least one")
        bagged = [phase.bag for phase in self.phases]
        first = bagged == sorted(bagged, reverse=True)
        check(first, "phases", bagged, "bags of words first: later the blocks add something")
        right = "0 where the blocks are left out at first"
        check(
            not any(bagged) or not self.residual_scale, "residual_scale", self.residual_scale, right
        )
        for name in ("limit", "reference_hidden"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")

    def optimization(self, phase: Phase, hidden: int) -> Optimization:
        """The optimizer of a rung of this width."""
        return Optimization(
            phase.learning_rate,
            0.0,
            phase.warmup_fraction,
            1.0,
            zero_stage=0,
            matrix_rate=1.0 if phase.bag else self.reference_hidden / hidden,
            betas=self.betas,
        )


@dataclass
class TaughtTask:
    """One phase of a rung's pre-training (`raylab.training.loop.Task`), on one worker."""

    module: TaughtModule
    shape: Shape
    lessons: Lessons
    config: Pretraining
    place: int  # of the phase
    mask_id: int
    documents: np.ndarray
    held_out: np.ndarray
    _last: tuple[int, Batch] | None = field(default=None, repr=False)

    @property
    def phase(self) -> Phase:
        return self.config.phases[self.place]

    @property
    def steps(self) -> int:
        return self.phase.steps

    @property
    def measured_at(self) -> None:
        """At the start, at the end and four times between."""
        return None

    def cost(self, step: int) -> StepCost:
        batch, losses = self.batch(step), self.phase.losses
        rows = [
            Rows(len(ids), len(ids[0]), float(mask.sum()))
            for ids, mask in (batch.short, batch.long)
        ]
        heads = {HEADS[name] for loss in losses for name in loss.heads}
        shape = replace(self.shape, layers=0) if self.phase.bag else self.shape
        head = SPARSE if SPARSE in heads else None
        flops = train_flops(shape, rows, head, None, checkpointing=False)
        size = self.phase.batch
        flops += sum(2 * score_flops(size, size, shape.width(head)) for head in heads)
        if batch.masked is not None:
            flops += train_flops(shape, rows[1:], None, None, checkpointing=False)
            asked = batch.masked.selected_BL | batch.masked.visible_BL
            flops += 3 * head_forward_flops(shape, Rows(float(asked.sum()), 1), SPARSE)
        return StepCost(flops, sum(part.real for part in rows), sum(part.tokens for part in rows))

    def backward(self, engine: Any, step: int) -> float:
        loss = engine(self.batch(step))
        engine.backward(loss)
        return float(loss.detach())

    def evaluate(self, engine: Any) -> Evaluation:
        """The fit to the teacher on the held-out documents, in groups as large as a step's."""
        training, sums, groups = engine.training, dict[str, float](), 0
        engine.eval()
        for begin in range(0, len(self.held_out), self.phase.batch):
            group = self.held_out[begin : begin + self.phase.batch]
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
            rng = np.random.default_rng([self.config.seed, 1, self.place, step])
            self._last = step, self._batch(self._documents(step), rng)
        return self._last[1]

    def _documents(self, step: int) -> np.ndarray:
        """Every document once an epoch, in an order of its own."""
        size, count = self.phase.batch, len(self.documents)
        places = np.arange(step * size, (step + 1) * size)
        orders = {int(epoch): self._order(int(epoch)) for epoch in np.unique(places // count)}
        return self.documents[[orders[int(place // count)][place % count] for place in places]]

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.config.seed, 2, self.place, epoch])
        return rng.permutation(len(self.documents))

    def _batch(self, documents: np.ndarray, rng: np.random.Generator) -> Batch:
        """One short and one long excerpt of each document."""
        texts = self.lessons.texts
        parts, taught = [], []
        for places_NS in (texts.short_NS, texts.long_NL):
            drawn = rng.integers(0, places_NS.shape[1], len(documents))
            places = places_NS[documents, drawn]
            ids = [self.lessons.ids[place] for place in places]
            padded, mask = pad(ids, max(map(len, ids)), 0)
            parts.append((torch.from_numpy(padded), torch.from_numpy(mask)))
            rows = self.lessons.taught_NT[places].astype(np.float32)
            taught.append(torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)))
        masked = None
        if any(loss.masks for loss in self.phase.losses):
            masked = self._masked(parts[1][0], parts[1][1], rng)
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
        return f"phase {self.place}, documents {step * self.phase.batch} and on"


@dataclass
class FolderReporter:
    """Progress as lines, and the newest checkpoint in a folder, from which a stopped run goes on."""

    folder: Path
    say: Callable[[str], None]
    every: int = 50

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
class PhaseDone:
    """What a phase took, and how it went."""

    steps: int
    tokens: float  # with padding
    flops: float
    seconds: float  # of its steps, by the clock
    loss: float
    history: History


@dataclass(frozen=True)
class Trained:
    """What came of a rung: what each phase took, and on how much."""

    shape: Shape
    documents: int
    held_out: int
    phases: tuple[PhaseDone, ...]

    @property
    def tokens(self) -> float:
        """With padding."""
        return sum(phase.tokens for phase in self.phases)

    def fit(self, place: int) -> list[dict[str, float]]:
        """The points of a phase at which the held-out documents were measured."""
        history = self.phases[place].history
        return [p for p in history if any(name.startswith("held_out") for name in p)]


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
    """Pre-train a rung and write it as a model folder, without a card.

    Phases that are done, and the newest checkpoint of the one that runs, are kept under `work`: what is done there is
    not done again. Other lessons need another folder.

    Raises:
        TrainingError: a loss or a gradient that is not finite.
    """
    documents, held_out = lessons.split(config.held_out, config.seed)
    model = beginning(rung, tokenizer, lessons, documents, config)
    counts_V = np.bincount(
        np.concatenate([lessons.ids[p] for p in lessons.excerpts_of(documents)]),
        minlength=len(tokenizer),
    )
    unigram_V = log_unigrams(torch.from_numpy(counts_V).float())
    shape = Shape.of(model.config)
    mask_id = int(tokenizer.convert_tokens_to_ids(MASK_TOKEN))  # type: ignore[arg-type]
    ensure_process_group()
    done = []
    for place, phase in enumerate(config.phases):
        module = TaughtModule(model, phase.losses, unigram_V, phase.bag)
        task = TaughtTask(module, shape, lessons, config, place, mask_id, documents, held_out)
        done.append(_phase(task, rung, work / _name(rung, config, place), say))
    model.config.dtype = torch.float16  # half the size; training and encoding on CPU load float32
    halves = {name: tensor.half() for name, tensor in state_to_save(model).items()}
    save_weights(model, halves, folder)
    tokenizer.save_pretrained(str(folder))
    return Trained(shape, len(documents), len(held_out), tuple(done))


def _name(rung: Rung, config: Pretraining, place: int) -> str:
    """Of a phase's folder: a recipe that differs up to this phase has another."""
    same = replace(config, phases=config.phases[: place + 1])
    return f"phase-{place}-{hashlib.sha256(repr((rung, same)).encode()).hexdigest()[:12]}"


def _phase(task: TaughtTask, rung: Rung, work: Path, say: Callable[[str], None]) -> PhaseDone:
    """Train one phase, or load what it came to."""
    model = task.module.model
    weights, facts = work / "model.safetensors", work / "done.json"
    if facts.exists():
        model.load_state_dict(load_file(weights), strict=False)  # tied weights have one name
        return PhaseDone(**json.loads(facts.read_text()))
    model.requires_grad_(not task.phase.bag)
    model.get_input_embeddings().requires_grad_(True)
    model.train()
    optimization = task.config.optimization(task.phase, rung.hidden)
    _, end, history = run(task, optimization, FolderReporter(work, say), _CHECKPOINTS)
    done = PhaseDone(end.step, end.padded_tokens, end.spent_flops, end.seconds, end.loss, history)
    work.mkdir(parents=True, exist_ok=True)
    save_file(state_to_save(model), weights)
    facts.write_text(json.dumps(asdict(done)))
    shutil.rmtree(work / "newest", ignore_errors=True)
    return done
