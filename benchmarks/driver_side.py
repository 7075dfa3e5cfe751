"""What one process of a grid does beside Ray, at the size of the paper: seconds and peak memory of each step.

    python benchmarks/driver_side.py                 # all queries, 18 cells, 6 untrained systems, BM25
    python benchmarks/driver_side.py --smoke         # 1 query in 300: does it run

MS MARCO dev (6,980 queries), TREC DL 2019 and 2020 and the 13 sets of BEIR, each at the depth of its protocol,
with synthetic rankings and values. Each step is a process of its own, so that its peak is its own; what they
share lies in a storage, as a grid leaves it.

    groups      training groups of mined candidates with scores written (as `teach` does), then as arrays
    runs        of one system: hits of all splits -> run files -> read again -> measures (Ray tasks do this,
                one for each system and split)
    collect     artifacts' values -> results, values per query, ledger (`raylab.pipeline.collect`)
    again       the same once more: the driver that finds everything finished
    read        the tables read back (`read_current`)
    tests       sparse against dense, in families over collections
    laws        series, slopes, claims and differences of domains
    report      the whole report from the storage (`raylab report`), tests and laws included

Exits with 1 where all steps together take more than 15 minutes, or one more than 4 GiB (not with --smoke).
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.registry import protocol
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.ladders import PICO
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

QUERIES = {
    ("msmarco", "dev"): 6_980, ("msmarco", "dl19"): 43, ("msmarco", "dl20"): 54,
    ("arguana", "test"): 1_406, ("climate-fever", "test"): 1_535, ("dbpedia-entity", "test"): 400,
    ("fever", "test"): 6_666, ("fiqa", "test"): 648, ("hotpotqa", "test"): 7_405,
    ("nfcorpus", "test"): 323, ("nq", "test"): 3_452, ("quora", "test"): 10_000,
    ("scidocs", "test"): 1_000, ("scifact", "test"): 300, ("trec-covid", "test"): 50,
    ("webis-touche2020", "test"): 49,
}  # fmt: skip
TRAINED_ON = "msmarco"
GROUPS, NEGATIVES, PASSAGES = 500_000, 200, 8_841_823
MOST_S, MOST_BYTES = 15 * 60.0, 4 * 2**30
_EXECUTION = Execution()


# ------------------------------------------------------------------------------- what there is to measure


def queries_of(share: int) -> dict[tuple[str, str], list[str]]:
    """Query ids of each split, one in `share` of the full size and at least 8."""
    return {
        (collection, split): [f"{collection}-{n}" for n in range(max(8, count // share))]
        for (collection, split), count in QUERIES.items()
    }


@functools.cache
def systems() -> list[tuple[str, Any, Cell | None]]:
    """Name, system and cell: 18 cells, 6 untrained systems, and BM25, which is no system."""
    from raylab.experiment.heads import HEADS
    from raylab.stages.encode import System

    cells = Grid(PICO, TRAINED_ON).cells()
    trained = [
        (cell.name, System(cell.name, cell.head, cell.backbone, "w", Address("retriever", cell.name, {})), cell)
        for cell in cells
    ]  # fmt: skip
    backbones = dict.fromkeys(cell.backbone for cell in cells)
    untrained = [
        (name, System(name, head, backbone, "w", None), None)
        for backbone in backbones
        for head in HEADS.values()
        for name in [f"untrained-{head.name}-{backbone.name}"]
    ]
    return [*trained, *untrained, ("BM25", None, None)]


def values_of(system: str, collection: str, split: str, measure: str, count: int) -> np.ndarray:
    """Values of single queries, float64 [Q]: how hard a query is for all, and what a system adds."""
    hard = _rng(collection, split).normal(size=count)
    own = _rng(collection, split, system, measure).normal(size=count)
    logit = hard + 0.5 * own + 0.1 * ("sparse" in system)
    value = 1 / (1 + np.exp(-logit))
    return 5 * (1 - value) if measure.startswith("CE") else np.round(value, 4)


def _rng(*key: str) -> np.random.Generator:
    return np.random.default_rng(list("/".join(key).encode()))


def made(store: Store, address: Address, write: Callable[[Path], dict[str, Any]]) -> Artifact:
    """The artifact of what `write` puts into a folder; it returns the manifest's facts."""
    with store.draft(address) as draft:
        draft.meta.update(write(draft.path))
        (draft.path / "about.txt").write_text(address.name)  # an artifact has a file at least
    return store.committed(address)


# ----------------------------------------------------------------------------------------------- the steps


