"""The Triton kernels: against float64 in Triton's interpreter, compiled for real cards, and on CUDA.

The interpreter has to be chosen before Triton is imported. So the tests that need it are collected
in a process of their own, which `test_kernels_in_the_interpreter` starts; on a machine with a GPU
(`pytest -m gpu`) the same tests run on it, and those of speed and memory besides.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")

from raylab.models import sparse_head, sparse_head_triton  # noqa: E402
from raylab.models.sparse_head import sparse_reps  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu"] if INTERPRETED else [pytest.param("cuda", marks=pytest.mark.gpu)]
SCALE = 0.5


@pytest.mark.long
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.parametrize(
    ("processor", "marks"),
    [
        ("this one", "not gpu and not slow"),
        pytest.param("this one", "not gpu", marks=pytest.mark.slow),
        pytest.param("Haswell", "not gpu", marks=pytest.mark.slow),
    ],
)
def test_kernels_in_the_interpreter(processor, marks):
    """On this processor's matrix product and on another's, which rounds equal columns differently."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    if processor != "this one":
        environment["OPENBLAS_CORETYPE"] = processor
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", marks, __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Where kernels run; on the CPU they are put in the place of the PyTorch implementation."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return "cuda"
    kernels = (sparse_head_triton.forward, sparse_head_triton.products)
    monkeypatch.setattr(sparse_head, "_implementation", lambda hidden: kernels)
    _teach_the_interpreter_bf16(monkeypatch)
    return "cpu"


def _teach_the_interpreter_bf16(monkeypatch):
    """Triton 3.7's interpreter keeps bf16 as its bits and multiplies them as integers in `dot`."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def wide(handle):
        if handle.dtype.scalar != tl.bfloat16 or handle.data.dtype != np.uint16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *others):
        return original(self, wide(a), wide(b), *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def naive(hidden, weight, mask, scale=SCALE):
    logits = (hidden @ weight.T) * scale
    logits = logits.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    return torch.log1p(torch.relu(logits.max(dim=1).values))


def masks(texts, length):
    g = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, length + 1, (texts, 1), generator=g)
    holes = torch.rand(texts, length, generator=g) < 0.6
    empty = holes.clone()
    empty[::2] = False
    return {
        "no padding": torch.ones(texts, length) > 0,
        "right padding": torch.arange(length) < lengths,
        "left padding": torch.arange(length) >= length - lengths,
        "holes": holes,
        "empty texts": empty,
        "nothing": torch.zeros(texts, length) > 0,
    }


def inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    texts, length, width, vocabulary = shape
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(texts, length, width, generator=g)
    weight = torch.randn(vocabulary, width, generator=g) * (4 / width) ** 0.5
    upstream = torch.randn(texts, vocabulary, generator=g)
    return tuple(x.to(device, dtype) for x in (hidden, weight, upstream))


def gradients(head, hidden, weight, mask, upstream, scale=SCALE):
    """(reps, dH, dE) of a head, as float64 on the CPU."""
    hidden, weight = (x.detach().requires_grad_() for x in (hidden, weight))
    reps = head(hidden, weight, mask, scale)
    dh, dw = torch.autograd.grad(reps, (hidden, weight), upstream)
    return tuple(x.detach().double().cpu() for x in (reps, dh, dw))


def assert_like_the_formula(hidden, weight, mask, upstream, tolerance=1e-6):
    exact = hidden.cpu().double(), weight.cpu().double()
    expected = gradients(naive, *exact, mask, upstream.cpu().double())
    found = gradients(sparse_reps, hidden, weight, mask.to(hidden.device), upstream)
    for name, a, b in zip(("reps", "dH", "dE"), found, expected, strict=True):
        worst = (a - b).abs().max()
        assert worst <= tolerance * max(1, b.abs().max()), f"{name}: {worst}"


@pytest.mark.parametrize("padding", masks(1, 1))
@pytest.mark.parametrize(
    "shape",
    [(3, 7, 16, 50), (5, 33, 100, 67), pytest.param((2, 70, 64, 131), marks=pytest.mark.slow)],
)
def test_values_and_gradients_are_those_of_the_formula(device, shape, padding):
    hidden, weight, upstream = inputs(shape, device=device)
    assert_like_the_formula(hidden, weight, masks(*shape[:2])[padding], upstream)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 1, 8, 131), (17, 2, 3, 65), (33, 1, 64, 64), (2, 129, 130, 129)]
)
def test_odd_shapes(device, shape):
    hidden, weight, upstream = inputs(shape, device=device, seed=1)
    assert_like_the_formula(hidden, weight, masks(*shape[:2])["right padding"], upstream)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("padding", ["left padding", "empty texts"])
def test_half_precision_is_close_to_float64(device, padding, dtype, tolerance):
    shape = (4, 37, 70, 150)
    hidden, weight, upstream = inputs(shape, dtype, device, seed=2)
    assert_like_the_formula(hidden, weight, masks(*shape[:2])[padding], upstream, tolerance)
    mask = masks(*shape[:2])[padding].to(device)
    assert sparse_reps(hidden, weight, mask, SCALE).dtype == dtype


def test_memory_layout_does_not_matter(device):
    shape = (3, 20, 24, 70)
    hidden, weight, upstream = inputs(shape, device=device, seed=3)
    mask = masks(*shape[:2])["holes"].to(device)
    strided = (
        hidden.transpose(0, 2).contiguous().transpose(0, 2),
        torch.stack([weight, -weight], 1)[:, 0],
        mask.T.contiguous().T,
        upstream.T.contiguous().T,
    )
    assert not any(x.is_contiguous() for x in strided)
    expected = gradients(sparse_reps, hidden, weight, mask, upstream)
    for a, b in zip(gradients(sparse_reps, *strided), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_first_of_equal_positions_gets_the_gradient(device):
    texts, length = 4, 80  # more than one tile of tokens
    _, weight, upstream = inputs((texts, length, 16, 40), device=device)
    weight = (weight * 4).round()  # sums are exact, whatever the order of additions
    hidden = torch.ones(texts, length, 16, device=device, requires_grad=True)
    mask = masks(texts, length)["holes"]
    sparse_reps(hidden, weight, mask.to(device), SCALE).backward(upstream)
    assert hidden.grad is not None
    first = torch.zeros_like(mask)
    first[torch.arange(texts), mask.int().argmax(1)] = True
    assert torch.equal(hidden.grad.abs().sum(-1).cpu() > 0, first)


@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter's product can be changed")
def test_copies_that_are_rounded_up_give_the_gradient_to_the_token_itself(device, monkeypatch):
    """A product need not round equal columns equally: here every later copy is greater by a bit.

    A tile's places beyond the last token read that token again, so the maximum is often "found" there;
    beyond a full text's row lies the next text's list of tokens.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    original = InterpreterBuilder.create_dot

    def uneven_dot(self, *inputs):
        product = original(self, *inputs)
        columns = np.arange(product.data.shape[-1], dtype=product.data.dtype)
        product.data = product.data + np.abs(product.data) * columns * 2**-22
        return product

    monkeypatch.setattr(InterpreterBuilder, "create_dot", uneven_dot)
    cases = masks(5, 33)
    for padding in ("no padding", "right padding", "holes"):
        mask = cases[padding]
        hidden, weight, upstream = inputs((5, 33, 100, 67), device=device)
        places = sparse_head_triton.forward(hidden, weight, mask, SCALE, with_positions=True)[1]
        assert places is not None
        inside = mask.gather(1, places.long())[mask.any(1)]
        assert inside.all(), padding
        assert_like_the_formula(hidden, weight, mask, upstream, tolerance=1e-3)


