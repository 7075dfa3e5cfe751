"""The dense head and Top-K pruning against naive loops."""

import numpy as np
import pytest
import torch

from raylab.models.heads import dense_reps, prune_top_k


def test_dense_is_the_mean_of_normalised_states_over_real_tokens():
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    for row, length in enumerate((3, 5)):
        states = hidden[row, :length].double()
        expected = sum(s / s.norm() for s in states) / length
        assert torch.allclose(dense_reps(hidden, mask)[row].double(), expected, atol=1e-6)


def test_top_k_keeps_the_largest_and_the_first_among_equals():
    reps = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0], [0.0, 0.0, 5.0, 0.0, 0.0]])
    assert prune_top_k(reps, 2).tolist() == [[0, 3, 3, 0, 0], [0, 0, 5, 0, 0]]
    assert prune_top_k(reps, 0) is reps
    assert prune_top_k(reps, 9) is reps


@pytest.mark.parametrize("k", [1, 3, 7, 39, 40])
def test_top_k_is_the_naive_one_with_ties_by_term(k):
    """Few distinct values, so that most of the k-th are ties; rows with fewer than k positive, too."""
    reps = np.random.default_rng(k).integers(0, 4, (50, 40)).astype(np.float32)
    reps[0] = 0
    expected = np.zeros_like(reps)
    for row, own in enumerate(reps):
        for term in sorted(range(40), key=lambda t: (-own[t], t))[:k]:
            expected[row, term] = own[term]
    np.testing.assert_array_equal(prune_top_k(torch.from_numpy(reps), k).numpy(), expected)
