# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
"""The sparse head's two GPU kernels (Triton); `sparse_head` says what they compute.

Forward: one program takes one text and BLOCK_V terms. It multiplies E's rows with the text's real
tokens, BLOCK_L at a time, and keeps the maximum of each term and where it was found: of the logits
nothing but one tile exists, in registers. Padding costs nothing, since a program reads its tokens
through the list of the real ones.

Backward: one program takes one row of a gradient and BLOCK_D of its columns, and sums the row's
entries in their order in fp32: no atomics, so equal inputs give equal bits.

Legend: B texts, L tokens, D hidden size, V vocabulary, E entries of the gradient.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The same in all configurations: the order of additions, and so every bit of the result, must not
# depend on which of them was fastest on the day.
_BLOCK_D = 64
_TILES = [  # BLOCK_V, BLOCK_L, warps, stages
    (256, 128, 8, 4),
    (256, 128, 8, 3),
    (128, 128, 8, 3),
    (256, 64, 8, 4),
    (128, 64, 4, 4),
    (128, 64, 4, 3),
    (256, 32, 8, 4),
    (128, 32, 4, 4),
    (128, 16, 4, 5),
    (64, 64, 4, 3),
    (64, 32, 4, 2),  # small enough for fp32 on any card
]
_CONFIGS = [
    triton.Config({"BLOCK_V": v, "BLOCK_L": n, "BLOCK_D": _BLOCK_D}, num_warps=w, num_stages=s)
    for v, n, w, s in (_TILES[-1:] if _INTERPRETED else _TILES)  # the interpreter cannot time them
]


def _fitting(configs: list[Any], _: dict[str, Any], **keywords: Any) -> list[Any]:
    """Configurations whose tile of tokens is not mostly beyond the longest text."""
    return [c for c in configs if c.kwargs["BLOCK_L"] <= keywords["LONGEST"]]


@triton.autotune(
    configs=_CONFIGS, key=["V", "D", "LONGEST"], prune_configs_by={"early_config_prune": _fitting}
)
@triton.jit
def _forward_kernel(
    hidden_ptr,
    weight_ptr,
    tokens_ptr,  # [B, L]: positions of a text's real tokens, in order
    lengths_ptr,  # [B]: how many there are
    reps_ptr,
    positions_ptr,
    B,
    L,
    D,
    V,
    scale,
    hidden_stride_b,
    hidden_stride_l,
    weight_stride_v,
    LONGEST: tl.constexpr,  # L as a power of two, 16 to 128: what the tiles are chosen by
    WITH_POSITIONS: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP_B: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Programs that run together share GROUP_B texts and a few tiles of E, which then come from L2.
    program = tl.program_id(0)
    per_group = GROUP_B * tl.cdiv(V, BLOCK_V)
    first_text = program // per_group * GROUP_B
    texts = tl.minimum(B - first_text, GROUP_B)
    text = first_text + program % per_group % texts
    tile = program % per_group // texts

    count = tl.load(lengths_ptr + text)
    terms = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    d = tl.arange(0, BLOCK_D)
    # Beyond the last term or token the last one is read again: no mask is needed where speed counts.
    term_rows = tl.minimum(terms, V - 1).to(tl.int64) * weight_stride_v
    weight_tile = weight_ptr + term_rows[:, None] + d[None, :]
    text_hidden = hidden_ptr + text.to(tl.int64) * hidden_stride_b
    text_tokens = tokens_ptr + text * L

    best = tl.full([BLOCK_V], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK_V], tl.int32)
    has_nan = tl.zeros([BLOCK_V], tl.int32)
    for start in range(0, count, BLOCK_L):
        places = tl.load(text_tokens + tl.minimum(start + tl.arange(0, BLOCK_L), count - 1))
        token_rows = places.to(tl.int64) * hidden_stride_l
        hidden_tile = text_hidden + token_rows[None, :] + d[:, None]
        logits = tl.zeros([BLOCK_V, BLOCK_L], tl.float32)
        for k in range(0, D, BLOCK_D):
            if EVEN_D:
                e = tl.load(weight_tile + k)
                h = tl.load(hidden_tile + k)
            else:
                e = tl.load(weight_tile + k, mask=(k + d < D)[None, :], other=0.0)
                h = tl.load(hidden_tile + k, mask=(k + d < D)[:, None], other=0.0)
            logits = tl.dot(e, h, logits, input_precision=PRECISION)
        has_nan |= tl.max((logits != logits).to(tl.int32), axis=1)
        if WITH_POSITIONS:
            top, index = tl.max(
                logits, axis=1, return_indices=True, return_indices_tie_break_left=True
            )
            # Copies of the last token may be rounded up where it is not: the place is the token's own.
            where = tl.where(top > best, tl.minimum(start + index, count - 1), where)
        else:
            top = tl.max(logits, axis=1)
        best = tl.maximum(best, top)

    x = tl.maximum(best * scale, 0.0)
    # log(1 + x) loses the digits of a small x; the series is exact to fp32 below 1/16.
    series = 1.0 / 3 + x * (-1.0 / 4 + x * (1.0 / 5 + x * (-1.0 / 6 + x * (1.0 / 7))))
    reps = tl.where(x < 0.0625, x - x * x * (0.5 - x * series), tl.log(1.0 + x))
    reps = tl.where(has_nan > 0, float("nan"), reps)
    out = text.to(tl.int64) * V + terms
    tl.store(reps_ptr + out, reps, mask=terms < V)
    if WITH_POSITIONS:
        real = (best > float("-inf")) & (terms < V)
        position = tl.load(text_tokens + where, mask=real, other=0)
        tl.store(positions_ptr + out, position, mask=terms < V)


@triton.jit
def _row_product_kernel(
    out_ptr,
    starts_ptr,
    columns_ptr,
    values_ptr,
    dense_ptr,
    D,
    dense_stride,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    end = tl.load(starts_ptr + row + 1)
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(tl.load(starts_ptr + row), end, BLOCK_E):
        entries = start + tl.arange(0, BLOCK_E)
        columns = tl.load(columns_ptr + entries, mask=entries < end, other=0).to(tl.int64)
        values = tl.load(values_ptr + entries, mask=entries < end, other=0.0)
        inside = (entries < end)[:, None] & (d < D)[None, :]
        block = tl.load(
            dense_ptr + columns[:, None] * dense_stride + d[None, :], mask=inside, other=0.0
        )
        total += tl.sum(values[:, None] * block.to(tl.float32), axis=0)
    tl.store(out_ptr + row.to(tl.int64) * D + d, total, mask=d < D)


def forward(
    hidden_BLD: torch.Tensor,
    weight_VD: torch.Tensor,
    mask_BL: torch.Tensor,
    scale: float,
    with_positions: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """reps_BV and the position in the text of every maximum.

    fp32 is multiplied as torch does it: in full precision, or in TF32 where torch is set so.
    """
    B, L, D = hidden_BLD.shape
    V = len(weight_VD)
    hidden_BLD, weight_VD = _rows_contiguous(hidden_BLD), _rows_contiguous(weight_VD)
    reps_BV = hidden_BLD.new_empty(B, V)
    positions_BV = None
    if with_positions:
        small = torch.int16 if L < 2**15 else torch.int32
        positions_BV = torch.empty(B, V, dtype=small, device=hidden_BLD.device)
    if B * V == 0 or L * D == 0:
        return reps_BV.zero_(), None if positions_BV is None else positions_BV.zero_()
    # A stable sort puts the real tokens first and keeps their order, without waiting for the device.
    padded_BL = mask_BL.logical_not().byte().contiguous()  # a sort keeps its input's strides
    tokens_BL = torch.argsort(padded_BL, dim=1, stable=True).int()

    def grid(meta: dict[str, Any]) -> tuple[Any]:
        return (B * triton.cdiv(V, meta["BLOCK_V"]),)

    full = torch.get_float32_matmul_precision() == "highest"
    with torch.cuda.device_of(hidden_BLD):
        _forward_kernel[grid](
            hidden_BLD,
            weight_VD,
            tokens_BL,
            mask_BL.sum(1, dtype=torch.int32),
            reps_BV,
            reps_BV if positions_BV is None else positions_BV,
            B,
            L,
            D,
            V,
            scale,
            hidden_BLD.stride(0),
            hidden_BLD.stride(1),
            weight_VD.stride(0),
            LONGEST=min(128, max(16, triton.next_power_of_2(L))),
            WITH_POSITIONS=with_positions,
            EVEN_D=D % _BLOCK_D == 0,
            PRECISION="ieee" if full else "tf32",
            GROUP_B=16,
        )
    return reps_BV, positions_BV


def products(
    tokens_E: torch.Tensor,
    terms_E: torch.Tensor,
    values_E: torch.Tensor,
    hidden_BLD: torch.Tensor,
    weight_VD: torch.Tensor,
    needed: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden states and weight, in their dtypes, without a copy of either."""
    B, L, D = hidden_BLD.shape
    grad_hidden = grad_weight = None
    if needed[0]:
        grad_hidden = _row_product(tokens_E, terms_E, values_E, weight_VD, B * L).view(B, L, D)
    if needed[1]:
        states_TD = hidden_BLD.reshape(B * L, D)
        grad_weight = _row_product(terms_E, tokens_E, values_E, states_TD, len(weight_VD))
    return grad_hidden, grad_weight


def _row_product(
    rows_E: torch.Tensor,
    columns_E: torch.Tensor,
    values_E: torch.Tensor,
    dense: torch.Tensor,
    count: int,
) -> torch.Tensor:
    """out[r] = sum over the entries (r, c, x) of x * dense[c], in dense's dtype; [count, D]."""
    dense = _rows_contiguous(dense)
    D = dense.shape[1]
    out = dense.new_empty(count, D)
    if out.numel() == 0:
        return out
    rows_E, order_E = torch.sort(rows_E.int(), stable=True)
    all_rows = torch.arange(count + 1, dtype=torch.int32, device=rows_E.device)
    starts = torch.searchsorted(rows_E, all_rows, out_int32=True)
    block = min(256, triton.next_power_of_2(D))
    with torch.cuda.device_of(dense):
        _row_product_kernel[(count, triton.cdiv(D, block))](
            out,
            starts,
            columns_E[order_E],
            values_E[order_E],
            dense,
            D,
            dense.stride(0),
            BLOCK_E=16,
            BLOCK_D=block,
        )
    return out


def _rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
