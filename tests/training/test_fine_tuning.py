"""The gradients of a step: as of the padded batch, on any number of workers, and for any micro-batch."""

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
from raylab.training.distributed import ensure_process_group, rank_and_world
from raylab.training.engine import make_engine, random_state, seed_worker
from raylab.training.fine_tuning import micro_batches
from tests.workers import cut_at, in_workers, make_task, optimization

# Every objective and both heads; the micro-batches divide nothing.
CASES = [
    {"head": "sparse", "objective": "cl+kd"},
    {"head": "dense", "objective": "cl"},
    {"head": "dense", "objective": "kd", "kd_loss": "margin_mse"},
    {"head": "sparse", "objective": "kd", "kd_loss": "kl", "top_k_passage": 60},
]
MICRO = (0, 7)
# Groups of the step's 24 or 32 texts, with fewer texts in some than there are workers.
CUTS = (1, 4, 9, 20)
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
    """Of every case, on this worker: those of the padded batch, and then of its groups by each micro-batch."""
    results = []
    for number, case in enumerate(CASES):
        padded, plain, cut = (make_task(model_folder, folder, dropout=0.0, **case) for _ in "123")
        cut_at(padded)
        cut_at(cut, *CUTS)
        results.append(
            [
                *(gradients(padded, 0) if rank_and_world()[1] == 1 else ()),
                *gradients(plain, *MICRO),
                *gradients(cut, 0, *([1, 3] if number == 0 else [3])),
            ]
        )
    return results


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
def test_neither_groups_nor_workers_nor_micro_batches_change_loss_or_gradient(by_workers, case):
    reference_loss, reference = by_workers[1][0][case][0]
    for of_worker in itertools.chain(*by_workers.values()):
        for loss, ours in of_worker[case]:
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
    assert len(batch.groups) > 1
    seed_worker(1)
    reps = []
    for group in batch.groups:
        for start in range(0, len(group.ids_BL), parts_of):
            own = slice(start, start + parts_of)
            longest = group.mask_BL[own].sum(1).max()
            cut = (torch.from_numpy(a[own, :longest]) for a in (group.ids_BL, group.mask_BL))
            reps += task.module((*cut, torch.zeros(len(group.places_B[own]), dtype=torch.int64)))
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


def test_micro_batches_hold_each_text_of_a_group_once_and_are_as_many_on_all_workers():
    lengths = torch.arange(2, 25)
    mask = torch.arange(24)[None] < lengths[:, None]
    ids, top_k = mask * lengths[:, None], torch.arange(23)
    parts = micro_batches((ids, mask, top_k), 26, 5)
    assert [len(k) for _, _, k in parts] == [5, 5, 5, 5, 3, 0]
    assert torch.cat([k for _, _, k in parts]).tolist() == top_k.tolist()
    for part_ids, part_mask, part_top_k in parts[:-1]:
        own = lengths[part_top_k]
        assert part_mask.sum(1).tolist() == own.tolist()
        assert part_ids.shape[1] == own.max()
        assert torch.equal(part_ids, part_mask * own[:, None])
    assert parts[-1][0].shape == parts[-1][1].shape == (1, 1)  # encoded, and dropped


@pytest.mark.parametrize("top_k", [{}, {"top_k_query": 3, "top_k_passage": 60}])
def test_each_text_has_the_top_k_of_its_kind(model_folder, tmp_path, top_k):
    """Whatever its length, and so its group."""
    task = make_task(model_folder, tmp_path, dropout=0.0, **top_k)
    cut_at(task, 9, 14)
    batch = task.batches.collate(task.batches.draw(STEP))
    terms, mixed = {}, []
    for (ids, mask, k), group in zip(task._texts(batch), batch.groups, strict=True):
        (reps,) = task.module((ids, mask, k))
        terms |= dict(zip(group.places_B.tolist(), (reps > 0).sum(1).tolist(), strict=True))
        mixed.append(len(set(group.places_B < 8)) == 2)
    assert any(mixed)
    of_kinds = {max(terms[i] for i in range(8)), max(terms[i] for i in range(8, 32))}
    assert of_kinds == {3, 60} if top_k else min(of_kinds) > 60


def test_the_account_is_of_the_plain_step(model_folder, tmp_path):
    """How a step is executed changes neither the plan nor the account."""
    plain, parts, padded = (make_task(model_folder, tmp_path, micro=m) for m in (0, 3, 0))
    cut_at(padded)
    assert plain.cost(2) == parts.cost(2)
    draw = plain.batches.draw(2)
    for world in (1, 2, 4, 8):
        batches = [plain.batches.collate(draw, rank, world) for rank in range(world)]
        groups = [group for batch in batches for group in batch.groups]
        assert sum(group.mask_BL.sum() for group in groups) == plain.cost(2).tokens
        assert sum(group.mask_BL.size for group in groups) == plain.cost(2).padded_tokens
    assert plain.cost(2).tokens == padded.cost(2).tokens
    assert plain.cost(2).padded_tokens < padded.cost(2).padded_tokens
    assert plain.cost(2).flops < padded.cost(2).flops


def test_the_plan_of_memory_knows_of_micro_batches(model_folder, tmp_path):
    task = make_task(model_folder, tmp_path)
    lengths = np.repeat([10.0, 100.0], [8, 24])
    plans = [
        plan_cell(
            task.cell,
            task.shape,
            Lengths(lengths, lengths),
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
