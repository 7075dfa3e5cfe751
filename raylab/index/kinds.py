"""Which exact index searches which representations."""

from __future__ import annotations

from raylab.experiment.heads import Representation
from raylab.index.dense import DenseIndex
from raylab.index.sparse import SparseIndex

_INDEXES: dict[Representation, type[DenseIndex] | type[SparseIndex]] = {
    "dense": DenseIndex,
    "sparse": SparseIndex,
}


def index_class(representation: Representation) -> type[DenseIndex] | type[SparseIndex]:
    """The exact index of representations of this kind."""
    return _INDEXES[representation]
