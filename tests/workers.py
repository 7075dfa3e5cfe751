"""Training without Ray for tests: a tiny cell, its checkpoints in a folder, and worker processes."""

import contextlib
import io
import multiprocessing
import os
import socket
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from raylab.data.supervision.batches import TrainingBatches
from raylab.data.supervision.groups import Groups, Ragged
from raylab.data.tokens import PassageStore, write_store
from raylab.experiment.config import Backbone, FineTuning, Lora
from raylab.experiment.grid import Cell
from raylab.experiment.heads import HEADS
from raylab.experiment.objectives import OBJECTIVES
from raylab.models.backbone import add_lora
from raylab.models.hub import load_base
from raylab.planning.flops import Shape, passages_per_query
from raylab.training.engine import Optimization, seed_worker
from raylab.training.fine_tuning import FineTuningModule, FineTuningTask
from raylab.training.loop import run

STEPS = 8
PASSAGES = 24
_WORDS = ["cell", "protein", "gene", "tumour", "virus", "mouse", "patient", "drug", "dose"]


def store_of(folder: Path) -> PassageStore:
    """24 passages of 3 to 20 tokens."""
    if not (folder / "store").exists():
        rng = np.random.default_rng(0)
        ids = [f"p{i:02d}" for i in range(PASSAGES)]
        tokens = [rng.integers(1, 100, rng.integers(3, 21)) for _ in ids]
        write_store(folder / "store", [(ids, tokens, [2] * PASSAGES)], np.uint16)
    return PassageStore(folder / "store")


def groups_of(rng: np.random.Generator) -> Groups:
    """16 groups of 15 queries: the last query has two positives."""
    return Groups(
        [f"q{min(i, 14)}" for i in range(16)],
        [" ".join(rng.choice(_WORDS, rng.integers(1, 7))) for _ in range(16)],
        np.zeros(16, bool),
        np.arange(16),
        Ragged.of(
            [np.setdiff1d(np.arange(PASSAGES), [i, 14, 15])[:5] for i in range(16)], np.int64
        ),
        np.full(16, 5),
        rng.normal(size=16).astype(np.float32),
        Ragged.of([rng.normal(size=5) for _ in range(16)], np.float32),
    )


def make_task(
    model_folder: Path,
    folder: Path,
    head="sparse",
    objective="cl+kd",
    dropout=0.1,
    micro=0,
    checkpointing=False,
    embeddings=True,
    **tuning,
) -> FineTuningTask:
    """A cell of the tiny model: adapters away from their zero start, 8 queries a step."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    backbone = Backbone("tiny", str(model_folder))
    model, tokenizer = load_base(backbone, None)
    lora = Lora(rank=4, dropout=dropout, train_embeddings=embeddings)
    model = add_lora(model, lora).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    settings = {"batch_queries": 8, "negatives": 2, "temperature": 0.5} | tuning
    config = FineTuning(lora=lora, checkpointing=checkpointing, **settings)
    cell = Cell(backbone, HEADS[head], OBJECTIVES[objective], config, 1e12, seed=5)
    batches = TrainingBatches(
        groups_of(np.random.default_rng(1)),
        store_of(folder),
        tokenizer,
        config,
        passages_per_query(cell),
        5,
        objective != "cl",
    )
    module = FineTuningModule(model, HEADS[head])
    return FineTuningTask(module, cell, Shape.of(model.config), batches, STEPS, micro)


def optimization(zero=1, lr=5e-3, **more) -> Optimization:
    return Optimization(lr, 0.01, 0.1, 1.0, zero, **more)


def cut_at(task: FineTuningTask, *ends: int) -> None:
    """Cut the texts of its steps, in order of length, at these places; nowhere: all are padded to the longest."""
    drawn = task.batches._draw

    def draw(step: int):
        made = drawn(step)
        groups = made.length_groups
        ends_G = np.array([*ends, len(groups.order_T)])
        return replace(made, length_groups=replace(groups, ends_G=ends_G))

    task.batches._draw = draw


class FolderReporter:
    """Keeps checkpoints in a folder; `stop_after` plays a worker that dies right after a step."""

    def __init__(self, folder: Path, stop_after: int | None = None, resume_at: int | None = None):
        self.folder, self.stop_after, self.resume_at = folder, stop_after, resume_at
        self.steps: list[int] = []

    def resume(self):
        kept = sorted(self.folder.glob("step-*"))
        if self.resume_at is not None:
            kept = [self.folder / f"step-{self.resume_at:04d}"]
        return contextlib.nullcontext(kept[-1] if kept else None)

    def progress(self, progress):
        self.steps.append(progress.step)
        if progress.step == self.stop_after:
            raise KeyboardInterrupt

    def checkpoint(self, write, progress):
        if self.resume_at is None:
            write(self.folder / f"step-{progress.step:04d}")


def train(task, reporter, zero=1, checkpoints=2, budget=None, **optimizer):
    """Run a task as a worker does: (engine, progress, history)."""
    seed_worker(5)
    return run(task, optimization(zero, **optimizer), reporter, checkpoints, budget)


# ------------------------------------------------------------------------------------ processes


def in_workers(world: int, function, *arguments) -> list:
    """`function(*arguments)` in `world` gloo processes; their results by rank.

    Processes are forked from one server that has loaded the libraries: seconds instead of minutes.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["deepspeed", "transformers", "peft", "raylab.training.fine_tuning"]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(queue, rank, world, port, function, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    results, faults = {}, []
    for _ in processes:
        rank, result, fault = queue.get()
        results[rank] = result and torch.load(io.BytesIO(result), weights_only=False)
        if fault:
            faults.append(f"worker {rank}:\n{fault}")
            for process in processes:
                process.terminate()
            break
    for process in processes:
        process.join()
    assert not faults, faults[0]
    return [results[rank] for rank in range(world)]


def _work(queue, rank: int, world: int, port: int, function, arguments) -> None:
    try:
        os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world))
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
        )
        result = function(*arguments)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        file = io.BytesIO()  # a tensor sent as it is would need this process to stay
        torch.save(result, file)
        queue.put((rank, file.getvalue(), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