def groups(folder: Path, share: int) -> None:
    from raylab.data.supervision.groups import write_arrays, write_shards
    from raylab.data.supervision.teacher import Candidates, TrainingQuery, group_rows

    count = max(100, GROUPS // share)
    rng = np.random.default_rng(0)

    def batches() -> Iterator[list[dict[str, Any]]]:
        for number in range(count):
            drawn = rng.choice(PASSAGES, NEGATIVES + 1, replace=False)
            positive, *mined = map(str, drawn.tolist())
            query = TrainingQuery(f"{number:07d}", f"a query of some words {number}", (positive,))
            scores = rng.normal(size=NEGATIVES + 1).tolist()
            by_pair = {
                (query.query_id, passage): score
                for passage, score in zip([positive, *mined], scores, strict=True)
            }
            yield group_rows(query, Candidates(tuple(mined)), by_pair)

    out = folder / "groups"
    out.mkdir()
    write_shards(batches(), out)
    write_arrays(
        sorted(out.glob("*.parquet")), lambda ids: np.array(ids, np.int64), folder / "arrays"
    )


def runs(folder: Path, share: int) -> None:
    from raylab.evaluation.measures import evaluate
    from raylab.evaluation.runs import Run, read_run, write_run

    for (collection, split), query_ids in queries_of(share).items():
        rules, rng = protocol(collection, split), _rng(collection, split)
        shape = len(query_ids), rules.run_depth
        ids = np.sort(rng.integers(PASSAGES // rules.run_depth, size=shape), axis=1)
        ids = (ids + np.arange(shape[1]) * (PASSAGES // rules.run_depth)).astype(np.str_)
        scores = -np.sort(-rng.gamma(2.0, 5.0, size=shape).astype(np.float32), axis=1)
        qrels = {
            query_id: dict.fromkeys(row[rng.integers(shape[1], size=3)].tolist(), 1)
            for query_id, row in zip(query_ids, ids, strict=True)
        }
        path = folder / f"{collection}-{split}.trec.gz"
        write_run(Run.from_topk(query_ids, ids, scores), path)
        evaluate(read_run(path), qrels, list(rules.measures))


def measured(store: Store, share: int) -> Any:
    """What a grid ends with; its artifacts are made where they are not there."""
    from raylab.evaluation.entropy import MEASURE
    from raylab.pipeline.collect import Measured
    from raylab.stages.profile import ENTROPY

    evaluations, profiles, trained = {}, {}, {}
    for name, _, cell in systems():
        if cell is not None:
            trained[cell] = _find_or_make(store, Address("retriever", name, {}), _checkpoint(cell))
        for (collection, split), query_ids in queries_of(share).items():
            at = {"collection": collection, "split": split}
            run = _find_or_make(store, Address("run", f"{name}-{split}", at), _run(query_ids))
            write = functools.partial(_measures, name, collection, split, query_ids)
            table = Address("measures", f"{name}-{split}", at, {"run": run.fingerprint})
            evaluations[collection, name, split] = run, _find_or_make(store, table, write)
        for collection in dict.fromkeys(collection for collection, _ in QUERIES):
            if name != "BM25":
                write = functools.partial(_profile, name, collection, share, MEASURE, ENTROPY)
                place = Address("profile", name, {"collection": collection})
                profiles[collection, name] = _find_or_make(store, place, write)
    known = [(system, cell) for _, system, cell in systems() if system is not None]
    return Measured(TRAINED_ON, known, trained, evaluations, profiles, [])


def _find_or_make(
    store: Store, address: Address, write: Callable[[Path], dict[str, Any]]
) -> Artifact:
    found = store.find(address)
    return made(store, address, write) if found is None else found


def _checkpoint(cell: Cell) -> Callable[[Path], dict[str, Any]]:
    spent = {
        "tokens": 1e6,
        "examples": 1e4,
        "head_parameters": 0,
        "epochs": 1.0,
        "charged_flops": 0.0,
    }
    return lambda path: spent | {"spent_flops": 1e12, "steps": 100, "train_seconds": 10.0}


def _run(query_ids: list[str]) -> Callable[[Path], dict[str, Any]]:
    return lambda path: {"queries": len(query_ids), "search_seconds": 1.0, "index_bytes": 1_000}


def _measures(
    name: str, collection: str, split: str, query_ids: list[str], path: Path
) -> dict[str, Any]:
    parts = [
        pa.table(
            {
                "measure": [measure] * len(query_ids),
                "query_id": query_ids,
                "value": values_of(name, collection, split, measure, len(query_ids)),
            }
        )
        for measure in protocol(collection, split).measures
    ]
    pq.write_table(pa.concat_tables(parts), path / "measures.parquet")
    return {"without_relevant": {}}


def _profile(
    name: str, collection: str, share: int, measure: str, file: str, path: Path
) -> dict[str, Any]:
    splits = {
        split: ids for (where, split), ids in queries_of(share).items() if where == collection
    }
    parts = [
        pa.table(
            {
                "split": [split] * len(ids),
                "query_id": ids,
                "value": values_of(name, collection, split, measure, len(ids)),
            }
        )
        for split, ids in splits.items()
    ]
    pq.write_table(pa.concat_tables(parts), path / file)
    return {"splits": {split: {"retrieval_flops": 10.0} for split in splits}}


def collect(folder: Path, share: int) -> None:
    from raylab.pipeline import collect as pipeline

    store = Store(str(folder / "lab"))
    ended = measured(store, share)
    started = time.perf_counter()
    pipeline.collect(store, ended, _EXECUTION)
    print(f"seconds {time.perf_counter() - started}")


def read(folder: Path, share: int) -> None:
    _tables(folder)


def _tables(folder: Path) -> tuple[Any, Any]:
    from raylab.storage.merging import read_current
    from raylab.storage.tables import PER_QUERY, RESULTS

    store = Store(str(folder / "lab"))
    return read_current(store, RESULTS), read_current(store, PER_QUERY)


def tests(folder: Path, share: int) -> None:
    from raylab.report.heads import compare_heads
    from raylab.report.rows import read_rows

    results, per_query = _tables(folder)
    started = time.perf_counter()
    compare_heads(read_rows(results), per_query)
    print(f"seconds {time.perf_counter() - started}")


def laws(folder: Path, share: int) -> None:
    from raylab.report.laws import study
    from raylab.report.rows import read_rows

    results, per_query = _tables(folder)
    started = time.perf_counter()
    study(read_rows(results), results, per_query)
    print(f"seconds {time.perf_counter() - started}")


def report(folder: Path, share: int) -> None:
    from raylab.report import rebuild

    rebuild(str(folder / "lab"))


def make(folder: Path, share: int) -> None:
    measured(Store(str(folder / "lab")), share)


STEPS: dict[str, Callable[[Path, int], None]] = {
    "groups": groups, "runs": runs, "make": make,
    "collect": collect, "again": collect, "read": read, "tests": tests, "laws": laws, "report": report,
}  # fmt: skip
_NOT_COUNTED = ("make", "tests", "laws")  # a preparation, and what the report does again


# ------------------------------------------------------------------------------------------ how it is told


def run_step(name: str, folder: Path, share: int) -> tuple[float, float, int]:
    """Wall seconds and CPU seconds of a step in a process of its own, and its peak resident bytes."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.dup2(writer, 1)
        started = time.perf_counter()
        status = 1
        try:
            STEPS[name](folder, share)
            print(f"whole {time.perf_counter() - started}")
            sys.stdout.flush()
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as output:
        told = [line.split() for line in output]
    _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"step {name} ended with status {status}")
    seconds = {key: float(value) for key, value in told if key in ("seconds", "whole")}
    wall = seconds.get("seconds", seconds["whole"])
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    options.add_argument("--share", type=int, default=1, help="one query in so many")
    options.add_argument("--folder", type=Path, help="keep what is made here, and go on with it")
    options.add_argument("--smoke", action="store_true", help="one query in 300")
    chosen = options.parse_args(argv)
    share = 300 if chosen.smoke else chosen.share
    queries = sum(map(len, queries_of(share).values()))
    print(
        f"{len(systems())} systems, {len(QUERIES)} splits, {queries:,} queries; {os.cpu_count()} cores"
    )
    if chosen.smoke:
        print("--smoke: the figures say that it runs, and nothing about speed")
    print("\n| step | s | CPU s | peak MiB |\n|---|--:|--:|--:|")
    total, most = 0.0, 0
    with tempfile.TemporaryDirectory() as made_here:
        folder = chosen.folder or Path(made_here)
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen.steps:
            wall, cpu, peak = run_step(name, folder, share)
            print(f"| {name} | {wall:.1f} | {cpu:.1f} | {peak / 2**20:,.0f} |", flush=True)
            if name not in _NOT_COUNTED:
                total, most = total + wall, max(most, peak)
    print(f"| all but {', '.join(_NOT_COUNTED)} | {total:.1f} |  | {most / 2**20:,.0f} |")
    if not chosen.smoke and (total > MOST_S or most > MOST_BYTES):
        print(f"more than {MOST_S:.0f} s or {MOST_BYTES / 2**30:.0f} GiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
