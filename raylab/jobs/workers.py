"""What a train worker does: load, train with DeepSpeed, report through Ray Train, commit."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch

from raylab.budget import Shape, fine_tuning_rows, passages_per_query, solve_steps, train_flops
from raylab.config import Cell, Execution, identity
from raylab.data.batches import MaskedBlocks, TrainingBatches
from raylab.data.groups import open_groups
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import PassageStore
from raylab.distributed import barrier, rank_and_world
from raylab.engine import Optimization, gathered, learning_rate, seed_worker
from raylab.fine_tuning import FineTuningModule, FineTuningTask
from raylab.jobs.ingest import PASSAGES
from raylab.jobs.monitor import Beat
from raylab.jobs.train import AdaptationJob, CellJob
from raylab.losses import negatives_seen
from raylab.mntp import AdaptationTask, MaskedModule, held_out_summary
from raylab.models.backbone import add_lora, set_lora_dropout
from raylab.models.checkpoint import save_retriever
from raylab.models.hub import load_base, load_weights, save_weights, state_to_save
from raylab.training import Progress, Task, run

_BEAT_EVERY_S = 1.0


def work(job: AdaptationJob | CellJob) -> None:
    """One worker's whole run; rank 0 commits what came out."""
    adapt(job) if isinstance(job, AdaptationJob) else fine_tune(job)


def _prepare(execution: Execution) -> tuple[torch.device, torch.dtype]:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(not execution.use_gpu)
    # Otherwise determinism would fill every buffer, every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if execution.use_gpu:
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), torch.float32


def adapt(job: AdaptationJob) -> None:
    """MNTP of one size."""
    device, dtype = _prepare(job.execution)
    seed_worker(0)
    model, tokenizer = load_base(job.backbone, job.execution.models_dir, dtype)
    shape = Shape.of(model.config)
    model = add_lora(model, job.adaptation.lora).to(device)
    _train_mode(model, job.adaptation.checkpointing)
    module = MaskedModule(model)
    store = PassageStore(job.store.local(job.tokens) / PASSAGES)
    blocks = MaskedBlocks(store, tokenizer, job.adaptation, seed=0)
    task = AdaptationTask(module, job.adaptation, shape, blocks)
    optimization = Optimization(
        job.adaptation.learning_rate,
        0.0,
        job.adaptation.warmup_fraction,
        job.adaptation.clip_norm,
        job.execution.zero_stage,
        job.execution.use_gpu,
        job.adaptation.schedule,
        job.adaptation.decay_fraction,
    )
    _, done, history = _run(task, optimization, job, None)
    meta = {
        "backbone": identity(job.backbone),
        "tokenizer": tokenizer.fingerprint,
        "parameters": shape.parameters,
        "held_out_blocks": len(blocks.split[1]),
        **held_out_summary(history),
        **_summary(done, history),
    }
    _commit(job, model, lambda folder, state: save_weights(model, state, folder), meta)


def fine_tune(job: CellJob) -> None:
    """One cell."""
    cell, tuning = job.cell, job.cell.fine_tuning
    device, dtype = _prepare(job.execution)
    seed_worker(cell.seed)
    model, tokenizer = load_base(cell.backbone, job.execution.models_dir, dtype)
    shape = Shape.of(model.config)
    model = load_weights(model, job.store.local(job.adapted), trainable=True).to(device)
    if tuning.lora is not None:
        set_lora_dropout(model, tuning.lora.dropout)
    _train_mode(model, tuning.checkpointing)
    batches = training_batches(job, tokenizer)
    task = FineTuningTask(
        FineTuningModule(model, cell.head),
        cell,
        shape,
        batches,
        planned_steps(cell, shape, batches),
        job.execution.micro_batch_texts,
    )
    optimization = Optimization(
        learning_rate(tuning, shape.hidden),
        tuning.weight_decay,
        tuning.warmup_fraction,
        tuning.clip_norm,
        job.execution.zero_stage,
        job.execution.use_gpu,
        tuning.schedule,
        tuning.decay_fraction,
    )
    _, done, history = _run(task, optimization, job, cell.budget_flops)
    facts = {
        "name": cell.run_name,
        "collection": job.collection,
        "objective": cell.objective,
        "seed": cell.seed,
        "recipe": identity(tuning),
        "training": {
            "steps": done.step,
            "tokens": done.tokens,
            "budget FLOPs": cell.budget_flops,
            "spent FLOPs": done.spent_flops,
            "last batch's loss": done.loss,
        },
    }
    meta = {
        "parameters": shape.parameters,
        "budget_flops": cell.budget_flops,
        "negatives": asdict(
            negatives_seen(
                cell.objective, tuning.batch_queries, batches.passages, job.execution.workers
            )
        ),
        **_summary(done, history),
    }

    def write(folder: Path, state: dict[str, torch.Tensor]) -> None:
        models_dir = job.execution.models_dir
        what = cell.backbone, cell.head, job.encoding, facts
        save_retriever(folder, model, state, tokenizer, *what, models_dir)

    _commit(job, model, write, meta)


