"""What a finished grid of full size costs when its command is given again, and there is nothing to do.

A laboratory is simulated as the paper's grid would leave it: 18 cells (3 sizes x 2 heads x 3 objectives) and the
untrained models, on MS MARCO and BEIR's 13 sets, with embeddings and indexes of up to 256 parts a collection.
Manifests, measures and tables are real; other files are placeholders of the right sizes (sparse files, or objects
that the server only lists). Then `run_grid` is called in a process of its own.

    python benchmarks/finished_grid.py                        # on a folder
    python benchmarks/finished_grid.py --s3 --wait 0.03       # and on an S3 server that waits before each request
    python benchmarks/finished_grid.py --scale 0.01           # passages and queries; a hundredth
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from s3_server import BUCKET, serving

from raylab.data.ingest import collection_address, write_collection
from raylab.data.sources import open_collection
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO
from raylab.pipeline.grid import run_grid
from raylab.pipeline.real_plan import choose_teacher, grid_stages
from raylab.pipeline.stages import GridStages
from raylab.stages.encode import Embeddings, EncodeTask
from raylab.stages.profile import Profile
from raylab.stages.search import Evaluation, index_address
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

# Passages, and queries by split.
SIZES: dict[str, tuple[int, dict[str, int]]] = {
    "msmarco": (8_841_823, {"dev": 6_980, "dl19": 43, "dl20": 54}),
    "arguana": (8_674, {"test": 1_406}),
    "climate-fever": (5_416_593, {"test": 1_535}),
    "dbpedia-entity": (4_635_922, {"test": 400}),
    "fever": (5_416_568, {"test": 6_666}),
    "fiqa": (57_638, {"test": 648}),
    "hotpotqa": (5_233_329, {"test": 7_405}),
    "nfcorpus": (3_633, {"test": 323}),
    "nq": (2_681_468, {"test": 3_452}),
    "quora": (522_931, {"test": 10_000}),
    "scidocs": (25_657, {"test": 1_000}),
    "scifact": (5_183, {"test": 300}),
    "trec-covid": (171_332, {"test": 50}),
    "webis-touche2020": (382_545, {"test": 49}),
}
# Llama 3's, by the place of a size in the ladder: what a dense vector and a checkpoint take.
HIDDEN, CHECKPOINT_BYTES = (2_048, 3_072, 4_096), (2.5e9, 6.4e9, 16e9)
TERMS = 200  # a passage, sparse
LIMITS = {"seconds": 60.0, "fetched bytes": 100e6, "peak bytes": 2 * 2**30}


@dataclass(frozen=True)
class Placeholder:
    """A file of a size, or with a content."""

    path: str
    size: int
    content: bytes | None = None


def write_folders(home: Path) -> tuple[str, list[str], str]:
    """A few passages and queries of every collection: addresses of the one that trains, of the others, of scores."""
    addresses = {}
    for name, (_, splits) in SIZES.items():
        folder = home / name
        (folder / "qrels").mkdir(parents=True)
        every = [*splits, "train"] if name == "msmarco" else list(splits)
        passages = [{"_id": f"p{n}", "title": "", "text": f"{name} {n}"} for n in range(8)]
        queries = [
            {"_id": f"{split}{n}", "text": f"{name} {n}"} for split in every for n in range(4)
        ]
        for file, rows in (("corpus", passages), ("queries", queries)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{file}.jsonl").write_text(lines)
        for split in every:
            judged = "".join(f"{split}{n}\tp{n}\t1\n" for n in range(4))
            text = f"query-id\tcorpus-id\tscore\n{judged}"
            (folder / "qrels" / f"{split}.tsv").write_text(text)
        addresses[name] = str(folder)
    scores = home / "scores.parquet"
    pairs = [(f"train{q}", f"p{p}", 1.0) for q in range(4) for p in range(8)]
    columns = dict(
        zip(("query_id", "passage_id", "score"), map(list, zip(*pairs, strict=True)), strict=True)
    )
    pq.write_table(pa.table(columns), scores)
    return addresses.pop("msmarco"), list(addresses.values()), str(scores)


class Simulation:
    """The artifacts of a finished grid, as files.

    Args:
        store: a local one, which gets the ingested collections.
        tag: that every placeholder has.
    """

    def __init__(self, grid: Grid, store: Store, scale: float, tag: int | str):
        self.grid, self.store, self.scale, self.tag = grid, store, scale, tag
        self.execution = Execution(storage=store.uri)
        self.random = np.random.default_rng(0)
        source = open_collection(grid.collection)
        sources = [source, *map(open_collection, grid.evaluation)]
        collections = []
        for one in sources:
            with self.store.draft(collection_address(one)) as draft:
                facts = write_collection(draft.path, one)
                count = max(8, int(scale * SIZES[one.name][0]))
                draft.meta.update(facts, passages=count)
            collections.append(self.store.committed(collection_address(one)))
        teacher = choose_teacher(grid, source)
        self.stages: GridStages = grid_stages(
            grid, self.execution, self.store, collections, teacher
        )

    def files(self) -> Iterator[Placeholder]:
        """Every file of the storage but those of the ingested collections, which are there."""
        done = set()
        for stage in self.stages.all():
            if stage.address.path in done or stage.kind == "ingest":
                continue
            done.add(stage.address.path)
            yield from self._of(stage.kind, stage.address, stage.task)

    def _of(self, kind: str, address: Address, task: Any) -> Iterator[Placeholder]:
        if kind == "encode" and isinstance(task, Embeddings):
            yield from self._embeddings(task)
        elif kind == "encode":
            assert isinstance(task, EncodeTask)
            files = {"queries.npy": self._queries(task.source, task.part) * 4 * self._hidden(task)}
            yield from self._artifact(address, files, {"rows": 1})
        elif kind == "search":
            assert isinstance(task, Evaluation)
            queries = self._queries(task.collection, task.split)
            depth = task.protocol.run_depth
            meta = {"queries": queries, "search_seconds": 1.0, "index_bytes": 10**9}
            yield from self._artifact(address, {"run.trec.gz": queries * depth * 12}, meta)
        elif kind == "evaluate":
            assert isinstance(task, Evaluation)
            yield from self._artifact(address, {"measures.parquet": self._measures(task)}, {})
        elif kind == "profile":
            assert isinstance(task, Profile)
            noted = {
                "query_postings": 30.0,
                "passage_postings": float(TERMS),
                "retrieval_flops": 5.0,
            }
            meta = {"splits": dict.fromkeys(task.queries, noted)}
            yield from self._artifact(address, {"entropy.parquet": self._entropy(task)}, meta)
        else:
            size = {"fine-tune": 0, "adapt": 0}.get(kind, 3 * 10**9)
            if kind in ("fine-tune", "adapt"):
                backbone = task.backbone if kind == "fine-tune" else task[0]
                size = int(CHECKPOINT_BYTES[self._place(backbone.name)])
            yield from self._artifact(
                address, {"data": size}, _TRAINED if kind == "fine-tune" else {}
            )

    def _embeddings(self, embeddings: Embeddings) -> Iterator[Placeholder]:
        dense = embeddings.system.head.representation == "dense"
        kind = embeddings.system.head.representation
        paths = []
        for task in embeddings.parts(self.execution.shard_passages):
            assert task.rows is not None
            rows = len(task.rows)
            width = 2 * self._hidden(task) if dense else 6 * TERMS
            files = {"ids.npy": rows * 10, "values.npy": rows * width, "shape.json": 40}
            meta = {"rows": rows, "representation": kind}
            part = yield from self._artifact(task.address, files, meta)
            paths.append(task.address.path)
            files = {"ids.npy": rows * 10} if dense else {"postings.npy": rows * width}
            meta = {**meta, "shard": task.address.path}
            yield from self._artifact(index_address(part), files, meta)
        content = json.dumps(paths, indent=1).encode()
        meta = {"rows": embeddings.count, "size_bytes": 1}
        yield from self._artifact(embeddings.address, {"parts.json": content}, meta)

    def _artifact(
        self, address: Address, files: Mapping[str, int | bytes], meta: dict[str, Any]
    ) -> Generator[Placeholder, None, Artifact]:
        """The files of an artifact, its manifest last; returns the artifact."""
        noted = {}
        for name, content in files.items():
            size = content if isinstance(content, int) else len(content)
            path = f"{address.path}/attempt-1/{name}"
            yield Placeholder(path, size, content if isinstance(content, bytes) else None)
            digest = hashlib.sha256(content if isinstance(content, bytes) else b"").hexdigest()
            noted[name] = {"bytes": size, "sha256": digest, "tag": self.tag}
        manifest = {
            "stage": address.stage,
            "name": address.name,
            "fingerprint": address.fingerprint,
            "identity": address.identity,
            "inputs": dict(address.inputs),
            "files": noted,
            "attempt": "attempt-1",
            "started": 0.0,
            "seconds": 1.0,
            "raylab": "0",
            "meta": meta,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True).encode()
        yield Placeholder(f"{address.path}/manifest.json", len(text), text)
        return Artifact(address.path, manifest)

    def _place(self, size: str) -> int:
        names = [backbone.name for backbone in self.grid.ladder.select(self.grid.sizes)]
        return names.index(size)

    def _hidden(self, task: EncodeTask) -> int:
        return HIDDEN[self._place(task.system.backbone.name)]

    def _queries(self, collection: Artifact | Address, split: str) -> int:
        name = collection.meta["name"] if isinstance(collection, Artifact) else collection.name
        return max(4, int(self.scale * SIZES[name][1][split]))

    def _measures(self, task: Evaluation) -> bytes:
        queries = self._queries(task.collection, task.split)
        names = task.protocol.measures
        ids = [f"{task.split}{n}" for n in range(queries)]
        return _parquet(
            measure=np.repeat(names, queries).tolist(),
            query_id=ids * len(names),
            value=self._values(queries * len(names)),
        )

    def _entropy(self, task: Profile) -> bytes:
        counts = {split: self._queries(task.collection, split) for split in task.queries}
        return _parquet(
            split=[split for split, count in counts.items() for _ in range(count)],
            query_id=[f"{split}{n}" for split, count in counts.items() for n in range(count)],
            value=self._values(sum(counts.values())),
        )

    def _values(self, count: int) -> np.ndarray:
        """Ranks give few values: so many digits as an nDCG@10 has."""
        return self.random.choice(np.round(self.random.random(200), 6), count)


_TRAINED = {
    "tokens": 1e9, "examples": 1e6, "head_parameters": 0, "epochs": None, "charged_flops": 0.0,
    "spent_flops": 1e18, "steps": 7_000, "train_seconds": 1e4, "loss": 0.1, "parameters": 10**9,
    "history": [
        {"step": 70 * n, "spent_flops": 1e16 * n, "tokens": 1e6 * n, "loss": 1 / n, "learning_rate": 1e-4,
         "gradient_norm": 1.0}
        for n in range(1, 101)
    ],
}  # fmt: skip


def _parquet(**columns: Any) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue().to_pybytes()


TAG = 1_700_000_000_000_000_000  # modification time, ns


def write_files(files: Iterator[Placeholder], root: Path) -> int:
    """Onto a folder; returns how many."""
    count = 0
    for file in files:
        count += 1
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as stream:
            if file.content is not None:
                stream.write(file.content)
            else:
                stream.truncate(file.size)
        os.utime(path, ns=(TAG, TAG))
    return count


def write_objects(files: Iterator[Placeholder], lab: Path, prefix: str, out: Path) -> int:
    """Into a list for the server's `--fill`, with the other files of a finished laboratory; returns how many."""
    placed = set()
    with open(out, "w") as stream:
        for file in files:
            row: dict[str, Any] = {"key": f"{prefix}/{file.path}", "size": file.size, "tag": "same"}
            if file.content is not None:
                row["content"] = base64.b64encode(file.content).decode()
            stream.write(json.dumps(row) + "\n")
            placed.add(file.path)
        for path in (path for path in lab.rglob("*") if path.is_file()):
            name = str(path.relative_to(lab))
            if name not in placed:
                content = base64.b64encode(path.read_bytes()).decode()
                stream.write(json.dumps({"key": f"{prefix}/{name}", "content": content}) + "\n")
                placed.add(name)
    return len(placed)


