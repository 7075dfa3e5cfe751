"""One pass: passages are scored as they are encoded, and no embedding is ever stored.

hits artifact   of one system: hits of every query of every split; where a profile is wanted, the scores
                of its pairs and the counts of the passages' terms; in its manifest, how many bytes of
                embeddings were not stored

An actor encodes a shard as for storage, indexes it in memory, and searches it for all queries of all splits
by the index's own function; the running best are merged exactly. So the hits are those of stored
indexes, bit for bit. The rows are worked off in pieces, each an artifact of its own until all are there:
killed, the pass goes on from the finished ones.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylab.data.ingest import PASSAGES
from raylab.data.registry import protocol
from raylab.data.texts import passage_ids
from raylab.data.tokens import PassageStore
from raylab.evaluation.efficiency import TermCounts
from raylab.evaluation.entropy import Pairs
from raylab.experiment.execution import Execution
from raylab.index.embeddings import Matrix, as_stored
from raylab.index.kernels.topk import merge_topk
from raylab.index.kinds import index_class
from raylab.stages.encode import Embeddings, ShardEncoder, System
from raylab.stages.profile import (
    Profile,
    Queries,
    add_terms,
    commit_profile,
    pairs_of,
    read_queries,
    stack,
)
from raylab.stages.search import merged_hits, search_index, write_hits
from raylab.stages.shards import remove_shards
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.store import Store

HITS = "hits"
_PIECES = 64  # of a system at most: what is kept of each grows with the queries
_SEARCHED_BYTES = 128 * 2**20  # of representations in float32, indexed and searched at once
_PAIRS, _SCORES, _TERMS = "pairs.npy", "pair_scores.npy", "terms.npy"


@dataclass(frozen=True)
class Scan:
    """One system's pass over a collection.

    Args:
        embeddings: what would be stored of the passages.
        rows: of its parts, as they would be stored.
        queries: embeddings by split.
        profile: to be made of the same pass, or None.
    """

    embeddings: Embeddings
    collection: Artifact
    rows: tuple[range, ...]
    queries: Mapping[str, Artifact | Address]
    profile: Profile | None

    @property
    def system(self) -> System:
        return self.embeddings.system

    @property
    def depths(self) -> dict[str, int]:
        """Hits to keep a query, by split."""
        name = self.collection.meta["name"]
        return {split: protocol(name, split).search_depth for split in self.queries}

    @property
    def address(self) -> Address:
        inputs = {"embeddings": self.embeddings.address.fingerprint}
        inputs |= {f"queries-{split}": a.fingerprint for split, a in self.queries.items()}
        if self.profile is not None:
            inputs["profile"] = self.profile.address.fingerprint
        return Address(HITS, self.system.name, {"format": 3, "depths": self.depths}, inputs)

    def pieces(self) -> list[Piece]:
        """The work, some shards each."""
        size = -(-len(self.rows) // _PIECES)
        cut = [self.rows[start : start + size] for start in range(0, len(self.rows), size)]
        return [
            Piece(self.address.shard(n, {"rows": [rows[0].start, rows[-1].stop]}), self, rows)
            for n, rows in enumerate(cut)
        ]


@dataclass(frozen=True)
class Piece:
    """Some of a scan's shards, worked off by one actor."""

    address: Address
    scan: Scan
    rows: tuple[range, ...]

    @property
    def system(self) -> System:
        return self.scan.system


class Scanner:
    """Scans in this process."""

    def __init__(self, store: Store, execution: Execution, encoder: ShardEncoder | None = None):
        self.store, self.encoder = store, encoder or ShardEncoder(store, execution)
        self.device = "cuda" if execution.use_gpu else None
        self.ready_for: tuple[str, Queries, Pairs | None] | None = None

    def scan(self, piece: Piece) -> None:
        """Commit the hits, and scores of pairs, of one piece."""
        if self.store.find(piece.address) is not None:  # its actor died after it had committed
            return
        started = time.time()
        with self.store.draft(piece.address) as draft:
            queries, pairs = self._asked(piece.scan)
            running = _Running(queries, piece.scan.depths, pairs, self.device)
            for rows in piece.rows:
                self._shard(piece.scan, rows, running)
            running.write(draft.path)
            draft.meta.update(
                unstored_bytes=running.unstored_bytes,
                flops=running.flops or None,
                rows=sum(map(len, piece.rows)),
                seconds=time.time() - started,
            )

    def _shard(self, scan: Scan, rows: range, running: _Running) -> None:
        task = scan.embeddings.part(rows)
        ids, matrix, cost = self.encoder.encode(task)
        kept = as_stored(matrix, task.encoding.precision, task.address.name)
        running.add(ids, kept, rows.start)
        running.flops += cost.get("flops", 0.0)
        running.unstored_bytes += stored_bytes(ids, kept, task.encoding.precision)

    def _asked(self, scan: Scan) -> tuple[Queries, Pairs | None]:
        """The queries, and the pairs to score, which pieces of a scan share."""
        key = scan.address.path
        if self.ready_for is None or self.ready_for[0] != key:
            queries, pairs = read_queries(self.store, scan.queries), None
            if scan.profile is not None:
                ids = _passage_ids(self.encoder.local(scan.embeddings.source))
                pairs = pairs_of(self.store, scan.profile, queries, ids)
                pairs.check_rows(len(ids))
            self.ready_for = key, queries, pairs
        return self.ready_for[1:]


