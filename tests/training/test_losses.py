"""Losses, and their gradients, against closed forms: plain loops in float64."""

import math

import numpy as np
import pytest
import torch

from raylab.experiment.config import ConfigError, FineTuning
from raylab.experiment.objectives import CL, OBJECTIVES
from raylab.training.losses import (
    Negatives,
    flops_regularizer,
    hybrid,
    info_nce,
    kl_distillation,
    listed_scores,
    margin_mse,
    negatives_seen,
    ramp,
)

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(3, 12)) * 2  # 3 queries, 4 listed passages each
TEACHER = RNG.normal(size=(3, 4)) * 3
POSITIVE = np.array([0, 4, 8])


def t(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float64))


def softmax(row) -> list[float]:
    highest = max(row)
    weights = [math.exp(x - highest) for x in row]
    return [w / sum(weights) for w in weights]


def assert_gradient(loss, array: np.ndarray, closed_form) -> None:
    """The gradient of `loss` is that of the closed form, by central differences in float64."""
    at = t(array).requires_grad_()
    loss(at).backward()
    assert at.grad is not None
    for place in np.ndindex(array.shape):
        moved = []
        for step in (1e-6, -1e-6):
            changed = array.copy()
            changed[place] += step
            moved.append(closed_form(changed))
        assert float(at.grad[place]) == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-7)


# ------------------------------------------------------------------------------------- InfoNCE


def info_nce_by_loops(scores, positive, temperature, excluded=None) -> float:
    total = 0.0
    for q, row in enumerate(scores):
        rivals = [
            row[p] / temperature
            for p in range(len(row))
            if p != positive[q] and not (excluded is not None and excluded[q][p])
        ]
        own = row[positive[q]] / temperature
        total += -math.log(softmax([own, *rivals])[0])
    return total / len(scores)


EXCLUDED = np.zeros((3, 12), bool)
EXCLUDED[0, [5, 9]] = True
EXCLUDED[2, 1] = True


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("excluded", [None, EXCLUDED])
def test_info_nce_is_the_mean_negative_log_probability_of_the_positives(temperature, excluded):
    mask = None if excluded is None else torch.from_numpy(excluded)
    positive = torch.from_numpy(POSITIVE)

    def closed(scores):
        return info_nce_by_loops(scores, POSITIVE, temperature, excluded)

    loss = float(info_nce(t(SCORES), positive, temperature, mask))
    assert loss == pytest.approx(closed(SCORES), rel=1e-12)
    if temperature == 1.0:
        assert_gradient(lambda s: info_nce(s, positive, 1.0, mask), SCORES, closed)


def test_an_excluded_passage_has_no_gradient():
    scores = t(SCORES).requires_grad_()
    info_nce(scores, torch.from_numpy(POSITIVE), 1.0, torch.from_numpy(EXCLUDED)).backward()
    assert scores.grad is not None
    assert (scores.grad.numpy() == 0).tolist() == EXCLUDED.tolist()


# -------------------------------------------------------------------------------- distillation


def margin_mse_by_loops(scores, teacher) -> float:
    errors = [
        ((s[0] - s[k]) - (r[0] - r[k])) ** 2
        for s, r in zip(scores, teacher, strict=True)
        for k in range(1, len(s))
    ]
    return sum(errors) / len(errors)


def test_margin_mse_compares_margins():
    own = SCORES[:, :4]
    expected = margin_mse_by_loops(own, TEACHER)
    assert float(margin_mse(t(own), t(TEACHER))) == pytest.approx(expected, rel=1e-12)
    assert_gradient(
        lambda s: margin_mse(s, t(TEACHER)), own, lambda s: margin_mse_by_loops(s, TEACHER)
    )


def test_margin_mse_ignores_a_shift_of_the_teacher():
    own = t(SCORES[:, :4])
    assert float(margin_mse(own, t(TEACHER + 7))) == pytest.approx(
        float(margin_mse(own, t(TEACHER))), rel=1e-12
    )


def kl_by_loops(scores, teacher) -> float:
    total = 0.0
    for own, other in zip(scores, teacher, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(softmax(other), softmax(own), strict=True))
    return total / len(scores)


