"""Where and how a grid runs: nothing here may change a result, so nothing here is fingerprinted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raylab.experiment.config import check


@dataclass(frozen=True)
class Execution:
    """Where and how it runs. Nothing here may change a result, so nothing here is fingerprinted.

    `micro_batch_texts` bounds how many texts a worker holds activations of in fine-tuning (0: all of
    its share of the batch): the same loss and gradients, in less memory for one more forward pass.
    `encoding_actors`: at most so many, of one GPU or `encoder_cpus` CPUs each; 0: as many as the cluster
    has GPUs or CPUs at the time. `no_index`: passages are scored as they are encoded, and neither their
    embeddings nor indexes of them are stored. `shard_passages`: of an embedding shard, which is
    what one task makes and what is done again when an actor dies. `device`: what a worker runs on, by
    the name it has in a plan; None: asked of the cluster. `concurrent_trials` 0: as many as fit. `cache_gib`: of a
    node's disk at most, for copies from object storage; None: all but a tenth of it. `validate`: points of a
    fine-tuning run, even in the logarithm of its FLOPs, at which held-out queries are scored; fewer where they would
    take more than 3 % of the run; 0: none. `device_hour_price`: of one device, for the metrics; None: no price is told.
    `checkpoint_minutes`: between two checkpoints of a run; None: by what one costs and by `fault_hours`, the mean
    time between faults of a run (None: ten minutes). `max_failures`: starts of a run's workers, after the first,
    without a new checkpoint. `max_devices`: that training and encoding may ask a growing cluster for; None: as many
    as they could use.
    """

    storage: str = "lab"
    workers: int = 1
    zero_stage: int = 1
    micro_batch_texts: int = 0
    concurrent_trials: int = 2
    encoding_actors: int = 2
    encoder_cpus: float = 1.0
    no_index: bool = False
    use_gpu: bool = False
    encode_batch_tokens: int | None = None  # padded; None: by the device
    shard_passages: int = 2_048
    checkpoint_minutes: float | None = None
    fault_hours: float | None = None
    max_failures: int = 3
    max_devices: int | None = None
    validate: int = 12
    models_dir: str | None = None
    device: str | None = None
    cache_gib: float | None = None
    device_hour_price: float | None = None
    ray_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.workers >= 1, "workers", self.workers, "at least 1")
        check(self.zero_stage in (0, 1, 2, 3), "zero", self.zero_stage, "0, 1, 2 or 3")
        check(self.micro_batch_texts >= 0, "micro_batch_texts", self.micro_batch_texts, "0 or more")
        at_once = self.concurrent_trials
        check(at_once >= 0, "concurrent", at_once, "0 (as many as fit) or more")
        actors = self.encoding_actors
        check(actors >= 0, "encoders", actors, "0 (as many as the cluster takes) or more")
        check(self.shard_passages >= 1, "shard_passages", self.shard_passages, "at least 1")
        check(self.validate >= 0, "validate", self.validate, "0 (none) or more")
        cache = self.cache_gib
        check(cache is None or cache > 0, "cache_gib", cache, "positive")
        minutes, hours = self.checkpoint_minutes, self.fault_hours
        check(minutes is None or minutes >= 0, "checkpoint_minutes", minutes, "0 or more")
        check(hours is None or hours > 0, "fault_hours", hours, "positive")
        check(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")
        most = self.max_devices
        right = f"at least the {self.workers} of one run"
        check(most is None or most >= self.workers, "max_devices", most, right)
        price = self.device_hour_price
        check(price is None or 0 <= price < math.inf, "gpu_hour_rate", price, "0 or more")
        check(self.encoder_cpus > 0, "encoder_cpus", self.encoder_cpus, "positive")

    @property
    def cache_bytes(self) -> int | None:
        """`cache_gib` in bytes."""
        return None if self.cache_gib is None else int(self.cache_gib * 2**30)
