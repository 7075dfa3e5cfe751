"""Budgets of FLOPs, epochs and hours as training steps."""

import dataclasses

import pytest

from raylab.experiment.config import (
    Backbone,
    ConfigError,
    FineTuning,
    Lora,
)
from raylab.experiment.grid import Cell
from raylab.experiment.heads import SPARSE
from raylab.experiment.objectives import CL, KD
from raylab.planning.devices import DEVICES, budget_flops_of_hours, device_hours
from raylab.planning.flops import (
    Rows,
    Shape,
    passages_per_query,
    planned_steps,
)
from raylab.training.pretraining import Rung

CONFIG = Rung("t", 3, 64, 4, 160).config(500)
# The eager form spells its attention products out, so that the counter sees them.
CONFIG._attn_implementation = "eager"
SHAPE = Shape.of(CONFIG)
ROWS = Rows(6, 40)
FREED = Lora(rank=4, dropout=0.0, train_embeddings=True)


def cell(budget: float, objective=CL) -> Cell:
    tuning = FineTuning(batch_queries=4, negatives=3, checkpointing=False)
    return Cell(Backbone("t", "nowhere"), SPARSE, objective, tuning, budget)


def test_a_budget_becomes_the_nearest_number_of_steps():
    for budget, steps in ((7.4, 7), (7.6, 8), (0.51, 1), (1000.49, 1000)):
        assert planned_steps(cell(budget * 1e9), 1e9, 0) == steps
        assert abs(steps - budget) <= 0.5


def test_a_budget_too_small_for_half_a_step_is_refused():
    with pytest.raises(
        ConfigError, match=r"too small for sparse-t-cl-seed0: one step costs 1e\+09 FLOPs"
    ):
        planned_steps(cell(0.49e9), 1e9, 0)


def test_epochs_become_steps_over_the_training_queries():
    """4 queries a step; where 1 of them is a title, an epoch takes 3 a step."""
    epochs = dataclasses.replace(cell(1.0), budget_flops=0.0, epochs=2.5)
    assert planned_steps(epochs, 1e9, 100) == 62
    assert planned_steps(epochs, 1e15, 1) == 1
    tuning = dataclasses.replace(epochs.fine_tuning, pseudo_fraction=0.25)
    assert planned_steps(dataclasses.replace(epochs, fine_tuning=tuning), 1e9, 100) == 83


def test_mntp_that_is_charged_is_paid_first():
    charged = dataclasses.replace(cell(10e9), charged_adaptation=True)
    assert planned_steps(charged, 1e9, 0, adaptation_flops=4e9) == 6
    assert planned_steps(cell(10e9), 1e9, 0, adaptation_flops=4e9) == 10
    with pytest.raises(
        ConfigError, match=r"1e\+10 FLOPs, of which MNTP is paid first, is too small"
    ):
        planned_steps(charged, 1e9, 0, adaptation_flops=9.6e9)


def test_margin_mse_encodes_two_passages_a_query():
    assert passages_per_query(cell(1.0)) == 4
    assert passages_per_query(cell(1.0, KD)) == 2


def test_hours_follow_from_peak_and_efficiency():
    assert device_hours(DEVICES["h100"].peak_flops * 0.4 * 3600, DEVICES["h100"]) == pytest.approx(
        1.0
    )


def test_a_budget_in_hours_is_what_a_device_does_in_them():
    h100 = DEVICES["h100"]
    assert device_hours(budget_flops_of_hours(20, h100), h100) == pytest.approx(20)
    assert budget_flops_of_hours(1, h100, 0.5) == pytest.approx(989e12 * 0.5 * 3600)
    with pytest.raises(ConfigError, match=r"efficiency = 1\.5: it must be above 0 and at most 1"):
        budget_flops_of_hours(1, h100, 1.5)


def test_devices_have_the_peaks_of_their_data_sheets():
    """Dense bf16 in TFLOP/s; with sparsity NVIDIA names twice as much."""
    peaks = {name: device.peak_flops / 1e12 for name, device in DEVICES.items()}
    del peaks["cpu-core"]
    assert peaks == {
        "a100-40gb": 312,
        "a100-80gb": 312,
        "h100": 989,
        "h200": 989,
        "l40s": 362,
        "b200": 2250,
    }
