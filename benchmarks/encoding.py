"""What the encoding actors cost beside a bare loop, and beside sentence-transformers, on the same texts.

    python benchmarks/encoding.py [--collection scifact] [--size pico-1x192] [--heads sparse,dense] [--rounds 3]
    python benchmarks/encoding.py --smoke     # a few hundred passages, one round: does it run

The model is a size of the embedded ladder with the weights that the package ships, under a head; the texts are
a collection's first passages, cut to 128 tokens. The bare loop encodes the same shards in this process and
keeps nothing; the actors do it through Ray (`raylab.stages.encode`), one of them, and write embedding shards;
both are fed from the passage store. sentence-transformers reads the same checkpoint folder and the texts
themselves, tokenised within its time, in batches of 32, as it is by default, and of 128. CPU seconds are those
of the process that encodes, storing included; seconds those that pass for whoever waits for all shards, Ray's
own included; each is the best of the rounds, in which the ways take turns. Exits with 1 when the actors are
below 97 % of the bare loop's speed in CPU time, or padded tokens above 1.02 a real one (not with --smoke).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from raylab.data.ingest import PASSAGES, collection_address, write_collection
from raylab.data.sources import open_collection
from raylab.data.texts import Texts
from raylab.data.tokens import PassageStore, write_store
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.execution import Execution
from raylab.experiment.heads import HEADS
from raylab.experiment.ladders import LADDERS
from raylab.index.embeddings import shards
from raylab.jobs.cluster import connect
from raylab.models.checkpoint import save_retriever
from raylab.models.hub import load_base, state_to_save
from raylab.models.opening import find_retriever
from raylab.models.retriever import length_batches, token_budget
from raylab.stages.encode import Embeddings, EncodeTask, ShardEncoder, System, commit_shard
from raylab.stages.tokenise import tokens_address
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store

LEAST_SHARE, MOST_PADDING = 0.97, 1.02
LENGTH = 128


@dataclass(frozen=True)
class Work:
    """What is encoded, in a storage of its own."""

    store: Store
    execution: Execution
    tokens: Artifact
    texts: list[str]
    rows: list[range]
    encoding: Encoding
    checkpoint: Path
    head: str

    def tasks(self, round_: int) -> list[EncodeTask]:
        """Under another name each round, so that nothing is found."""
        found = find_retriever(str(self.checkpoint))
        name, weights = f"round-{round_}", f"{found.fingerprint}-{round_}"
        backbone = Backbone(name, str(self.checkpoint))
        system = System(name, HEADS[self.head], backbone, weights, None, str(self.checkpoint))
        embeddings = Embeddings(system, self.encoding, self.tokens, self.rows[-1].stop)
        return [embeddings.part(rows) for rows in self.rows]

    @property
    def passages(self) -> PassageStore:
        return PassageStore(self.store.local(self.tokens) / PASSAGES)

    def token_counts(self) -> tuple[int, int]:
        """(real, padded) tokens of the batches."""
        store, real, padded = self.passages, 0, 0
        for own in self.rows:
            lengths = store.lengths(np.asarray(own), LENGTH)
            real += int(lengths.sum())
            for batch in length_batches(lengths.tolist(), token_budget("cpu")):
                padded += len(batch) * int(lengths[batch].max())
        return real, padded


def prepare(folder: Path, name: str, size: str, passages: int) -> dict[str, Work]:
    store = Store(str(folder / "lab"))
    source = open_collection(name)
    with store.draft(collection_address(source)) as draft:
        draft.meta.update(write_collection(draft.path, source))
    collection = store.committed(collection_address(source))
    first = range(min(passages, collection.meta["passages"]))
    read = Texts.read(store.local(collection), PASSAGES, first)
    ladder = LADDERS["pico"]
    backbone = next(one for one in ladder.backbones if one.name == size)
    encoding = Encoding(64, LENGTH)
    works: dict[str, Work] = {}
    for head in HEADS:
        model, tokenizer = load_base(backbone, None)
        state = state_to_save(model)
        checkpoint = folder / head
        about = {"name": head}
        save_retriever(checkpoint, model, state, tokenizer, backbone, HEADS[head], encoding, about)
        address = tokens_address(collection, tokenizer)
        if store.find(address) is None:
            with store.draft(address) as draft:
                own = read.ids, tokenizer.encode(read.texts), [0] * len(read.ids)
                count = write_store(draft.path / PASSAGES, [own], tokenizer.dtype)
                draft.meta[PASSAGES] = count
        execution = Execution(storage=store.uri)
        rows = shards(len(read.ids), execution.shard_passages)
        tokens = store.committed(address)
        works[head] = Work(store, execution, tokens, read.texts, rows, encoding, checkpoint, head)
    return works


class Took(NamedTuple):
    """Seconds of the encoding process's CPU, and seconds that passed."""

    cpu_s: float
    s: float


