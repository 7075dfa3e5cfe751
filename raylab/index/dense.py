"""Exact dense retrieval by inner product: a blocked matrix product nominates, `exact` decides.

Vectors are kept as float16 or float32, row after row as they came, and are read in blocks: an index
larger than memory is mapped, and read once for each block of queries. Give queries by the hundred; a
single one is bound by how fast the vectors can be read. Threads of the matrix product are those of
numpy's BLAS (``OMP_NUM_THREADS``); ``search(..., threads=n)`` runs blocks of queries side by side.

Shapes: Q queries, N passages, D dimensions, k hits.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from raylab.index.files import made_files, open_array
from raylab.index.kernels.exact import (
    PASSAGE_BLOCK,
    Vectors,
    norms,
    rounded_to_bfloat16,
    search_block,
)
from raylab.index.kernels.ids import decode_ranks, rank_ids
from raylab.index.kernels.threads import run_blocks
from raylab.index.kernels.topk import check_k
from raylab.index.shards import VALUE_TYPES, DenseShard, Source, opened_dense, value_type

_FORMAT = "raylab.dense.3"
_QUERY_BLOCK = 1024
_FILES = ("ids.npy", "ranks.npy", "vectors.npy", "index.json")
_BESIDE_VECTORS = ("ids.npy", "ranks.npy", "index.json")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class DenseIndex:
    """Passage vectors with their ids, searched exactly; make one with ``build`` or ``load``.

    ``ids``: bytes [N], descending. ``ranks``: int32 [N]; row i of ``vectors`` (float16 or float32,
    [N, D]) is the passage ``ids[ranks[i]]``. ``max_norm``, ``max_residual``: as in ``Vectors``. An
    index is immutable; threads may search it at the same time.
    """

    def __init__(
        self,
        ids: np.ndarray,
        ranks: np.ndarray,
        vectors: np.ndarray,
        max_norm: float,
        max_residual: float,
    ):
        self.ids, self.ranks, self.vectors = ids, ranks, vectors
        self.max_norm, self.max_residual = max_norm, max_residual

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self.vectors.shape[1]

    @property
    def size_bytes(self) -> int:
        """Bytes of the vectors, without the ids."""
        return self.vectors.nbytes

    @classmethod
    def build(
        cls,
        shards: Iterable[Source],
        directory: str | Path | None = None,
        dtype: str | None = None,
    ) -> "DenseIndex":
        """Index (ids [n] str, matrix [n, D]) pairs, or folders of embedding shards.

        ``directory``: write the index there as it is built and return it memory-mapped; then no
        more than a shard, and the ids, are in memory. ``dtype``: "float16" or "float32"; by
        default float16 if every shard holds that, so that nothing is lost, and float32 if not.
        Raises ValueError for no passages, ids and rows that do not match, shards of different D, a
        NaN or infinite value, and ids that are duplicate, empty or not strings; nothing is left
        in ``directory`` then.
        """
        folder = None if directory is None else Path(directory)
        if folder is not None:
            with made_files(folder, _FILES), opened_dense(shards, folder) as opened:
                cls._build(opened, folder, dtype)._save_rest(folder)
            return cls.load(folder)
        with opened_dense(shards) as opened:
            return cls._build(opened, None, dtype)

    @classmethod
    def over(cls, shard: Path, directory: Path) -> "DenseIndex":
        """Index one embedding shard where it stands: everything but the vectors goes to ``directory``.

        Returns the index with the shard's own vectors, memory-mapped; `load` opens it again.
        Raises ValueError as `build`.
        """
        with made_files(directory, _BESIDE_VECTORS), opened_dense([shard]) as (opened,):
            matrix = np.asarray(opened.matrix)
            ids, ranks = rank_ids([opened.ids])
            max_norm = max_residual = 0.0
            for _, block_norm, residual in _blocks(opened, matrix.dtype):
                max_norm, max_residual = max(max_norm, block_norm), max(max_residual, residual)
            index = cls(ids, ranks, matrix, max_norm, max_residual)
            index._save_rest(directory)
        return index

    @classmethod
    def _build(
        cls, shards: list[DenseShard], folder: Path | None, dtype: str | None
    ) -> "DenseIndex":
        ids, ranks = rank_ids([shard.ids for shard in shards])
        kept = VALUE_TYPES[value_type(dtype, [s.matrix.dtype for s in shards], VALUE_TYPES)]
        shape = (len(ids), shards[0].matrix.shape[1])
        if folder is None:
            vectors = np.empty(shape, dtype=kept)
        else:
            vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", kept, shape)
        max_norm, max_residual, filled = 0.0, 0.0, 0
        for shard in shards:
            for block, block_norm, residual in _blocks(shard, kept):
                max_norm, max_residual = max(max_norm, block_norm), max(max_residual, residual)
                vectors[filled : filled + len(block)] = block
                filled += len(block)
        return cls(ids, ranks, vectors, max_norm, max_residual)

    def save(self, directory: str | Path) -> None:
        """Write the arrays as .npy files and ``index.json`` into ``directory``, made if need be.

        Existing files are overwritten; committing the directory as a whole is the caller's
        business.
        """
        directory = Path(directory)
        with made_files(directory, _FILES):
            np.save(directory / "vectors.npy", self.vectors)
            self._save_rest(directory)

    def _save_rest(self, directory: Path) -> None:
        np.save(directory / "ids.npy", self.ids)
        np.save(directory / "ranks.npy", self.ranks)
        description = {
            "format": _FORMAT,
            "passages": len(self),
            "dimension": self.dimension,
            "dtype": self.vectors.dtype.name,
            "max_norm": self.max_norm,
            "max_residual": self.max_residual,
        }
        (directory / "index.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | Path, vectors: Path | None = None) -> "DenseIndex":
        """Open a saved index, memory-mapped; FileNotFoundError or ValueError for a wrong file.

        ``vectors``: the file that holds them, of an index that `over` made; by default its own.
        """
        directory = Path(directory)
        description = json.loads((directory / "index.json").read_text())
        if description.get("format") != _FORMAT:
            raise ValueError(
                f"{directory / 'index.json'}: format is {description.get('format')!r}; "
                f"a dense index has {_FORMAT!r}"
            )
        files = (
            directory / "ids.npy",
            directory / "ranks.npy",
            vectors or directory / "vectors.npy",
        )
        ids, ranks, matrix = (np.asarray(open_array(file)) for file in files)
        n_passages, dimension = description["passages"], description["dimension"]
        actual = (len(ids), len(ranks), matrix.shape, matrix.dtype.name)
        expected = (n_passages, n_passages, (n_passages, dimension), description["dtype"])
        if actual != expected:
            raise ValueError(
                f"{directory}: holds (ids, ranks, shape of vectors, type) {actual}; "
                f"index.json says {expected}"
            )
        return cls(ids, ranks, matrix, description["max_norm"], description["max_residual"])

    def search(
        self, queries_QD: np.ndarray, k: int, *, threads: int = 1, device: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k passages of each query: (ids [Q, k] str, scores [Q, k] float32).

        ``queries_QD`` is float32 (converted if not). A score is the inner product, rounded once to
        float32; order and padding are those of the package. ``threads``: blocks of queries searched
        at a time. ``device``: a torch device, such as "cuda", for the matrix product. Neither they
        nor the batch of queries change an answer. Raises ValueError for k < 1, another D than the
        index's, a NaN or infinite value, or scores that float32 cannot hold.
        """
        k = check_k(k)
        queries_QD = self._check_queries(queries_QD)
        vectors = Vectors(self.vectors, self.ranks, self.max_norm, self.max_residual)
        depth = min(k, len(self))
        ranks_Qk = np.full((len(queries_QD), k), -1, dtype=np.int64)
        scores_Qk = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)

        def fill(block: slice) -> None:
            ranks_Qk[block, :depth], scores_Qk[block, :depth] = search_block(
                vectors, queries_QD[block], depth, device
            )

        run_blocks(fill, len(queries_QD), _QUERY_BLOCK, threads)
        return decode_ranks(self.ids, ranks_Qk), scores_Qk

    def _check_queries(self, queries_QD: np.ndarray) -> np.ndarray:
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        if queries_QD.ndim != 2 or queries_QD.shape[1] != self.dimension:
            raise ValueError(
                f"queries have shape {queries_QD.shape}; this index takes [Q, {self.dimension}]"
            )
        wrong = ~np.isfinite(queries_QD).all(axis=1)
        if wrong.any():
            raise ValueError(f"query {int(wrong.argmax())} holds a NaN or infinite value")
        longest = float(norms(queries_QD).max()) if len(queries_QD) else 0.0
        if longest * self.max_norm > _FLOAT32_MAX / 2:
            raise ValueError(
                f"scores may overflow float32: the longest query has norm {longest:.3g}, "
                f"the longest passage {self.max_norm:.3g}"
            )
        return queries_QD


def _blocks(
    shard: DenseShard, dtype: np.dtype | type[np.floating]
) -> Iterator[tuple[np.ndarray, float, float]]:
    """Blocks of a shard's vectors as they are kept, the largest norm in each, and what bfloat16 drops of it.

    Raises ValueError for a NaN or infinite value.
    """
    for start in range(0, len(shard.ids), PASSAGE_BLOCK):
        with np.errstate(over="ignore"):
            block = np.asarray(shard.matrix[start : start + PASSAGE_BLOCK]).astype(dtype)
        wrong = ~np.isfinite(block).all(axis=1)
        if wrong.any():
            passage_id = bytes(shard.ids[start + int(wrong.argmax())]).decode()
            raise ValueError(
                f"the vector of passage {passage_id!r} ({shard.name}) holds a NaN or "
                f"infinite value in {np.dtype(dtype).name}"
            )
        residual = block.astype(np.float64) - rounded_to_bfloat16(block)
        yield block, float(norms(block).max()), float(norms(residual).max())