def test_padding_changes_nothing_and_nan_of_a_real_token_is_seen(device):
    shape = (3, 40, 16, 50)
    hidden, weight, _ = inputs(shape, device=device)
    mask = masks(*shape[:2])["holes"].to(device)
    reps = sparse_reps(hidden, weight, mask, SCALE)
    changed = hidden.clone()
    changed[~mask] = torch.nan
    assert torch.equal(sparse_reps(changed, weight, mask, SCALE), reps)
    changed = hidden.clone()
    changed[1, int(mask[1].int().argmax()), 0] = torch.nan
    found = sparse_reps(changed, weight, mask, SCALE)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], reps[[0, 2]])


def test_small_values_keep_their_digits(device):
    wanted = torch.logspace(-20, 1, 60, dtype=torch.float64)
    hidden = torch.ones(1, 1, 1, device=device)
    reps = sparse_reps(hidden, wanted.float()[:, None].to(device), torch.ones(1, 1) > 0, 1.0)
    assert torch.allclose(reps[0].cpu().double(), wanted.float().double().log1p(), rtol=5e-7)


def test_without_gradient_the_values_are_the_same(device):
    hidden, weight, _ = inputs((2, 40, 16, 70), device=device)
    mask = masks(2, 40)["holes"].to(device)
    wanted = sparse_reps(hidden.requires_grad_(), weight, mask, SCALE)
    with torch.no_grad():
        assert torch.equal(sparse_reps(hidden, weight, mask, SCALE), wanted)


