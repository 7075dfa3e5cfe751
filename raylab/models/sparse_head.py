"""The sparse head without the [B, L, V] tensor (performance.md, section 1).

    rep[b, v] = log1p(relu(scale * max_l h[b, l] . E[v]))

The forward pass walks the vocabulary in chunks and keeps the running maximum and its position. Only
entries that are positive carry a gradient, and each touches a single token, so the backward pass is
two sparse-dense products:

    dH[b, argmax[b, v]] += g[b, v] E[v]          dE[v] += g[b, v] h[b, argmax[b, v]]

Legend: B texts, L tokens, D hidden size, V vocabulary, C vocabulary entries of a chunk.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
_CHUNK_BYTES = 32 * 2**20  # of logits held at once


def sparse_reps(
    hidden_BLD: torch.Tensor, weight_VD: torch.Tensor, mask_BL: torch.Tensor, scale: float
) -> torch.Tensor:
    """Vocabulary-space representations, differentiable in hidden states and weight.

    Args:
        hidden_BLD: last hidden states, floating.
        weight_VD: the LM head's weight, same dtype.
        mask_BL: bool, True at real tokens.
        scale: `hidden_size ** -0.25` in the paper.

    Returns:
        reps_BV, non-negative, in hidden's dtype. A text without any real token gives zeros.
    """
    if hidden_BLD.shape[:2] != mask_BL.shape or hidden_BLD.shape[2] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden_BLD.shape)}, weight {tuple(weight_VD.shape)} and mask "
            f"{tuple(mask_BL.shape)} do not fit together; expected [B, L, D], [V, D], [B, L]"
        )
    return _SparseReps.apply(hidden_BLD, weight_VD, mask_BL, scale)  # type: ignore[return-value]


class _SparseReps(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_BLD: torch.Tensor,
        weight_VD: torch.Tensor,
        mask_BL: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        B, L, D = hidden_BLD.shape
        V = len(weight_VD)
        maxima_BV = hidden_BLD.new_empty(B, V)
        positions_BV = torch.empty(
            B, V, dtype=torch.int16 if L < 2**15 else torch.int32, device=hidden_BLD.device
        )
        padded_BL1 = ~mask_BL.unsqueeze(-1)
        step = max(1, _CHUNK_BYTES // (B * L * hidden_BLD.element_size()))
        flat_TD = hidden_BLD.reshape(B * L, D)
        for start in range(0, V, step):
            logits_BLC = (flat_TD @ weight_VD[start : start + step].T).view(B, L, -1)
            logits_BLC.masked_fill_(padded_BL1, -torch.inf)
            best, where = logits_BLC.max(dim=1)
            maxima_BV[:, start : start + step] = best
            positions_BV[:, start : start + step] = where
        reps_BV = maxima_BV.mul_(scale).relu_().log1p_()
        ctx.save_for_backward(hidden_BLD, weight_VD, reps_BV, positions_BV)
        ctx.scale = scale
        return reps_BV

    @staticmethod
    def backward(ctx: Any, grad_BV: torch.Tensor):  # type: ignore[override]
        hidden_BLD, weight_VD, reps_BV, positions_BV = ctx.saved_tensors
        B, L, D = hidden_BLD.shape
        V = len(weight_VD)
        texts, terms = torch.nonzero(reps_BV * grad_BV, as_tuple=True)
        # d log1p(s m) = s / (1 + s m) = s exp(-rep)
        values = grad_BV[texts, terms] * torch.exp(-reps_BV[texts, terms]) * ctx.scale
        tokens = texts * L + positions_BV[texts, terms].long()
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_hidden = _scatter_product(tokens, terms, values, weight_VD, B * L).view(B, L, D)
        if ctx.needs_input_grad[1]:
            grad_weight = _scatter_product(terms, tokens, values, hidden_BLD.reshape(B * L, D), V)
        return grad_hidden, grad_weight, None, None


def _scatter_product(
    rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, dense: torch.Tensor, count: int
) -> torch.Tensor:
    """out[r] = sum over entries (r, c, x) of x * dense[c]; rows sorted first, so it is deterministic."""
    order = torch.argsort(rows, stable=True)
    counts = torch.bincount(rows, minlength=count)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    # CSR products take fp32 on every device; half types are accumulated in it too.
    matrix = torch.sparse_csr_tensor(
        starts,
        columns[order],
        values[order].float(),
        size=(count, len(dense)),
        check_invariants=False,
    )
    return (matrix @ dense.float()).to(dense.dtype)
