"""Pooling: hidden states of a text into one representation (2502.15526, Heads).

Legend: B texts, L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

from raylab.experiment.heads import Head
from raylab.experiment.references import load_reference
from raylab.models.sparse_head import sparse_reps


def dense_reps(hidden_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens of their L2-normalised states: reps_BD (not unit length)."""
    normed_BLD = nn.functional.normalize(hidden_BLD, dim=-1)
    weights_BL1 = mask_BL.unsqueeze(-1).to(normed_BLD.dtype)
    return (normed_BLD * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1)


def mean_pooling(
    hidden_BLD: torch.Tensor, weight_VD: torch.Tensor, mask_BL: torch.Tensor, scale: float
) -> torch.Tensor:
    """The pooling of the dense head: [B, D]."""
    return dense_reps(hidden_BLD, mask_BL)


def sparse_pooling(
    hidden_BLD: torch.Tensor, weight_VD: torch.Tensor, mask_BL: torch.Tensor, scale: float
) -> torch.Tensor:
    """The pooling of the sparse head: [B, V]."""
    return sparse_reps(hidden_BLD, weight_VD, mask_BL, scale)


def logit_scale(hidden: int) -> float:
    """The sparse head's factor on the logits at a hidden size."""
    return hidden**-0.25


def represent(
    head: Head,
    hidden_BLD: torch.Tensor,
    weight_VD: torch.Tensor,
    mask_BL: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Representations under a head: [B, V] where it is sparse, else [B, D].

    `scale` is the factor on the logits, `logit_scale` by default (1 where the final norm holds it).

    Raises:
        ConfigError: the head's pooling cannot be loaded.
    """
    scale = logit_scale(hidden_BLD.shape[-1]) if scale is None else scale
    return load_reference(head.pooling)(hidden_BLD, weight_VD, mask_BL, scale)


def prune_top_k(reps_BV: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    """Keep the k largest entries of every row (the lowest term first among equals), zero the rest.

    0 keeps all. The gradient flows through what is kept.

    Args:
        k: of all rows, or int64 [B] on the CPU: of each row.
    """
    terms = reps_BV.shape[1]
    k_B1 = torch.as_tensor(k).reshape(-1, 1)
    k_B1 = torch.where((k_B1 <= 0) | (k_B1 >= terms), terms, k_B1)
    most = int(torch.where(k_B1 < terms, k_B1, 0).max()) if len(k_B1) else 0
    if most == 0:
        return reps_BV
    with torch.no_grad():
        # A row that keeps all has no smallest entry to keep.
        keeps_all_B1 = (k_B1 == terms).to(reps_BV.device)
        k_B1 = k_B1.clamp(max=most).to(reps_BV.device).expand(len(reps_BV), 1)
        smallest_B1 = reps_BV.topk(most, dim=1, sorted=True).values.gather(1, k_B1 - 1)
        above_BV = reps_BV > smallest_B1
        equal_BV = reps_BV == smallest_B1
        room_B1 = k_B1 - above_BV.sum(1, keepdim=True)
        kept_BV = above_BV | (equal_BV & (equal_BV.cumsum(1) <= room_B1)) | keeps_all_B1
    return reps_BV * kept_BV
