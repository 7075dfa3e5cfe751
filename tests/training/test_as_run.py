"""The recipe `paper-as-run` against the formulas that ran for 2502.15526, on four simulated devices in float64.

Every device encodes its own queries and passages; those of the other three are gathered without a gradient;
a device's loss is over what was gathered; gradients are averaged over devices and micro-batches.
"""

from dataclasses import fields

import pytest
import torch
from torch.nn import functional as F

from raylab.experiment.config import Encoding, FineTuning
from raylab.experiment.grid import Cell
from raylab.experiment.heads import HEADS
from raylab.experiment.ladders import LLAMA3
from raylab.experiment.objectives import OBJECTIVES
from raylab.experiment.paper import WHY, differences
from raylab.experiment.recipes import RECIPES
from raylab.training.fine_tuning import objective_loss
from raylab.training.losses import ramp, regularisers

DEVICES, ENTRIES = 4, 9
# Queries a device and micro-batch, and micro-batches a step, of the training scripts.
AS_RUN = {
    ("1b", "cl"): (28, 1), ("3b", "cl"): (16, 2), ("8b", "cl"): (8, 4),
    ("1b", "cl+kd"): (28, 1), ("3b", "cl+kd"): (16, 2), ("8b", "cl+kd"): (8, 4),
    ("1b", "kd"): (256, 1), ("3b", "kd"): (128, 1), ("8b", "kd"): (64, 2),
}  # fmt: skip
STEPS, STEP = 1000, 40  # within every ramp


def flops(reps):
    return (reps.abs().mean(0) ** 2).sum()


def gathered(parts, device):
    """All devices' rows; a gradient flows into one device's alone."""
    return torch.cat([part if n == device else part.detach() for n, part in enumerate(parts)])


def device_loss(objective, sparse, temperature, queries, passages, teacher, device, risen):
    """What one device minimises in one micro-batch; lists of [q, D], [q, K, D] and [q, K] by device."""
    count, listed = teacher[0].shape
    own_q, own_p = queries[device], passages[device]
    if objective == "kd":
        student = (own_q[:, None] * own_p).sum(-1) / temperature
        margins = student[:, 0] - student[:, 1]
        rank = F.mse_loss(margins, teacher[device][:, 0] - teacher[device][:, 1])
        query_reg = flops(own_q)
        passage_reg = (flops(own_p[:, 0]) + flops(own_p[:, 1])) / 2
    else:
        all_q = gathered(queries, device)
        all_p = gathered([p.flatten(0, 1) for p in passages], device)
        logits = all_q @ all_p.T / temperature
        rank = F.cross_entropy(logits, torch.arange(len(all_q)) * listed)
        if objective == "cl+kd":
            rows = torch.arange(count) + device * count
            places = rows[:, None] * listed + torch.arange(listed)
            student = logits[rows[:, None], places].log_softmax(1)
            teacher_log = teacher[device].log_softmax(1)
            kl = F.kl_div(student, teacher_log, reduction="batchmean", log_target=True)
            rank = (rank + kl) / 2
        query_reg, passage_reg = flops(all_q), flops(all_p)
    if not sparse:
        return rank
    return rank + risen * (0.05 * query_reg + 0.04 * passage_reg)


@pytest.mark.parametrize(("size", "objective"), AS_RUN)
@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_loss_and_gradients_are_those_that_ran(size, objective, head):
    a_device, micro_batches = AS_RUN[size, objective]
    (backbone,) = LLAMA3.select((size,))
    tuning = RECIPES["paper-as-run"]().tuning(backbone, HEADS[head], OBJECTIVES[objective])
    assert tuning.batch_queries == DEVICES * micro_batches * a_device
    cell = Cell(backbone, HEADS[head], OBJECTIVES[objective], tuning, 1e9)
    listed = cell.objective.passages(tuning)
    shape = micro_batches, DEVICES, a_device, listed
    generator = torch.Generator().manual_seed(7)

    def drawn(*dimensions):
        values = torch.randn(*dimensions, generator=generator, dtype=torch.float64)
        return values.relu() if head == "sparse" else 0.05 * values

    queries, passages = drawn(*shape[:3], ENTRIES), drawn(*shape, ENTRIES)
    teacher = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    # Their ramp counts micro-batches over a third of the steps.
    risen = min(STEP * micro_batches / (STEPS / 3), 1.0) ** 2
    assert ramp(STEP, STEPS, tuning) == pytest.approx(risen, rel=1e-12)

    expected, query_gradient, passage_gradient = [], [], []
    for micro_batch in range(micro_batches):
        parts = [
            [part.clone().requires_grad_() for part in reps[micro_batch]]
            for reps in (queries, passages)
        ]
        for device in range(DEVICES):
            loss = device_loss(
                objective,
                head == "sparse",
                tuning.temperature,
                *parts,
                teacher[micro_batch],
                device,
                risen,
            )
            loss.backward()  # into the device's own representations alone
            expected.append(loss.detach())
        share = 1 / DEVICES / micro_batches
        query_gradient += [share * part.grad for part in parts[0]]
        passage_gradient += [share * part.grad for part in parts[1]]

    ours_q = queries.flatten(0, 2).requires_grad_()
    ours_p = passages.flatten(0, 3).requires_grad_()
    excluded = torch.zeros(len(ours_q), len(ours_p), dtype=torch.bool)
    loss = objective_loss(cell, ours_q, ours_p, listed, teacher.flatten(0, 2), excluded)
    if head == "sparse":
        in_batch = cell.objective.in_batch
        loss = loss + sum(regularisers(ours_q, ours_p, listed, tuning, in_batch, risen))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.stack(expected).mean(), rtol=1e-9, atol=1e-12)
    for ours, theirs in ((ours_q, query_gradient), (ours_p, passage_gradient)):
        theirs = torch.cat([part.reshape(-1, ENTRIES) for part in theirs])
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-9, atol=1e-12)


def test_every_difference_is_a_field_with_a_reason():
    """`paper` differs from `paper-as-run` in nothing else, and has the fields' defaults there."""
    defaults = {
        field.name: field.default for part in (FineTuning, Encoding) for field in fields(part)
    }
    found = set()
    for where, field, ran, ours in differences():
        assert ran != ours, where
        assert ours == defaults[field], (where, field)
        found.add(field)
    assert found == set(WHY)
