"""Ingest and tokenise at size: throughput, peak memory, cores kept busy, the tokenizer's own rate beside it.

    python benchmarks/ingest.py [--passages 100000 1000000] [--collection FOLDER] [--tokenizer FOLDER]
    python benchmarks/ingest.py --smoke      # hundreds of passages: does it run

The texts of a collection are repeated under new ids, in an order that sorting has to undo. Memory is
the sum of the proportional set sizes of the driver and all of Ray's processes, so a page of the
object store counts once. "library" is `encode_batch_fast` of the tokenizers library with all cores,
alone, in the same run, before and after, each time over a fifth as many texts of the same collection.
CPU time is that of all processes. Exits with 1 when the largest collection is tokenised at less than
80 % of the library's rate, in CPU time, since cores are shared (not with --smoke).
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

os.environ["TOKENIZERS_PARALLELISM"] = (
    "true"  # of the library's own rate; Ray's workers have theirs
)

import psutil

from raylab.data.collections import read_passages
from raylab.data.sources import open_collection
from raylab.data.tokenizer import Tokenizer
from raylab.experiment.execution import Execution
from raylab.storage.store import Store

PICO = Path(__file__).parents[1] / "raylab" / "assets" / "ladder" / "pico-1x192"
_LIBRARY_SHARE = 0.2  # of a collection's size: its rate is sustained, and measured before and after
_SAMPLE_S = 2.0
_MIB = 2**20
PASS = 0.8  # of the library's rate, at the largest size, in CPU time
T = TypeVar("T")


class Watch:
    """Peak memory and CPU time of this process and all below it, sampled in a thread."""

    def __init__(self) -> None:
        self.peak_bytes, self._cpu, self._started = 0, {}, time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def cpu_s(self) -> float:
        return sum(last - first for first, last in self._cpu.values())

    def _sample(self) -> None:
        own = psutil.Process()
        total = 0
        for process in [own, *own.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
                key = process.pid, process.create_time()
                times = process.cpu_times()
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
            spent = times.user + times.system
            first = 0.0 if process.create_time() > self._started else spent
            self._cpu[key] = (self._cpu.get(key, (first, spent))[0], spent)
        self.peak_bytes = max(self.peak_bytes, total)

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._sample()

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._sample()
        self._thread.start()
        try:
            yield
        finally:
            self._sample()
            self._stop.set()
            self._thread.join()


@dataclass(frozen=True)
class Cost:
    """What so many passages took."""

    passages: int
    seconds: float
    cpu_s: float
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(
            self.passages,
            self.seconds + other.seconds,
            self.cpu_s + other.cpu_s,
            max(self.peak_bytes, other.peak_bytes),
        )

    def row(self, library: Cost) -> str:
        peak = f"{self.peak_bytes / _MIB:,.0f}" if self.peak_bytes else ""
        rate = self.passages / self.seconds
        return (
            f"{self.seconds:.1f} | {self.cpu_s:.1f} | {rate:,.0f} "
            f"| {rate * library.seconds / library.passages:.0%} | {self.of_cpu(library):.0%} "
            f"| {self.cpu_s / self.seconds:.2f} | {peak}"
        )

    def of_cpu(self, library: Cost) -> float:
        """Passages a CPU second over the library's."""
        return self.passages / self.cpu_s * library.cpu_s / library.passages


def measured(count: int, stage: Callable[..., T], *arguments: Any) -> tuple[T, Cost]:
    watch, started = Watch(), time.perf_counter()
    with watch.watching():
        made = stage(*arguments)
    return made, Cost(count, time.perf_counter() - started, watch.cpu_s, watch.peak_bytes)


def repeated(texts: list[str], count: int, folder: Path) -> Path:
    """An MS MARCO folder of `count` passages: the texts in turn, ids in a shuffled order."""
    folder.mkdir()
    ids = list(range(count))
    random.Random(0).shuffle(ids)
    with (folder / "collection.tsv").open("w") as file:
        for number, text in zip(ids, itertools.cycle(texts), strict=False):
            file.write(f"{number}\t{text}\n")
    (folder / "queries.dev.tsv").write_text("q\tone query\n")
    (folder / "qrels.dev.tsv").write_text("q 0 0 1\n")
    return folder


def library_cost(tokenizer: Tokenizer, texts: list[str], count: int) -> Cost:
    """`count` texts through the tokenizers library's own batch call, on all cores, nothing else."""
    library = tokenizer.text.library
    own = list(itertools.islice(itertools.cycle(texts), count))
    started, before = time.perf_counter(), time.process_time()
    for at in range(0, len(own), 4_096):
        library.encode_batch_fast(own[at : at + 4_096], add_special_tokens=False)
    return Cost(count, time.perf_counter() - started, time.process_time() - before)


def measure(count: int, texts: list[str], tokenizer: Tokenizer) -> float:
    """Print the rows of one size; returns the tokenising rate over the library's, in CPU time."""
    from raylab.jobs.cluster import connect
    from raylab.jobs.ingest import ingest
    from raylab.stages.tokenise import tokenise

    share = max(int(_LIBRARY_SHARE * count), 200)
    before = library_cost(tokenizer, texts, share)
    with tempfile.TemporaryDirectory() as name, connect(Execution()):
        own = open_collection(str(repeated(texts, count, Path(name, "own"))))
        store = Store(str(Path(name, "lab")))
        collection, first = measured(count, ingest, store, own)
        _, second = measured(count, tokenise, store, collection, tokenizer)
    assert collection.meta["passages"] == count
    library = before + library_cost(tokenizer, texts, share)
    library = replace(library, passages=2 * share)
    costs = {"library": library, "ingest": first, "tokenise": second, "both": first + second}
    for stage, cost in costs.items():
        print(f"| {count:,} | {stage} | {cost.row(library)} |", flush=True)
    return second.of_cpu(library)


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--passages", nargs="+", type=int, default=[100_000, 1_000_000])
    options.add_argument("--collection", default="scifact", help="whose texts are repeated")
    options.add_argument("--tokenizer", default=str(PICO), help="folder of a tokenizer")
    options.add_argument("--smoke", action="store_true", help="300 passages")
    chosen = options.parse_args(argv)
    source = open_collection(chosen.collection)
    texts = [" ".join(p.text.split()) for p in read_passages(source.passages) if p.text.strip()]
    texts = texts[: 200 if chosen.smoke else None]
    cores = len(os.sched_getaffinity(0))
    characters = sum(map(len, texts)) / len(texts)
    print(f"{cores} cores; {len(texts):,} texts of {source.name}, {characters:.0f} characters each")
    if chosen.smoke:
        print("--smoke: the figures say that it runs, and nothing about speed")
    print(
        "\n| passages | stage | s | CPU s | passages/s | of the library | of it, CPU time "
        "| cores busy | peak MiB |\n|---|---|---|---|---|---|---|---|---|"
    )
    tokenizer = Tokenizer(chosen.tokenizer)
    sizes = [300] if chosen.smoke else chosen.passages
    rate = [measure(count, texts, tokenizer) for count in sizes][-1]
    if not chosen.smoke and rate < PASS:
        print(f"tokenising runs at less than {PASS:.0%} of the library", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
