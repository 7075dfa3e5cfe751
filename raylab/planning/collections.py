"""How much there is of a collection, and what encoding and searching it will take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from raylab.data.collections import TRAIN, read_passages, read_queries, read_topics
from raylab.data.faults import OnFault
from raylab.data.ingest import KnownGaps
from raylab.data.known_sizes import BYTES_A_WORD, KnownCollection, open_or_known
from raylab.data.registry import BENCHMARKS, encoding_for, held_out_splits
from raylab.data.sources import Source, open_collection
from raylab.experiment.config import ConfigError
from raylab.experiment.grid import Cell, Grid
from raylab.planning.flops import (
    Rows,
    Shape,
    dense_search_flops,
    encode_flops,
    sparse_search_flops,
)
from raylab.planning.models import TokenCounts

_SAMPLE_TEXTS = 1_000


def further_sources(grid: Grid, source: Source) -> list[Source]:
    """The collections to measure on beside the one that trains, which is left out where it is named again.

    Raises:
        ConfigError: two of one name, which no table could tell apart.
        CollectionError: no collection there.
    """
    return _further(grid, source, open_collection)


def further_planned(grid: Grid, source: Source | KnownCollection) -> list[Source | KnownCollection]:
    """As `further_sources`, of which named benchmarks need not be there.

    Raises:
        ConfigError, CollectionError: as `further_sources`.
    """
    return _further(grid, source, open_or_known)


_Opened = TypeVar("_Opened", bound=Source | KnownCollection)


def _further(grid: Grid, source: _Opened, opened: Callable[[str], _Opened]) -> list[_Opened]:
    by_name = {source.name: source}
    for address in grid.evaluation:
        one = opened(address)
        if one.name != source.name and one.name in by_name:
            raise ConfigError(f"evaluation: two collections are called {one.name!r}")
        by_name.setdefault(one.name, one)
    return [one for one in by_name.values() if one is not source]


@dataclass(frozen=True)
class Sample:
    """Token counts of queries and passages under one tokenizer, int or float arrays: a sample of all."""

    queries: np.ndarray
    passages: np.ndarray


@dataclass(frozen=True)
class Texts:
    """What there is of passages: how many, the bytes of the longest id, mean bytes of title and text (UTF-8)."""

    count: int
    id_bytes: int
    text_bytes: float
    titled: int


class CollectionSizes(Protocol):
    """How much there is of a collection. `trains`: it is the one that trains.

    Of it all splits but `train` are measured, of any other those for tests.
    """

    @property
    def name(self) -> str: ...

    @property
    def passages(self) -> Texts: ...

    @property
    def training_groups(self) -> int:
        """An epoch of training: one group for every relevant passage of a training query."""
        ...

    @property
    def splits(self) -> dict[str, int]:
        """Judged queries of each split that is measured."""
        ...

    @property
    def query_bytes(self) -> float:
        """Mean bytes of a query (UTF-8)."""
        ...

    def sample(self, counts: TokenCounts) -> Sample: ...


def queries_of(sizes: CollectionSizes) -> int:
    """Judged ones of all splits that are measured."""
    return sum(sizes.splits.values())


@dataclass
class CountedSizes:
    """Of a collection that is there, read when first needed."""

    source: Source
    on_fault: OnFault
    trains: bool = True
    _samples: dict[str, Sample] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.source.name

    @cached_property
    def _counts(self) -> tuple[dict[str, int], int]:
        topics = read_topics(self.source, self.on_fault)
        queries = {split: len(split_topics.queries) for split, split_topics in topics.items()}
        judged = topics[TRAIN].qrels.values() if TRAIN in topics else ()
        return queries, sum(grade > 0 for grades in judged for grade in grades.values())

    @property
    def training_groups(self) -> int:
        return self._counts[1]

    @property
    def splits(self) -> dict[str, int]:
        counts = self._counts[0]
        if self.trains:
            return {split: count for split, count in counts.items() if split != TRAIN}
        return {split: counts[split] for split in held_out_splits(self.name, counts)}

    @property
    def passages(self) -> Texts:
        return self._passages

    @cached_property
    def _passages(self) -> Texts:
        on_fault = KnownGaps(self.source, self.on_fault)
        count = longest = size = titled = 0
        for passage in read_passages(self.source.passages, on_fault):
            count += 1
            longest = max(longest, len(passage.passage_id.encode()))
            size += len(passage.title.encode()) + len(passage.text.encode())
            titled += bool(passage.title)
        return Texts(count, longest, size / max(count, 1), titled)

    @cached_property
    def _first(self) -> tuple[list[str], list[str]]:
        """The first queries and passages."""
        source = self.source
        split = TRAIN if TRAIN in source.queries else next(iter(source.queries))
        read = read_queries(source.queries[split], self.on_fault).values()
        queries = [query.text for query in itertools.islice(read, _SAMPLE_TEXTS)]
        path = source.train_passages or source.passages
        on_fault = KnownGaps(source, self.on_fault)
        first = itertools.islice(read_passages(path, on_fault), _SAMPLE_TEXTS)
        return queries, [f"{p.title} {p.text}" for p in first]

    @property
    def query_bytes(self) -> float:
        return float(np.mean([len(text.encode()) for text in self._first[0]]))

    def sample(self, counts: TokenCounts) -> Sample:
        """Lengths of the first texts."""
        if counts.key not in self._samples:
            queries, passages = self._first
            self._samples[counts.key] = Sample(
                counts.of_texts("query", queries), counts.of_texts("passage", passages)
            )
        return self._samples[counts.key]


@dataclass(frozen=True)
class KnownSizes:
    """Of a named benchmark that is not there, from the table of known sizes."""

    collection: KnownCollection
    trains: bool = True

    @property
    def name(self) -> str:
        return self.collection.name

    @property
    def passages(self) -> Texts:
        size, benchmark = self.collection.size, BENCHMARKS[self.name]
        titled = size.passages if "title" in benchmark.text else 0
        return Texts(size.passages, size.id_bytes, size.passage_words.mean * BYTES_A_WORD, titled)

    @property
    def training_groups(self) -> int:
        splits = self.collection.size.splits
        return splits[TRAIN].relevant if TRAIN in splits else 0

    @property
    def splits(self) -> dict[str, int]:
        counts = {split: size.queries for split, size in self.collection.size.splits.items()}
        if self.trains:
            return {split: count for split, count in counts.items() if split != TRAIN}
        return {split: counts[split] for split in held_out_splits(self.name, counts)}

    @property
    def query_bytes(self) -> float:
        return self.collection.size.query_words.mean * BYTES_A_WORD

    def sample(self, counts: TokenCounts) -> Sample:
        """Lengths at equal steps of probability."""
        size = self.collection.size
        return Sample(
            counts.of_words("query", size.query_words.lengths()),
            counts.of_words("passage", size.passage_words.lengths()),
        )


def sizes_of(
    collection: Source | KnownCollection, on_fault: OnFault, trains: bool = True
) -> CollectionSizes:
    """How much there is of a collection: counted where it is there, else as it is known."""
    if isinstance(collection, KnownCollection):
        return KnownSizes(collection, trains)
    return CountedSizes(collection, on_fault, trains)


@dataclass(frozen=True)
class EvaluationPlan:
    """What encoding the collections and searching them will take, for all systems of a size and head.

    ``systems``: the cells, and the backbone as it starts.
    """

    name: str
    systems: int
    passages: int  # of all collections
    tokens: float
    encode_flops: float
    search_flops: float

    def times(self, systems: int) -> EvaluationPlan:
        """Of so many systems of the same size and head, from that of one."""
        return EvaluationPlan(
            self.name,
            systems,
            self.passages,
            systems * self.tokens,
            systems * self.encode_flops,
            systems * self.search_flops,
        )


def plan_evaluation(
    cell: Cell,
    grid: Grid,
    shape: Shape,
    counts: TokenCounts,
    collections: Sequence[CollectionSizes],
) -> EvaluationPlan:
    """One system's encoding of the collections and of their queries that are measured, and its search.

    Sorted by length, texts are padded by about 1 %, which is left out. A sparse query and
    passage share at most the query's terms; that bound is planned for.
    """
    tokens = flops = search = 0.0
    for sizes in collections:
        encoding = encoding_for(grid.ladder.recipe.encoding, sizes.name)
        sample, queries, passages = sizes.sample(counts), queries_of(sizes), sizes.passages.count
        for count, lengths, limit in (
            (passages, sample.passages, encoding.passage_limit),
            (queries, sample.queries, encoding.query_limit),
        ):
            cut, times = np.unique(np.minimum(lengths, limit), return_counts=True)
            each = [encode_flops(shape, Rows(1, float(length)), cell.head) for length in cut]
            flops += count * float(np.average(each, weights=times))
            tokens += count * float(np.average(cut, weights=times))
        if cell.head.is_sparse:
            shared = min(encoding.top_k_query or shape.vocabulary, shape.vocabulary)
            search += sparse_search_flops(queries, passages, shared)
        else:
            search += dense_search_flops(queries, passages, shape.hidden)
    passages = sum(sizes.passages.count for sizes in collections)
    return EvaluationPlan(
        f"{cell.head.name}-{cell.backbone.name}", 1, passages, tokens, flops, search
    )
