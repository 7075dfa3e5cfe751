"""The systems that a results table measures, and where in the storage their runs, vectors and indexes stand.

    row of the results -> run -> query embeddings; passage embeddings -> parts -> indexes; collection; retriever

All of it is looked up by names and fingerprints in manifests, and nothing is changed.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp

from raylab.data.ingest import PASSAGES
from raylab.data.texts import Texts, passage_ids
from raylab.data.tokens import find_ids
from raylab.index.embeddings import read_ids, read_row
from raylab.live.artifacts import NotThere, artifact_at, artifact_of
from raylab.report.rows import TRAINED, Result
from raylab.storage.artifacts import Artifact, DamagedArtifact
from raylab.storage.store import Store

_MOST_TEXTS = 500
_NOT_STORED = "its representations are not stored (--no-index, or cleaned away)"


@dataclass(frozen=True, order=True)
class Place:
    """What a system is measured on."""

    collection: str
    split: str
    measure: str


class Systems:
    """Rows of the results by system and place; a system's name is that of its run, such as sparse-1b-cl-seed0."""

    def __init__(self, rows: Iterable[Result]):
        self.rows: dict[str, dict[Place, Result]] = {}
        for row in rows:
            place = Place(row.collection, row.split, row.measure)
            self.rows.setdefault(name_of(row), {})[place] = row

    def row(self, name: str, place: Place) -> Result:
        """
        Raises:
            NotThere: the system was not measured there.
        """
        try:
            return self.rows[name][place]
        except KeyError:
            raise NotThere(
                f"{name}: not measured on {place.collection} {place.split} {place.measure}"
            ) from None

    def runs(self, name: str, collection: str, split: str | None = None) -> list[Result]:
        """Rows of a system on a collection, one a run; of all splits where none is given."""
        own = self.rows.get(name, {}).items()
        chosen = [
            row
            for place, row in own
            if place.collection == collection and split in (None, place.split)
        ]
        return list({(row.split, row.run): row for row in chosen}.values())

    def listed(self) -> dict[str, Any]:
        """As a JSON object: names of systems, of trained cells, places, and collections."""
        places = sorted({place for own in self.rows.values() for place in own})
        trained = [
            name
            for name, own in self.rows.items()
            if any(row.kind == TRAINED for row in own.values())
        ]
        return {
            "systems": list(self.rows),
            "trained": trained,
            "places": [vars(place) for place in places],
            "collections": sorted({place.collection for place in places}),
        }


def name_of(row: Result) -> str:
    """Of a row's system, with its seed where it has one."""
    return row.system if row.seed is None else f"{row.system}-seed{row.seed}"


def run_of(store: Store, rows: Sequence[Result]) -> Artifact:
    """The run artifact of the first of some rows that has one.

    Raises:
        NotThere: none has.
    """
    for row in rows:
        if row.run is not None:
            try:
                return artifact_of(store, "run", f"{name_of(row)}-{row.split}", row.run)
            except NotThere:
                continue
    raise NotThere(f"{name_of(rows[0]) if rows else 'the system'}: its run is not stored")


def local(store: Store, artifact: Artifact) -> Path:
    """A folder with the artifact's files.

    Raises:
        NotThere: a file is missing or damaged.
    """
    try:
        return store.local(artifact)
    except DamagedArtifact as damage:
        raise NotThere(str(damage)) from None


def ranked(folder: Path, query_id: str, most: int) -> list[tuple[str, float]]:
    """The best (passage id, score) of a query in a run's folder; higher ids first among equals."""
    hits: list[tuple[float, str]] = []
    with gzip.open(folder / "run.trec.gz", "rt") as lines:
        for line in lines:
            parts = line.split()
            if len(parts) == 6 and parts[0] == query_id:
                hits.append((float(parts[4]), parts[2]))
            elif hits:
                break
    hits.sort(reverse=True)
    return [(passage_id, score) for score, passage_id in hits[:most]]


