"""The training loop without Ray: exact resume, the same result on any number of workers, NaN stops."""

import contextlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from raylab.budget import Shape
from raylab.config import Adaptation, Backbone, Cell, FineTuning, Lora
from raylab.data.batches import MaskedBlocks, TrainingBatches
from raylab.data.teacher import Groups
from raylab.data.tokens import PassageStore, write_store
from raylab.distributed import ensure_process_group
from raylab.engine import Optimization, gathered_state, linear_schedule, seed_worker
from raylab.models.backbone import add_lora
from raylab.models.hub import load_base
from raylab.training import (
    AdaptationTask,
    FineTuningModule,
    FineTuningTask,
    MaskedModule,
    TrainingError,
    run,
)

STEPS = 8


class FolderReporter:
    """Keeps checkpoints in a folder; `stop_after` plays a worker that dies right after one."""

    def __init__(self, folder: Path, stop_after: int | None = None):
        self.folder, self.stop_after, self.steps = folder, stop_after, []

    def resume(self):
        newest = max(self.folder.glob("step-*"), default=None, key=lambda p: p.name)
        return contextlib.nullcontext(newest)

    def progress(self, progress):
        self.steps.append(progress.step)
        if progress.step == self.stop_after:
            raise KeyboardInterrupt

    def checkpoint(self, write, progress):
        write(self.folder / f"step-{progress.step:04d}")


def make_task(
    model_folder: Path, folder: Path, head="sparse", objective="cl+kd", lora=None, dropout=0.1
):
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(0)  # of the adapters
    backbone = Backbone("tiny", str(model_folder))
    model, tokenizer = load_base(backbone, None)
    lora = lora or Lora(rank=4, dropout=dropout, train_embeddings=True)
    model = add_lora(model, lora).train()
    rng = np.random.default_rng(0)
    ids = [f"p{i:02d}" for i in range(24)]
    tokens = [rng.integers(1, 100, 20) for _ in ids]
    if not (folder / "store").exists():
        write_store(folder / "store", [(ids, tokens, [2] * 24)], np.uint16)
    store = PassageStore(folder / "store")
    groups = Groups(
        [f"q{i}" for i in range(16)],
        ["cell gene drug"] * 16,
        np.zeros(16, bool),
        np.arange(16),
        [np.setdiff1d(np.arange(24), [i])[:5] for i in range(16)],
        np.full(16, 5),
        rng.normal(size=16).astype(np.float32),
        [rng.normal(size=5).astype(np.float32) for _ in range(16)],
    )
    tuning = FineTuning(
        batch_queries=8, negatives=2, lora=lora, checkpointing=False, temperature=0.5
    )
    cell = Cell(backbone, head, objective, tuning, 1e12, seed=5)
    batches = TrainingBatches(
        groups, store, tokenizer, tuning, 3 if objective != "kd" else 2, 5, True
    )
    return FineTuningTask(
        FineTuningModule(model, head), cell, Shape.of(model.config), batches, STEPS
    ), model


def optimization(zero=1, lr=5e-3):
    return Optimization(lr, 0.01, 0.1, 1.0, zero)


