"""What watching costs: a worker's time for telling, the size of what is told, and the memory of the page's server.

python benchmarks/watching.py            # 1,000 runs of 100,000 points each, which share the files of one by links
python benchmarks/watching.py --smoke    # 20 runs of 2,000 points

telling     `RunLog.note` in a training loop that does nothing else: seconds a step, and bytes a point
reading     `LiveFacts` of all runs from nothing on, and again
state       one answer of /api/state: seconds and bytes
curve       one answer of /api/run/NAME: seconds, points and bytes; and again
memory      of this process, after each of them
latency     how old the step is that a state shows when it comes: a run of a step every 0.1 s, its server and its
            client on this machine
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

from aiohttp import web

from raylab.live.client import states
from raylab.live.facts import RUNS, Point, new_session, record
from raylab.live.logs import RunLog
from raylab.live.reading import LiveFacts
from raylab.live.server import application
from raylab.live.state import state_of
from raylab.storage.store import Store

_LINES_A_PART = 200


def telling(store: Store, steps: int) -> None:
    """Time of a step's `note`, with the thread that writes beside it."""
    log = RunLog(store, "telling", gpu=False)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        log.note(step, steps, 1e9 * step, 1e4 * step, 2.0, 1e-4, 0.01 * step)
    seconds = time.perf_counter() - began
    log.close()
    log.writer.close()
    print(f"telling: {1e6 * seconds / steps:.1f} us a step")


def written(store: Store, runs: int, points: int) -> None:
    """Runs as their workers would have told of them; all but the first are links to it."""
    lines = [
        json.dumps(record(Point(1.8e9 + i, i, points, 1e9 * i, 2.0, 1e-4, 1e4 * i, 1e4, i, 2**30)))
        for i in range(1, points + 1)
    ]
    session, size = new_session(), 0
    for part in range(0, points, _LINES_A_PART):
        text = "\n".join(lines[part : part + _LINES_A_PART]) + "\n"
        store.put_text(f"{RUNS}/run-0000/{session}-{part // _LINES_A_PART:06d}.jsonl", text)
        size += len(text)
    print(f"size: {size / points:.0f} bytes a point, {size / 2**20:.1f} MiB a run of {points:,}")
    for run in range(1, runs):
        os.symlink("run-0000", store.files.full(f"{RUNS}/run-{run:04d}"))


def memory_mib() -> float:
    """Of this process, at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--smoke", action="store_true", help="20 runs: says that it runs")
    runs, points = (20, 2_000) if parser.parse_args().smoke else (1_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        telling(store, 100 * runs)
        written(store, runs, points)
        before, facts = memory_mib(), LiveFacts(store)
        for name in ("reading", "again"):
            with timed(name):
                facts.refresh()
        with timed("state"):
            answer = json.dumps(asdict(state_of(facts, time.time(), store.uri, {})))
        print(f"       {len(answer) / 1024:.0f} KiB")
        for name in ("curve", "again", "again"):
            with timed(name):
                curve = facts.curve("run-0001")
                assert curve is not None
                rows = curve.rows()
        print(f"       {len(rows)} points, {len(json.dumps(rows)) / 1024:.0f} KiB")
        latency(Store(f"{folder}/latency"), 15.0 if runs < 100 else 120.0)
        print(
            f"memory: {memory_mib() - before:.0f} MiB more than before, {memory_mib():.0f} in all"
        )


def latency(store: Store, seconds: float) -> None:
    """Ages of the steps that the states of a real server show, whenever one shows another step."""
    taken: list[float] = []  # when each step was
    ages: list[float] = []
    ended, listening = threading.Event(), threading.Event()
    address: list[str] = []

    async def serve() -> None:
        runner = web.AppRunner(application(store, "127.0.0.1"))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        listening.set()
        while not ended.is_set():
            await asyncio.sleep(0.1)

    def train() -> None:
        log = RunLog(store, "latency", gpu=False)
        while not ended.is_set():
            taken.append(time.monotonic())
            log.note(len(taken), 10**6, 1.0, 1.0, 2.0, 1e-4, 0.1 * len(taken))
            time.sleep(0.1)
        log.close()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    listening.wait()
    threading.Thread(target=train, daemon=True).start()
    began, last = time.monotonic(), 0
    for state in states(address[0]):
        step = max((run["step"] for run in state["runs"]), default=0)
        if step > last:
            ages.append(time.monotonic() - taken[step - 1])
            last = step
        if time.monotonic() - began > seconds:
            break
    ended.set()
    print(
        f"latency: {statistics.median(ages):.1f} s from a step to the page (median of {len(ages)} states), "
        f"{max(ages):.1f} s at most"
    )


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long the block took, and the memory after it."""
    began = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - began:.2f} s, {memory_mib():.0f} MiB")


if __name__ == "__main__":
    main()
