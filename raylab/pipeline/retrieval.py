"""One checkpoint on one collection, without a grid: encode, index, search; each stage found again.

    collection -> tokens -> embedding shards -> index shards -> hits of a text, or the run of a split

Ray is connected to only when something is missing (`connect`, given by whoever calls).
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp

from raylab.data.ingest import PASSAGES, collection_address, first_faults, gaps
from raylab.data.registry import encoding_for
from raylab.data.sources import Source
from raylab.data.texts import Texts, passage_ids
from raylab.data.tokens import find_ids
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.execution import Execution
from raylab.index.embeddings import as_stored, read_row
from raylab.index.export import write_ciff, write_faiss, write_json_vectors
from raylab.index.kernels.topk import merge_topk
from raylab.index.kinds import index_class
from raylab.jobs.ingest import ingest
from raylab.jobs.pools import data_pool
from raylab.jobs.work import work_all
from raylab.models.opening import AnyRetriever, Checkpoint, open_retriever
from raylab.pipeline.measuring import Measuring, PairWork, Phase
from raylab.stages.encode import Embeddings, EncodeTask, System, query_task
from raylab.stages.search import Evaluation, IndexTask, open_index, search_index
from raylab.stages.stage import Stage, find_or_make
from raylab.stages.tokenise import tokenise, tokens_address
from raylab.stages.work import Task
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store

Say = Callable[[str], None]


@dataclass(frozen=True)
class Hit:
    """A passage that a search found.

    ``terms``: of a sparse retriever, those that query and passage share, with the query's weight and the
    passage's, the largest product first; the score is the sum of the products.
    """

    passage_id: str
    score: float
    text: str
    terms: tuple[tuple[str, float, float], ...]


class Retrieval:
    """The stages of one checkpoint on one collection.

    Args:
        connect: called before the first thing that Ray must do; may be called again.
        say: told of what is done.
    """

    def __init__(
        self,
        store: Store,
        execution: Execution,
        source: Source,
        on_fault: str,
        checkpoint: Checkpoint,
        encoding: Encoding,
        connect: Callable[[], None],
        say: Say,
    ):
        self.store, self.execution = store, execution
        self.encoding = encoding_for(encoding, source.name)
        self.checkpoint = checkpoint
        self.connect, self.say = connect, say
        self.source, self.on_fault = source, on_fault
        name = f"checkpoint-{checkpoint.fingerprint[:12]}"
        backbone = Backbone(name, str(checkpoint.folder), compute_dtype=checkpoint.compute_dtype)
        self.system = System(
            name, checkpoint.head, backbone, checkpoint.fingerprint, None, checkpoint.source
        )

    @functools.cached_property
    def collection(self) -> Artifact:
        """The ingested collection."""

        def make(_: list[Stage]) -> None:
            first_faults(self.source, self.on_fault)
            self.connect()
            collection = ingest(self.store, self.source, self.on_fault)
            self.say(f"{collection.meta['passages']:,} passages ingested")

        address = collection_address(self.source, self.on_fault)
        (collection,) = find_or_make(self.store, [Stage("ingest", address, (), None)], make)
        for gap in gaps(collection.meta):
            self.say(gap)
        return collection

    @functools.cached_property
    def texts(self) -> Artifact:
        """Where encoders read passages: the passage store, or the collection itself."""
        tokenizer, collection = self.checkpoint.tokenizer, self.collection
        if tokenizer is None:
            return collection

        def make(_: list[Stage]) -> None:
            self.connect()
            tokenise(self.store, collection, tokenizer, data_pool)

        stage = Stage(
            "tokenise", tokens_address(collection, tokenizer), (collection.address,), tokenizer
        )
        return find_or_make(self.store, [stage], make)[0]

    @functools.cached_property
    def embeddings(self) -> Embeddings:
        """What is, or would be, stored of all passages."""
        count = self.collection.meta["passages"]
        return Embeddings(self.system, self.encoding, self.texts, count)

    def _pair(self, split: str | None = None) -> PairWork:
        """What there is to make, with the run and the measures of a split or without."""
        name, queries, searches = self.collection.meta["name"], {}, {}
        if split is not None:
            task = query_task(self.system, self.encoding, self.collection, split)
            passages = self.embeddings.address
            queries[split] = task
            searches[split] = Evaluation(
                self.system.name, self.collection, split, task.address, passages
            )
        pair = name, self.system.name
        return PairWork(pair, self.collection, self.embeddings, queries, searches, None)

    def _made(self, pair: PairWork, until: Phase) -> None:
        """Make what is missing, on Ray."""
        measuring = Measuring(self.store, self.execution, say=self.say, until=until)
        tasks = measuring.begin([pair])
        if not tasks:
            return
        self.connect()
        encoding = sum(isinstance(task, EncodeTask) for task in tasks)
        if encoding:
            every = len(self.embeddings.parts(self.execution.shard_passages)) + len(pair.queries)
            self.say(f"encoding {encoding} of {every} shard(s)")

        def finished(task: Task, warning: str | None) -> list[Task]:
            if warning:
                self.say(f"WARNING {task.address.name}: {warning}")
            return measuring.finished(task)

        work_all(self.store, self.execution, tasks, finished, self.say)

    @functools.cached_property
    def parts(self) -> list[Artifact]:
        """The parts of the embeddings, in row order."""
        pair = self._pair()
        self._made(pair, "represent")
        return pair.parts

    @functools.cached_property
    def indexes(self) -> tuple[Artifact, ...]:
        """An index for every part of the embeddings."""
        pair = self._pair()
        self._made(pair, "index")
        return tuple(self.store.all_committed(IndexTask(part).address for part in pair.parts))

    def export(self, places: Mapping[str, Path]) -> None:
        """Write all passages in other engines' formats (`raylab.index.export`).

        Args:
            places: by form: "ciff" and "json_vectors" a file (sparse), "faiss" a folder (dense).
        """
        if not places:
            return
        folders = [self.store.local(part) for part in self.parts]
        for out in places.values():
            out.parent.mkdir(parents=True, exist_ok=True)
        beside = next(
            iter(places.values())
        ).parent  # the index of all is as large as what is asked for
        with tempfile.TemporaryDirectory(dir=beside) as folder:
            whole: Any = index_class(self.checkpoint.head.representation).build(folders, folder)
            for form, out in places.items():
                if form == "faiss":
                    write_faiss(whole, out)
                else:
                    write = {"ciff": write_ciff, "json_vectors": write_json_vectors}[form]
                    write(whole, out, self._terms(whole.vocabulary_size))

    def _terms(self, size: int) -> list[str]:
        """The vocabulary; ids that only fill it up to a round size have a name of their own."""
        source: Any = self.checkpoint.tokenizer
        name = source.tokens if source is not None else self._open().terms
        names = name(range(size))
        return [entry if entry else f"[{term}]" for term, entry in enumerate(names)]

    def _open(self) -> AnyRetriever:
        device = "cuda" if self.execution.use_gpu else "cpu"
        models_dir = self.execution.models_dir
        return open_retriever(
            self.checkpoint.source, self.encoding, models_dir, device, self.checkpoint.compute_dtype
        )

    def search(self, text: str, k: int) -> list[Hit]:
        """The best k passages for a text; fewer where fewer share a term with it."""
        retriever = self._open()
        query = as_stored(retriever.encode_queries([text]), self.encoding.precision, "query")
        products = "cuda" if self.execution.use_gpu else None
        indexes = (open_index(self.store, index) for index in self.indexes)
        parts = [search_index(index, query, k, products) for index in indexes]
        ids, scores = merge_topk(parts, k)
        exists = ids[0] != ""
        return [
            self._hit(str(passage_id), float(score), query, retriever.terms)
            for passage_id, score in zip(ids[0][exists], scores[0][exists], strict=True)
        ]

    @functools.cached_property
    def _folder(self) -> Path:
        return self.store.local(self.collection)

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        return passage_ids(self._folder, PASSAGES)

    def _hit(
        self, passage_id: str, score: float, query: np.ndarray | sp.csr_matrix, names: Callable
    ) -> Hit:
        row = int(find_ids(self._ids, [passage_id])[0][0])
        text = Texts.read(self._folder, PASSAGES, range(row, row + 1)).texts[0]
        if isinstance(query, np.ndarray):
            return Hit(passage_id, score, text, ())
        for part in self.parts:
            if row < part.meta["rows"]:
                break
            row -= part.meta["rows"]
        passage = read_row(self.store.local(part), row)
        return Hit(passage_id, score, text, tuple(_shared(query, passage, names)))

    @property
    def splits(self) -> list[str]:
        """Of the collection."""
        return list(self.collection.meta["splits"])

    def run(self, split: str) -> tuple[Artifact, Artifact]:
        """(run, measures) of a split's queries, under the collection's protocol."""
        pair = self._pair(split)
        self._made(pair, "measure")
        evaluation = pair.searches[split]
        run, measures = self.store.all_committed([evaluation.run_address, evaluation.address])
        return run, measures

    def means(self, measures: Artifact) -> dict[str, float]:
        """Means over the queries, by the measure's name."""
        table = pq.read_table(self.store.local(measures) / "measures.parquet").to_pandas()
        return table.groupby("measure", sort=False)["value"].mean().to_dict()


def _shared(query, passage, names: Callable) -> list[tuple[str, float, float]]:
    """Terms of both, with both weights, the largest product first and the lowest term among equals."""
    weights = dict(zip(query.indices.tolist(), query.data.tolist(), strict=True))
    both = [
        (term, weights[term], impact)
        for term, impact in zip(passage.indices.tolist(), passage.data.tolist(), strict=True)
        if term in weights
    ]
    both.sort(key=lambda one: (-one[1] * one[2], one[0]))
    entries = names([term for term, _, _ in both])
    return [(name, ours, theirs) for name, (_, ours, theirs) in zip(entries, both, strict=True)]
