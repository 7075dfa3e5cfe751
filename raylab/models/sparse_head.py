"""The sparse head, without ever storing the tensor of logits [B, L, V].

    rep[b, v] = log1p(relu(scale * max_l h[b, l] . E[v]))

The forward pass keeps the maximum over the real tokens of a text and where it was found. Only
positive entries carry a gradient, and each touches one token, so the backward pass is two
sparse-dense products over the entries (b, v) with a positive representation and some gradient:

    dH[b, argmax[b, v]] += g[b, v] E[v]          dE[v] += g[b, v] h[b, argmax[b, v]]

Here is the PyTorch implementation, for any device; on CUDA the two kernels of
`sparse_head_triton` take its place when Triton is there.

Legend: B texts, L tokens, D hidden size, V vocabulary, G texts of a group, K tokens of
the longest of them, N tokens of some groups, C terms of a chunk, A active entries of it, E entries of
the gradient.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
# Logits held at once: small enough to stay in the last-level cache between product and maximum.
_CHUNK_BYTES = 8 * 2**20
_BLOCK_BYTES = 32 * 2**20  # of the weight or its gradient in fp32, in the backward pass
_BUNDLE_TOKENS = 2048  # multiplied at once
_PADDING = 1.05  # tokens multiplied a real one, at most
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def sparse_reps(
    hidden_BLD: torch.Tensor, weight_VD: torch.Tensor, mask_BL: torch.Tensor, scale: float
) -> torch.Tensor:
    """Vocabulary-space representations, once differentiable in hidden states and weight.

    Products are accumulated in fp32 (float64 for float64). Of equal logits the first position wins
    and gets the gradient. A NaN in a real token makes its text's representation NaN.

    Args:
        hidden_BLD: last hidden states, floating.
        weight_VD: the LM head's weight, same dtype.
        mask_BL: True (or not 0) at real tokens, wherever they are.
        scale: positive; `hidden_size ** -0.25` in the paper.

    Returns:
        reps_BV, non-negative, in hidden's dtype. A text without any real token gives zeros.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a scale that is not positive.
    """
    if hidden_BLD.shape[:2] != mask_BL.shape or hidden_BLD.shape[2] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden_BLD.shape)}, weight {tuple(weight_VD.shape)} and mask "
            f"{tuple(mask_BL.shape)} do not fit together; expected [B, L, D], [V, D], [B, L]"
        )
    if hidden_BLD.dtype != weight_VD.dtype:
        raise ValueError(
            f"hidden is {hidden_BLD.dtype} and weight {weight_VD.dtype}; expected one dtype"
        )
    if not scale > 0:
        raise ValueError(f"scale = {scale!r}: it must be positive")
    mask_BL = mask_BL.bool()
    if torch.is_grad_enabled() and (hidden_BLD.requires_grad or weight_VD.requires_grad):
        return _SparseReps.apply(hidden_BLD, weight_VD, mask_BL, scale)  # type: ignore[return-value]
    forward = _implementation(hidden_BLD)[0]
    return forward(hidden_BLD, weight_VD, mask_BL, scale, with_positions=False)[0]


def _implementation(hidden_BLD: torch.Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(forward, products): what computes on this device."""
    if hidden_BLD.is_cuda and hidden_BLD.dtype in _KERNEL_DTYPES:
        kernels = _triton_kernels()
        if kernels is not None:
            return kernels.forward, kernels.products
    return _forward, _products


@functools.cache
def _triton_kernels() -> ModuleType | None:
    # Imported when first needed: Triton comes with CUDA builds of torch only.
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("raylab.models.sparse_head_triton")


class _SparseReps(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_BLD: torch.Tensor,
        weight_VD: torch.Tensor,
        mask_BL: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        forward, ctx.products = _implementation(hidden_BLD)
        reps_BV, positions_BV = forward(hidden_BLD, weight_VD, mask_BL, scale, with_positions=True)
        ctx.save_for_backward(hidden_BLD, weight_VD, reps_BV, positions_BV)
        ctx.scale = scale
        return reps_BV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BV: torch.Tensor):  # type: ignore[override]
        hidden_BLD, weight_VD, reps_BV, positions_BV = ctx.saved_tensors
        # Not `reps > 0`: a NaN has to reach the gradient.
        texts_E, terms_E = torch.nonzero((reps_BV != 0) & (grad_BV != 0), as_tuple=True)
        working = _working_dtype(hidden_BLD)
        # d log1p(s m) = s / (1 + s m) = s exp(-rep)
        values_E = reps_BV[texts_E, terms_E].to(working).neg_().exp_().mul_(ctx.scale)
        values_E *= grad_BV[texts_E, terms_E]
        tokens_E = texts_E * hidden_BLD.shape[1] + positions_BV[texts_E, terms_E]
        grad_hidden, grad_weight = ctx.products(
            tokens_E, terms_E, values_E, hidden_BLD, weight_VD, ctx.needs_input_grad[:2]
        )
        return grad_hidden, grad_weight, None, None


