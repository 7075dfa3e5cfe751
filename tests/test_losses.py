"""Losses against closed forms in float64."""

import numpy as np
import pytest
import torch

from raylab.losses import (
    flops_regularizer,
    flops_weight,
    hybrid,
    info_nce,
    kl_distillation,
    listed_scores,
    margin_mse,
)

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(3, 6))
TEACHER = RNG.normal(size=(3, 4)) * 3


def t(array):
    return torch.from_numpy(np.asarray(array)).float()


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


def test_info_nce_is_the_mean_negative_log_probability_of_the_positives():
    positive = np.array([0, 2, 4])
    expected = -log_softmax(SCORES / 0.1)[np.arange(3), positive].mean()
    assert float(info_nce(t(SCORES), torch.from_numpy(positive), 0.1)) == pytest.approx(
        expected, rel=1e-5
    )


def test_info_nce_leaves_excluded_passages_out():
    positive = torch.tensor([0, 2, 4])
    excluded = torch.zeros(3, 6, dtype=torch.bool)
    excluded[0, 5] = True
    kept = np.delete(SCORES[0], 5)
    rows = [-log_softmax(kept)[0], *(-log_softmax(SCORES[i])[p] for i, p in ((1, 2), (2, 4)))]
    assert float(info_nce(t(SCORES), positive, 1.0, excluded)) == pytest.approx(
        np.mean(rows), rel=1e-5
    )


def test_margin_mse_compares_margins():
    own = SCORES[:, :4]
    expected = (((own[:, :1] - own[:, 1:]) - (TEACHER[:, :1] - TEACHER[:, 1:])) ** 2).mean()
    assert float(margin_mse(t(own), t(TEACHER))) == pytest.approx(expected, rel=1e-5)


def test_margin_mse_ignores_a_shift_of_the_teacher():
    own = t(SCORES[:, :4])
    assert float(margin_mse(own, t(TEACHER + 7))) == pytest.approx(
        float(margin_mse(own, t(TEACHER))), rel=1e-4
    )


def test_kl_is_that_of_teacher_to_student():
    own = SCORES[:, :4]
    p, log_p, log_q = np.exp(log_softmax(TEACHER)), log_softmax(TEACHER), log_softmax(own)
    expected = (p * (log_p - log_q)).sum(1).mean()
    assert float(kl_distillation(t(own), t(TEACHER))) == pytest.approx(expected, rel=1e-5)
    assert float(kl_distillation(t(TEACHER), t(TEACHER))) == pytest.approx(0, abs=1e-6)


def test_hybrid_is_half_the_sum():
    assert float(hybrid(torch.tensor(1.0), torch.tensor(3.0))) == 2.0


def test_flops_regularizer_squares_mean_activations():
    reps = np.abs(RNG.normal(size=(5, 7)))
    assert float(flops_regularizer(t(reps))) == pytest.approx((reps.mean(0) ** 2).sum(), rel=1e-5)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (5, 0.25), (10, 1.0), (29, 1.0)])
def test_flops_weight_rises_quadratically_over_the_first_third(step, expected):
    assert flops_weight(step, 30, 2.0) == pytest.approx(2.0 * expected)


def test_listed_scores_are_each_querys_own_block():
    scores = torch.arange(3 * 6).view(3, 6)
    assert listed_scores(scores, 2).tolist() == [[0, 1], [8, 9], [16, 17]]
