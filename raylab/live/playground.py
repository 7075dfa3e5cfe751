"""Searching with trained cells: models and indexes are loaded when somebody asks, two cells at most, on the CPU."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import numpy as np
import scipy.sparse as sp

from raylab.experiment.config import ConfigError, Encoding
from raylab.index.dense import DenseIndex
from raylab.index.embeddings import VECTORS, as_stored
from raylab.index.kernels.topk import merge_topk
from raylab.index.sparse import SparseIndex
from raylab.live.artifacts import NotThere, artifact_of
from raylab.live.queries import Queries
from raylab.live.systems import CollectionTexts, Represented, Systems, local, name_of, run_of
from raylab.live.terms import shared_terms, top_terms
from raylab.report.rows import TRAINED, Result
from raylab.storage.artifacts import DamagedArtifact
from raylab.storage.store import Store

MOST_PASSAGES = 50
MOST_CHARACTERS = 1_000
_MOST_LOADED = 2
_MOST_BYTES = 8 * 2**30  # of a checkpoint: beside a driver, a larger one would take its memory
_MOST_TERMS = 16


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A loaded cell on one collection."""

    retriever: Any
    encoding: Encoding
    stored: Represented
    indexes: list[DenseIndex | SparseIndex]
    texts: CollectionTexts


class Playground:
    """Searches one text after the other; called from one thread at a time.

    Args:
        models_dir: where the bases of adapters are looked for by their hub ids.
    """

    def __init__(self, store: Store, queries: Queries, models_dir: str | None = None):
        self.store, self.queries, self.models_dir = store, queries, models_dir
        self._loaded: OrderedDict[tuple[str | None, str], _Cell] = OrderedDict()

    def search(
        self, systems: Systems, name: str, collection: str, text: str, k: int
    ) -> dict[str, Any]:
        """The best passages of a cell for a text; where it cannot search, a `note` of one line says why."""
        side: dict[str, Any] = {"system": name, "passages": [], "terms": [], "note": ""}
        try:
            cell = self._cell(systems, name, collection)
            side |= _found(cell, text, min(k, MOST_PASSAGES))
        except NotThere as absent:
            side["note"] = str(absent)
        except (ConfigError, DamagedArtifact, ValueError, OSError, RuntimeError) as fault:
            side["note"] = f"{name}: it cannot be loaded: {' '.join(str(fault).split())[:300]}"
        return side

    def _cell(self, systems: Systems, name: str, collection: str) -> _Cell:
        rows = [row for row in systems.runs(name, collection) if row.kind == TRAINED]
        if not rows:
            raise NotThere(f"{name}: no trained cell that was measured on {collection}")
        key = rows[0].fingerprint, collection
        if key not in self._loaded:
            while len(self._loaded) >= _MOST_LOADED:
                self._loaded.popitem(last=False)
            self._loaded[key] = self._load(rows, name, collection)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _load(self, rows: list[Result], name: str, collection: str) -> _Cell:
        run = run_of(self.store, rows)
        stored = Represented(self.store, name, run)
        indexes: list[DenseIndex | SparseIndex] = []
        for index, part in stored.indexes():
            if (part / VECTORS).exists():
                indexes.append(DenseIndex.load(index, vectors=part / VECTORS))
            else:
                indexes.append(SparseIndex.load(index))
        artifact = artifact_of(self.store, "retriever", name_of(rows[0]), rows[0].fingerprint or "")
        if artifact.size_bytes > _MOST_BYTES:
            size = f"{artifact.size_bytes / 2**30:.1f} GiB"
            raise NotThere(f"{name}: its checkpoint ({size}) is too large to load beside a page")
        from transformers.utils.logging import disable_progress_bar

        from raylab.models.retriever import Retriever  # imports torch: only who searches waits

        disable_progress_bar()
        retriever = Retriever.load(local(self.store, artifact), self.models_dir, device="cpu")
        encoding = Encoding(**stored.settings)
        retriever.encoding = encoding
        return _Cell(retriever, encoding, stored, indexes, self.queries.texts(run, collection))


def _found(cell: _Cell, text: str, k: int) -> dict[str, Any]:
    names = cell.retriever.terms
    encoded = cell.retriever.encode_queries([text])
    query = as_stored(encoded, cell.encoding.precision, "query")
    searches: list[Any] = [index.search for index in cell.indexes]
    ids, scores = merge_topk([search(query, k) for search in searches], k)
    exists = ids[0] != ""
    passages = []
    for passage, score in zip(ids[0][exists], scores[0][exists], strict=True):
        hit = {
            "passage": str(passage),
            "score": float(score),
            "grade": None,
            "text": cell.texts.text(str(passage)),
            "terms": [],
            "expanded": [],
        }
        of_passage = cell.stored.passage(str(passage))
        if isinstance(query, sp.csr_matrix) and isinstance(of_passage, sp.csr_matrix):
            hit["terms"] = shared_terms(query, of_passage, names, _MOST_TERMS)
            hit["expanded"] = top_terms(of_passage, names, _MOST_TERMS)
        passages.append(hit)
    terms = [] if isinstance(query, np.ndarray) else top_terms(query, names, _MOST_TERMS)
    return {"passages": passages, "terms": terms}
