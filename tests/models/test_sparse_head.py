"""The sparse head against autograd on the formula in float64, the paper's form and another library."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.sparse_head import peak_bytes
from raylab.models.sparse_head import sparse_reps

B, L, D, V = 5, 7, 16, 53
SCALE = 0.5
MASKS = {
    "no padding": torch.ones(B, L, dtype=torch.bool),
    "right padding": torch.arange(L) < torch.tensor([7, 1, 4, 7, 2])[:, None],
    "left padding": torch.arange(L) >= torch.tensor([0, 6, 3, 1, 5])[:, None],
    "holes": torch.tensor([[1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 1, 0]] * 2 + [[0] * 6 + [1]]) > 0,
    "empty texts": torch.tensor([0, 1, 0, 1, 0])[:, None] * torch.ones(L) > 0,
    "nothing": torch.zeros(B, L, dtype=torch.bool),
}


def naive(hidden, weight, mask, scale=SCALE):
    logits = (hidden @ weight.T) * scale
    logits = logits.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    return torch.log1p(torch.relu(logits.max(dim=1).values))


def inputs(seed=0, dtype=torch.float32, shape=(B, L, D, V)):
    texts, length, hidden, vocabulary = shape
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(texts, length, hidden, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, hidden, generator=g).to(dtype).requires_grad_()
    upstream = torch.randn(texts, vocabulary, generator=g).to(dtype)
    return states, weight, upstream


def gradients(head, hidden, weight, mask, upstream, scale=SCALE):
    """(reps, dH, dE) of a head, as float64."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    reps = head(hidden, weight, mask, scale)
    dh, dw = torch.autograd.grad(reps, (hidden, weight), upstream)
    return tuple(x.detach().double() for x in (reps, dh, dw))


def assert_like_the_formula(hidden, weight, mask, upstream, scale=SCALE, atol=1e-5):
    exact = hidden.detach().double(), weight.detach().double()
    expected = gradients(naive, *exact, mask, upstream.double(), scale)
    found = gradients(sparse_reps, hidden, weight, mask, upstream, scale)
    for name, a, b in zip(("reps", "dH", "dE"), found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6 if name == "reps" and atol == 1e-5 else atol), name


# --------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("chunk_bytes", [1, 2_000, 10**9])
@pytest.mark.parametrize("bundle_tokens", [1, 9, 10**9])
@pytest.mark.parametrize("padding", MASKS)
def test_values_and_gradients_are_those_of_the_formula(
    padding, bundle_tokens, chunk_bytes, monkeypatch
):
    monkeypatch.setattr("raylab.models.sparse_head._CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr("raylab.models.sparse_head._BLOCK_BYTES", chunk_bytes)
    monkeypatch.setattr("raylab.models.sparse_head._BUNDLE_TOKENS", bundle_tokens)
    hidden, weight, upstream = inputs()
    assert_like_the_formula(hidden, weight, MASKS[padding], upstream)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 1, 8, 131), (1, 33, 3, 2), (4, 1, 5, 67), (2, 130, 20, 1031)]
)
def test_odd_shapes(shape):
    hidden, weight, upstream = inputs(1, shape=shape)
    assert_like_the_formula(hidden, weight, torch.ones(shape[:2]) > 0, upstream)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_scale(scale):
    hidden, weight, upstream = inputs(2)
    assert_like_the_formula(
        hidden, weight, MASKS["holes"], upstream, scale, atol=1e-5 * max(1, scale)
    )


def test_gradcheck_in_float64():
    hidden, weight, _ = inputs(3, torch.float64, (3, 4, 5, 11))
    mask = MASKS["right padding"][:3, :4]
    assert torch.autograd.gradcheck(lambda h, w: sparse_reps(h, w, mask, SCALE), (hidden, weight))


