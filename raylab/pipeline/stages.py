"""A grid as a plain list of stages: what the pipeline makes, `raylab status` counts and a monitor shows.

    ingest -> tokenise -> teach -> arrange -> adapt -> fine-tune -> encode -> index -> search -> evaluate
                                                                    encode -> profile

Every address is known before anything is made: it is the hash of what a stage computes and of the addresses
that it reads. Only the collection has to be there, since its splits say what is searched.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from raylab.data.collections import TRAIN
from raylab.data.ingest import PASSAGES
from raylab.data.ingested import training_part
from raylab.data.registry import encoding_for
from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.families import Start, start_of
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.heads import Head
from raylab.experiment.objectives import CL
from raylab.stages.arrays import arrays_address
from raylab.stages.encode import Embeddings, EncodeTask, System, query_task
from raylab.stages.profile import Profile
from raylab.stages.search import Evaluation, bm25_address
from raylab.stages.stage import Stage
from raylab.stages.teaching import Teaching
from raylab.stages.tokenise import tokens_address
from raylab.stages.train import adaptation_address, cell_address
from raylab.storage.artifacts import Address, Artifact

BM25 = "BM25"


@dataclass(frozen=True)
class GridStages:
    """The stages of a grid whose collection is ingested.

    Args:
        weights: fingerprints of what the sizes start from.
        tokenizers: by size.
    """

    grid: Grid
    collection: Artifact
    teaching: Teaching
    weights: dict[Backbone, str]
    tokenizers: dict[str, Tokenizer]

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        return self.grid.cells()

    @property
    def encoding(self) -> Encoding:
        """The recipe's, with the collection's lengths where it has none."""
        return encoding_for(self.grid.ladder.recipe.encoding, self.collection.meta["name"])

    @functools.cached_property
    def splits(self) -> list[str]:
        """Those that are measured."""
        return [split for split in self.collection.meta["splits"] if split != TRAIN]

    # ------------------------------------------------------------------------- addresses

    @functools.cached_property
    def tokens(self) -> dict[str, Address]:
        """By size; sizes of one tokenizer share a passage store."""
        return {
            size: tokens_address(self.collection, tokenizer)
            for size, tokenizer in self.tokenizers.items()
        }

    @functools.cached_property
    def groups(self) -> Address:
        return self.teaching.address()

    @functools.cached_property
    def arrays(self) -> Address:
        return arrays_address(self.collection, training_part(self.collection), self.groups)

    @functools.cached_property
    def starts(self) -> dict[Start, Address]:
        """Adapted backbones, by what cells start from."""
        return {
            start: adaptation_address(
                start[0], self.weights[start[0]], start[1], self.tokens[start[0].name]
            )
            for start in map(start_of, self.cells)
        }

    @functools.cached_property
    def retrievers(self) -> dict[Cell, Address]:
        return {
            cell: cell_address(
                cell, self.starts[start_of(cell)], self.tokens[cell.backbone.name], self.groups
            )
            for cell in self.cells
        }

    # --------------------------------------------------------------------------- systems

    @functools.cached_property
    def untrained(self) -> list[System]:
        """Every backbone under every head, as it starts."""
        pairs = dict.fromkeys((cell.backbone, cell.head) for cell in self.cells)
        return [self._untrained(backbone, head) for backbone, head in pairs]

    def _untrained(self, backbone: Backbone, head: Head) -> System:
        causal = "" if backbone.bidirectional else "-causal"
        name = f"untrained-{head.name}-{backbone.name}{causal}"
        return System(name, head, backbone, self.weights[backbone], None)

    def system(self, cell: Cell) -> System:
        """What a cell's training makes."""
        address = self.retrievers[cell]
        return System(cell.run_name, cell.head, cell.backbone, address.fingerprint, address)

    def systems(self, cells: Sequence[Cell]) -> list[tuple[System, Cell | None]]:
        """The untrained ones, and those of some cells."""
        untrained: list[tuple[System, Cell | None]] = [(s, None) for s in self.untrained]
        return untrained + [(self.system(cell), cell) for cell in cells]

    def embeddings(self, system: System) -> Embeddings:
        tokens = self.tokens[system.backbone.name]
        return Embeddings(system, self.encoding, tokens, self.collection.meta[PASSAGES])

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
            split: Evaluation(system.name, self.collection, split, queries[split].address, passages)
            for split in self.splits
        }

    def bm25_evaluations(self) -> dict[str, Evaluation]:
        """By split."""
        index = bm25_address(self.collection, PASSAGES)
        return {
            split: Evaluation(BM25, self.collection, split, None, index) for split in self.splits
        }

    def profile(self, system: System, cell: Cell | None) -> Profile:
        """An untrained system has the temperature of its head's contrast."""
        tuning = (
            cell.fine_tuning
            if cell is not None
            else self.grid.ladder.recipe.tuning(system.backbone, system.head, CL)
        )
        queries = {split: task.address for split, task in self.queries(system).items()}
        passages = self.embeddings(system).address
        return Profile(system.name, self.collection, passages, queries, tuning.temperature)

    # ------------------------------------------------------------------------ the list

    def all(self) -> list[Stage]:
        """Every stage, in an order in which each comes after those it reads."""
        collection = self.collection.address
        first_tokens = next(iter(self.tokens.values()))
        stages = [Stage("ingest", collection, (), None)]
        for size, tokens in self.tokens.items():
            stages.append(Stage("tokenise", tokens, (collection,), self.tokenizers[size]))
        stages.append(Stage("teach", self.groups, (collection,), self.teaching))
        stages.append(Stage("arrange", self.arrays, (self.groups, first_tokens), None))
        for start, address in self.starts.items():
            stages.append(Stage("adapt", address, (self.tokens[start[0].name],), start))
        for cell, address in self.retrievers.items():
            inputs = (self.starts[start_of(cell)], self.tokens[cell.backbone.name], self.groups)
            stages.append(Stage("fine-tune", address, inputs, cell))
        for evaluation in self.bm25_evaluations().values():
            stages += _searched(evaluation, (collection,))
        for system, cell in self.systems(self.cells):
            checkpoint = (system.checkpoint,) if system.checkpoint is not None else ()
            embeddings, queries = self.embeddings(system), self.queries(system)
            tokens = self.tokens[system.backbone.name]
            stages.append(Stage("encode", embeddings.address, (*checkpoint, tokens), embeddings))
            for task in queries.values():
                stages.append(Stage("encode", task.address, (*checkpoint, collection), task))
            for split, evaluation in self.evaluations(system).items():
                read = (embeddings.address, queries[split].address)
                stages += _searched(evaluation, read)
            profile = self.profile(system, cell)
            read = (embeddings.address, *(task.address for task in queries.values()))
            stages.append(Stage("profile", profile.address, read, profile))
        return list({stage.address.path: stage for stage in stages}.values())


def _searched(evaluation: Evaluation, read: tuple[Address, ...]) -> list[Stage]:
    return [
        Stage("search", evaluation.run_address, read, evaluation),
        Stage("evaluate", evaluation.address, (evaluation.run_address,), evaluation),
    ]
