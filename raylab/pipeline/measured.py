"""What is measured on one collection: its splits, and where every system's representations, runs and measures stand."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from raylab.data.ingest import PASSAGES
from raylab.data.registry import encoding_for
from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Encoding
from raylab.experiment.measures import OwnMeasure
from raylab.stages.encode import Embeddings, EncodeTask, System, query_task
from raylab.stages.profile import Profile
from raylab.stages.search import Evaluation, bm25_address
from raylab.stages.stage import Stage
from raylab.stages.tokenise import tokens_address
from raylab.storage.artifacts import Address, Artifact

BM25 = "BM25"


@dataclass(frozen=True)
class MeasuredCollection:
    """A collection that systems are measured on.

    Args:
        collection: ingested.
        splits: of it, that are measured.
        recipe: the encoding of a ladder's recipe; lengths that it does not give are the collection's.
        tokenizers: by size.
        own: measures beside those of the splits' protocols.
    """

    collection: Artifact
    splits: tuple[str, ...]
    recipe: Encoding
    tokenizers: Mapping[str, Tokenizer]
    own: tuple[OwnMeasure, ...] = ()

    @property
    def name(self) -> str:
        return self.collection.meta["name"]

    @property
    def passages(self) -> int:
        """How many it has."""
        return self.collection.meta[PASSAGES]

    @functools.cached_property
    def encoding(self) -> Encoding:
        return encoding_for(self.recipe, self.name)

    @functools.cached_property
    def tokens(self) -> dict[str, Address]:
        """By size; sizes of one tokenizer share a passage store."""
        return {
            size: tokens_address(self.collection, tokenizer)
            for size, tokenizer in self.tokenizers.items()
        }

    def embeddings(self, system: System) -> Embeddings:
        tokens = self.tokens[system.backbone.name]
        return Embeddings(system, self.encoding, tokens, self.passages)

    def queries(self, system: System) -> dict[str, EncodeTask]:
        """By split."""
        return {
            split: query_task(system, self.encoding, self.collection, split)
            for split in self.splits
        }

    def evaluations(self, system: System) -> dict[str, Evaluation]:
        """By split."""
        passages, queries = self.embeddings(system).address, self.queries(system)
        return {
            split: Evaluation(
                system.name,
                self.collection,
                split,
                queries[split].address,
                passages,
                own=self.own,
            )
            for split in self.splits
        }

    def bm25_evaluations(self) -> dict[str, Evaluation]:
        """By split."""
        index = bm25_address(self.collection, PASSAGES)
        return {
            split: Evaluation(BM25, self.collection, split, None, index, own=self.own)
            for split in self.splits
        }

    def profile(self, system: System, temperature: float) -> Profile:
        """``temperature``: of the system's training loss."""
        queries = {split: task.address for split, task in self.queries(system).items()}
        passages = self.embeddings(system).address
        return Profile(system.name, self.collection, passages, queries, temperature)

    # ------------------------------------------------------------------------ the list

    def tokenise_stages(self) -> list[Stage]:
        return [
            Stage("tokenise", tokens, (self.collection.address,), self.tokenizers[size])
            for size, tokens in self.tokens.items()
        ]

    def bm25_stages(self) -> list[Stage]:
        read = (self.collection.address,)
        return [stage for one in self.bm25_evaluations().values() for stage in _searched(one, read)]

    def system_stages(self, system: System, temperature: float) -> list[Stage]:
        """What measuring one system takes, in order."""
        checkpoint = (system.checkpoint,) if system.checkpoint is not None else ()
        embeddings, queries = self.embeddings(system), self.queries(system)
        tokens = self.tokens[system.backbone.name]
        stages = [Stage("encode", embeddings.address, (*checkpoint, tokens), embeddings)]
        for task in queries.values():
            stages.append(
                Stage("encode", task.address, (*checkpoint, self.collection.address), task)
            )
        for split, evaluation in self.evaluations(system).items():
            stages += _searched(evaluation, (embeddings.address, queries[split].address))
        profile = self.profile(system, temperature)
        read = (embeddings.address, *(task.address for task in queries.values()))
        stages.append(Stage("profile", profile.address, read, profile))
        return stages


def _searched(evaluation: Evaluation, read: tuple[Address, ...]) -> list[Stage]:
    return [
        Stage("search", evaluation.run_address, read, evaluation),
        Stage("evaluate", evaluation.address, (evaluation.run_address,), evaluation),
    ]
