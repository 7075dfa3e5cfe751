"""What an index is built from: (ids, matrix) pairs, or folders of embedding shards, as one view.

Folders are memory-mapped, and so are the pairs of a generator once they are spilled: whatever the
size of the collection, no more than one shard of it need be in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from raylab.index.embeddings import open_shard
from raylab.index.kernels.ids import encode_ids

Source: TypeAlias = Any
"""(ids [n] str, matrix [n, D] or scipy sparse [n, V]), or the folder of an embedding shard."""
VALUE_TYPES = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class DenseShard:
    """``ids`` bytes [n]; ``matrix`` floats [n, D], maybe memory-mapped."""

    name: str
    ids: np.ndarray
    matrix: np.ndarray


@dataclass(frozen=True)
class SparseShard:
    """``ids`` bytes [n]; the CSR arrays ``indptr`` [n + 1], ``terms`` and ``impacts`` [P]."""

    name: str
    ids: np.ndarray
    indptr: np.ndarray
    terms: np.ndarray
    impacts: np.ndarray
    vocabulary_size: int


@contextmanager
def opened_dense(
    sources: Iterable[Source], scratch: Path | None = None
) -> Iterator[list[DenseShard]]:
    """The shards of a dense index; pairs of a generator are spilled below `scratch`, if given.

    Raises ValueError for what is not a shard of vectors, for ids and rows that do not match, and
    for shards of different dimensions.
    """
    with _opened(sources, scratch, _dense) as shards:
        wide = [shard for shard in shards if len(shard.ids)]
        for shard in wide:
            if shard.matrix.shape[1] != wide[0].matrix.shape[1]:
                raise ValueError(
                    f"{shard.name} has dimension {shard.matrix.shape[1]}; "
                    f"{wide[0].name} has {wide[0].matrix.shape[1]}"
                )
        yield wide


@contextmanager
def opened_sparse(
    sources: Iterable[Source], scratch: Path | None = None
) -> Iterator[list[SparseShard]]:
    """The shards of a sparse index; pairs of a generator are spilled below `scratch`, if given.

    Raises ValueError as `opened_dense`, and for vocabularies of different sizes.
    """
    with _opened(sources, scratch, _sparse) as shards:
        widths = sorted({shard.vocabulary_size for shard in shards})
        if len(widths) > 1:
            raise ValueError(f"shards have vocabularies of different sizes: {widths}")
        yield shards


def value_type(wanted: str | None, types: Iterable[np.dtype], known: Iterable[str]) -> str:
    """`wanted`, or "float16" if every shard holds that, so that nothing is lost; else "float32"."""
    if wanted is None:
        return "float16" if {np.dtype(t) for t in types} == {np.dtype(np.float16)} else "float32"
    known = list(known)
    if wanted not in known:
        raise ValueError(f"dtype is {wanted!r}; an index keeps its values as one of {known}")
    return wanted


@contextmanager
def _opened(sources: Iterable[Source], scratch: Path | None, kind: Any) -> Iterator[list[Any]]:
    spill = scratch is not None and not isinstance(sources, Sequence)
    with tempfile.TemporaryDirectory(dir=scratch) if spill else _nowhere() as folder:
        shards = []
        for number, source in enumerate(sources):
            if isinstance(source, (str, Path)):
                shards.append(_read(Path(source), kind))
                continue
            if not isinstance(source, tuple) or len(source) != 2:
                raise ValueError(
                    f"shard {number} is a {type(source).__name__}; "
                    "it must be (ids, matrix), or the folder of an embedding shard"
                )
            shard = kind(f"shard {number}", *source)
            shards.append(_spilled(shard, Path(folder, str(number))) if folder else shard)
        yield shards


@contextmanager
def _nowhere() -> Iterator[None]:
    yield None


def _spilled(shard: Any, prefix: Path) -> Any:
    arrays = {}
    for name, value in vars(shard).items():
        if isinstance(value, np.ndarray):
            path = prefix.with_name(f"{prefix.name}-{name}.npy")
            np.save(path, value)
            arrays[name] = np.load(path, mmap_mode="r")
        else:
            arrays[name] = value
    return type(shard)(**arrays)


def _read(folder: Path, kind: Any) -> Any:
    return kind(str(folder), *open_shard(folder))


def _dense(name: str, ids: Sequence[str] | np.ndarray, matrix: Any) -> DenseShard:
    if sp.issparse(matrix) or isinstance(matrix, tuple):
        raise ValueError(f"{name}: sparse rows; vectors are numbers [n, D]")
    matrix = np.asanyarray(matrix)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise ValueError(
            f"{name}: a matrix of {matrix.dtype} with {matrix.ndim} dimensions; "
            "vectors are numbers [n, D]"
        )
    if len(ids) != len(matrix):
        raise ValueError(
            f"{name}: {len(ids)} ids for a matrix of shape {matrix.shape}; one row an id is needed"
        )
    if matrix.shape[1] == 0:
        raise ValueError(f"{name} has dimension 0; it must be above 0")
    return DenseShard(name, encode_ids(ids, name), matrix)


def _sparse(name: str, ids: Sequence[str] | np.ndarray, matrix: Any) -> SparseShard:
    if isinstance(matrix, tuple):  # of an embedding shard
        indptr, terms, impacts, n_terms = matrix
    else:
        rows = sparse_rows(name, matrix)
        indptr, terms, impacts = rows.indptr, rows.indices, rows.data
        n_terms = rows.shape[1]
    if len(ids) != len(indptr) - 1:
        raise ValueError(
            f"{name}: {len(ids)} ids for {len(indptr) - 1} rows; one row an id is needed"
        )
    return SparseShard(name, encode_ids(ids, name), indptr, terms, impacts, n_terms)


def sparse_rows(owner: str, matrix: Any) -> Any:
    """A scipy sparse matrix as float32 CSR, rows sorted by term, no term twice; `matrix` is left."""
    if not sp.issparse(matrix) or matrix.ndim != 2:
        raise ValueError(f"{owner}: a {type(matrix).__name__}; a 2-d scipy sparse matrix is needed")
    rows: Any = sp.csr_array(matrix, dtype=np.float32)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows
