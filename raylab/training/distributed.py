"""Ranks, and the gather and the sums that losses over all workers need; torch only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """(rank, number of workers); (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def ensure_process_group() -> None:
    """A process group of this process alone, where none runs: DeepSpeed needs one.

    It stays for the life of the process: DeepSpeed keeps hold of the first group it meets.
    """
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)


def gather_in_order(
    parts: Sequence[torch.Tensor], places_WB: np.ndarray, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of all workers at their places, cut in two; the gradient flows into the local rows only.

    Every worker computes the loss of the whole batch from this and back-propagates `world` times
    it: averaged over workers, the gradient is exactly that of one worker with the whole batch.

    Args:
        parts: this worker's rows, [B, D] in several parts.
        places_WB: int64, the place of each row of each worker; every place of W B once.
        first: rows of the first of the two results, [first, D] and [W B - first, D].
    """
    return _Gathered.apply(torch.from_numpy(np.ascontiguousarray(places_WB)), first, *parts)  # type: ignore[no-any-return]


class _Gathered(torch.autograd.Function):
    """One copy of all rows, forward and backward: sparse ones are as wide as the vocabulary."""

    @staticmethod
    def forward(ctx: Any, places_WB: torch.Tensor, first: int, *parts: torch.Tensor) -> Any:
        rank, world = rank_and_world()
        ctx.places, ctx.first = places_WB[rank].split([len(part) for part in parts]), first
        if world == 1:
            placed = list(zip(ctx.places, parts, strict=True))
        else:
            local = torch.cat(parts)
            everyone = [torch.empty_like(local) for _ in range(world)]
            dist.all_gather(everyone, local)
            placed = list(zip(places_WB, everyone, strict=True))
        rows = parts[0].new_empty(places_WB.numel(), parts[0].shape[1])
        for places, part in placed:
            rows.index_copy_(0, places.to(part.device), part)
        return rows[:first], rows[first:]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        parts = []
        for places in ctx.places:
            part = gradients[0].new_empty(len(places), gradients[0].shape[1])
            for mine, start, gradient in (
                (places < ctx.first, 0, gradients[0]),
                (places >= ctx.first, ctx.first, gradients[1]),
            ):
                rows = gradient.index_select(0, (places[mine] - start).to(gradient.device))
                part.index_copy_(0, mine.nonzero().squeeze(1).to(gradient.device), rows)
            parts.append(part)
        return None, None, *parts


def summed(*values: torch.Tensor) -> list[float]:
    """Scalars summed over all workers, in float64; call on all workers."""
    total = torch.stack([value.detach().double() for value in values])
    if rank_and_world()[1] > 1:
        dist.all_reduce(total)
    return total.tolist()


def from_first(value: T) -> T:
    """Rank 0's value, on all workers; call on all of them."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    if rank_and_world()[1] > 1:
        dist.barrier()
