"""Schedules of the learning rate: their shapes, their limits, and what is refused."""

import itertools

import numpy as np
import pytest

from raylab.experiment.config import Adaptation, ConfigError, FineTuning
from raylab.training.engine import Optimization, schedule


def test_the_linear_schedule_warms_up_and_falls_to_zero():
    factors = [schedule(s, 100, 0.04) for s in range(101)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[100] == 0.0
    assert factors[52] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))


def test_wsd_warms_up_stays_and_falls_by_the_square_root():
    factors = [schedule(s, 100, 0.04, "wsd", 0.2) for s in range(101)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4:81] == [1.0] * 77
    for into in range(20):  # 2405.18392: 1 - sqrt((n - N_stable) / N_decay)
        assert factors[80 + into] == pytest.approx(1 - np.sqrt(into / 20))
    assert factors[100] == 0.0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schedule": "cosine"}, "schedule"),
        ({"decay_fraction": 1.5}, "decay_fraction"),
        ({"warmup_fraction": 1.0}, "warmup_fraction"),
        ({"schedule": "wsd", "warmup_fraction": 0.3, "decay_fraction": 0.8}, "decay_fraction"),
    ],
)
@pytest.mark.parametrize("kind", [Adaptation, FineTuning])
def test_a_schedule_that_cannot_be_is_refused(kind, changes, field):
    where = "adaptation" if kind is Adaptation else "fine_tuning"
    with pytest.raises(ConfigError, match=f"^{where}.{field} = "):
        kind(**changes)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["linear", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 0.04, 0.5])
def test_short_runs_have_a_learning_rate_at_every_step(steps, name, warmup):
    assert all(0 < schedule(s, steps, warmup, name, 0.5) <= 1 for s in range(steps))


def test_a_schedule_that_is_laid_out_for_more_steps_is_cut():
    longer = Optimization(1.0, 0.0, 0.1, 1.0, 0, schedule_steps=200)
    whole = Optimization(1.0, 0.0, 0.1, 1.0, 0)
    assert [longer.factor(s, 50) for s in range(50)] == [whole.factor(s, 200) for s in range(50)]
    assert longer.factor(49, 50) > 0.8
    assert longer.factor(100, 400) == whole.factor(100, 400), "a run may be longer"
