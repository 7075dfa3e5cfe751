"""What watching costs: a worker's time for telling, the size of what is told, and the memory of the page's server.

python benchmarks/watching.py            # 1,000 runs of 100,000 points each, which share the files of one by links
python benchmarks/watching.py --smoke    # 20 runs of 2,000 points

telling     `RunLog.note` in a training loop that does nothing else: seconds a step, and bytes a point
reading     `LiveFacts` of all runs from nothing on, and again
state       one answer of /api/state: seconds and bytes
curve       one answer of /api/run/NAME: seconds, points and bytes; and again
memory      of this process, after each of them
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict

from raylab.live.facts import RUNS, Point, new_session, record
from raylab.live.logs import RunLog
from raylab.live.reading import LiveFacts
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
        print(
            f"memory: {memory_mib() - before:.0f} MiB more than before, {memory_mib():.0f} in all"
        )


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long the block took, and the memory after it."""
    began = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - began:.2f} s, {memory_mib():.0f} MiB")


if __name__ == "__main__":
    main()