def train(model_folder, folder, reporter, zero=1, **options):
    task, model = make_task(model_folder, folder, **options)
    seed_worker(5)
    engine, done, history = run(task, optimization(zero), reporter, checkpoints=2)
    return gathered_state(engine, model, zero), done, history


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_a_stopped_run_ends_bit_for_bit_as_one_that_never_stopped(model_folder, tmp_path, stop):
    ensure_process_group()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, done, history = train(model_folder, tmp_path, FolderReporter(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        train(model_folder, tmp_path, FolderReporter(tmp_path / "b", stop_after=stop))
    second = FolderReporter(tmp_path / "b")
    resumed, again, history_again = train(model_folder, tmp_path, second)
    assert second.steps[0] == {3: 1, 4: 4, 7: 7}[stop], (
        "from the newest checkpoint, and no further back"
    )
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    assert (again.spent_flops, again.tokens, history_again) == (
        done.spent_flops,
        done.tokens,
        history,
    )


@pytest.mark.parametrize("objective", ["cl", "kd", "cl+kd"])
@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_every_head_and_objective_learns_its_batches(model_folder, tmp_path, head, objective):
    ensure_process_group()
    task, model = make_task(model_folder, tmp_path, head=head, objective=objective, dropout=0.0)
    task.steps = 48

    @torch.no_grad()
    def loss_of_two_batches() -> float:
        model.eval()
        return float(sum(task.loss(task.module, step)[0] for step in (0, 1)))

    before = loss_of_two_batches()
    _, done, _ = run(task, optimization(), FolderReporter(tmp_path / "x"), checkpoints=0)
    assert done.step == 48
    assert loss_of_two_batches() < 0.95 * before


def test_zero_stages_agree(model_folder, tmp_path):
    """ZeRO shards state; it must not change the optimisation (ZeRO-3 needs several processes to differ)."""
    losses = {}
    for zero in (0, 1, 2, 3):
        ensure_process_group()
        _, _, history = train(
            model_folder, tmp_path, FolderReporter(tmp_path / f"zero-{zero}"), zero=zero
        )
        losses[zero] = [point["loss"] for point in history]
    for zero in (1, 2, 3):
        assert losses[zero] == pytest.approx(losses[0], abs=1e-5)


def test_mntp_learns(model_folder, tmp_path):
    task, _ = make_task(model_folder, tmp_path)
    adaptation = Adaptation(
        steps=12,
        batch_blocks=4,
        block_length=16,
        learning_rate=1e-2,
        lora=task.cell.fine_tuning.lora,
        checkpointing=False,
    )
    blocks = MaskedBlocks(task.batches.store, task.batches.tokenizer, adaptation, seed=0)
    ensure_process_group()
    masked = AdaptationTask(MaskedModule(task.module.model), adaptation, task.shape, blocks)
    _, done, history = run(
        masked, optimization(lr=1e-2), FolderReporter(tmp_path / "x"), checkpoints=0
    )
    assert done.step == 12
    assert np.mean([h["loss"] for h in history[-3:]]) < np.mean([h["loss"] for h in history[:3]])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(model_folder, tmp_path):
    task, _ = make_task(model_folder, tmp_path)
    scores = task.batches.groups.positive_scores
    assert scores is not None
    scores[:] = np.nan
    ensure_process_group()
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 \(queries q\d"):
        run(task, optimization(), FolderReporter(tmp_path / "x"), checkpoints=0)


def test_the_budget_ends_a_run(model_folder, tmp_path):
    task, _ = make_task(model_folder, tmp_path)
    ensure_process_group()
    _, flops, _ = task.loss(task.module, 0)
    _, done, _ = run(
        task, optimization(), FolderReporter(tmp_path / "x"), 0, budget_flops=flops * 3.5
    )
    assert done.spent_flops <= flops * 3.5 * 1.02
    assert done.step == 3


def test_the_schedule_warms_up_and_falls_to_zero():
    factors = [linear_schedule(s, 100, 0.04) for s in range(101)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[100] == 0.0
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))


def _worker(rank: int, world: int, model_folder: str, folder: str, head: str, out: str) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous-{world}-{head}",
        rank=rank,
        world_size=world,
    )
    state, _, history = train(
        Path(model_folder),
        Path(folder),
        FolderReporter(Path(folder) / f"none-{world}"),
        head=head,
        dropout=0.0,
    )
    if rank == 0:
        torch.save((state, history), out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_the_number_of_workers_changes_nothing(model_folder, tmp_path, head):
    make_task(model_folder, tmp_path)  # writes the store once
    results = {}
    for world in (1, 2):
        out = str(tmp_path / f"out-{world}.pt")
        torch.multiprocessing.spawn(
            _worker,
            args=(world, str(model_folder), str(tmp_path), head, out),
            nprocs=world,
            join=True,
        )
        results[world] = torch.load(out)
    losses = {world: [h["loss"] for h in history] for world, (_, history) in results.items()}
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    for name, tensor in results[1][0].items():
        assert torch.allclose(tensor, results[2][0][name], atol=2e-5), name
