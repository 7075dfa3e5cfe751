"""Ranks, and the gather and the sums that losses over all workers need; torch only."""

from __future__ import annotations

import os
from typing import TypeVar

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


def gather_with_gradient(local: torch.Tensor) -> torch.Tensor:
    """Rows of all workers, in rank order; the gradient flows into the local rows only.

    Every worker computes the loss of the whole batch from this and back-propagates `world` times
    it: averaged over workers, the gradient is exactly that of one worker with the whole batch.
    """
    rank, world = rank_and_world()
    if world == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world)]
    dist.all_gather(parts, local.detach().contiguous())
    parts[rank] = local
    return torch.cat(parts)


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