def test_kl_is_that_of_teacher_to_student():
    own = SCORES[:, :4]
    expected = kl_by_loops(own, TEACHER)
    assert float(kl_distillation(t(own), t(TEACHER))) == pytest.approx(expected, rel=1e-12)
    assert float(kl_distillation(t(TEACHER), t(TEACHER))) == pytest.approx(0, abs=1e-12)
    assert_gradient(
        lambda s: kl_distillation(s, t(TEACHER)), own, lambda s: kl_by_loops(s, TEACHER)
    )


def test_hybrid_is_half_the_sum():
    contrastive = info_nce(t(SCORES), torch.from_numpy(POSITIVE), 0.5)
    distilled = kl_distillation(listed_scores(t(SCORES), 4), t(TEACHER))
    own = [SCORES[q, 4 * q : 4 * q + 4] for q in range(3)]
    expected = 0.5 * (info_nce_by_loops(SCORES, POSITIVE, 0.5) + kl_by_loops(own, TEACHER))
    assert float(hybrid(contrastive, distilled)) == pytest.approx(expected, rel=1e-12)


def test_listed_scores_are_each_querys_own_block():
    scores = torch.arange(3 * 6).view(3, 6)
    assert listed_scores(scores, 2).tolist() == [[0, 1], [8, 9], [16, 17]]


# --------------------------------------------------------------------------------- regulariser


def test_flops_regularizer_squares_mean_activations():
    reps = RNG.normal(size=(5, 7))

    def closed(array):
        return sum((sum(abs(x) for x in column) / 5) ** 2 for column in array.T)

    assert float(flops_regularizer(t(reps))) == pytest.approx(closed(reps), rel=1e-12)
    assert_gradient(flops_regularizer, reps, closed)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (1, 0.01), (5, 0.25), (10, 1.0), (29, 1.0)]
)
def test_the_ramp_rises_quadratically_over_the_first_third(step, expected):
    assert ramp(step, 30, FineTuning()) == pytest.approx(expected)


def test_the_ramp_is_as_long_as_the_recipe_says():
    assert [ramp(s, 6, FineTuning()) for s in range(4)] == [0.0, 0.25, 1.0, 1.0]
    for steps in range(1, 1000):  # to the last bit
        assert ramp(1, steps, FineTuning()) == min(1 / max(steps / 3, 1.0), 1.0) ** 2
    assert ramp(0, 1, FineTuning()) == 0.0
    shorter = FineTuning(ramp_fraction=1 / 12)
    assert [ramp(s, 48, shorter) for s in (0, 2, 4, 48)] == [0.0, 0.25, 1.0, 1.0]
    in_steps = FineTuning(ramp_steps=10, ramp_fraction=1 / 12)
    assert ramp(5, 48, in_steps) == 0.25


# ----------------------------------------------------------------------------------- negatives


def counted(objective, queries, passages, workers) -> Negatives:
    """By going through all passages of a step, as seen from the first query."""
    listed = in_batch = across = 0
    for q in range(queries):
        for k in range(passages):
            if q == 0:
                listed += k > 0
            elif objective != "kd" and q < queries // workers:
                in_batch += 1
            elif objective != "kd":
                across += 1
    return Negatives(listed, in_batch, across)


@pytest.mark.parametrize("objective", ["cl", "kd", "cl+kd"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_negatives_are_counted_in_one_place(objective, workers):
    seen = negatives_seen(OBJECTIVES[objective], 8, 3, workers)
    assert seen == counted(objective, 8, 3, workers)
    assert seen.total == (2 if objective == "kd" else 8 * 3 - 1)  # whatever the workers


def test_the_papers_contrastive_batch():
    """2502.15526, Fine-tuning: 112 queries of 1B with 17 passages each over 4 devices."""
    assert negatives_seen(CL, 112, 17, 4) == Negatives(16, 27 * 17, 84 * 17)
    # As it ran at 8B: micro-batches of 8 queries a device.
    assert negatives_seen(CL, 128, 17, 4, pool=32).total == 32 * 17 - 1
    assert negatives_seen(CL, 128, 17, 16, pool=32) == Negatives(16, 7 * 17, 24 * 17)


@pytest.mark.parametrize(("queries", "passages", "workers"), [(8, 1, 1), (8, 2, 3), (8, 2, 0)])
def test_batches_that_cannot_be_are_refused(queries, passages, workers):
    with pytest.raises(ConfigError, match="it must be"):
        negatives_seen(CL, queries, passages, workers)
