"""What a train worker does, run after run: load, train with DeepSpeed, report, commit."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray.train
import torch

from raylab.data.ingest import PASSAGES
from raylab.data.supervision.batches import MaskedBlocks, TrainingBatches
from raylab.data.supervision.groups import open_groups
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import PassageStore
from raylab.experiment.config import Adaptation, identity
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell
from raylab.jobs.reporting import RayReporter
from raylab.models.backbone import add_lora, set_lora_dropout
from raylab.models.checkpoint import save_retriever
from raylab.models.hub import load_base, load_weights, save_weights, state_to_save
from raylab.planning.contract import steps_of
from raylab.planning.flops import Shape, adaptation_flops, passages_per_query
from raylab.stages.train import RUNS, AdaptationJob, FineTuningJob, run_folder
from raylab.stages.validation import validation_texts
from raylab.storage.artifacts import Address
from raylab.training.distributed import barrier, from_first, rank_and_world, summed
from raylab.training.energy import Meter
from raylab.training.engine import Optimization, gathered, learning_rate, seed_worker
from raylab.training.fine_tuning import FineTuningModule, FineTuningTask
from raylab.training.loop import History, Progress, run, run_branches
from raylab.training.losses import negatives_seen
from raylab.training.mntp import AdaptationTask, MaskedModule, held_out_summary
from raylab.training.pacing import Clock, Pacing
from raylab.training.validation import Validation, points_of


def work_through(queue: Any, group: str) -> None:
    """One worker of a group: run after run, as the queue gives them."""
    leads = rank_and_world()[0] == 0
    run = from_first(ray.get(queue.at_work.remote(group)) if leads else None)
    while run is not None:
        work(*ray.get([queue.job.remote(run), queue.taken_at.remote(run)]))
        barrier()
        run = from_first(ray.get(queue.following.remote(group)) if leads else None)


def work(job: AdaptationJob | FineTuningJob, taken_at: float) -> None:
    """One worker's whole run: rank 0 commits what came out, and removes its checkpoints.

    What it does follows from the job alone, whatever the process has done before.

    Args:
        taken_at: when the run was given to the group (Unix seconds): it has been going on since.
    """
    adapt(job, taken_at) if isinstance(job, AdaptationJob) else fine_tune(job, taken_at)
    if rank_and_world()[0] == 0:
        with contextlib.suppress(FileNotFoundError):
            job.store.files.remove_tree(f"{RUNS}/{run_folder(job)}")
    gc.collect()  # an engine's parts refer to each other
    if job.execution.use_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _clock(job: AdaptationJob | FineTuningJob) -> Clock:
    """When to keep checkpoints: by time, and at once where Ray says that a node of the group is taken away."""
    execution = job.execution
    pacing = Pacing(execution.checkpoint_minutes, execution.fault_hours)
    return Clock(pacing, lambda: ray.train.get_preemption_info() is not None)


def _prepare(execution: Execution) -> torch.device:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(not execution.use_gpu)
    # Otherwise determinism would fill every buffer, every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda" if execution.use_gpu else "cpu")


def adapt(job: AdaptationJob, taken_at: float) -> None:
    """MNTP of one size."""
    if job.store.find(job.address) is not None:  # a worker died after the commit
        return
    device = _prepare(job.execution)
    seed_worker(0)
    model, tokenizer = load_base(job.backbone, job.execution.models_dir)
    shape = Shape.of(model.config)
    model = add_lora(model, job.adaptation.lora).to(device)
    _train_mode(model, job.adaptation.checkpointing)
    module = MaskedModule(model)
    store = PassageStore(job.store.local(job.store.committed(job.tokens)) / PASSAGES)
    blocks = MaskedBlocks(store, tokenizer, job.adaptation, seed=0)
    task = AdaptationTask(module, job.adaptation, shape, blocks)
    optimization = Optimization(
        job.adaptation.learning_rate,
        0.0,
        job.adaptation.warmup_fraction,
        job.adaptation.clip_norm,
        job.execution.zero_stage,
        job.backbone.compute_dtype,
        job.adaptation.schedule,
        job.adaptation.decay_fraction,
        job.adaptation.warmup_steps,
        _schedule_steps(job.adaptation, blocks),
    )
    reporter = RayReporter(job, {job.adaptation.steps: job.run_name}, taken_at)
    _, done, history = run(task, optimization, reporter, _clock(job))
    reporter.ended()
    meta = {
        "backbone": identity(job.backbone),
        "tokenizer": tokenizer.fingerprint,
        "parameters": shape.parameters,
        "held_out_blocks": len(blocks.split[1]),
        **held_out_summary(history),
        "planned_flops": adaptation_flops(shape, job.adaptation),
        **_summary(done, history, reporter),
    }
    write = functools.partial(_save_adapted, model)
    _commit(job, job.address, model, write, meta)


def _schedule_steps(adaptation: Adaptation, blocks: MaskedBlocks) -> int | None:
    """The steps that the learning rate's course is laid out for; None: those of the run."""
    if adaptation.schedule_epochs is None:
        return None
    return math.ceil(adaptation.schedule_epochs * blocks.steps_an_epoch)