class CollectionTexts:
    """Texts of a collection by passage id, and its queries by split.

    ``text``: of a passage; some hundred are kept, since reading one reads those around it.
    """

    def __init__(self, store: Store, name: str, fingerprint: str):
        self.folder = local(store, artifact_of(store, "collection", name, fingerprint))
        self.ids = passage_ids(self.folder, PASSAGES)
        self.text = lru_cache(_MOST_TEXTS)(self._text)

    def _text(self, passage_id: str) -> str:
        """Empty for a passage that is not there."""
        rows, known = find_ids(self.ids, [passage_id])
        if not known[0]:
            return ""
        row = int(rows[0])
        return Texts.read(self.folder, PASSAGES, range(row, row + 1)).texts[0]

    def queries(self, split: str, query_ids: Sequence[str]) -> dict[str, str]:
        """Texts of some queries of a split."""
        chosen = [("split", "=", split), ("query_id", "in", list(query_ids))]
        table = pq.read_table(self.folder / "topics.parquet", filters=chosen)
        return {row["query_id"]: row["text"] for row in table.to_pylist()}

    def grades(self, split: str, query_id: str) -> dict[str, int]:
        """Judged passages of a query."""
        chosen = [("split", "=", split), ("query_id", "=", query_id)]
        table = pq.read_table(self.folder / "qrels.parquet", filters=chosen)
        return {row["passage_id"]: row["grade"] for row in table.to_pylist()}


class Represented:
    """A system's stored representations of a collection's passages, in parts.

    Raises:
        NotThere: they are not stored.
    """

    def __init__(self, store: Store, name: str, run: Artifact):
        self.store, self.name, self.run = store, name, run
        fingerprint = run.manifest["inputs"].get("passages")
        if "queries" not in run.manifest["inputs"] or not isinstance(fingerprint, str):
            raise NotThere(f"{name}: it has no representations")
        try:
            self.whole = artifact_of(store, "embeddings", name, fingerprint)
            paths = json.loads((local(store, self.whole) / "parts.json").read_text())
            self.parts = [artifact_at(store, path) for path in paths]
        except (NotThere, ValueError, OSError):
            raise NotThere(f"{name}: {_NOT_STORED}") from None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The encoding that they were made with."""
        return self.whole.manifest["identity"]["encoding"]

    def passage(self, passage_id: str) -> np.ndarray | sp.csr_matrix | None:
        """One row; None for a passage that is not there."""
        for part in self.parts:
            folder = local(self.store, part)
            ids = read_ids(folder)
            if len(ids) and ids[0] <= passage_id.encode() <= ids[-1]:
                rows, known = find_ids(ids, [passage_id])
                if known[0]:
                    return read_row(folder, int(rows[0]))
        return None

    def query(self, split: str, query_id: str) -> np.ndarray | sp.csr_matrix | None:
        """One row; None where it is not stored."""
        fingerprint = self.run.manifest["inputs"]["queries"]
        stored = artifact_of(self.store, "embeddings", f"{self.name}-{split}", fingerprint)
        folder = local(self.store, stored)
        places = np.flatnonzero(read_ids(folder) == query_id.encode())
        return read_row(folder, int(places[0])) if len(places) else None

    def indexes(self) -> list[tuple[Path, Path]]:
        """(folder of the index, folder of its part) of every part, in row order.

        Raises:
            NotThere: an index is not stored.
        """
        names = self.store.files.names("index")
        return [
            (local(self.store, self._index(part, names)), local(self.store, part))
            for part in self.parts
        ]

    def _index(self, part: Artifact, names: Sequence[str]) -> Artifact:
        prefix = f"{part.manifest['name']}-"
        for name in names:
            if name.startswith(prefix):
                try:
                    index = artifact_at(self.store, f"index/{name}")
                except NotThere:
                    continue
                if index.manifest["inputs"].get("shard") == part.fingerprint:
                    return index
        raise NotThere(f"{self.name}: its index is not stored (--no-index, or cleaned away)")
