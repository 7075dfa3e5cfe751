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
from raylab.data.registry import held_out_splits
from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Backbone
from raylab.experiment.families import Start, start_of
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.heads import Head
from raylab.experiment.objectives import CL
from raylab.pipeline.measured import MeasuredCollection
from raylab.stages.arrays import arrays_address
from raylab.stages.encode import System
from raylab.stages.stage import Stage
from raylab.stages.teaching import Teaching
from raylab.stages.train import adaptation_address, cell_address
from raylab.storage.artifacts import Address, Artifact


@dataclass(frozen=True)
class GridStages:
    """The stages of a grid whose collection is ingested.

    Args:
        collection: that trains, and is measured on all its other splits.
        weights: fingerprints of what the sizes start from.
        tokenizers: by size.
        further: collections to measure on as well.
    """

    grid: Grid
    collection: Artifact
    teaching: Teaching
    weights: dict[Backbone, str]
    tokenizers: dict[str, Tokenizer]
    further: tuple[Artifact, ...] = ()

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        return self.grid.cells()

    # ------------------------------------------------------------------------- addresses

    @property
    def tokens(self) -> dict[str, Address]:
        """Of the collection that trains, by size; sizes of one tokenizer share a passage store."""
        return self.measured[0].tokens

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

    # -------------------------------------------------------------------------- measured

    @functools.cached_property
    def measured(self) -> tuple[MeasuredCollection, ...]:
        """The collections that systems are measured on, the one that trains first, then smallest first."""
        own = tuple(split for split in self.collection.meta["splits"] if split != TRAIN)
        further = sorted(self.further, key=lambda one: one.meta[PASSAGES])
        chosen = [(self.collection, own)]
        chosen += [(one, held_out_splits(one.meta["name"], one.meta["splits"])) for one in further]
        encoding = self.grid.ladder.recipe.encoding
        return tuple(
            MeasuredCollection(collection, splits, encoding, self.tokenizers, self.grid.measures)
            for collection, splits in chosen
        )

    def temperature(self, system: System, cell: Cell | None) -> float:
        """Of a system's training loss; an untrained one has that of its head's contrast."""
        if cell is not None:
            return cell.fine_tuning.temperature
        return self.grid.ladder.recipe.tuning(system.backbone, system.head, CL).temperature

    # ------------------------------------------------------------------------ the list

    def all(self) -> list[Stage]:
        """Every stage, in an order in which each comes after those it reads."""
        first_tokens = next(iter(self.tokens.values()))
        collections = [one.collection.address for one in self.measured]
        stages = [Stage("ingest", address, (), None) for address in collections]
        for measured in self.measured:
            stages += measured.tokenise_stages()
        stages.append(Stage("teach", self.groups, (collections[0],), self.teaching))
        stages.append(Stage("arrange", self.arrays, (self.groups, first_tokens), None))
        for start, address in self.starts.items():
            stages.append(Stage("adapt", address, (self.tokens[start[0].name],), start))
        for cell, address in self.retrievers.items():
            inputs = (self.starts[start_of(cell)], self.tokens[cell.backbone.name], self.groups)
            stages.append(Stage("fine-tune", address, inputs, cell))
        for measured in self.measured:
            stages += measured.bm25_stages()
        for system, cell in self.systems(self.cells):
            for measured in self.measured:
                stages += measured.system_stages(system, self.temperature(system, cell))
        return list({stage.address.path: stage for stage in stages}.values())
