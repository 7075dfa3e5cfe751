"""A shard of passages, or queries, into an embedding shard on disk.

ids.npy       bytes [N]
dense.npy     float16 or float32 [N, D]                                    (dense head)
indptr.npy int64 [N + 1], terms.npy u32, impacts.npy float16 or float32    (sparse head)
shape.json    {"rows", "columns"}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp

from raylab.experiment.config import Precision

Matrix: TypeAlias = np.ndarray | sp.csr_matrix
"""Representations of texts: [N, D] dense, or [N, V] sparse."""


VECTORS = "dense.npy"
"""Of a dense shard: float16 or float32 [N, D]."""


def write_shard(
    folder: Path, ids: Sequence[str], matrix: Matrix, precision: Precision = "float16"
) -> None:
    """Write an embedding shard.

    Raises:
        ValueError: a representation that is not finite, or does not fit `precision`.
    """
    values = _values(folder.name, matrix, precision)
    np.save(folder / "ids.npy", np.array([i.encode() for i in ids], dtype=np.bytes_))
    if isinstance(matrix, np.ndarray):
        np.save(folder / VECTORS, values)
    else:
        np.save(folder / "indptr.npy", matrix.indptr.astype(np.int64))
        np.save(folder / "terms.npy", matrix.indices.astype(np.uint32))
        np.save(folder / "impacts.npy", values)
    columns = matrix.shape[1]  # type: ignore[index]
    (folder / "shape.json").write_text(json.dumps({"rows": len(ids), "columns": columns}))


def as_stored(matrix: Matrix, precision: Precision, name: str = "representations") -> Matrix:
    """The matrix that a shard of `matrix` would be read as, float32.

    Raises:
        ValueError: as `write_shard`.
    """
    values = _values(name, matrix, precision).astype(np.float32)
    if isinstance(matrix, np.ndarray):
        return values
    return sp.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def _values(name: str, matrix: Matrix, precision: Precision) -> np.ndarray:
    values = matrix if isinstance(matrix, np.ndarray) else matrix.data
    with np.errstate(over="ignore"):
        cast = values.astype(precision)
    if not np.isfinite(cast).all():
        raise ValueError(f"{name}: representations hold values that are not finite in {precision}")
    return cast


def read_ids(folder: Path) -> np.ndarray:
    """Passage or query ids of an embedding shard, bytes [N], without its matrix."""
    return np.load(folder / "ids.npy")


def read_shard(folder: Path) -> tuple[list[str], Matrix]:
    """(ids, float32 matrix) of an embedding shard."""
    ids, matrix = open_shard(folder)
    ids = [i.decode() for i in ids]
    if isinstance(matrix, np.ndarray):
        return ids, matrix.astype(np.float32)
    indptr, terms, impacts, columns = matrix
    parts = impacts.astype(np.float32), terms.astype(np.int32), np.array(indptr)
    return ids, sp.csr_matrix(parts, shape=(len(ids), columns))


SparseArrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, int]
"""(indptr, terms, impacts, number of columns) of a sparse shard."""


def open_shard(folder: Path) -> tuple[np.ndarray, np.ndarray | SparseArrays]:
    """(ids as bytes, vectors [N, D] or the arrays of a sparse shard), memory-mapped as stored.

    Raises:
        FileNotFoundError, ValueError: not an embedding shard, or one whose files disagree.
    """
    shape = json.loads((folder / "shape.json").read_text())
    rows, columns = shape["rows"], shape["columns"]
    ids = np.load(folder / "ids.npy")
    if (folder / VECTORS).exists():
        matrix = _mapped(folder / VECTORS)
        actual, whole = (len(ids), *matrix.shape), (rows, rows, columns)
    else:
        arrays = [_mapped(folder / f"{name}.npy") for name in ("indptr", "terms", "impacts")]
        matrix = (arrays[0], arrays[1], arrays[2], columns)
        actual = (len(ids), len(arrays[0]), len(arrays[1]), len(arrays[2]))
        whole = (rows, rows + 1, int(arrays[0][-1]), int(arrays[0][-1]))
    if actual != whole:
        raise ValueError(f"{folder}: the arrays have sizes {actual}; shape.json asks for {whole}")
    return ids, matrix


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def read_row(folder: Path, row: int) -> Matrix:
    """One row [1, D] or [1, V] of an embedding shard, float32, without the others."""
    if (folder / VECTORS).exists():
        return np.load(folder / VECTORS, mmap_mode="r")[row : row + 1].astype(np.float32)
    start, stop = np.load(folder / "indptr.npy", mmap_mode="r")[row : row + 2].tolist()
    terms, impacts = (
        np.load(folder / f"{n}.npy", mmap_mode="r")[start:stop] for n in ("terms", "impacts")
    )
    columns = json.loads((folder / "shape.json").read_text())["columns"]
    parts = impacts.astype(np.float32), terms.astype(np.int32), [0, stop - start]
    return sp.csr_matrix(parts, shape=(1, columns))


MOST_SHARDS = 256
"""Of a collection: millions of small files and small postings cost more than what they hold."""


def shards(count: int, size: int) -> list[range]:
    """Contiguous row ranges of `size` passages, or of so many more that there are `MOST_SHARDS`; the last of fewer."""
    size = max(size, -(-count // MOST_SHARDS))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
