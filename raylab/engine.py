"""The DeepSpeed engine of one worker: optimizer, schedule, checkpoints, random states, gathered weights."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raylab.config import FineTuning
from raylab.distributed import barrier, rank_and_world
from raylab.models.backbone import output_weight
from raylab.models.hub import state_to_save


def learning_rate(tuning: FineTuning, hidden: int) -> float:
    """The peak learning rate at a hidden size."""
    if tuning.lr_reference_hidden is None:
        return tuning.learning_rate
    return tuning.learning_rate * tuning.lr_reference_hidden / hidden


def linear_schedule(step: int, steps: int, warmup_fraction: float) -> float:
    """Warm-up from 0, then linear decay to 0: the factor on the peak learning rate."""
    warmup = math.ceil(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (steps - step) / max(steps - warmup, 1))


@dataclass(frozen=True)
class Optimization:
    """What the engine needs beside the module."""

    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    clip_norm: float
    zero_stage: int
    bf16: bool = False


def make_engine(module: nn.Module, steps: int, config: Optimization) -> Any:
    """A DeepSpeed engine with AdamW, warm-up, linear decay and clipping, on the running process group."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed  # imported here: it reads DS_ACCELERATOR, and readers of this module need not have it
    import deepspeed.ops

    # Otherwise the first CPU process group compiles a shared-memory op for a minute (stack.md).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: linear_schedule(step, steps, config.warmup_fraction)
    )
    # Buckets are allocated whole: the default of 5e8 elements would be 2 GB a step for a small adapter.
    bucket = min(500_000_000, max(1, sum(p.numel() for p in trainable)))
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=schedule,  # type: ignore[arg-type]
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.clip_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": config.zero_stage,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
            },
            "bf16": {"enabled": config.bf16},
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        },
    )
    if config.zero_stage == 3:
        # The head reads the embeddings outside of their own module: ZeRO-3 must gather them for it.
        deepspeed.zero.register_external_parameter(module, output_weight(module.model))
    return engine


def save_engine(engine: Any, folder: Path, state: dict[str, Any]) -> None:
    """Write the engine's checkpoint with a state of the caller's. Call on all workers."""
    engine.save_checkpoint(
        str(folder), tag="engine", client_state=state, exclude_frozen_parameters=True
    )
    barrier()


def random_states() -> list[dict[str, torch.Tensor]]:
    """Every worker's random state, in rank order: DeepSpeed keeps rank 0's client state for all."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    world = rank_and_world()[1]
    if world == 1:
        return [own]
    states: list[Any] = [None] * world
    torch.distributed.all_gather_object(states, own)
    return states


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Go on from one worker's entry of `random_states`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_worker(seed: int) -> None:
    """Seed this worker's dropout: by seed and rank."""
    state = np.random.SeedSequence([seed, rank_and_world()[0]]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))


def gathered_state(engine: Any, model: Any, zero_stage: int) -> dict[str, torch.Tensor]:
    """`state_to_save` of a trained model, with ZeRO-3's partitions gathered. Call on all workers."""
    context: AbstractContextManager[Any] = nullcontext()
    if zero_stage == 3:
        import deepspeed

        context = deepspeed.zero.GatheredParameters(
            [p for p in model.parameters() if p.requires_grad]
        )
    with context:
        return state_to_save(model)
