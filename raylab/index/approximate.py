"""Approximate dense retrieval by faiss: HNSW and IVF-PQ, and Flat beside them, from the same shards.

What these return always comes with its recall: `MeasuredAnswer` carries the agreement with exact
search on a sample of the same queries. Flat is exact but for the rounding of float32 products.

Shapes: Q queries, N passages, D dimensions, k hits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from raylab.index.agreement import MeasuredAnswer, evenly_spread, measured_search
from raylab.index.dense import DenseIndex
from raylab.index.files import described, made_files, open_array
from raylab.index.kernels.exact import PASSAGE_BLOCK
from raylab.index.kernels.ids import decode_ranks, rank_ids
from raylab.index.kernels.topk import check_k
from raylab.index.shards import DenseShard, Source, opened_dense

_FORMAT = "raylab.faiss.2"
_faiss: Any = faiss  # its wrappers add what its stubs do not know
_FILES = ("ids.npy", "ranks.npy", "vectors.faiss", "index.json")
_CODE_CENTROIDS = 256
_TRAINING_POINTS = 64
KINDS = ("Flat", "HNSW", "IVFPQ")


@dataclass(frozen=True)
class FaissSettings:
    """What is built, and how hard it is searched.

    ``kind``: "Flat", "HNSW" or "IVFPQ". HNSW: ``links`` a node, breadth of the search while it is
    built and while it is searched (at least k then). IVFPQ: ``lists`` (0: 4 sqrt(N), at most N / 64),
    ``probes`` of them searched, ``code_bytes`` a passage, which must divide D.
    """

    kind: str = "HNSW"
    links: int = 32
    build_breadth: int = 200
    search_breadth: int = 128
    lists: int = 0
    probes: int = 32
    code_bytes: int = 64

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {KINDS}")
        for name, value in asdict(self).items():
            if name != "kind" and (value < 0 or (value == 0 and name != "lists")):
                raise ValueError(f"{name} is {value}; it must be at least 1")


class FaissIndex:
    """A faiss index of passage vectors with their ids; make one with ``build`` or ``load``.

    ``ids``: bytes [N], descending. ``ranks``: int32 [N]; vector i is the passage ``ids[ranks[i]]``.
    """

    def __init__(self, ids: np.ndarray, ranks: np.ndarray, index: Any, settings: FaissSettings):
        self.ids, self.ranks, self.index, self.settings = ids, ranks, index, settings

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size_bytes(self) -> int:
        """Bytes of the faiss index when written, without the ids."""
        return faiss.serialize_index(self.index).nbytes

    @classmethod
    def build(
        cls, shards: Iterable[Source], settings: FaissSettings = FaissSettings()
    ) -> FaissIndex:
        """Index (ids, matrix [n, D]) pairs, or folders of embedding shards, a block at a time.

        The faiss index itself is in memory. IVFPQ learns from passages evenly spread over the
        collection. With several OpenMP threads faiss builds another HNSW graph every time. Raises
        ValueError as ``DenseIndex.build``, and for settings that do not go with N or D.
        """
        with opened_dense(shards) as opened:
            ids, ranks = rank_ids([shard.ids for shard in opened])
            index = _untrained(settings, len(ids), opened[0].matrix.shape[1])
            if not index.is_trained:
                index.train(
                    _vectors(opened, evenly_spread(len(ids), _TRAINING_POINTS * _clusters(index)))
                )
            # Always the same blocks: a graph depends on what is added together.
            for start in range(0, len(ids), PASSAGE_BLOCK):
                rows = np.arange(start, min(start + PASSAGE_BLOCK, len(ids)))
                index.add(_vectors(opened, rows))
        return cls(ids, ranks, index, settings)

    def save(self, directory: str | Path) -> None:
        """Write ``vectors.faiss``, the ids and ``index.json`` into ``directory``."""
        directory = Path(directory)
        with made_files(directory, _FILES):
            np.save(directory / "ids.npy", self.ids)
            np.save(directory / "ranks.npy", self.ranks)
            faiss.write_index(self.index, str(directory / "vectors.faiss"))
            description = {"format": _FORMAT, "passages": len(self), **asdict(self.settings)}
            (directory / "index.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> FaissIndex:
        """Open a saved index; FileNotFoundError or ValueError for a wrong file."""
        directory = Path(directory)
        description = described(directory, _FORMAT, "a faiss index")
        path = directory / "vectors.faiss"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing from the index")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: not a whole faiss index: {error}") from error
        ids, ranks = open_array(directory / "ids.npy"), open_array(directory / "ranks.npy")
        passages = description.pop("passages")
        if not len(ids) == len(ranks) == index.ntotal == passages:
            raise ValueError(
                f"{directory}: {len(ids)} ids, {len(ranks)} ranks and {index.ntotal} vectors; "
                f"index.json says {passages}"
            )
        return cls(ids, ranks, index, FaissSettings(**description))

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """k passages of each query, perhaps not the best: (ids [Q, k] str, scores [Q, k] float32).

        Scores are faiss' own, of IVFPQ those of the compressed vectors. Order and padding are those
        of the package. Raises ValueError for k < 1, another D, and NaN or infinite values.
        """
        k = check_k(k)
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        if queries_QD.ndim != 2 or queries_QD.shape[1] != self.index.d:
            raise ValueError(
                f"queries have shape {queries_QD.shape}; this index takes [Q, {self.index.d}]"
            )
        if not np.isfinite(queries_QD).all():
            wrong = int((~np.isfinite(queries_QD).all(axis=1)).argmax())
            raise ValueError(f"query {wrong} holds a NaN or infinite value")
        depth = min(k, len(self))
        ranks_Qk = np.full((len(queries_QD), k), -1, dtype=np.int64)
        scores_Qk = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
        if len(queries_QD):
            scores, rows = self.index.search(queries_QD, depth, params=self._parameters(depth))
            ranks = np.where(rows < 0, np.int64(len(self)), self.ranks[rows])
            scores = np.where(rows < 0, np.float32(-np.inf), scores)
            order = np.lexsort((ranks, -scores), axis=1)
            ranks = np.take_along_axis(ranks, order, axis=1)
            ranks_Qk[:, :depth] = np.where(ranks == len(self), -1, ranks)
            scores_Qk[:, :depth] = np.take_along_axis(scores, order, axis=1)
        return decode_ranks(self.ids, ranks_Qk), scores_Qk

    def measured_search(
        self, exact: DenseIndex, queries_QD: np.ndarray, k: int, sample: int = 100
    ) -> MeasuredAnswer:
        """``search``, with its agreement with ``exact`` on queries evenly spread among these.

        ``sample``: at most so many queries are searched exactly. Raises ValueError as ``search``,
        for no queries, and for an exact index of other passages.
        """
        return measured_search(self, exact, np.asarray(queries_QD), k, sample)

    def _parameters(self, k: int) -> Any:
        if self.settings.kind == "HNSW":
            return _faiss.SearchParametersHNSW(efSearch=max(k, self.settings.search_breadth))
        if self.settings.kind == "IVFPQ":
            return _faiss.SearchParametersIVF(nprobe=min(self.settings.probes, self.index.nlist))
        return None


def _untrained(settings: FaissSettings, n_passages: int, dimension: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if settings.kind == "Flat":
        return faiss.IndexFlatIP(dimension)
    if settings.kind == "HNSW":
        index = faiss.IndexHNSWFlat(dimension, settings.links, metric)
        index.hnsw.efConstruction = settings.build_breadth
        return index
    if dimension % settings.code_bytes:
        raise ValueError(f"code_bytes is {settings.code_bytes}; it must divide D = {dimension}")
    if n_passages < _CODE_CENTROIDS:
        raise ValueError(f"IVFPQ learns from at least {_CODE_CENTROIDS} passages, not {n_passages}")
    lists = settings.lists or max(
        1, min(round(4 * n_passages**0.5), n_passages // _TRAINING_POINTS)
    )
    if lists > n_passages:
        raise ValueError(f"lists is {lists}; there are {n_passages} passages")
    # "np": no polysemous training, whose order of codes nothing here uses and which takes longest.
    index = _faiss.index_factory(dimension, f"IVF{lists},PQ{settings.code_bytes}x8np", metric)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # it warns, no more
    return index


def _clusters(index: Any) -> int:
    return max(index.nlist, _CODE_CENTROIDS)


def _vectors(shards: list[DenseShard], rows: np.ndarray) -> np.ndarray:
    """Vectors, float32, of ascending rows of the shards laid end to end."""
    taken, before = [], 0
    for shard in shards:
        after = before + len(shard.ids)
        wanted_rows = rows[np.searchsorted(rows, before) : np.searchsorted(rows, after)]
        if wanted_rows.size:
            taken.append(_finite(shard, wanted_rows - before))
        before = after
    return np.concatenate(taken)


def _finite(shard: DenseShard, rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        block = np.ascontiguousarray(shard.matrix[rows], dtype=np.float32)
    wrong = ~np.isfinite(block).all(axis=1)
    if wrong.any():
        place = rows[int(wrong.argmax())]
        raise ValueError(
            f"the vector of passage {bytes(shard.ids[place]).decode()!r} ({shard.name}) holds a "
            "NaN or infinite value in float32"
        )
    return block