def _passage_ids(folder: Path) -> np.ndarray:
    """Of a passage store, or of a collection."""
    if (folder / PASSAGES / "ids.npy").exists():
        return PassageStore(folder / PASSAGES).ids
    return passage_ids(folder, PASSAGES)


class _Running:
    """The best hits so far, and the scores of the pairs that went by."""

    def __init__(
        self,
        queries: Queries,
        depths: Mapping[str, int],
        pairs: Pairs | None,
        device: str | None,
    ):
        self.queries, self.depths, self.pairs, self.device = queries, depths, pairs, device
        self.stacked = stack(queries) if pairs is not None else None
        self.best: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.scored: list[tuple[np.ndarray, np.ndarray]] = []
        self.terms: TermCounts | None = None
        self.unstored_bytes, self.flops = 0, 0.0
        self.waiting: list[tuple[Sequence[str], Matrix]] = []

    def add(self, ids: Sequence[str], matrix: Matrix, first: int) -> None:
        """A shard: float32 rows as storage would give them, the first of which is ``first``."""
        self.waiting.append((ids, matrix))
        if self.pairs is not None:
            self.scored.append(self.pairs.scores(self.stacked, matrix, first))
            self.terms = add_terms(self.terms, matrix)
        if sum(map(_bytes, self.waiting)) >= _SEARCHED_BYTES:
            self._search()

    def _search(self) -> None:
        """Search what waits: so much at once that merging costs little beside it."""
        index = index_class("dense" if isinstance(self.waiting[0][1], np.ndarray) else "sparse")
        shard: Any = index.build(self.waiting)  # type: ignore[arg-type]
        self.waiting = []
        for split, (_, queries) in self.queries.items():
            depth = self.depths[split]
            parts = [search_index(shard, queries, depth, self.device)]
            if split in self.best:
                parts.append(self.best[split])
            self.best[split] = merge_topk(parts, depth)

    def write(self, folder: Path) -> None:
        if self.waiting:
            self._search()
        for split, (query_ids, _) in self.queries.items():
            write_hits(folder, split, query_ids, *self.best[split])
        if self.pairs is not None:
            places, scores = (np.concatenate(arrays) for arrays in zip(*self.scored, strict=True))
            _write_pairs(folder, places, scores, self.terms)


def _bytes(shard: tuple[Sequence[str], Matrix]) -> int:
    matrix = shard[1]
    return 4 * matrix.size if isinstance(matrix, np.ndarray) else 8 * matrix.nnz


def _write_pairs(
    folder: Path, places: np.ndarray, scores: np.ndarray, terms: TermCounts | None
) -> None:
    np.save(folder / _PAIRS, places)
    np.save(folder / _SCORES, scores)
    if terms is not None:
        np.save(folder / _TERMS, np.append(terms.counts, terms.texts))


def _read_pairs(folder: Path) -> tuple[np.ndarray, np.ndarray, TermCounts | None]:
    places, scores = np.load(folder / _PAIRS), np.load(folder / _SCORES)
    if not (folder / _TERMS).exists():
        return places, scores, None
    terms = np.load(folder / _TERMS)
    return places, scores, TermCounts(terms[:-1], int(terms[-1]))


def stored_bytes(ids: Sequence[str], matrix: Matrix, precision: str) -> int:
    """What an embedding shard of them takes, less its `shape.json`: the arrays, each with its header."""
    header = len(_saved(np.zeros(0)))
    width = np.dtype(precision).itemsize
    longest = max((len(one.encode()) for one in ids), default=1)
    if isinstance(matrix, np.ndarray):
        return 2 * header + len(ids) * longest + matrix.size * width
    return 4 * header + len(ids) * longest + (len(ids) + 1) * 8 + matrix.nnz * (4 + width)


def _saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def join(store: Store, scan: Scan, pieces: Sequence[Piece]) -> Artifact:
    """Commit a scan's hits from those of its pieces, one of which is in memory at a time."""
    parts = store.all_committed(piece.address for piece in pieces)
    folders = [store.local(part) for part in parts]
    with store.draft(scan.address) as draft:
        for split, depth in scan.depths.items():
            write_hits(draft.path, split, *merged_hits(folders, split, depth))
        if scan.profile is not None:
            pairs = [_read_pairs(folder) for folder in folders]
            terms: TermCounts | None = None
            for _, _, counts in pairs:
                terms = counts if terms is None or counts is None else terms + counts
            places, scored = (
                np.concatenate(arrays) for arrays in list(zip(*pairs, strict=True))[:2]
            )
            _write_pairs(draft.path, places, scored, terms)
        metas = [part.meta for part in parts]
        draft.meta.update(
            unstored_bytes=sum(meta["unstored_bytes"] for meta in metas),
            flops=sum(meta["flops"] or 0 for meta in metas) or None,
            rows=sum(meta["rows"] for meta in metas),
            seconds=sum(meta["seconds"] for meta in metas),
        )
    remove_shards(store, parts)
    return store.committed(scan.address)


def make_scanned_profile(store: Store, scan: Scan, hits: Artifact) -> None:
    """Commit a system's profile from its scan."""
    assert scan.profile is not None
    folder = store.local(hits)
    places, scores, terms = _read_pairs(folder)
    queries = read_queries(store, scan.queries)
    ids = _passage_ids(store.local(store.committed(scan.embeddings.source)))
    pairs = pairs_of(store, scan.profile, queries, ids)
    scores_M = np.empty(len(pairs.rows_M))
    scores_M[places] = scores
    commit_profile(store, scan.profile, queries, pairs, scores_M, terms)