def _working_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _forward(
    hidden_BLD: torch.Tensor,
    weight_VD: torch.Tensor,
    mask_BL: torch.Tensor,
    scale: float,
    with_positions: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """reps_BV and, of its positive entries, the position in the text of the maximum (else 0).

    The product is computed as E h^T, so that a text's logits of one term lie side by side: there the
    maximum is vectorised. Its position costs more, and is looked for among the positive only.
    """
    B, L, D = hidden_BLD.shape
    V, working = len(weight_VD), _working_dtype(hidden_BLD)
    reps_BV = hidden_BLD.new_zeros(B, V)
    positions_BV = None
    if with_positions:
        small = torch.int16 if L < 2**15 else torch.int32
        positions_BV = torch.zeros(B, V, dtype=small, device=hidden_BLD.device)
    for groups in _bundles(_groups(mask_BL)):
        states_ND = torch.cat(
            [hidden_BLD[texts_G[:, None], places_GK].view(-1, D) for texts_G, places_GK in groups]
        ).to(working)
        N = len(states_ND)
        room = _CHUNK_BYTES // working.itemsize
        step = room // (N if weight_VD.dtype == working else max(N, D))
        step = min(V, max(64, step))
        buffer = states_ND.new_empty(step * N)
        for start in range(0, V, step):
            weight_CD = weight_VD[start : start + step].to(working)
            C, end = len(weight_CD), 0
            logits_CN = buffer[: C * N].view(C, N)
            torch.mm(weight_CD, states_ND.T, out=logits_CN)
            for texts_G, places_GK in groups:
                begin, end = end, end + places_GK.numel()
                logits_CGK = logits_CN[:, begin:end].unflatten(1, places_GK.shape)
                best_CG = logits_CGK.amax(2)
                if positions_BV is not None:
                    terms_A, own_A = (best_CG > 0).nonzero(as_tuple=True)
                    first_A = logits_CGK[terms_A, own_A].max(1).indices  # the first of equals
                    found_A = places_GK[own_A, first_A].to(positions_BV.dtype)
                    positions_BV[texts_G[own_A], start + terms_A] = found_A
                best_CG = best_CG.mul_(scale).relu_().log1p_()
                reps_BV[texts_G, start : start + C] = best_CG.T.to(reps_BV.dtype)
    return reps_BV, positions_BV


# Texts [G] of about one length, and the positions [G, K] of their real tokens; a text shorter than K
# repeats its last one, which changes neither its maximum nor where that is first found.
_Group = tuple[torch.Tensor, torch.Tensor]


def _groups(mask_BL: torch.Tensor) -> Iterator[_Group]:
    """Texts that have tokens, shortest first, with little padding and at most _BUNDLE_TOKENS a group."""
    lengths_B = mask_BL.sum(1)
    lengths = lengths_B.tolist()
    real_BL = torch.argsort(mask_BL.logical_not().byte(), dim=1, stable=True)  # real ones first

    def group(texts: list[int]) -> _Group:
        texts_G = torch.tensor(texts, device=mask_BL.device)
        steps_K = torch.arange(lengths[texts[-1]], device=mask_BL.device)
        steps_GK = torch.minimum(steps_K, lengths_B[texts_G, None] - 1)
        return texts_G, real_BL[texts_G].gather(1, steps_GK)

    members: list[int] = []
    tokens = 0
    for text in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[text]
        padded = (len(members) + 1) * length
        if members and padded > min(_BUNDLE_TOKENS, _PADDING * (tokens + length)):
            yield group(members)
            members, tokens = [], 0
        if length:
            members.append(text)
            tokens += length
    if members:
        yield group(members)


def _bundles(groups: Iterable[_Group]) -> Iterator[list[_Group]]:
    """Groups multiplied at once: up to _BUNDLE_TOKENS, since narrow products are slow."""
    bundle: list[_Group] = []
    tokens = 0
    for group in groups:
        if bundle and tokens + group[1].numel() > _BUNDLE_TOKENS:
            yield bundle
            bundle, tokens = [], 0
        bundle.append(group)
        tokens += group[1].numel()
    if bundle:
        yield bundle


def _products(
    tokens_E: torch.Tensor,
    terms_E: torch.Tensor,
    values_E: torch.Tensor,
    hidden_BLD: torch.Tensor,
    weight_VD: torch.Tensor,
    needed: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden states and weight, summed in fp32 in one fixed order."""
    B, L, D = hidden_BLD.shape
    grad_hidden = grad_weight = None
    order_E = torch.argsort(terms_E, stable=True)
    entries = tokens_E[order_E], terms_E[order_E], values_E[order_E]
    if needed[0]:
        grad_hidden = _hidden_gradient(*entries, weight_VD, B * L).to(hidden_BLD.dtype)
        grad_hidden = grad_hidden.view(B, L, D)
    if needed[1]:
        grad_weight = _weight_gradient(*entries, hidden_BLD.reshape(B * L, D), weight_VD)
    return grad_hidden, grad_weight


def _hidden_gradient(
    tokens_E: torch.Tensor,
    terms_E: torch.Tensor,
    values_E: torch.Tensor,
    weight_VD: torch.Tensor,
    tokens: int,
) -> torch.Tensor:
    """dH [tokens, D] in the working dtype, of entries in order of their terms.

    A weight in half precision is converted in blocks: sparse products have no bf16 on a CPU, and
    all of it in fp32 would take twice the memory of the weight.
    """
    V, D = weight_VD.shape
    working = values_E.dtype
    converted = weight_VD.dtype != working
    grad_TD = values_E.new_zeros(tokens, D)
    for start, stop, span in _blocks(terms_E, V, _BLOCK_BYTES // (4 * D) if converted else V):
        columns = terms_E[span] - start
        size = (tokens, stop - start)
        grad_TD.addmm_(
            _csr(tokens_E[span], columns, values_E[span], size), weight_VD[start:stop].to(working)
        )
    return grad_TD


def _weight_gradient(
    tokens_E: torch.Tensor,
    terms_E: torch.Tensor,
    values_E: torch.Tensor,
    hidden_TD: torch.Tensor,
    weight_VD: torch.Tensor,
) -> torch.Tensor:
    """dE [V, D] in the weight's dtype, of entries in order of their terms."""
    V, D = weight_VD.shape
    states_TD = hidden_TD.to(values_E.dtype)
    grad_VD = torch.empty(V, D, dtype=weight_VD.dtype, device=weight_VD.device)
    for start, stop, span in _blocks(terms_E, V, _BLOCK_BYTES // (4 * D)):
        rows = terms_E[span] - start
        size = (stop - start, len(states_TD))
        matrix = _csr(rows, tokens_E[span], values_E[span], size)
        if grad_VD.dtype == states_TD.dtype:
            grad_VD[start:stop].addmm_(matrix, states_TD, beta=0)
        else:
            grad_VD[start:stop] = matrix @ states_TD
    return grad_VD


def _blocks(sorted_E: torch.Tensor, count: int, step: int) -> Iterator[tuple[int, int, slice]]:
    """(first row, last + 1, its entries) of blocks of `step` rows; entries are in order of rows."""
    starts = list(range(0, count, max(1, step)))
    stops = [*starts[1:], count]
    bounds = torch.searchsorted(sorted_E, torch.tensor([*starts, count], device=sorted_E.device))
    for start, stop, (begin, end) in zip(starts, stops, pairwise(bounds.tolist()), strict=True):
        yield start, stop, slice(begin, end)


def _csr(
    rows_E: torch.Tensor, columns_E: torch.Tensor, values_E: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """A CSR matrix; entries that share a place are kept apart, and the product adds them up."""
    order_E = torch.argsort(rows_E, stable=True)
    starts = torch.searchsorted(rows_E[order_E], torch.arange(size[0] + 1, device=rows_E.device))
    return torch.sparse_csr_tensor(
        starts, columns_E[order_E], values_E[order_E], size=size, check_invariants=False
    )