def _save_adapted(model: Any, folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_weights(model, state, folder)


def fine_tune(job: FineTuningJob, taken_at: float) -> None:
    """A cell, or cells that share their stable phase."""
    cells = [(address, cell) for address, cell in job.cells if job.store.find(address) is None]
    if not cells:  # a worker died after the last commit
        return
    cell = cells[-1][1]
    tuning = cell.fine_tuning
    device = _prepare(job.execution)
    seed_worker(cell.seed)
    model, tokenizer = load_base(cell.backbone, job.execution.models_dir)
    shape = Shape.of(model.config)
    adapted = job.store.local(job.store.committed(job.adapted))
    model = load_weights(model, adapted, trainable=True).to(device)
    if tuning.lora is not None:
        set_lora_dropout(model, tuning.lora.dropout)
    _train_mode(model, tuning.checkpointing)
    batches = training_batches(job, cell, tokenizer)
    module = FineTuningModule(model, cell.head)
    task = FineTuningTask(module, cell, shape, batches, 1, job.execution.micro_batch_texts)
    steps = {member: planned_steps(member, task) for _, member in cells}
    task.steps = max(steps.values())
    if tuning.pace_flops is not None:
        smallest = replace(cell, budget_flops=tuning.pace_flops)
        tuning = tuning.paced(planned_steps(smallest, task))
        task.cell = replace(cell, fine_tuning=tuning)
    _validate(job, task, tokenizer, steps.values())
    optimization = Optimization(
        learning_rate(tuning, shape.hidden),
        tuning.weight_decay,
        tuning.warmup_fraction,
        tuning.clip_norm,
        job.execution.zero_stage,
        cell.backbone.compute_dtype,
        tuning.schedule,
        tuning.decay_fraction,
        tuning.warmup_steps,
    )
    reporter = RayReporter(job, {steps[member]: member.run_name for _, member in cells}, taken_at)

    def finished(end: int, done: Progress, history: History) -> None:
        for address, member in cells:
            if steps[member] == end and job.store.find(address) is None:
                meta = {
                    **_retriever_facts(job, member, task),
                    **_summary(done, history, reporter),
                    "spent_flops": done.spent_flops + _charged(member, shape),
                    "examples": done.step * tuning.batch_queries,
                }
                write = functools.partial(_save, job, member, model, tokenizer, done)
                _commit(job, address, model, write, meta)

    checkpoints = _clock(job)
    ends = {steps[member]: member.budget_flops or None for _, member in cells}
    if len(ends) == 1:
        _, done, history = run(task, optimization, reporter, checkpoints, ends[task.steps])
        reporter.ended()
        finished(task.steps, done, history)
    else:
        run_branches(task, optimization, reporter, checkpoints, ends, finished)
        reporter.ended()


def _validate(
    job: FineTuningJob, task: FineTuningTask, tokenizer: Tokenizer, ends: Collection[int]
) -> None:
    """Give a task its validation texts and the steps at which they are measured, where some are."""
    if job.validation is None or not job.execution.validate:
        return
    store = PassageStore(job.store.local(job.store.committed(job.tokens)) / PASSAGES)
    tuning, head = task.cell.fine_tuning, task.cell.head
    texts = validation_texts(job.validation, store, tokenizer, tuning)
    micro_batch = job.execution.micro_batch_texts
    validation = Validation(texts, tokenizer.pad_id, head, task.shape, tuning, micro_batch)
    if validation.is_empty:
        return
    points = points_of(ends, job.execution.validate, validation.flops, task.cost(0)[0])
    if points:
        task.validation, task.measured_at = validation, points


def _retriever_facts(job: FineTuningJob, cell: Cell, task: FineTuningTask) -> dict[str, Any]:
    """What a retriever's manifest says of how it was made, beside what it took."""
    shape, batches, tuning = task.shape, task.batches, cell.fine_tuning
    seen = negatives_seen(
        cell.objective,
        tuning.batch_queries,
        batches.passages,
        job.execution.workers,
        tuning.in_batch_queries,
    )
    return {
        "parameters": shape.parameters,
        "head_parameters": shape.vocabulary * shape.hidden if cell.head.is_sparse else 0,
        "budget_flops": cell.budget_flops,
        "epochs": cell.epochs,
        "charged_flops": _charged(cell, shape),
        "planned_flops": cell.budget_flops or None,
        "variant": cell.variant,
        "negatives": asdict(seen),
    }


def _charged(cell: Cell, shape: Shape) -> float:
    """FLOPs of MNTP that the cell's budget pays."""
    if not cell.charged_adaptation or cell.adaptation is None:
        return 0.0
    return adaptation_flops(shape, cell.adaptation)


def _save(
    job: FineTuningJob,
    cell: Cell,
    model: Any,
    tokenizer: Tokenizer,
    done: Progress,
    folder: Path,
    state: dict[str, torch.Tensor],
) -> None:
    facts = {
        "name": cell.run_name,
        "collection": job.collection,
        "objective": cell.objective.name,
        "seed": cell.seed,
        "recipe": identity(cell.fine_tuning),
        "training": {
            "steps": done.step,
            "tokens": done.tokens,
            "budget FLOPs": cell.budget_flops,
            "spent FLOPs": done.spent_flops,
            "last batch's loss": done.loss,
        },
    }
    contract = cell.backbone, cell.head, job.encoding, facts
    save_retriever(folder, model, state, tokenizer, *contract, job.execution.models_dir)


def training_batches(job: FineTuningJob, cell: Cell, tokenizer: Tokenizer) -> TrainingBatches:
    """The cell's batches, from the token store and the training groups."""
    store = PassageStore(job.store.local(job.store.committed(job.tokens)) / job.training_part)
    arrays = job.store.local(job.store.committed(job.arrays))
    groups = open_groups(arrays, job.groups.path)
    return TrainingBatches(
        groups,
        store,
        tokenizer,
        cell.fine_tuning,
        passages_per_query(cell),
        cell.seed,
        needs_teacher=cell.objective.needs_teacher,
    )


def planned_steps(cell: Cell, task: FineTuningTask) -> int:
    """The budget solved into steps, from the cell's own real batches."""

    def cost(step: int) -> float:
        return task.cost(step)[0]

    return steps_of(cell, cost, task.batches.training_queries, _charged(cell, task.shape))


def _train_mode(model: Any, checkpointing: bool) -> None:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()


def _summary(done: Progress, history: History, reporter: RayReporter) -> dict[str, Any]:
    """What a run took, and of that what it took for itself alone and what was lost to faults."""
    seconds = done.seconds - done.shared_seconds
    workers = rank_and_world()[1]
    return {
        "steps": done.step,
        "spent_flops": done.spent_flops,
        "own_flops": done.spent_flops - done.shared_flops,
        "tokens": done.tokens,
        "own_tokens": done.tokens - done.shared_tokens,
        "padded_tokens": done.padded_tokens,
        "own_padded_tokens": done.padded_tokens - done.shared_padded_tokens,
        "loss": done.loss,
        "train_seconds": seconds,
        "device_seconds": seconds * workers,
        "measuring_flops": done.measuring_flops,
        "measuring_seconds": done.measuring_seconds,
        "history": history,
        "energy_j": _joules(reporter.meter),
        **reporter.journal.took(),
    }


def _joules(meter: Meter) -> float | None:
    """Of this session of the run: all workers' GPUs, or rank 0's machine."""
    joules = meter.joules()
    if meter.gpu is None:
        return joules
    device = torch.device("cuda", meter.gpu)
    (total,) = summed(torch.tensor(float("nan") if joules is None else joules, device=device))
    return None if math.isnan(total) else total


def _commit(
    job: AdaptationJob | FineTuningJob,
    address: Address,
    model: Any,
    write: Callable[[Path, dict[str, torch.Tensor]], None],
    meta: dict[str, Any],
) -> None:
    """Let rank 0 write the trained state into a draft, and commit it."""
    with gathered(model, job.execution.zero_stage):
        state = state_to_save(model)
        if rank_and_world()[0] == 0:
            with job.store.draft(address) as draft:
                write(draft.path, state)
                draft.meta.update(meta)
    barrier()
