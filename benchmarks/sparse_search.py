"""Exact sparse search against the paper's algorithm and scipy, and its compact forms against it.

    python benchmarks/sparse_search.py [--smoke] [--documents 200000 500000 2000000] ...

Prints one table of one run and exits with 1 when the pass line is not met. Times are CPU time on
one thread, best of several interleaved rounds; indexes and lists are mapped from files. With
`--approximate` a second table holds Seismic with its recall, on the smallest collection.

Collections are synthetic: terms drawn with probability ~ rank^-SKEW, impacts log1p of an
exponential. SKEW 0.6 makes a document and a query share about half a term, as few as a strongly
regularised SPLADE model does; every term of documents alike (SKEW 0) no model comes near.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy
import scipy.sparse as sp
from numba import njit

from raylab.index.agreement import agreement
from raylab.index.postings import WINDOW
from raylab.index.seismic import SeismicIndex, SeismicSettings
from raylab.index.sparse import SparseIndex

# At least so many times as fast as the paper's algorithm, by number of documents.
LEAST_SPEEDUP = {500_000: 2.0, 2_000_000: 4.0}
LEAST_RECALL = {"float16": 0.998, "uint8": 0.99}
# Of Seismic when every list is read, none was cut and no cluster is skipped.
LEAST_SEISMIC_RECALL = 0.99
# Time may grow by so much more than the postings do, between two sizes.
MOST_GROWTH = 1.2
SHARD = 100_000
SCIPY_DOCUMENTS = 500_000
OURS, PAPER, SCIPY = "raylab float32", "paper's algorithm", "scipy product"

Answer = tuple[np.ndarray, np.ndarray]


@dataclass
class Row:
    """One engine on one collection."""

    documents: int
    engine: str
    postings: float = 0.0  # a query
    bytes_a_posting: float = float("nan")
    build_s: float = float("nan")  # a 100 M postings
    recall: float = float("nan")
    times_s: list[float] = field(default_factory=list)  # a query

    @property
    def best_s(self) -> float:
        return min(self.times_s)


def representations(rows: int, terms: int, args, seed: list[int]) -> Any:
    """CSR [rows, V] with about `terms` terms a row: a term that is drawn twice counts once."""
    rng = np.random.default_rng(seed)
    drawn = rng.random((rows, terms), dtype=np.float32)
    columns = np.minimum(
        (args.vocabulary * drawn ** (1 / (1 - args.skew))).astype(np.int32), args.vocabulary - 1
    )
    columns.sort(axis=1)
    impacts = np.log1p(rng.standard_exponential((rows, terms), dtype=np.float32)) + 0.01
    impacts[:, 1:][columns[:, 1:] == columns[:, :-1]] = 0.0
    matrix = sp.csr_array(
        (impacts.ravel(), columns.ravel(), np.arange(rows + 1, dtype=np.int64) * terms),
        shape=(rows, args.vocabulary),
    )
    matrix.eliminate_zeros()
    matrix.has_canonical_format = True
    return matrix


def shards(documents: int, args) -> Iterator[tuple[list[str], Any]]:
    for start in range(0, documents, SHARD):
        rows = min(SHARD, documents - start)
        ids = [f"{number:08d}" for number in range(start, start + rows)]
        yield ids, representations(rows, args.terms, args, [args.seed, start])


class Making:
    """Passes shards on, and takes the time that making them took."""

    elapsed_s = 0.0

    def __call__(self, made: Iterator[Any]) -> Iterator[Any]:
        began = time.process_time()
        for shard in made:
            self.elapsed_s += time.process_time() - began
            yield shard
            began = time.process_time()


# The paper's algorithm (its code is SPLADE's): one inverted list a term, scores of the whole
# collection in one array, a threshold, a partition, a sort. Lists are flat arrays here, which is
# kinder to it than the dictionary of arrays that it walks.


@njit(nogil=True)
def paper_scores(starts, rows, impacts, terms, weights, documents, threshold):
    scores = np.zeros(documents, dtype=np.float32)
    for i in range(len(terms)):
        for p in range(starts[terms[i]], starts[terms[i] + 1]):
            scores[rows[p]] += weights[i] * impacts[p]
    found = np.argwhere(scores > threshold)[:, 0]
    return found, -scores[found]


def paper_search(lists, queries, documents: int, k: int) -> Answer:
    rows_Qk = np.full((queries.shape[0], k), -1, dtype=np.int64)
    scores_Qk = np.full((queries.shape[0], k), -np.inf, dtype=np.float32)
    for q in range(queries.shape[0]):
        own = slice(queries.indptr[q], queries.indptr[q + 1])
        terms, weights = queries.indices[own], queries.data[own]
        rows, scores = paper_scores(*lists, terms, weights, documents, 0.0)  # pyright: ignore[reportCallIssue]
        if len(rows) > k:
            best = np.argpartition(scores, k)[:k]
            rows, scores = rows[best], scores[best]
        order = np.argsort(scores)
        rows_Qk[q, : len(order)], scores_Qk[q, : len(order)] = rows[order], -scores[order]
    return rows_Qk, scores_Qk


def scipy_search(columns, queries, k: int) -> Answer:
    rows_Qk = np.full((queries.shape[0], k), -1, dtype=np.int64)
    scores_Qk = np.full((queries.shape[0], k), -np.inf, dtype=np.float32)
    for q in range(queries.shape[0]):
        products = queries[[q]] @ columns
        rows, scores = products.indices, products.data
        if len(rows) > k:
            best = np.argpartition(-scores, k)[:k]
            rows, scores = rows[best], scores[best]
        order = np.argsort(-scores)
        rows_Qk[q, : len(order)], scores_Qk[q, : len(order)] = rows[order], scores[order]
    return rows_Qk, scores_Qk


@njit
def fill_lists(offsets, positions, impacts, window_rows, starts, rows, values):
    free = starts[:-1].copy()
    for window in range(offsets.shape[0]):
        for term in range(offsets.shape[1] - 1):
            for p in range(offsets[window, term], offsets[window, term + 1]):
                rows[free[term]] = window * window_rows + positions[p]
                values[free[term]] = impacts[p]
                free[term] += 1


def inverted_lists(index: SparseIndex, folder: Path):
    """(starts [V + 1], document numbers, impacts) of all documents, 8 bytes a posting."""
    counts = np.diff(index.offsets, axis=1).sum(axis=0)
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.int32, (index.n_postings,))
    values = np.lib.format.open_memmap(folder / "values.npy", "w+", np.float32, (index.n_postings,))
    arrays = np.asarray(rows), np.asarray(values)
    fill_lists(index.offsets, index.positions, index.impacts, WINDOW, starts, *arrays)
    return starts, *arrays


def rounds(row: Row, search: Callable[[], object], queries: int) -> None:
    began = time.process_time()
    search()
    row.times_s.append((time.process_time() - began) / queries)


def same(one: Answer, other: Answer) -> bool:
    """Equal scores, bit for bit, and equal documents; at the last score of a query, any of a tie."""
    (ours, our_scores), (theirs, their_scores) = one, other
    if not np.array_equal(our_scores, their_scores):
        return False
    for q in range(len(ours)):
        above = our_scores[q] > our_scores[q, -1]
        if set(ours[q, above].tolist()) != set(theirs[q, above].tolist()):
            return False
    return True


def measure(documents: int, args, folder: Path) -> tuple[list[Row], list[str]]:
    wrong: list[str] = []
    queries = representations(args.queries, args.query_terms, args, [args.seed, 2**31])

    def build(dtype: str) -> tuple[SparseIndex, Row]:
        began, making = time.process_time(), Making()
        index = SparseIndex.build(making(shards(documents, args)), folder / dtype, dtype)
        build_s = time.process_time() - began - making.elapsed_s
        row = Row(documents, f"raylab {dtype}", build_s=build_s / index.n_postings * 1e8)
        row.bytes_a_posting = (index.positions.nbytes + index.impacts.nbytes) / index.n_postings
        return index, row

    index, ours = build("float32")
    lengths = np.diff(index.offsets, axis=1).sum(axis=0)
    ours.postings = lengths[queries.indices].sum() / args.queries
    lists = inverted_lists(index, folder)
    paper = Row(documents, PAPER, ours.postings, bytes_a_posting=8)
    rows = [ours, paper]
    if args.approximate and documents == min(args.documents):
        told, missed = approximate(documents, args, index, queries)
        print(f"\n{told}\n")
        wrong += missed
    columns = None
    if documents <= SCIPY_DOCUMENTS:
        # Row v of the transposed matrix is term v's list.
        parts = lists[2], lists[1], lists[0]
        columns = sp.csr_array(parts, shape=(args.vocabulary, documents))
        rows.append(Row(documents, SCIPY, ours.postings, bytes_a_posting=8))
    index.search(queries[:1], args.depth)
    paper_search(lists, queries[:1], documents, args.depth)
    answer = index.search(queries, args.depth)
    numbers = np.where(answer[0] == "", "-1", answer[0]).astype(np.int64), answer[1]
    if not same(numbers, paper_search(lists, queries, documents, args.depth)):
        wrong.append(f"{documents} documents: the answers are not those of the {PAPER}")
    for _ in range(args.rounds):
        rounds(ours, lambda: index.search(queries, args.depth), args.queries)
        rounds(paper, lambda: paper_search(lists, queries, documents, args.depth), args.queries)
        if columns is not None:
            few = queries[: max(1, args.queries // 8)]
            rounds(rows[2], lambda: scipy_search(columns, few, args.depth), few.shape[0])  # noqa: B023
    for dtype in args.forms:
        compact, row = build(dtype)
        row.postings = ours.postings
        compact.search(queries[:1], args.depth)
        for _ in range(args.rounds):
            rounds(row, lambda: compact.search(queries, args.depth), args.queries)  # noqa: B023
            rounds(ours, lambda: index.search(queries, args.depth), args.queries)
        row.recall = agreement(answer, compact.search(queries, args.depth), args.depth).recall
        rows.append(row)
    return rows, wrong


def approximate(documents: int, args, exact: SparseIndex, queries) -> tuple[str, list[str]]:
    """The table of Seismic at three efforts and two depths, and what of its line is not met."""
    began, making = time.process_time(), Making()
    index = SeismicIndex.build(making(shards(documents, args)))
    build_s = time.process_time() - began - making.elapsed_s
    lines = [
        f"Seismic, {documents:,} documents, built in {build_s:.1f} CPU s:\n",
        "| depth | engine | query_cut | heap_factor | ms a query | time / ours | recall of exact |",
        "|---|---|---|---|---|---|---|",
    ]
    missed = []
    usual, every = SeismicSettings(), args.query_terms
    for depth in sorted({10, args.depth}):
        ours = Row(documents, OURS)
        efforts = [usual, replace(usual, query_cut=every)]
        efforts.append(replace(usual, query_cut=every, heap_factor=0.0))
        measured = [Row(documents, "seismic") for _ in efforts]
        exact.search(queries[:1], depth)
        for _ in range(args.rounds):
            rounds(ours, lambda: exact.search(queries, depth), args.queries)  # noqa: B023
            for row, settings in zip(measured, efforts, strict=True):
                index.settings = settings
                rounds(row, lambda: index.search(queries, depth), args.queries)  # noqa: B023
        lines.append(f"| {depth} | {OURS} | | | {ours.best_s * 1e3:.2f} | 1.00 | |")
        for row, settings in zip(measured, efforts, strict=True):
            index.settings = settings
            answer = index.measured_search(exact, queries, depth, sample=args.queries)
            row.recall = answer.agreement.recall
            lines.append(
                f"| {depth} | seismic | {settings.query_cut} | {settings.heap_factor} "
                f"| {row.best_s * 1e3:.2f} | {row.best_s / ours.best_s:.2f} | {row.recall:.4f} |"
            )
        # The last effort reads everything, where no list was longer than what is kept of it.
        if documents <= usual.n_postings and measured[-1].recall < LEAST_SEISMIC_RECALL:
            missed.append(
                f"seismic, {documents}, depth {depth}: recall {measured[-1].recall:.4f} with all "
                f"lists read, to be at least {LEAST_SEISMIC_RECALL}"
            )
    return "\n".join(lines), missed


def table(rows: list[Row]) -> str:
    lines = [
        "| documents | engine | postings a query | ms a query | time / ours | bytes a posting "
        "| build s a 100 M | recall of exact |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = next(r for r in rows if r.documents == row.documents and r.engine == OURS)
        build = f"{row.build_s:.1f}" if row.build_s == row.build_s else ""
        recall = f"{row.recall:.4f}" if row.recall == row.recall else ""
        lines.append(
            f"| {row.documents:,} | {row.engine} | {row.postings:,.0f} | {row.best_s * 1e3:.2f} "
            f"| {row.best_s / ours.best_s:.2f} | {row.bytes_a_posting:.0f} | {build} | {recall} |"
        )
    return "\n".join(lines)


def failures(rows: list[Row], timings: bool) -> list[str]:
    """What of the pass line is not met."""
    found = []
    ours = [row for row in rows if row.engine == OURS]
    for row in rows:
        least = LEAST_RECALL.get(row.engine.removeprefix("raylab "))
        if least is not None and row.recall < least:
            found.append(f"{row.engine}, {row.documents}: recall {row.recall:.4f}, not {least}")
        if timings and row.engine == PAPER and row.documents in LEAST_SPEEDUP:
            mine = next(r for r in ours if r.documents == row.documents)
            speedup, wanted = row.best_s / mine.best_s, LEAST_SPEEDUP[row.documents]
            if speedup < wanted:
                found.append(f"{row.documents}: {speedup:.2f} x {PAPER}, to be at least {wanted}")
    for small, large in itertools.pairwise(ours):
        growth = large.best_s / small.best_s / (large.postings / small.postings)
        if timings and growth > MOST_GROWTH:
            found.append(
                f"from {small.documents} to {large.documents} documents, time grew {growth:.2f} "
                f"times as much as the postings, to be at most {MOST_GROWTH}"
            )
    return found


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[200_000, 500_000, 2_000_000])
    parser.add_argument("--terms", type=int, default=200, help="of a document")
    parser.add_argument("--query-terms", type=int, default=44)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--skew", type=float, default=0.6)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", nargs="*", default=["float16", "uint8"])
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="Seismic too, on the smallest collection: its build is slow",
    )
    parser.add_argument("--folder", help="where the indexes are put while they are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="small; answers, not timings")
    args = parser.parse_args(argv)
    if args.smoke:
        args.documents, args.queries, args.rounds = [3000, 70_000], 16, 1
        args.terms, args.depth, args.vocabulary = 40, 100, 70_000
        args.approximate = importlib.util.find_spec("seismic") is not None
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    numba.set_num_threads(1)
    print(
        f"{args.terms} terms a document, {args.query_terms} a query, V={args.vocabulary}, skew "
        f"{args.skew}, {args.queries} queries, depth {args.depth}, {platform.machine()}, numba "
        f"{numba.__version__}, scipy {scipy.__version__}\n"
    )
    rows: list[Row] = []
    missed: list[str] = []
    for documents in args.documents:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            own, wrong = measure(documents, args, Path(folder))
        rows += own
        missed += wrong
    missed += failures(rows, timings=not args.smoke)
    print(table(rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\nPeak resident memory, mapped files included: {peak / 2**30:.1f} GiB")
    checked = "answers and recall" if args.smoke else "answers, recall, time and its growth"
    print(
        "\n" + "\n".join(f"NOT MET {line}" for line in missed) if missed else f"\npass: {checked}"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
