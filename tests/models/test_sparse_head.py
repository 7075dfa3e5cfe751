"""The sparse head against autograd on the paper's own formula, in float64 where it matters."""

import pytest
import torch

from raylab.models.sparse_head import sparse_reps

B, L, D, V = 3, 7, 16, 50


def naive(hidden, weight, mask, scale):
    logits = (hidden @ weight.T) * scale
    logits = logits.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    return torch.log1p(torch.relu(logits.max(dim=1).values))


def inputs(seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, L, D, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g).to(dtype).requires_grad_()
    lengths = torch.tensor([7, 1, 4])
    return hidden, weight, torch.arange(L) < lengths[:, None]


@pytest.mark.parametrize("chunk_bytes", [1, 2_000, 10**9])
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_those_of_the_formula(seed, chunk_bytes, monkeypatch):
    monkeypatch.setattr("raylab.models.sparse_head._CHUNK_BYTES", chunk_bytes)
    hidden, weight, mask = inputs(seed)
    upstream = torch.randn(B, V, generator=torch.Generator().manual_seed(9))
    (sparse_reps(hidden, weight, mask, 0.5) * upstream).sum().backward()
    exact_h, exact_w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    expected = naive(exact_h, exact_w, mask, 0.5)
    (expected * upstream.double()).sum().backward()
    assert torch.allclose(sparse_reps(hidden, weight, mask, 0.5).double(), expected, atol=1e-6)
    assert torch.allclose(hidden.grad.double(), exact_h.grad, atol=1e-5)
    assert torch.allclose(weight.grad.double(), exact_w.grad, atol=1e-5)


def test_padding_changes_nothing():
    hidden, weight, mask = inputs()
    changed = hidden.detach().clone()
    changed[~mask] = 1e4
    assert torch.equal(
        sparse_reps(hidden, weight, mask, 0.5), sparse_reps(changed, weight, mask, 0.5)
    )


def test_a_text_without_tokens_is_zero_and_has_no_gradient():
    hidden, weight, mask = inputs()
    mask = mask.clone()
    mask[1] = False
    reps = sparse_reps(hidden, weight, mask, 0.5)
    assert reps[1].abs().sum() == 0
    reps.sum().backward()
    assert hidden.grad[1].abs().sum() == 0
    assert torch.isfinite(weight.grad).all()


def test_frozen_weights_get_no_gradient():
    hidden, weight, mask = inputs()
    weight.requires_grad_(False)
    sparse_reps(hidden, weight, mask, 0.5).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_bf16_is_close_to_float64():
    hidden, weight, mask = inputs(dtype=torch.bfloat16)
    expected = naive(hidden.detach().double(), weight.detach().double(), mask, 0.5)
    assert torch.allclose(sparse_reps(hidden, weight, mask, 0.5).double(), expected, atol=0.05)


def test_shapes_that_do_not_fit_are_refused():
    hidden, weight, mask = inputs()
    with pytest.raises(ValueError, match="do not fit together"):
        sparse_reps(hidden, weight[:, :-1], mask, 0.5)
