"""What watching costs: a worker's time for telling, the size of what is told, and the memory of the page's server.

python benchmarks/watching.py            # 1,000 runs of 999 points each: the most that is kept of a run
python benchmarks/watching.py --smoke    # 20 runs

telling     `RunLog.note` in a training loop that does nothing else: seconds a step, and bytes a point
reading     `LiveFacts` of all runs from the first byte on, and again when one of them has grown
state       one answer of /api/state: seconds and bytes
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import asdict

from raylab.live.facts import RUNS, Point, new_session, record
from raylab.live.logs import RunLog
from raylab.live.reading import LiveFacts
from raylab.live.state import state_of
from raylab.storage.store import Store

_POINTS = 999  # below twice `raylab.live.curves.MOST_POINTS`, where a curve is thinned
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


def written(store: Store, runs: int) -> int:
    """Runs as their workers would have told of them; returns bytes."""
    size = 0
    for run in range(runs):
        session = new_session()
        lines = [
            json.dumps(
                record(Point(1.8e9 + i, i, 10_000, 1e9 * i, 2.0, 1e-4, 1e4 * i, 1e4, i, 2**30))
            )
            for i in range(_POINTS)
        ]
        for part in range(0, _POINTS, _LINES_A_PART):
            text = "\n".join(lines[part : part + _LINES_A_PART]) + "\n"
            name = f"{RUNS}/run-{run:04d}/{session}-{part // _LINES_A_PART:06d}.jsonl"
            store.put_text(name, text)
            size += len(text)
    return size


def memory_mib() -> float:
    """Of this process, at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--smoke", action="store_true", help="20 runs: says that it runs")
    runs = 20 if parser.parse_args().smoke else 1_000
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        telling(store, 100 * runs)
        size = written(store, runs)
        print(f"size: {size / runs / _POINTS:.0f} bytes a point, {size / 2**20:.1f} MiB in all")
        before, facts = memory_mib(), LiveFacts(store)
        for name in ("reading", "again"):
            began = time.perf_counter()
            facts.refresh()
            print(f"{name}: {time.perf_counter() - began:.2f} s")
        print(f"memory: {memory_mib() - before:.0f} MiB more, {memory_mib():.0f} MiB in all")
        began = time.perf_counter()
        answer = json.dumps(asdict(state_of(facts, time.time(), store.uri, {})))
        print(f"state: {time.perf_counter() - began:.2f} s, {len(answer) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