def test_memory_layout_does_not_matter():
    hidden, weight, upstream = inputs(4)
    mask = MASKS["right padding"]
    strided = (
        hidden.detach().transpose(0, 2).contiguous().transpose(0, 2),
        torch.stack([weight.detach(), -weight.detach()], 1)[:, 0],
        mask.T.contiguous().T,
        upstream.T.contiguous().T,
    )
    assert not any(x.is_contiguous() for x in strided)
    expected = gradients(sparse_reps, hidden, weight, mask, upstream)
    for a, b in zip(gradients(sparse_reps, *strided), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_integer_mask_is_a_mask():
    hidden, weight, _ = inputs()
    mask = MASKS["holes"]
    found = sparse_reps(hidden, weight, mask.long(), SCALE)
    assert torch.equal(found, sparse_reps(hidden, weight, mask, SCALE))


def test_without_gradient_the_values_are_the_same():
    hidden, weight, _ = inputs()
    mask = MASKS["holes"]
    with torch.no_grad():
        bare = sparse_reps(hidden, weight, mask, SCALE)
    assert torch.equal(bare, sparse_reps(hidden, weight, mask, SCALE))


def test_checkpointing_changes_no_gradient():
    hidden, weight, upstream = inputs()
    mask = MASKS["holes"]

    def again(*arguments):
        return checkpoint(sparse_reps, *arguments, use_reentrant=False)

    found = gradients(again, hidden, weight, mask, upstream)
    for a, b in zip(found, gradients(sparse_reps, hidden, weight, mask, upstream), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------- padding, ties, NaN


def test_padding_changes_nothing():
    hidden, weight, _ = inputs()
    mask = MASKS["holes"]
    for value in (1e4, torch.nan, torch.inf):
        changed = hidden.detach().clone()
        changed[~mask] = value
        assert torch.equal(
            sparse_reps(hidden, weight, mask, 0.5), sparse_reps(changed, weight, mask, 0.5)
        )


def test_a_text_without_tokens_is_zero_and_has_no_gradient():
    hidden, weight, _ = inputs()
    reps = sparse_reps(hidden, weight, MASKS["empty texts"], SCALE)
    assert reps[::2].abs().sum() == 0
    assert reps[1::2].abs().sum() > 0
    reps.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[::2].abs().sum() == 0
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_the_first_of_equal_positions_gets_the_gradient():
    _, weight, upstream = inputs()
    weight = (weight.detach() * 4).round()  # sums are exact, whatever the order of additions
    hidden = torch.ones(B, L, D, requires_grad=True)
    mask = MASKS["holes"]
    sparse_reps(hidden, weight, mask, SCALE).backward(upstream)
    assert hidden.grad is not None
    touched = hidden.grad.abs().sum(-1) > 0
    first = torch.zeros_like(mask)
    first[torch.arange(B), mask.int().argmax(1)] = True
    assert torch.equal(touched, first)


@pytest.mark.filterwarnings("ignore:Anomaly")
def test_nan_of_a_real_token_is_seen():
    hidden, weight, _ = inputs()
    broken = hidden.detach().clone()
    broken[2, 1, 0] = torch.nan
    broken.requires_grad_()
    reps = sparse_reps(broken, weight, MASKS["right padding"], SCALE)
    assert reps[2].isnan().all()
    assert reps[[0, 1, 3, 4]].isfinite().all()
    reps.sum().backward()
    assert broken.grad is not None
    assert broken.grad[2].isnan().any()


# ----------------------------------------------------------------------------- half precision


# Inputs are the same half numbers on both sides: what differs is the rounding of the result (8 or
# 11 bits) and, in the gradient, of the representation it is derived from.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("padding", ["right padding", "holes", "empty texts"])
@pytest.mark.parametrize("block_bytes", [1_000, 10**9])
def test_half_precision_is_close_to_float64(padding, dtype, tolerance, block_bytes, monkeypatch):
    monkeypatch.setattr("raylab.models.sparse_head._BLOCK_BYTES", block_bytes)
    hidden, weight, upstream = inputs(5, dtype)
    mask = MASKS[padding]
    exact = hidden.detach().double(), weight.detach().double()
    expected = gradients(naive, *exact, mask, upstream.double())
    found = gradients(sparse_reps, hidden, weight, mask, upstream)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()
    assert sparse_reps(hidden, weight, mask, SCALE).dtype == dtype


def test_logits_beyond_the_range_of_fp16_do_not_overflow():
    hidden, weight, _ = inputs(6)
    big = (hidden.detach() * 300).half(), (weight.detach() * 300).half()
    mask = MASKS["no padding"]
    assert (big[0].double() @ big[1].double().T).max() > torch.finfo(torch.float16).max
    expected = naive(big[0].double(), big[1].double(), mask)
    assert torch.allclose(sparse_reps(*big, mask, SCALE).double(), expected, rtol=1e-3)


# --------------------------------------------------------------------------- other codes' forms


def papers_form(hidden, weight, mask, scale):
    logits = (hidden @ weight.T) * scale
    logits = logits + (1 - mask.unsqueeze(-1).float()) * -1e6
    return torch.log(1 + torch.relu(torch.max(logits, dim=1).values))


@pytest.mark.parametrize("padding", MASKS)
def test_agrees_with_the_papers_form(padding):
    hidden, weight, upstream = inputs(7)
    arguments = hidden, weight, MASKS[padding], upstream
    expected = gradients(papers_form, *arguments)
    for a, b in zip(gradients(sparse_reps, *arguments), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("padding", MASKS)
def test_agrees_with_sentence_transformers(padding):
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    pooling = modules.SpladePooling("max").train()

    def theirs(hidden, weight, mask, scale):
        logits = (hidden @ weight.T) * scale
        return pooling({"token_embeddings": logits, "attention_mask": mask})["sentence_embedding"]

    hidden, weight, upstream = inputs(8)
    arguments = hidden, weight, MASKS[padding], upstream
    expected = gradients(theirs, *arguments)
    for a, b in zip(gradients(sparse_reps, *arguments), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


# --------------------------------------------------------------------------------------- cost


def test_the_measure_of_memory_sees_the_naive_logits():
    hidden, weight, upstream = inputs(shape=(4, 64, 32, 4096))
    mask = torch.ones(4, 64) > 0
    peak = peak_bytes(lambda: naive(hidden, weight, mask).backward(upstream), "cpu")
    assert peak >= 4 * 64 * 4096 * 4


@pytest.mark.long
@pytest.mark.parametrize("frozen", [True, False])
def test_logits_of_all_terms_are_never_held(frozen):
    texts, length, _, vocabulary = shape = (16, 256, 16, 16_384)
    hidden, weight, upstream = inputs(shape=shape)
    weight.requires_grad_(not frozen)
    mask = torch.ones(texts, length) > 0
    mask[:, 200:] = False
    peak = peak_bytes(lambda: sparse_reps(hidden, weight, mask, SCALE).backward(upstream), "cpu")
    assert peak < texts * length * vocabulary * 4 / 10
    assert hidden.grad is not None


def test_a_half_precision_weight_is_never_held_in_fp32(monkeypatch):
    monkeypatch.setattr("raylab.models.sparse_head._CHUNK_BYTES", 2**18)
    monkeypatch.setattr("raylab.models.sparse_head._BLOCK_BYTES", 2**18)
    hidden, weight, upstream = inputs(dtype=torch.bfloat16, shape=(1, 8, 512, 16_384))
    weight.requires_grad_(False)
    mask = torch.ones(1, 8) > 0
    peak = peak_bytes(lambda: sparse_reps(hidden, weight, mask, SCALE).backward(upstream), "cpu")
    assert peak < weight.numel() * 4 / 8


def test_frozen_weights_get_no_gradient():
    hidden, weight, _ = inputs()
    mask = MASKS["holes"]
    weight.requires_grad_(False)
    sparse_reps(hidden, weight, mask, SCALE).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    weight.requires_grad_(True)
    sparse_reps(hidden.detach(), weight, mask, SCALE).sum().backward()
    assert weight.grad is not None


def test_equal_inputs_give_equal_bits():
    hidden, weight, upstream = inputs(9, shape=(8, 40, 32, 3000))
    mask = torch.rand(8, 40, generator=torch.Generator().manual_seed(0)) > 0.3
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(sparse_reps, hidden, weight, mask, upstream) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(before)
    for one, other in pairwise(runs):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_cpu_path_does_not_import_the_kernels():
    code = (
        "import sys, torch; from raylab.models.sparse_head import sparse_reps as f;"
        "h = torch.ones(1, 2, 4, requires_grad=True);"
        "f(h, torch.ones(3, 4), torch.ones(1, 2) > 0, 1.0).sum().backward();"
        "assert 'raylab.models.sparse_head_triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------- errors


def test_what_does_not_fit_is_refused():
    hidden, weight, _ = inputs()
    mask = MASKS["no padding"]
    with pytest.raises(ValueError, match="do not fit together"):
        sparse_reps(hidden, weight[:, :-1], mask, SCALE)
    with pytest.raises(ValueError, match="expected one dtype"):
        sparse_reps(hidden, weight.bfloat16(), mask, SCALE)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be positive"):
            sparse_reps(hidden, weight, mask, scale)


def test_second_derivatives_are_refused():
    hidden, weight, _ = inputs()
    reps = sparse_reps(hidden, weight, MASKS["holes"], SCALE)
    (first,) = torch.autograd.grad((reps**2).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
