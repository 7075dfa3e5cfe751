"""Energy of a training run, where the machine measures it: NVML's counter of a GPU, RAPL's of the processors.

RAPL counts whole processors, whoever uses them: of runs that share a machine, each counts the whole of it.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

_RAPL = Path("/sys/class/powercap")


class Meter:
    """Joules since it was last read.

    Args:
        gpu: index of this process's GPU; None: the machine's processors.
        rapl: the folder of RAPL's counters.
    """

    def __init__(self, gpu: int | None, rapl: Path = _RAPL):
        self.gpu, self.rapl = gpu, rapl
        self.before = self._counters()

    def joules(self) -> float | None:
        """None where there is no counter to read."""
        now, before = self._counters(), self.before
        self.before = now
        if not now or now.keys() != before.keys():
            return None
        return sum(self._passed(name, before[name], value) for name, value in now.items())

    def _passed(self, name: str, before: float, now: float) -> float:
        """A counter's way from one value to the next; RAPL's begin again at a limit of their own."""
        if now >= before:
            return now - before
        limit = float((self.rapl / name / "max_energy_range_uj").read_text()) / 1e6
        return now + limit - before

    def _counters(self) -> dict[str, float]:
        """Joules by counter."""
        if self.gpu is not None:
            return _nvml(self.gpu)
        try:
            return {
                path.parent.name: float(path.read_text()) / 1e6
                for path in sorted(self.rapl.glob("intel-rapl:?/energy_uj"))
            }
        except (OSError, ValueError):  # only root may read them on most machines
            return {}


def _nvml(gpu: int) -> dict[str, float]:
    if importlib.util.find_spec("pynvml") is None:
        return {}
    pynvml = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
        return {f"gpu{gpu}": pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3}
    except pynvml.NVMLError:  # cards before Volta have no counter
        return {}
