"""Training on Ray Train + DeepSpeed: MNTP once a size, fine-tuning once a cell.

The worker's work is `raylab.training`; here are the process group's trainer, checkpoints through
Ray Train, and the commit of what came out. A run is named after its fingerprint, so the same run
started again (after a killed worker, or a killed driver) resumes from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from raylab.artifacts import Address, Artifact, Store
from raylab.budget import Shape, fine_tuning_rows, passages_per_query, solve_steps, train_flops
from raylab.config import Adaptation, Backbone, Cell, Encoding, Execution, identity
from raylab.data.batches import MaskedBlocks, TrainingBatches
from raylab.data.teacher import read_groups
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import PassageStore
from raylab.distributed import barrier, rank_and_world
from raylab.jobs.cluster import arrow_filesystem, root_cause
from raylab.jobs.ingest import PASSAGES
from raylab.jobs.monitor import Beat
from raylab.models.backbone import add_lora, set_lora_dropout
from raylab.models.hub import load_base, load_weights, save_contract, save_weights
from raylab.training import (
    AdaptationTask,
    FineTuningModule,
    FineTuningTask,
    MaskedModule,
    Optimization,
    Progress,
    Task,
    gathered_state,
    learning_rate,
    run,
    seed_worker,
)

log = logging.getLogger("raylab")
_BEAT_EVERY_S = 1.0
_RUNS = "train"  # folder of Ray Train's own state and checkpoints below the storage root
BACKBONE, RETRIEVER = "backbone", "retriever"


# --------------------------------------------------------------------------------- addresses


def adaptation_address(backbone: Backbone, weights: str, adaptation: Adaptation, tokens: Artifact) -> Address:
    """Where a size's adapted backbone stands; `weights` is the checksum of the weights it starts from."""
    what = {"backbone": identity(backbone), "weights": weights, "adaptation": identity(adaptation)}
    return Address(BACKBONE, backbone.name, what, {"tokens": tokens.fingerprint})


def cell_address(cell: Cell, adapted: Artifact, tokens: Artifact, groups: Artifact) -> Address:
    """Where a cell's retriever stands."""
    inputs = {"backbone": adapted.fingerprint, "tokens": tokens.fingerprint, "groups": groups.fingerprint}
    return Address(RETRIEVER, cell.run_name, identity(cell), inputs)


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
        if self.board is None or rank_and_world()[0] or (now - self.last < _BEAT_EVERY_S and not last_step):
            return
        self.last = now
        beat = Beat(self.name, progress.step, progress.steps, progress.spent_flops, progress.loss, now)
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


# ----------------------------------------------------------------------------------- workers


@dataclass(frozen=True)
class AdaptationJob:
    """All a worker needs to adapt one size."""

    address: Address
    backbone: Backbone
    adaptation: Adaptation
    tokens: Artifact
    store: Store
    execution: Execution
    board: Any

    @property
    def run_name(self) -> str:
        return f"mntp-{self.backbone.name}"


@dataclass(frozen=True)
class CellJob:
    """All a worker needs to fine-tune one cell."""

    address: Address
    cell: Cell
    encoding: Encoding
    adapted: Artifact
    tokens: Artifact
    groups: Artifact
    training_part: str
    store: Store
    execution: Execution
    board: Any

    @property
    def run_name(self) -> str:
        return self.cell.run_name


def _prepare(execution: Execution) -> tuple[torch.device, torch.dtype]:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(not execution.use_gpu)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would fill every buffer, every step
    if execution.use_gpu:
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), torch.float32


def adaptation_worker(config: dict[str, Any]) -> None:
    """Runs on every worker of a size's MNTP; rank 0 commits the adapted backbone."""
    job: AdaptationJob = config["job"]
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
        job.adaptation.learning_rate, 0.0, job.adaptation.warmup_fraction, job.adaptation.clip_norm,
        job.execution.zero_stage, job.execution.use_gpu,
    )
    engine, done, history = _run(task, optimization, job, None)
    facts = {"backbone": identity(job.backbone), "tokenizer": tokenizer.fingerprint, "mntp": True}
    meta = {"parameters": shape.parameters, "masked_accuracy": task.accuracy, **_summary(done, history)}
    _commit(job, engine, model, facts, meta)


def fine_tuning_worker(config: dict[str, Any]) -> None:
    """Runs on every worker of a cell; rank 0 commits the retriever."""
    job: CellJob = config["job"]
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
    task = FineTuningTask(FineTuningModule(model, cell.head), cell, shape, batches, planned_steps(cell, shape, batches))
    optimization = Optimization(
        learning_rate(tuning, shape.hidden), tuning.weight_decay, tuning.warmup_fraction, tuning.clip_norm,
        job.execution.zero_stage, job.execution.use_gpu,
    )
    engine, done, history = _run(task, optimization, job, cell.budget_flops)
    facts = {
        "backbone": identity(cell.backbone), "head": cell.head, "encoding": identity(job.encoding),
        "tokenizer": tokenizer.fingerprint, "cell": identity(cell),
    }
    meta = {"parameters": shape.parameters, "budget_flops": cell.budget_flops, **_summary(done, history)}
    _commit(job, engine, model, facts, meta)


def training_batches(job: CellJob, tokenizer: Tokenizer) -> TrainingBatches:
    """The cell's batches, from the token store and the training groups."""
    store = PassageStore(job.store.local(job.tokens) / job.training_part)
    groups = read_groups(job.store.local(job.groups), store.rows)
    cell = job.cell
    return TrainingBatches(
        groups, store, tokenizer, cell.fine_tuning, passages_per_query(cell), cell.seed,
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


def _run(task: Task, optimization: Optimization, job: AdaptationJob | CellJob, budget: float | None):
    reporter = RayReporter(job.run_name, job.board)
    return run(task, optimization, reporter, job.execution.checkpoints, budget)


def _summary(done: Progress, history: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "steps": done.step, "spent_flops": done.spent_flops, "tokens": done.tokens, "loss": done.loss,
        "train_seconds": done.seconds, "history": history,
    }


def _commit(job: AdaptationJob | CellJob, engine: Any, model: Any, facts: dict, meta: dict) -> None:
    state = gathered_state(engine, model, job.execution.zero_stage)
    if rank_and_world()[0] == 0:
        with job.store.draft(job.address) as draft:
            save_weights(model, state, draft.path)
            save_contract(draft.path, facts)
            draft.meta.update(meta)
    barrier()


# -------------------------------------------------------------------------------------- jobs


def train(worker: Callable[[dict[str, Any]], None], job: AdaptationJob | CellJob, callbacks: list | None = None) -> None:
    """Run one training job to its committed artifact; its checkpoints are removed afterwards.

    Raises:
        The worker's own error, unwrapped, once `max_failures` restarts did not help.
    """
    execution, store = job.execution, job.store
    # A checkpoint of sharded state resumes only with the same sharding; results do not depend on it.
    name = f"{job.address.path.replace('/', '-')}-workers{execution.workers}-zero{execution.zero_stage}"
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if execution.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=execution.workers,
            use_gpu=execution.use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if execution.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{store.root}/{_RUNS}",
            storage_filesystem=None if store.is_local else arrow_filesystem(store),
            failure_config=ray.train.FailureConfig(max_failures=execution.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=callbacks or [],
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise root_cause(error) from None
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm(f"{store.root}/{_RUNS}/{name}", recursive=True)
