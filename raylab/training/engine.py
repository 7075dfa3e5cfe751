"""The DeepSpeed engine of one worker: optimizer, schedule, checkpoints, random states, gathered weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raylab.experiment.config import ComputeDtype, FineTuning, ScheduleName
from raylab.models.backbone import final_norm, output_weight
from raylab.training.distributed import barrier, rank_and_world


def learning_rate(tuning: FineTuning, hidden: int) -> float:
    """The peak learning rate at a hidden size."""
    if tuning.lr_reference_hidden is None:
        return tuning.learning_rate
    return tuning.learning_rate * tuning.lr_reference_hidden / hidden


def schedule(
    step: int,
    steps: int,
    warmup_fraction: float,
    name: ScheduleName = "linear",
    decay_fraction: float = 0.2,
    warmup_steps: int | None = None,
) -> float:
    """The factor on the peak learning rate at a step: warm-up from 0, then by `name`.

    `linear` falls to 0 over all that is left; `wsd` stays at the peak and falls as 1 - sqrt(x) over
    the last `decay_fraction` of the steps (2405.18392).
    """
    warmup = _warmup(steps, warmup_fraction, warmup_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if name == "linear":
        return max(0.0, (steps - step) / max(steps - warmup, 1))
    start = decay_start(steps, warmup_fraction, decay_fraction, warmup_steps)
    into = step - start  # the decay's own steps
    return 1.0 if into <= 0 else max(0.0, 1.0 - math.sqrt(into / max(steps - start, 1)))


def decay_start(
    steps: int, warmup_fraction: float, decay_fraction: float, warmup_steps: int | None = None
) -> int:
    """The step from which a `wsd` schedule of `steps` steps falls; until then it is that of any longer one."""
    warmup = _warmup(steps, warmup_fraction, warmup_steps)
    return steps - min(math.ceil(steps * decay_fraction), max(steps - warmup, 0))


def _warmup(steps: int, fraction: float, given: int | None) -> int:
    return math.ceil(steps * fraction) if given is None else given


@dataclass(frozen=True)
class Optimization:
    """What the engine needs beside the module."""

    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    clip_norm: float
    zero_stage: int
    compute_dtype: ComputeDtype = "float32"
    schedule: ScheduleName = "linear"
    decay_fraction: float = 0.2
    warmup_steps: int | None = None
    schedule_steps: int | None = None  # what the schedule is laid out for; None: the run's steps
    matrix_rate: float = (
        1.0  # on the learning rate of the blocks' matrices; embeddings and norms have 1
    )
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's

    def factor(self, step: int, steps: int) -> float:
        """On the peak learning rate, at a step of a run of `steps`."""
        return schedule(
            step,
            max(steps, self.schedule_steps or 0),
            self.warmup_fraction,
            self.schedule,
            self.decay_fraction,
            self.warmup_steps,
        )

    def decay_start(self, steps: int) -> int:
        """The step up to which a run of `steps` is that of any longer one."""
        return decay_start(steps, self.warmup_fraction, self.decay_fraction, self.warmup_steps)


def make_engine(module: nn.Module, steps: Callable[[], int], config: Optimization) -> Any:
    """A DeepSpeed engine with AdamW, the schedule and clipping, on the running process group.

    `steps` returns the number of steps of the run that the schedule belongs to, and is called at every step.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed  # imported here: it reads DS_ACCELERATOR, and readers of this module need not have it
    import deepspeed.ops

    # Otherwise the first CPU process group compiles a shared-memory op for a minute (docs/log.md).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        _rated(module, config),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.betas,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: config.factor(step, steps())
    )
    # Buckets are allocated whole: the default of 5e8 elements would be 2 GB a step for a small adapter.
    bucket = min(500_000_000, max(1, sum(p.numel() for p in trainable)))
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=scheduler,  # type: ignore[arg-type]
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
            "bf16": {"enabled": config.compute_dtype == "bfloat16"},
            "fp16": {"enabled": config.compute_dtype == "float16"},
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        },
    )
    if config.zero_stage == 3:
        # The head reads the embeddings outside of their own module: ZeRO-3 must gather them for it.
        deepspeed.zero.register_external_parameter(module, output_weight(module.model))
    return engine


def _rated(module: nn.Module, config: Optimization) -> list[Any]:
    """What is trained, in one group a learning rate: embeddings and norms, then the blocks' matrices."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if config.matrix_rate == 1.0:
        return [p for _, p in trained]
    inside = [p for name, p in trained if p.ndim == 2 and ".layers." in name]
    outside = [p for name, p in trained if p.ndim != 2 or ".layers." not in name]
    return [
        {"params": outside},
        {"params": inside, "lr": config.learning_rate * config.matrix_rate},
    ]


def take_step(engine: Any) -> float:
    """The optimizer's step; returns the norm of the gradient before it is clipped.

    Where the norm is not finite (inf) no step was meant, whatever DeepSpeed made of it: without ZeRO the weights are
    as they were; with it, the step was skipped or has spoiled them.
    """
    own = math.nan
    if (
        engine.zero_optimization_stage() == 0
    ):  # gradients are whole here, and their norm is not kept
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        own = float(torch.nn.utils.get_total_norm(gradients)) if gradients else math.nan
        if gradients and not math.isfinite(own):
            return math.inf
    skipped = engine.skipped_steps
    engine.step()
    norm = engine.get_global_grad_norm()  # negative where it overflowed
    if engine.skipped_steps != skipped or not 0 <= float(norm or 0.0) < math.inf:
        return math.inf
    return own if math.isfinite(own) else float(norm or 0.0)


def save_engine(engine: Any, folder: Path, state: dict[str, Any]) -> None:
    """Write the engine's checkpoint with a state of the caller's. Call on all workers."""
    engine.save_checkpoint(
        str(folder), tag="engine", client_state=state, exclude_frozen_parameters=True
    )
    barrier()


def random_state() -> dict[str, torch.Tensor]:
    """This worker's random state: what its next dropout masks are drawn from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def random_states() -> list[dict[str, torch.Tensor]]:
    """Every worker's random state, in rank order: DeepSpeed keeps rank 0's client state for all."""
    state = random_state()
    world = rank_and_world()[1]
    if world == 1:
        return [state]
    states: list[Any] = [None] * world
    torch.distributed.all_gather_object(states, state)
    return states


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Go on from a state of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_worker(seed: int) -> None:
    """Seed this worker's dropout: by seed and rank."""
    state = np.random.SeedSequence([seed, rank_and_world()[0]]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))


@contextmanager
def gathered(model: Any, zero_stage: int) -> Iterator[None]:
    """Inside, what was trained and the final norm are whole on every worker. Call on all workers."""
    if zero_stage < 3:
        yield
        return
    import deepspeed

    trained = [p for p in model.parameters() if p.requires_grad]
    norm = [p for p in final_norm(model).parameters() if not p.requires_grad]
    with deepspeed.zero.GatheredParameters(trained + norm):
        yield
