"""The dense head and Top-K pruning against naive loops."""

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