def test_equal_inputs_give_equal_bits(device):
    hidden, weight, upstream = inputs((3, 20, 24, 70), device=device)
    mask = masks(3, 20)["holes"].to(device)
    first = gradients(sparse_reps, hidden, weight, mask, upstream)
    again = gradients(sparse_reps, hidden, weight, mask, upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ------------------------------------------------------------------- compiled without a device

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have


@pytest.mark.long
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    ("capability", "dtype", "instruction"),
    [
        (80, torch.bfloat16, "mma.sync"),
        (90, torch.bfloat16, "wgmma.mma_async"),
        (90, torch.float16, "wgmma.mma_async"),
    ],
)
def test_forward_compiles_to_tensor_core_instructions(capability, dtype, instruction):
    kernel = sparse_head_triton._forward_kernel.fn
    number = {
        "hidden_ptr": TYPES[dtype],
        "weight_ptr": TYPES[dtype],
        "tokens_ptr": "*i32",
        "lengths_ptr": "*i32",
        "reps_ptr": TYPES[dtype],
        "positions_ptr": "*i16",
        "scale": "fp32",
    }
    constants = {
        "LONGEST": 128,
        "WITH_POSITIONS": True,
        "EVEN_D": True,
        "PRECISION": "ieee",
        "GROUP_B": 16,
    }
    fits = []
    for config in (sparse_head_triton._CONFIGS[0], sparse_head_triton._CONFIGS[2]):
        compiled = _compile(kernel, number, {**constants, **config.kwargs}, capability, config)
        assert instruction in compiled.asm["ptx"]
        fits.append(compiled.metadata.shared <= SHARED_MEMORY[capability])
    assert any(fits)


@pytest.mark.long
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("dtype", TYPES)
def test_backward_compiles(dtype):
    number = {
        "out_ptr": TYPES[dtype],
        "starts_ptr": "*i32",
        "columns_ptr": "*i64",
        "values_ptr": "*fp32",
        "dense_ptr": TYPES[dtype],
    }
    constants = {"BLOCK_E": 16, "BLOCK_D": 256}
    config = triton.Config({}, num_warps=4, num_stages=3)
    ptx = _compile(sparse_head_triton._row_product_kernel, number, constants, 90, config).asm["ptx"]
    assert "atom." not in ptx
    assert "red.global" not in ptx


def _compile(kernel, types, constants, capability, config):
    """The kernel compiled for a card that need not be there; numbers are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = [i for i, n in enumerate(names) if signature[n] == "i32" or signature[n][0] == "*"]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


# ------------------------------------------------------------------------------- on a real card


@pytest.fixture
def one_passage_batch():
    """Passages of a 1B backbone: hidden states, weight and a mask without padding."""
    if INTERPRETED or not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    g = torch.Generator(device="cuda").manual_seed(0)
    place = {"device": "cuda", "dtype": torch.bfloat16, "generator": g}
    hidden, weight = torch.randn(64, 128, 2048, **place), torch.randn(128_256, 2048, **place)
    # One coordinate moves all logits down, so that about 1 % of the terms are active.
    hidden[..., 0], weight[:, 0] = 8.0, -24.0
    return hidden, weight, torch.ones(64, 128, device="cuda") > 0


@pytest.mark.gpu
def test_forward_speed_and_memory_on_the_gpu(one_passage_batch):
    hidden, weight, mask = one_passage_batch
    flat = hidden.view(-1, hidden.shape[-1])
    with torch.no_grad():
        bare = triton.testing.do_bench(lambda: flat @ weight.T, return_mode="median")
        own = triton.testing.do_bench(
            lambda: sparse_reps(hidden, weight, mask, 0.15), return_mode="median"
        )
    assert bare / own >= 0.75, f"{own:.2f} ms against {bare:.2f} ms of the bare product"
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    reps = sparse_reps(hidden.requires_grad_(), weight, mask, 0.15)
    peak = torch.cuda.max_memory_allocated() - before
    state = reps.numel() * (reps.element_size() + 2)
    assert peak <= state + 32 * 2**20


@pytest.mark.gpu
def test_backward_speed_on_the_gpu(one_passage_batch):
    hidden, weight, mask = one_passage_batch
    reps = sparse_reps(hidden.requires_grad_(), weight, mask, 0.15)
    upstream = torch.randn_like(reps)

    def backward():
        torch.autograd.grad(reps, hidden, upstream, retain_graph=True)

    with torch.no_grad():
        forward_ms = triton.testing.do_bench(
            lambda: sparse_reps(hidden, weight, mask, 0.15), return_mode="median"
        )
    backward_ms = triton.testing.do_bench(backward, return_mode="median")
    assert backward_ms <= 0.1 * forward_ms