def training_batches(job: CellJob, tokenizer: Tokenizer) -> TrainingBatches:
    """The cell's batches, from the token store and the training groups."""
    store = PassageStore(job.store.local(job.tokens) / job.training_part)
    assert job.arrays is not None
    groups = open_groups(job.store.local(job.arrays), job.groups.path)
    cell = job.cell
    return TrainingBatches(
        groups,
        store,
        tokenizer,
        cell.fine_tuning,
        passages_per_query(cell),
        cell.seed,
        needs_teacher=cell.objective != "cl",
    )


def planned_steps(cell: Cell, shape: Shape, batches: TrainingBatches) -> int:
    """The budget solved into steps, from the padded lengths of the cell's own first draws."""
    tuning = cell.fine_tuning
    rows = fine_tuning_rows(tuning, batches.passages, *batches.mean_lengths())
    return solve_steps(cell, train_flops(shape, rows, cell.head, tuning.lora, tuning.checkpointing))


def _train_mode(model: Any, checkpointing: bool) -> None:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()


def _run(
    task: Task, optimization: Optimization, job: AdaptationJob | CellJob, budget: float | None
):
    reporter = RayReporter(job.run_name, job.board)
    return run(task, optimization, reporter, job.execution.checkpoints, budget)


def _summary(done: Progress, history: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "steps": done.step,
        "spent_flops": done.spent_flops,
        "tokens": done.tokens,
        "loss": done.loss,
        "train_seconds": done.seconds,
        "history": history,
    }


def _commit(
    job: AdaptationJob | CellJob,
    model: Any,
    write: Callable[[Path, dict[str, torch.Tensor]], None],
    meta: dict[str, Any],
) -> None:
    """Let rank 0 write the trained state into a draft, and commit it."""
    with gathered(model, job.execution.zero_stage):
        state = state_to_save(model)
        if rank_and_world()[0] == 0:
            with job.store.draft(job.address) as draft:
                write(draft.path, state)
                draft.meta.update(meta)
    barrier()


# --------------------------------------------------------------------------------- reporting


class RayReporter:
    """Progress to the board, checkpoints through Ray Train (`raylab.training.Reporter`)."""

    def __init__(self, name: str, board: Any):
        self.name, self.board = name, board
        self.last = 0.0

    @contextlib.contextmanager
    def resume(self) -> Iterator[Path | None]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def progress(self, progress: Progress) -> None:
        now = time.time()
        last_step = progress.step == progress.steps
        if (
            self.board is None
            or rank_and_world()[0]
            or (now - self.last < _BEAT_EVERY_S and not last_step)
        ):
            return
        self.last = now
        beat = Beat(
            self.name, progress.step, progress.steps, progress.spent_flops, progress.loss, now
        )
        self.board.beat.remote(beat)

    def checkpoint(self, write: Callable[[Path], None], progress: Progress) -> None:
        folder = Path(tempfile.mkdtemp(prefix="raylab-checkpoint-"))
        try:
            write(folder)
            ray.train.report(
                asdict(progress),
                checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
                checkpoint_dir_name=f"step-{progress.step:08d}",
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
