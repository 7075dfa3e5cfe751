"""Ingest and tokenise at size: throughput, peak memory, cores kept busy, the tokenizer's own rate beside it.

    python benchmarks/ingest.py [--passages 100000 1000000] [--collection FOLDER] [--tokenizer FOLDER]
    python benchmarks/ingest.py --smoke      # hundreds of passages: does it run

The texts of a collection are repeated under new ids, in an order that sorting has to undo. Memory is
the sum of the proportional set sizes of the driver and all of Ray's processes, so a page of the
object store counts once. "library" is `encode_batch_fast` of the tokenizers library with all cores, alone,
in the same run and over texts of the same collection.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "TOKENIZERS_PARALLELISM", "true"
)  # of the library's own rate; Ray sets its own

import psutil

from raylab.artifacts import Store
from raylab.config import Execution
from raylab.data.collections import read_passages
from raylab.data.sources import open_collection
from raylab.data.tokenizer import Tokenizer

PICO = Path(__file__).parents[1] / "raylab" / "assets" / "ladder" / "pico-2x128"
_LIBRARY_TEXTS = 40_000
_SAMPLE_S = 2.0
_MIB = 2**20


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


def library_rate(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Passages a second of the tokenizers library's own batch call, on all cores, nothing else."""
    library = tokenizer.text.library
    own = list(itertools.islice(itertools.cycle(texts), min(_LIBRARY_TEXTS, 20 * len(texts))))
    started = time.perf_counter()
    for at in range(0, len(own), 4_096):
        library.encode_batch_fast(own[at : at + 4_096], add_special_tokens=False)
    return len(own) / (time.perf_counter() - started)


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--passages", nargs="+", type=int, default=[100_000, 1_000_000])
    options.add_argument("--collection", default="scifact", help="whose texts are repeated")
    options.add_argument("--tokenizer", default=str(PICO), help="folder of a tokenizer")
    options.add_argument("--smoke", action="store_true", help="300 and 600 passages")
    chosen = options.parse_args(argv)
    sizes = [300, 600] if chosen.smoke else chosen.passages
    from raylab.jobs.cluster import connect
    from raylab.jobs.ingest import ingest
    from raylab.jobs.tokenise import tokenise

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
    for count in sizes:
        with tempfile.TemporaryDirectory() as name:
            own = open_collection(str(repeated(texts, count, Path(name, "own"))))
            store = Store(str(Path(name, "lab")))
            library = library_rate(tokenizer, texts)
            print(f"| {count:,} | library | | {library:,.0f} | 100 % | | |", flush=True)
            with connect(Execution()):
                collection: Any = None
                for stage in ("ingest", "tokenise"):
                    watch, started = Watch(), time.perf_counter()
                    with watch.watching():
                        if stage == "ingest":
                            collection = ingest(store, own)
                        else:
                            tokenise(store, collection, tokenizer)
                    seconds = time.perf_counter() - started
                    print(
                        f"| {count:,} | {stage} | {seconds:.1f} | {count / seconds:,.0f} "
                        f"| {count / seconds / library:.0%} | {watch.cpu_s / seconds:.2f} "
                        f"| {watch.peak_bytes / _MIB:,.0f} |",
                        flush=True,
                    )
            if collection.meta["passages"] != count:
                print(f"{collection.meta['passages']} passages, not {count}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
