"""Exact dense retrieval by inner product on a faiss ``IndexFlatIP``, with exact order.

faiss nominates, we decide. Its float32 matrix product rounds differently with the shape of its
blocks, and it leaves the order of ties open; so it only names candidates, some more than k. Their
scores are recomputed in float64 and rounded once to float32: a hit's score is a function of its two
vectors alone. A bound on the product's rounding error certifies that no passage outside the
candidates could belong to the top k; a query without that certificate (many near-equal scores at
the boundary) is searched again with more candidates.

faiss takes its matrix-product path only for larger batches: give queries by the hundred, one at a
time costs several times as much each. Threads are those of OpenMP (``OMP_NUM_THREADS``).

Shapes: Q queries, N passages, D dimensions, C candidates a query, k hits.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import faiss
import numpy as np
from numba import njit

from raylab.index.ids import decode_rows, locate_rows, sort_ids
from raylab.index.topk import check_k

_FORMAT = "raylab.dense.1"
_QUERY_BLOCK = 128
_PASSAGE_BLOCK = 8192
_MIN_MARGIN = 64
_CANDIDATES_TOGETHER = 2**22
_FLOAT32_ROUNDING = 2.0**-24
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class DenseIndex:
    """Passage vectors with their ids, searched exactly; make one with ``build`` or ``load``.

    ``ids``: bytes [N], ascending. ``faiss_index``: the ``IndexFlatIP`` that holds the vectors, row
    i being the passage ``ids[i]``. ``max_norm``: the length of the longest vector. An index is
    immutable; threads may search it at the same time.
    """

    def __init__(self, ids: np.ndarray, faiss_index: faiss.IndexFlatIP, max_norm: float):
        self.ids = ids
        self.faiss_index = faiss_index
        self.max_norm = max_norm
        self._vectors_ND = _view(faiss_index)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self.faiss_index.d

    @classmethod
    def build(cls, shards: Iterable[tuple[Sequence[str], np.ndarray]]) -> "DenseIndex":
        """Index (ids, matrix) shards: ids [n] str, matrix [n, D] of floats, kept as float32.

        The matrices may be memory-mapped: they are read in blocks. Needs 4 * N * D bytes. Raises
        ValueError for no passages, ids and rows that do not match, shards of different D, a NaN or
        infinite value, and ids that are duplicate, empty or not strings.
        """
        shards = [(ids, np.asanyarray(matrix)) for ids, matrix in shards]
        dimension = _check_shapes(shards)
        ids, order = sort_ids([shard_ids for shard_ids, _ in shards])
        faiss_index = faiss.IndexFlatIP(dimension)
        faiss_index.codes.resize(len(ids) * dimension * 4)
        faiss_index.ntotal = len(ids)
        vectors_ND = _view(faiss_index)
        sizes = [len(matrix) for _, matrix in shards]
        max_norm = 0.0
        for start in range(0, len(ids), _PASSAGE_BLOCK):
            block_ND = vectors_ND[start : start + _PASSAGE_BLOCK]
            block_rows = order[start : start + _PASSAGE_BLOCK]
            for shard, positions, rows in locate_rows(block_rows, sizes):
                block_ND[positions] = shards[shard][1][rows]
            wrong = ~np.isfinite(block_ND).all(axis=1)
            if wrong.any():
                passage_id = bytes(ids[start + int(wrong.argmax())]).decode()
                raise ValueError(
                    f"the vector of passage {passage_id!r} holds a NaN or infinite value in float32"
                )
            max_norm = max(max_norm, float(_norms(block_ND).max()))
        return cls(ids, faiss_index, max_norm)

    def save(self, directory: str | Path) -> None:
        """Write ``ids.npy``, ``vectors.faiss``, ``index.json`` into ``directory``, made if need be.

        Existing files are overwritten; committing the directory as a whole is the caller's
        business.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        np.save(directory / "ids.npy", self.ids)
        faiss.write_index(self.faiss_index, str(directory / "vectors.faiss"))
        description = {
            "format": _FORMAT,
            "passages": len(self),
            "dimension": self.dimension,
            "max_norm": self.max_norm,
        }
        (directory / "index.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "DenseIndex":
        """Open a saved index, memory-mapped; FileNotFoundError or ValueError for a wrong file."""
        directory = Path(directory)
        description = json.loads((directory / "index.json").read_text())
        if description.get("format") != _FORMAT:
            raise ValueError(
                f"{directory / 'index.json'}: format is {description.get('format')!r}; "
                f"a dense index has {_FORMAT!r}"
            )
        path = directory / "vectors.faiss"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing from the index")
        try:
            faiss_index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ValueError(f"{path}: not a whole faiss index: {error}") from error
        ids = np.load(directory / "ids.npy", mmap_mode="r")
        found = (len(ids), faiss_index.ntotal, faiss_index.d)
        expected = (description["passages"], description["passages"], description["dimension"])
        if found != expected or not isinstance(faiss_index, faiss.IndexFlatIP):
            raise ValueError(
                f"{directory}: holds (ids, vectors, dimension) {found} in a "
                f"{type(faiss_index).__name__}; index.json says {expected} in an IndexFlatIP"
            )
        return cls(np.asarray(ids), faiss_index, description["max_norm"])

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k passages of each query: (ids [Q, k] str, scores [Q, k] float32).

        ``queries_QD`` is float32 (converted if not). A score is the inner product, rounded once to
        float32; order and padding are those of the package. Raises ValueError for k < 1, another
        D than the index's, a NaN or infinite value, or scores that float32 cannot hold.
        """
        k = check_k(k)
        queries_QD = self._check_queries(queries_QD)
        depth = min(k, len(self))
        rows_Qk = np.full((len(queries_QD), k), -1, dtype=np.int64)
        scores_Qk = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
        margin = max(_MIN_MARGIN, depth // 8)
        rows_Qk[:, :depth], scores_Qk[:, :depth] = self._search(queries_QD, depth, margin)
        return decode_rows(self.ids, rows_Qk), scores_Qk

    def _search(
        self, queries_QD: np.ndarray, depth: int, margin: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores [Q, depth], from ``depth + margin`` candidates or, if unsure, more."""
        n_candidates = min(len(self), depth + margin)
        rows_Qk = np.empty((len(queries_QD), depth), dtype=np.int64)
        scores_Qk = np.empty((len(queries_QD), depth), dtype=np.float32)
        worst_Q = np.empty(len(queries_QD), dtype=np.float32)
        n_together = max(1, min(_QUERY_BLOCK, _CANDIDATES_TOGETHER // n_candidates))
        for start in range(0, len(queries_QD), n_together):
            products_QC, candidates_QC = self.faiss_index.search(
                queries_QD[start : start + n_together], n_candidates
            )
            worst_Q[start : start + n_together] = products_QC[:, -1]
            for q, rows_C in enumerate(np.sort(candidates_QC, axis=1), start):
                scores_C = _dots(self._vectors_ND, rows_C, queries_QD[q]).astype(np.float32)
                best = np.argsort(-scores_C, kind="stable")[:depth]
                rows_Qk[q], scores_Qk[q] = rows_C[best], scores_C[best]
        if n_candidates < len(self):
            reachable_Q = worst_Q.astype(np.float64) + self._error_bound(queries_QD)
            unsure = np.flatnonzero(reachable_Q >= scores_Qk[:, -1])
            if unsure.size:
                rows_Qk[unsure], scores_Qk[unsure] = self._search(
                    queries_QD[unsure], depth, 8 * margin
                )
        return rows_Qk, scores_Qk

    def _error_bound(self, queries_QD: np.ndarray) -> np.ndarray:
        """Bound on |float32 product - score| [Q], rounding of the score included.

        The classical n*u/(1 - n*u) * sum |q_i d_i| for any order of summation (Higham 2002, 3.1),
        with sum |q_i d_i| <= |q| |d|; a few more roundings and 1 % stand for what is left, and one
        smallest normal number a rounding for underflow.
        """
        n_roundings = self.dimension + 8
        relative = n_roundings * _FLOAT32_ROUNDING
        bound_Q = 1.01 * relative / (1 - relative) * _norms(queries_QD) * self.max_norm
        return bound_Q + n_roundings * float(np.finfo(np.float32).tiny)

    def _check_queries(self, queries_QD: np.ndarray) -> np.ndarray:
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        if queries_QD.ndim != 2 or queries_QD.shape[1] != self.dimension:
            raise ValueError(
                f"queries have shape {queries_QD.shape}; this index takes [Q, {self.dimension}]"
            )
        wrong = ~np.isfinite(queries_QD).all(axis=1)
        if wrong.any():
            raise ValueError(f"query {int(wrong.argmax())} holds a NaN or infinite value")
        longest = float(_norms(queries_QD).max(initial=0.0))
        if longest * self.max_norm > _FLOAT32_MAX:
            raise ValueError(
                f"scores may overflow float32: the longest query has norm {longest:.3g}, "
                f"the longest passage {self.max_norm:.3g}"
            )
        return queries_QD


def _check_shapes(shards: Sequence[tuple[Sequence[str], np.ndarray]]) -> int:
    """D of the shards; ValueError if they disagree or hold nothing."""
    for number, (ids, matrix) in enumerate(shards):
        if matrix.ndim != 2 or len(ids) != len(matrix):
            raise ValueError(
                f"shard {number}: {len(ids)} ids for a matrix of shape {matrix.shape}; "
                "one row an id is needed"
            )
        if matrix.shape[1] != shards[0][1].shape[1] or matrix.shape[1] == 0:
            raise ValueError(
                f"shard {number} has dimension {matrix.shape[1]}, "
                f"shard 0 has {shards[0][1].shape[1]}; all must have the same, above 0"
            )
    if not any(len(ids) for ids, _ in shards):
        raise ValueError("no passages to index")
    return shards[0][1].shape[1]


def _view(faiss_index: faiss.IndexFlatIP) -> np.ndarray:
    """The vectors of a flat index, float32 [N, D], without a copy."""
    n_passages, dimension = faiss_index.ntotal, faiss_index.d
    flat = faiss.rev_swig_ptr(faiss_index.get_xb(), n_passages * dimension)
    return flat.reshape(n_passages, dimension)


def _norms(vectors_ND: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors_ND.astype(np.float64), axis=1)


@njit(cache=True, nogil=True)
def _dots(vectors_ND, rows_C, query_D):
    """Inner products in float64 [C], summed in one fixed order: four interleaved running sums."""
    dots_C = np.empty(len(rows_C), dtype=np.float64)
    whole = len(query_D) - len(query_D) % 4
    for c in range(len(rows_C)):
        row = rows_C[c]
        s0 = s1 = s2 = s3 = 0.0
        for i in range(0, whole, 4):
            s0 += np.float64(vectors_ND[row, i]) * np.float64(query_D[i])
            s1 += np.float64(vectors_ND[row, i + 1]) * np.float64(query_D[i + 1])
            s2 += np.float64(vectors_ND[row, i + 2]) * np.float64(query_D[i + 2])
            s3 += np.float64(vectors_ND[row, i + 3]) * np.float64(query_D[i + 3])
        for i in range(whole, len(query_D)):
            s0 += np.float64(vectors_ND[row, i]) * np.float64(query_D[i])
        dots_C[c] = (s0 + s1) + (s2 + s3)
    return dots_C
