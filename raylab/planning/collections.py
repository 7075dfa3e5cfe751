"""How much there is of a collection, and what encoding and searching it will take."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from raylab.data.collections import TRAIN, read_passages, read_queries, read_topics
from raylab.data.faults import OnFault
from raylab.data.ingest import KnownGaps
from raylab.data.registry import encoding_for, held_out_splits
from raylab.data.sources import Source, open_collection
from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import ConfigError
from raylab.experiment.grid import Cell, Grid
from raylab.planning.flops import (
    Rows,
    Shape,
    dense_search_flops,
    encode_flops,
    sparse_search_flops,
)

_SAMPLE_TEXTS = 1_000


def further_sources(grid: Grid, source: Source) -> list[Source]:
    """The collections to measure on beside the one that trains, which is left out where it is named again.

    Raises:
        ConfigError: two of one name, which no table could tell apart.
        CollectionError: no collection there.
    """
    by_name = {source.name: source}
    for address in grid.evaluation:
        one = open_collection(address)
        if one.name != source.name and one.name in by_name:
            raise ConfigError(f"evaluation: two collections are called {one.name!r}")
        by_name.setdefault(one.name, one)
    return [one for one in by_name.values() if one is not source]


@dataclass
class Sample:
    """Token counts of the first queries and passages under one tokenizer."""

    queries: list[int]
    passages: list[int]


@dataclass
class CollectionSizes:
    """How much there is of a collection, counted when first needed.

    ``trains``: it is the one that trains: all its splits but that are measured, else those for tests.
    """

    source: Source
    on_fault: OnFault
    trains: bool = True
    _samples: dict[Any, Sample] = field(default_factory=dict)

    @cached_property
    def _counts(self) -> tuple[dict[str, int], int]:
        topics = read_topics(self.source, self.on_fault)
        queries = {split: len(split_topics.queries) for split, split_topics in topics.items()}
        judged = topics[TRAIN].qrels.values() if TRAIN in topics else ()
        return queries, sum(grade > 0 for grades in judged for grade in grades.values())

    @property
    def training_groups(self) -> int:
        """An epoch of training: one group for every relevant passage of a training query."""
        return self._counts[1]

    @property
    def queries(self) -> int:
        """Judged ones of all splits that are measured."""
        counts = self._counts[0]
        if self.trains:
            return sum(count for split, count in counts.items() if split != TRAIN)
        return sum(counts[split] for split in held_out_splits(self.source.name, counts))

    @cached_property
    def passages(self) -> int:
        on_fault = KnownGaps(self.source, self.on_fault)
        return sum(1 for _ in read_passages(self.source.passages, on_fault))

    def sample(self, tokenizer: Tokenizer) -> Sample:
        """Lengths of the first texts."""
        key = tokenizer.fingerprint, tokenizer.tokenization
        if key not in self._samples:
            self._samples[key] = self._sampled(tokenizer)
        return self._samples[key]

    def _sampled(self, tokenizer: Tokenizer) -> Sample:
        source = self.source
        split = TRAIN if TRAIN in source.queries else next(iter(source.queries))
        read = read_queries(source.queries[split], self.on_fault).values()
        queries = [query.text for query in itertools.islice(read, _SAMPLE_TEXTS)]
        path = source.train_passages or source.passages
        on_fault = KnownGaps(source, self.on_fault)
        first = itertools.islice(read_passages(path, on_fault), _SAMPLE_TEXTS)
        passages = [f"{p.title} {p.text}" for p in first]
        around_q, around_p = tokenizer.overhead("query"), tokenizer.overhead("passage")
        return Sample(
            [len(t) + around_q for t in tokenizer.encode(queries)],
            [len(t) + around_p for t in tokenizer.encode(passages)],
        )


@dataclass(frozen=True)
class EvaluationPlan:
    """What encoding the collections and searching them will take, for all cells of a size and head."""

    name: str
    cells: int
    passages: int  # of all collections
    tokens: float
    encode_flops: float
    search_flops: float

    def with_cells_of(self, other: EvaluationPlan) -> EvaluationPlan:
        """Of more cells of the same size and head."""
        return EvaluationPlan(
            self.name,
            self.cells + other.cells,
            self.passages,
            self.tokens + other.tokens,
            self.encode_flops + other.encode_flops,
            self.search_flops + other.search_flops,
        )


def plan_evaluation(
    cell: Cell,
    grid: Grid,
    shape: Shape,
    tokenizer: Tokenizer,
    collections: Sequence[CollectionSizes],
) -> EvaluationPlan:
    """One cell's encoding of the collections and of their queries that are measured, and its search.

    Sorted by length, texts are padded by about 1 %, which is left out. A sparse query and
    passage share at most the query's terms; that bound is planned for.
    """
    tokens = flops = search = 0.0
    for sizes in collections:
        encoding = encoding_for(grid.ladder.recipe.encoding, sizes.source.name)
        sample = sizes.sample(tokenizer)
        for count, lengths, limit in (
            (sizes.passages, sample.passages, encoding.passage_limit),
            (sizes.queries, sample.queries, encoding.query_limit),
        ):
            cut = np.minimum(lengths, limit).tolist()
            each = [encode_flops(shape, Rows(1, length), cell.head) for length in cut]
            flops += count * float(np.mean(each))
            tokens += count * float(np.mean(cut))
        if cell.head.is_sparse:
            shared = min(encoding.top_k_query or shape.vocabulary, shape.vocabulary)
            search += sparse_search_flops(sizes.queries, sizes.passages, shared)
        else:
            search += dense_search_flops(sizes.queries, sizes.passages, shape.hidden)
    passages = sum(sizes.passages for sizes in collections)
    return EvaluationPlan(
        f"{cell.head.name}-{cell.backbone.name}", 1, passages, tokens, flops, search
    )