def bare(work: Work) -> Callable[[int], Took]:
    encoder = ShardEncoder(work.store, work.execution)

    def once(round_: int) -> Took:
        tasks = work.tasks(0)
        encoder.encode(tasks[-1])  # loads and warms
        cpu, began = time.process_time(), time.perf_counter()
        for task in tasks:
            encoder.encode(task)
        return Took(time.process_time() - cpu, time.perf_counter() - began)

    return once


@ray.remote(num_cpus=1)
class Timed:
    """What `raylab.jobs.work.WorkActor` does, with its process's CPU time told."""

    def __init__(self, store: Store, execution: Execution):
        torch.set_num_threads(1)
        self.store, self.encoder = store, ShardEncoder(store, execution)

    def encode(self, task: EncodeTask) -> float:
        began = time.process_time()
        commit_shard(self.store, self.encoder, task)
        return time.process_time() - began


def through_ray(work: Work) -> Callable[[int], Took]:
    actor: Any = Timed.remote(work.store, work.execution)

    def once(round_: int) -> Took:
        tasks = work.tasks(2 * round_)
        warm = work.tasks(2 * round_ + 1)
        ray.get(actor.encode.remote(warm[-1]))
        tasks = [
            EncodeTask(t.address, w.system, t.encoding, t.source, t.part, t.rows)
            for t, w in zip(tasks, warm, strict=True)
        ]
        began = time.perf_counter()
        cpu = sum(ray.get(actor.encode.remote(task)) for task in tasks)
        return Took(cpu, time.perf_counter() - began)

    return once


def sentence_transformers(work: Work, batch_size: int) -> Callable[[int], Took]:
    import sentence_transformers as library

    kind: Any = library.SparseEncoder if work.head == "sparse" else library.SentenceTransformer
    model = kind(str(work.checkpoint), device="cpu")
    options = {"batch_size": batch_size, "show_progress_bar": False}

    def once(round_: int) -> Took:
        model.encode_document(work.texts[:64], **options)
        cpu, began = time.process_time(), time.perf_counter()
        model.encode_document(work.texts, **options)
        return Took(time.process_time() - cpu, time.perf_counter() - began)

    return once


def measure(work: Work, rounds: int) -> dict[str, Took]:
    """The best of each way; they take turns."""
    ways = {"bare loop": bare(work), "actor through Ray": through_ray(work)}
    with contextlib.suppress(ImportError):
        for batch_size in (32, 128):
            name = f"sentence-transformers, batches of {batch_size}"
            ways[name] = sentence_transformers(work, batch_size)
    best = dict.fromkeys(ways, Took(float("inf"), float("inf")))
    for round_ in range(rounds):
        for name, once in ways.items():
            best[name] = Took(*map(min, best[name], once(round_)))
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collection", default="scifact", help="a name, or a folder")
    parser.add_argument("--size", default="pico-1x192")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--passages", type=int, default=5_183)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.size, args.passages, args.rounds = "pico-1x96", 200, 1
    torch.set_num_threads(1)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        works = prepare(Path(folder), args.collection, args.size, args.passages)
        with connect(next(iter(works.values())).execution):
            print(
                "| head | encoder | CPU s | s | passages/CPU s | tokens/CPU s "
                "| speed of the bare loop's | by the clock |"
            )
            print("|---|---|---|---|---|---|---|---|")
            real = padded = 1
            for head in HEADS:
                if head not in args.heads.split(","):
                    continue
                work = works[head]
                real, padded = work.token_counts()
                found = measure(work, args.rounds)
                loop = found["bare loop"]
                for name, took in found.items():
                    print(
                        f"| {head} | {name} | {took.cpu_s:.2f} | {took.s:.2f} "
                        f"| {len(work.texts) / took.cpu_s:,.0f} | {real / took.cpu_s:,.0f} "
                        f"| {loop.cpu_s / took.cpu_s:.1%} | {loop.s / took.s:.1%} |",
                        flush=True,
                    )
                good &= loop.cpu_s / found["actor through Ray"].cpu_s >= LEAST_SHARE
                good &= padded / real <= MOST_PADDING
            print(
                f"\n{args.size}, {len(work.texts):,} passages of {Path(args.collection).name} in {len(work.rows)} "
                f"shard(s), {real:,} tokens; padded / real {padded / real:.4f}"
            )
    return 0 if good or args.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
