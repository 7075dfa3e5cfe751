"""Two systems query by query: which queries moved, and what each ranked for one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp

from raylab.experiment.config import ConfigError
from raylab.live.artifacts import NotThere, artifact_of
from raylab.live.systems import (
    CollectionTexts,
    Place,
    Represented,
    Systems,
    local,
    name_of,
    ranked,
    run_of,
)
from raylab.live.terms import Names, numbered, shared_terms
from raylab.report.rows import TRAINED, Result
from raylab.storage.artifacts import Artifact, DamagedArtifact
from raylab.storage.store import Store
from raylab.storage.tables import PER_QUERY

_MOST_MOVED = 100
_MOST_DRAWN = 1_000
_MOST_RANKED = 10
_MOST_TERMS = 12
_SAME = 1e-9


class Queries:
    """Answers about queries; texts of the last collection and names of the last vocabulary are kept."""

    def __init__(self, store: Store):
        self.store = store
        self._texts: tuple[str, CollectionTexts] | None = None
        self._names: tuple[str, Names] | None = None

    def texts(self, run: Artifact, collection: str) -> CollectionTexts:
        """Of the collection that a run is of.

        Raises:
            NotThere: it is not stored.
        """
        fingerprint = run.manifest["inputs"]["collection"]
        if self._texts is None or self._texts[0] != fingerprint:
            self._texts = fingerprint, CollectionTexts(self.store, collection, fingerprint)
        return self._texts[1]

    def compare(self, systems: Systems, a: str, b: str, place: Place) -> dict[str, Any]:
        """Values of two systems for every query that both have, the largest differences first.

        Raises:
            NotThere: a system was not measured there, or its values are not stored.
        """
        rows = systems.row(a, place), systems.row(b, place)
        of_a, of_b = self._values(rows[0]), self._values(rows[1])
        both = sorted(of_a.keys() & of_b.keys())
        if not both:
            raise NotThere("there is no query that both were measured on")
        change = np.array([of_b[query] - of_a[query] for query in both])
        order = np.argsort(-np.abs(change), kind="stable")[:_MOST_MOVED]
        moved = [both[i] for i in order if abs(change[i]) > _SAME]
        texts, note = self._query_texts(systems, (a, b), place, moved)
        ascending = np.sort(change)
        picked = np.unique(np.linspace(0, len(both) - 1, min(len(both), _MOST_DRAWN)).round())
        return {
            "queries": len(both),
            "better": int((change > _SAME).sum()),
            "worse": int((change < -_SAME).sum()),
            "mean_a": float(np.mean([of_a[query] for query in both])),
            "mean_b": float(np.mean([of_b[query] for query in both])),
            "moved": [
                {"query": query, "text": texts.get(query, ""), "a": of_a[query], "b": of_b[query]}
                for query in moved
            ],
            "changes": [{"place": int(i) + 1, "change": float(ascending[int(i)])} for i in picked],
            "note": note,
        }

    def _values(self, row: Result) -> dict[str, float]:
        chosen = [
            ("fingerprint", "=", row.run),
            ("measure", "=", row.measure),
            ("split", "=", row.split),
            ("collection", "=", row.collection),
            ("system", "=", row.system),
        ]
        try:
            table = pq.read_table(
                self.store.files.full(PER_QUERY),
                filesystem=self.store.fs,
                filters=[one for one in chosen if one[2] is not None],
                columns=["query_id", "value", "seed"],
            )
        except FileNotFoundError:
            raise NotThere("values per query are not stored") from None
        names = ("query_id", "value", "seed")
        columns = (table[name].to_pylist() for name in names)
        return {
            query: float(value)
            for query, value, seed in zip(*columns, strict=True)
            if seed is None or seed == row.seed
        }

    def _query_texts(
        self, systems: Systems, names: tuple[str, str], place: Place, query_ids: list[str]
    ) -> tuple[dict[str, str], str]:
        for name in names:
            try:
                run = run_of(self.store, systems.runs(name, place.collection, place.split))
                return self.texts(run, place.collection).queries(place.split, query_ids), ""
            except NotThere as absent:
                note = f"Texts of queries are not known: {absent}"
        return {}, note

    def query(self, systems: Systems, a: str, b: str, place: Place, query: str) -> dict[str, Any]:
        """A query's text, and what each of the systems ranked, with matched terms of sparse ones.

        What is not stored is said in a `note`.
        """
        answer: dict[str, Any] = {"query": query, "text": "", "sides": []}
        for name in (a, b):
            side: dict[str, Any] = {"system": name, "passages": [], "note": ""}
            try:
                rows = systems.runs(name, place.collection, place.split)
                run = run_of(self.store, rows)
                texts = self.texts(run, place.collection)
                answer["text"] = texts.queries(place.split, [query]).get(query, "")
                side["passages"] = self._ranked(run, texts, place, query)
                self._add_terms(side["passages"], rows[0], run, place, query)
            except NotThere as absent:
                side["note"] = str(absent)
            answer["sides"].append(side)
        return answer

    def _ranked(
        self, run: Artifact, texts: CollectionTexts, place: Place, query: str
    ) -> list[dict[str, Any]]:
        grades = texts.grades(place.split, query)
        return [
            {
                "passage": passage,
                "score": score,
                "grade": grades.get(passage),
                "text": texts.text(passage),
                "terms": [],
            }
            for passage, score in ranked(local(self.store, run), query, _MOST_RANKED)
        ]

    def _add_terms(
        self, passages: list[dict[str, Any]], row: Result, run: Artifact, place: Place, query: str
    ) -> None:
        """Raises NotThere where representations are not stored; the passages stay as they are."""
        if "queries" not in run.manifest["inputs"]:  # BM25
            return
        stored = Represented(self.store, name_of(row), run)
        of_query = stored.query(place.split, query)
        if not isinstance(of_query, sp.csr_matrix):
            return
        names = self.names(row)
        for one in passages:
            of_passage = stored.passage(one["passage"])
            if isinstance(of_passage, sp.csr_matrix):
                one["terms"] = shared_terms(of_query, of_passage, names, _MOST_TERMS)

    def names(self, row: Result) -> Names:
        """Vocabulary of a trained system's checkpoint; numbers where there is none."""
        if row.kind != TRAINED or row.fingerprint is None:
            return numbered
        if self._names is None or self._names[0] != row.fingerprint:
            from raylab.models.checkpoint import contract_tokenizer, load_contract  # imports torch

            try:
                artifact = artifact_of(self.store, "retriever", name_of(row), row.fingerprint)
                folder = local(self.store, artifact)
                tokenizer = contract_tokenizer(folder, load_contract(folder))
            except (NotThere, DamagedArtifact, ConfigError, KeyError, ValueError, OSError):
                return numbered
            self._names = row.fingerprint, tokenizer.tokens
        return self._names[1]