def _run(grid: Grid, storage: str, end: Any) -> None:
    logging.basicConfig(level=logging.WARNING)
    started = time.perf_counter()
    outcome = run_grid(grid, Execution(storage=storage), display="off")
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    end.send({"seconds": seconds, "peak bytes": peak, "nothing": outcome.nothing_to_do})


def run(grid: Grid, storage: str) -> dict[str, float]:
    """The command in a process of its own: seconds (imports not counted) and peak memory.

    Raises:
        RuntimeError: it failed, or found something to do.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(grid, storage, there))
    process.start()
    there.close()
    try:
        told = here.recv()
    except EOFError:
        raise RuntimeError("the grid failed") from None
    process.join()
    if not told.pop("nothing"):
        raise RuntimeError("the grid found something to do")
    return told


def show(what: str, told: dict[str, float]) -> bool:
    """Print a run; whether it is within its limits."""
    parts = [f"{told['seconds']:.1f} s", f"peak {told['peak bytes'] / 2**20:,.0f} MiB"]
    if "fetched bytes" in told:
        parts.append(
            f"{told['requests']:,.0f} requests, {told['fetched bytes'] / 1e6:,.1f} MB fetched"
        )
    print(f"{what}: {', '.join(parts)}", flush=True)
    return all(told.get(name, 0.0) < limit for name, limit in LIMITS.items())


def _on_a_server(grid: Grid, objects: Path, wait_s: float, home: Path) -> bool:
    with serving(wait_s, 0.0, "--fill", str(objects)) as server:
        os.environ.update(server.environment)
        tempfile.tempdir = str(home)  # copies of artifacts
        server.asked()
        told = run(grid, f"s3://{BUCKET}/lab")
        asked = server.asked()
    told["fetched bytes"] = asked["bytes fetched"]
    told["requests"] = sum(asked[kind] for kind in ("GET", "HEAD", "LIST", "PUT", "DELETE"))
    return show(f"nothing to do, on a server, {1000 * wait_s:.0f} ms a request", told)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--s3", action="store_true", help="on an S3 server as well")
    parser.add_argument(
        "--wait", type=float, default=0.03, help="seconds before each of its requests"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of passages and queries")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["RAYLAB_CACHE"] = str(home / "user")
        collection, others, scores = write_folders(home / "data")
        grid = Grid(PICO, collection, evaluation=tuple(others), teacher=scores)
        store = Store(str(home / "lab"))
        simulation, started = Simulation(grid, store, options.scale, TAG), time.perf_counter()
        count = write_files(simulation.files(), Path(store.root))
        print(f"{count:,} files written in {time.perf_counter() - started:.0f} s", flush=True)
        show("tables and report made", run(grid, store.uri))
        kept = show("nothing to do, on a folder", run(grid, store.uri))
        if options.s3:
            objects = home / "objects.jsonl"
            again = Simulation(grid, store, options.scale, '"same"')
            write_objects(again.files(), Path(store.root), "lab", objects)
            kept &= _on_a_server(grid, objects, options.wait, home)
        if not kept:
            raise SystemExit(f"over a limit: {LIMITS}")


if __name__ == "__main__":
    main()
