"""The gradients of a step: the same on any number of workers, and for any micro-batch."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from raylab.cli.experiment import chosen
from raylab.cli.options import Options
from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO
from raylab.planning.plan import Lengths, plan_cell
from raylab.training.distributed import ensure_process_group
from raylab.training.engine import make_engine, random_state, seed_worker
from raylab.training.fine_tuning import micro_batches
from tests.workers import in_workers, make_task, optimization

# Every objective, both heads, and every micro-batch beside 0; the micro-batches divide nothing.
CASES = [
    {"head": "sparse", "objective": "cl+kd"},
    {"head": "dense", "objective": "cl"},
    {"head": "dense", "objective": "kd", "kd_loss": "margin_mse"},
    {"head": "sparse", "objective": "kd", "kd_loss": "kl", "top_k_passage": 60},
]
MICRO = (0, 3, 7)
STEP = 4  # the regulariser's weight is neither 0 nor at its end


def gradients(task, *micro: int) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """(loss, averaged gradients) of a step for each micro-batch, by DeepSpeed without ZeRO."""
    engine = make_engine(task.module, lambda: task.steps, optimization(zero=0))
    engine.train()
    results = []
    for task.micro_batch_texts in micro:
        seed_worker(1)
        engine.zero_grad()
        loss = task.backward(engine, STEP)
        named = task.module.named_parameters()
        results.append((loss, {n: p.grad.clone() for n, p in named if p.requires_grad}))
    return results


def all_gradients(model_folder: Path, folder: Path):
    """The results of every case and micro-batch, on this worker."""
    return [
        gradients(make_task(model_folder, folder, dropout=0.0, **case), *MICRO) for case in CASES
    ]


def assert_close(ours: dict, reference: dict, tolerance: float = 1e-6) -> None:
    """Equal to a share of the whole gradient's norm."""
    assert ours.keys() == reference.keys()
    norm = torch.cat([g.flatten() for g in reference.values()]).norm()
    assert norm > 1e-3
    difference = torch.cat([(ours[n] - reference[n]).flatten() for n in reference]).norm()
    assert float(difference / norm) < tolerance


@pytest.fixture(scope="module")
def by_workers(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    make_task(model_folder, folder)  # writes the store once
    return {w: in_workers(w, all_gradients, model_folder, folder) for w in (1, 2, 4)}


@pytest.mark.long
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda c: "-".join(map(str, CASES[c].values())))  # fmt: skip
def test_neither_workers_nor_micro_batches_change_loss_or_gradient(by_workers, case):
    reference_loss, reference = by_workers[1][0][case][0]
    for workers, micro in itertools.product((1, 2, 4), range(len(MICRO))):
        for of_worker in by_workers[workers]:
            loss, ours = of_worker[case][micro]
            assert loss == pytest.approx(reference_loss, rel=1e-6)
            assert_close(ours, reference)


def test_every_parameter_has_a_gradient(by_workers):
    """Adapters start at zero, where half of the gradients vanish: the comparison would see nothing."""
    for case in by_workers[1][0]:
        assert all(g.norm() > 0 for g in case[0][1].values())


# ------------------------------------------------------------------------------------- dropout


def by_hand(task, parts_of: int) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    """Loss and gradients of one graph over micro-batches that are encoded one after the other."""
    batch = task.batches.collate(task.batches.draw(STEP))
    seed_worker(1)
    reps = []
    for ids, mask, k in (
        (batch.query_ids_QL, batch.query_mask_QL, task.cell.fine_tuning.top_k_query),
        (batch.passage_ids_PL, batch.passage_mask_PL, task.cell.fine_tuning.top_k_passage),
    ):
        rows: list = [None] * len(ids)
        order = sorted(range(len(ids)), key=lambda i: (mask[i].sum(), i))
        for start in range(0, len(order), parts_of):
            own = order[start : start + parts_of]
            longest = max(mask[i].sum() for i in own)
            cut = (torch.from_numpy(a[own][:, :longest]) for a in (ids, mask))
            (part,) = task.module((*cut, k))
            for place, row in zip(own, part, strict=True):
                rows[place] = row
        reps.append(torch.stack(rows))
    loss = task._loss(reps, batch, STEP)
    loss.backward()
    grads = {n: p.grad for n, p in task.module.named_parameters() if p.requires_grad}
    return float(loss.detach()), grads, random_state()["cpu"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_the_second_pass_sees_the_dropout_of_the_first(model_folder, tmp_path, head, checkpointing):
    ensure_process_group()
    options = {"head": head, "dropout": 0.3}
    loss, reference, after = by_hand(make_task(model_folder, tmp_path, **options), 5)
    ((ours_loss, ours),) = gradients(
        make_task(model_folder, tmp_path, checkpointing=checkpointing, **options), 5
    )
    assert torch.equal(random_state()["cpu"], after)  # and the next step draws on from there
    assert ours_loss == pytest.approx(loss, rel=1e-6)
    assert_close(ours, reference)
    ((_, other),) = gradients(make_task(model_folder, tmp_path, head=head, dropout=0.0), 5)
    with pytest.raises(AssertionError):  # the reference does depend on its masks
        assert_close(other, reference, 1e-2)


def test_a_micro_batch_of_the_whole_batch_is_no_micro_batch(model_folder, tmp_path):
    ensure_process_group()
    plain, whole = gradients(make_task(model_folder, tmp_path, dropout=0.3), 0, 32)
    assert plain[0] == whole[0]
    assert all(torch.equal(plain[1][name], whole[1][name]) for name in plain[1])


def test_micro_batches_hold_texts_of_like_length_once_each():
    lengths = np.random.default_rng(0).integers(1, 50, 23).tolist()
    parts = micro_batches(lengths, 5)
    assert [len(p) for p in parts] == [5, 5, 5, 5, 3]
    flat = np.concatenate(parts).tolist()
    assert sorted(flat) == list(range(23))
    assert [lengths[i] for i in flat] == sorted(lengths)


def test_the_account_is_of_the_plain_step(model_folder, tmp_path):
    """How a step is executed changes neither the plan nor the account, which is of real tokens."""
    plain, parts = (make_task(model_folder, tmp_path, micro=m) for m in (0, 3))
    assert plain.cost(2) == parts.cost(2)
    batch = plain.batches.collate(plain.batches.draw(2))
    assert plain.cost(2)[1] == batch.query_mask_QL.sum() + batch.passage_mask_PL.sum()


def test_the_plan_of_memory_knows_of_micro_batches(model_folder, tmp_path):
    task = make_task(model_folder, tmp_path)
    plans = [
        plan_cell(
            task.cell,
            task.shape,
            Lengths(10, 100, 10, 100),
            Execution(workers=2, micro_batch_texts=m),
        )
        for m in (0, 12, 6, 1000)
    ]
    assert len({(p.steps, p.flops, p.tokens) for p in plans}) == 1
    whole, half, quarter, more = (p.memory_bytes for p in plans)
    assert more == whole  # a worker's share is 4 queries and 12 passages
    assert whole > half > quarter
    # Activations are per token: 1,240, then 1,200 and 600 of them at once.
    whole, half, quarter, _ = (p.load.memory().activations for p in plans)
    assert (whole - half) * 15 == pytest.approx(half - quarter)


def test_the_command_line_asks_for_micro_batches():
    grid = Grid(PICO, "scifact")
    assert chosen(Options(micro_batch=8), grid)[1].micro_batch_texts == 8
    assert chosen(Options(), grid)[1].micro_batch_texts == 0
    with pytest.raises(ConfigError, match="--micro-batch -1: it must be 0 or more"):
        Options(micro_batch=-1)
