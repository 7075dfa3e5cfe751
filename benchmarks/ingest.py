"""Ingest and tokenise at size: throughput, peak memory, cores kept busy, the tokenizer's own rate beside it.

    python benchmarks/ingest.py [--passages 100000 1000000] [--collection FOLDER] [--tokenizer FOLDER]
    python benchmarks/ingest.py --smoke      # hundreds of passages: does it run

The texts of a collection are repeated under new ids, in an order that sorting has to undo. Memory is
the sum of the proportional set sizes of the driver and all of Ray's processes, so a page of the
object store counts once. "library" is `encode_batch_fast` of the tokenizers library with all cores,
alone, in the same run, before and after, each time over a fifth as many texts of the same collection.
Exits with 1 when the largest collection is tokenised at less than 80 % of that rate (not with --smoke).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

os.environ["TOKENIZERS_PARALLELISM"] = (
    "true"  # of the library's own rate; Ray's workers have theirs
)

import psutil

from raylab.artifacts import Store
from raylab.config import Execution
from raylab.data.collections import read_passages
from raylab.data.sources import open_collection
from raylab.data.tokenizer import Tokenizer

PICO = Path(__file__).parents[1] / "raylab" / "assets" / "ladder" / "pico-2x128"
_LIBRARY_SHARE = 0.2  # of a collection's size: its rate is sustained, and measured before and after
_SAMPLE_S = 2.0
_MIB = 2**20
PASS = 0.8  # of the library's rate, at the largest size
T = TypeVar("T")


class Watch:
    """Peak memory and CPU time of this process and all below it, sampled in a thread."""

    def __init__(self) -> None:
        self.peak_bytes, self._cpu = 0, {}
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
            self._cpu[key] = (self._cpu.get(key, (spent, spent))[0], spent)
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
    """What a stage took."""

    seconds: float
    cpu_s: float
    peak_bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.cpu_s + other.cpu_s,
            max(self.peak_bytes, other.peak_bytes),
        )

    def row(self, count: int, library: float) -> str:
        rate = count / self.seconds
        return (
            f"{self.seconds:.1f} | {rate:,.0f} | {rate / library:.0%} "
            f"| {self.cpu_s / self.seconds:.2f} | {self.peak_bytes / _MIB:,.0f}"
        )


def measured(stage: Callable[..., T], *arguments: Any) -> tuple[T, Cost]:
    watch, started = Watch(), time.perf_counter()
    with watch.watching():
        made = stage(*arguments)
    return made, Cost(time.perf_counter() - started, watch.cpu_s, watch.peak_bytes)


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


def library_seconds(tokenizer: Tokenizer, texts: list[str], count: int) -> float:
    """What `count` texts take the tokenizers library's own batch call, on all cores, nothing else."""
    library = tokenizer.text.library
    own = list(itertools.islice(itertools.cycle(texts), count))
    started = time.perf_counter()
    for at in range(0, len(own), 4_096):
        library.encode_batch_fast(own[at : at + 4_096], add_special_tokens=False)
    return time.perf_counter() - started


def measure(count: int, texts: list[str], tokenizer: Tokenizer) -> float:
    """Print the rows of one size; returns the tokenising rate over the library's."""
    from raylab.jobs.cluster import connect
    from raylab.jobs.ingest import ingest
    from raylab.jobs.tokenise import tokenise

    share = max(int(_LIBRARY_SHARE * count), 200)
    before = library_seconds(tokenizer, texts, share)
    with tempfile.TemporaryDirectory() as name, connect(Execution()):
        own = open_collection(str(repeated(texts, count, Path(name, "own"))))
        store = Store(str(Path(name, "lab")))
        collection, first = measured(ingest, store, own)
        _, second = measured(tokenise, store, collection, tokenizer)
    assert collection.meta["passages"] == count
    library = 2 * share / (before + library_seconds(tokenizer, texts, share))
    print(f"| {count:,} | library | | {library:,.0f} | 100 % | | |")
    for stage, cost in (("ingest", first), ("tokenise", second), ("both", first + second)):
        print(f"| {count:,} | {stage} | {cost.row(count, library)} |", flush=True)
    return count / second.seconds / library


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
        "\n| passages | stage | s | passages/s | of the library | cores busy | peak MiB |"
        "\n|---|---|---|---|---|---|---|"
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
