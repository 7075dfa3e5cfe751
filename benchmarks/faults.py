"""Effective training time: what a fault, a restart and a checkpoint cost here, and what that makes of 64 GPUs.

python benchmarks/faults.py            # kills a train worker of a small grid, then simulates
python benchmarks/faults.py --smoke    # small states, and the restart that was measured before

checkpoint   how long steps stop for one, and how long until it is in the storage: states of the size that the paper's
             models have, through `raylab.storage.checkpoints`
restart      seconds from a worker's end to the next step of its run, of two runs of which one is killed
simulation   runs of 20 hours of steps; faults come as a Poisson process, one an hour for the run (64 GPUs, of which
             each fails every 64 hours); checkpoints at Young's interval (`raylab.training.pacing`); a fault costs the
             steps since the last checkpoint that is stored, and the restart

Exits with 1 where less than 97 % of the time is effective, with the costs that were measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from raylab.experiment.ladders import LLAMA3, PICO
from raylab.planning.models import plan_model, weight_bytes
from raylab.planning.storage_bytes import checkpoint_bytes
from raylab.storage.checkpoints import Checkpoints
from raylab.storage.store import Store
from raylab.training.pacing import Pacing

GRID = Path(__file__).resolve().parents[1] / "experiments" / "grid.py"
FAULT_HOURS = 1.0
WORK_S = 20 * 3600.0
GOAL = 0.97
ASSUMED_RESTARTS_S = (60.0, 120.0)  # of larger groups; shown beside the measured one
BEFORE_S = 20.0  # a restart, for --smoke


@dataclass(frozen=True)
class Cost:
    """Of one checkpoint, in seconds: steps stop for `stop_s`; `stored_s` from its beginning it is in the storage."""

    stop_s: float
    stored_s: float


def checkpoint_cost(size_bytes: float, folder: Path, times: int = 3) -> Cost:
    """The median of a few, of a state of so many bytes."""
    state = {"state": torch.zeros(int(size_bytes) // 4)}
    checkpoints = Checkpoints(Store(str(folder)), "train/a-run")
    costs = []
    for step in range(times):
        began = time.perf_counter()
        checkpoints.keep(lambda scratch: torch.save(state, scratch / "state.pt"), step)
        stopped = time.perf_counter()
        checkpoints.wait()
        costs.append((stopped - began, time.perf_counter() - began))
    return Cost(*np.median(costs, axis=0).tolist())


def measured_restart(folder: Path) -> float:
    """Seconds without a step that a killed worker of a small run cost."""
    lab = folder / "lab"
    command = [sys.executable, str(GRID), "--plain", "--storage", str(lab)]
    command += ["--sizes", PICO.backbones[0].name, "--cells", "dense-*-cl", "--budget", "6e11"]
    command += ["--seeds", "2", "--checkpoint-minutes", "0.05"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while not any((lab / "train").glob("retriever-*/step-*/complete-*")):
                if driver.poll() is not None:
                    raise SystemExit(f"the grid ended too early:\n{(folder / 'log').read_text()}")
                time.sleep(0.2)
            next(_workers(driver.pid)).kill()
            killed_at = time.time()
            if driver.wait():
                raise SystemExit(f"the grid failed:\n{(folder / 'log').read_text()}")
        finally:
            driver.terminate()
    (restart_s,) = _restarts(lab, killed_at)
    return restart_s


def _restarts(lab: Path, killed_at: float) -> list[float]:
    """Seconds from a moment to the first step of every run whose workers were started again after it."""
    found = []
    for run in (lab / "live" / "runs").iterdir():
        steps = [
            json.loads(part.read_text().splitlines()[0])["at"]
            for part in run.glob("*-000000.jsonl")
        ]
        if min(steps) < killed_at < max(steps):
            found.append(min(at for at in steps if at > killed_at) - killed_at)
    return found


def _workers(driver: int) -> Iterator[psutil.Process]:
    for process in psutil.Process(driver).children(recursive=True):
        if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
            yield process


def effective_time(cost: Cost, restart_s: float, rng: np.random.Generator) -> float:
    """Useful over elapsed seconds of one run under faults."""
    interval_s = Pacing(fault_hours=FAULT_HOURS).seconds(cost.stop_s)
    done = kept = elapsed = 0.0  # seconds of steps taken, of steps that are stored
    fault_at = rng.exponential(3600 * FAULT_HOURS)
    while done < WORK_S:
        work = min(interval_s, WORK_S - done)
        stored_at = elapsed + work + cost.stored_s  # the next steps go on while it is sent
        until = elapsed + work + cost.stop_s
        if fault_at < until:  # all since the last stored checkpoint is done again
            elapsed, done = fault_at + restart_s, kept
            fault_at = elapsed + rng.exponential(3600 * FAULT_HOURS)
            continue
        done, elapsed = done + work, until
        if fault_at < stored_at:  # it comes while the checkpoint is on its way
            elapsed, done = fault_at + restart_s, kept
            fault_at = elapsed + rng.exponential(3600 * FAULT_HOURS)
            continue
        kept = done
    return WORK_S / elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small states and no grid")
    smoke = parser.parse_args().smoke
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        restart_s = BEFORE_S if smoke else measured_restart(folder)
        print(f"restart: {restart_s:.1f} s" + (", measured before" if smoke else ""))
        costs = {}
        for backbone in LLAMA3.backbones:
            shape = plan_model(backbone, None, from_tables=True).shape
            tuning = LLAMA3.recipe.fine_tuning["dense", "cl"]
            size = checkpoint_bytes(shape, tuning.lora, weight_bytes(backbone))
            costs[backbone.name] = checkpoint_cost(size / (1_000 if smoke else 1), folder)
            print(
                f"checkpoint of {backbone.name}: {size / 1e6:,.0f} MB, steps stop for "
                f"{costs[backbone.name].stop_s:.2f} s, stored after {costs[backbone.name].stored_s:.2f} s"
            )
    print("\n| model | restart s | a checkpoint every s | effective time, 20 runs | least |")
    print("|---|---|---|---|---|")
    least = 1.0
    for name, cost in costs.items():
        for restart in (restart_s, *ASSUMED_RESTARTS_S):
            shares = [effective_time(cost, restart, np.random.default_rng(n)) for n in range(20)]
            every = Pacing(fault_hours=FAULT_HOURS).seconds(cost.stop_s)
            mean = float(np.mean(shares))
            print(f"| {name} | {restart:.0f} | {every:.0f} | {mean:.2%} | {min(shares):.2%} |")
            least = min(least, mean) if restart == restart_s else least
    verdict = "pass" if least >= GOAL else "FAIL"
    print(f"\n{verdict}: at least {least:.2%} with the restart measured (goal {GOAL:.0%})")
    return int(least < GOAL)


if __name__ == "__main__":
    raise SystemExit(main())
