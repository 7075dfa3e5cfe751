"""Devices to plan for: their peak, their memory, and what their hours are in FLOPs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from raylab.experiment.config import check


@dataclass(frozen=True)
class Device:
    """A device to plan for: dense peak in its training dtype, and the share of it one may hope for."""

    name: str
    peak_flops: float
    memory_bytes: float
    efficiency: float = 0.4

    def at(self, efficiency: float | None) -> Device:
        """The device at another share of its peak; None: its own.

        Raises:
            ConfigError: not a share.
        """
        if efficiency is None:
            return self
        check(0 < efficiency <= 1, "efficiency", efficiency, "above 0 and at most 1")
        return dataclasses.replace(self, efficiency=efficiency)


# Dense bf16 peaks (not those with sparsity) and memory from NVIDIA's data sheets (SXM forms where there are
# several; the L40S with its ECC on); the CPU's is a bare fp32 product on one thread
# (benchmarks/README.md), its efficiency that of experiments/isoflop.py (docs/log.md).
DEVICES = {
    device.name: device
    for device in (
        Device("a100-40gb", 312e12, 40 * 2**30),
        Device("a100-80gb", 312e12, 80 * 2**30),
        Device("h100", 989e12, 80 * 2**30),
        Device("h200", 989e12, 141 * 2**30),
        Device("l40s", 362e12, 45 * 2**30),
        Device("b200", 2250e12, 180 * 2**30),
        Device("cpu-core", 76e9, 4 * 2**30, 0.45),
    )
}


def device_hours(flops: float, device: Device) -> float:
    """Hours one such device needs for `flops` at its efficiency."""
    return flops / (device.peak_flops * device.efficiency) / 3600


def budget_flops_of_hours(hours: float, device: Device, efficiency: float | None = None) -> float:
    """FLOPs that one such device does in so many hours, at its efficiency or the given one.

    Raises:
        ConfigError: an efficiency that is not a share.
    """
    device = device.at(efficiency)
    return hours * 3600 * device.peak_flops * device.efficiency
