"""The disk and memory that a node needs beside the storage, for what its processes read and hold.

disk     base models, as a hub gives them; and where the storage is remote, copies of what is read, which
         `raylab.storage.node_cache` keeps while there is room: tokens and arrays; with indexes, embeddings and
         indexes as well, each of which some node reads once, so that the nodes share them
memory   of a process: an encoder loads a model, and holds a shard in float32 twice; a search holds the hits of
         two parts, ids as strings of 4 bytes a character
objects  Ray's object store: ingest sorts one collection after the other; what does not fit is spilled to disk
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylab.data.files import is_local
from raylab.data.registry import encoding_for, protocol
from raylab.experiment.config import Backbone
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.index.embeddings import shards
from raylab.planning.collections import CollectionSizes
from raylab.planning.models import PlannedModel, weight_bytes
from raylab.planning.storage_bytes import (
    MeasuredSystem,
    StoragePlan,
    checkpoint_bytes,
    systems_of,
    terms_of,
    token_store_bytes,
)

_SCANNED = (
    2 * 128 * 2**20
)  # raylab.stages.scan: representations that wait to be searched, and their index
_WRITTEN = 2  # a checkpoint in a temporary folder beside the one that is being sent


@dataclass(frozen=True)
class NodeNeeds:
    """Bytes that a node needs.

    ``models``: of base models, once a node. ``data``: of tokens and groups that are copied to a node.
    ``checkpoints``: of a run that trains there. ``copied``: of embeddings and indexes, over all nodes together; 0
    with `--no-index`; it and ``data`` are 0 where nodes read the storage in place. ``encoder``, ``searcher``,
    ``scanner``: memory of a process, beside the device's. ``objects``: of Ray's object store, over all nodes together.
    """

    models: float
    data: float
    checkpoints: float
    copied: float
    encoder: float
    searcher: float
    scanner: float
    objects: float

    @property
    def disk(self) -> float:
        """Of every node, whatever of the work it does."""
        return self.models + self.data + self.checkpoints


def node_needs(
    grid: Grid,
    execution: Execution,
    models: Mapping[Backbone, PlannedModel],
    collections: Sequence[CollectionSizes],
    storage: StoragePlan,
) -> NodeNeeds:
    """What nodes need for a grid; arguments as `plan_storage`, whose plan is ``storage``."""
    stored = {stage.stage: stage.stored for stage in storage.stages}
    remote = not is_local(execution.storage)
    cells = grid.cells()
    systems = dict.fromkeys(systems_of(cells))
    tokens = sum(sum(token_store_bytes(models, sizes).values()) for sizes in collections)
    checkpoint = max(
        checkpoint_bytes(
            models[cell.backbone].shape, cell.fine_tuning.lora, weight_bytes(cell.backbone)
        )
        for cell in cells
    )
    loaded = max(
        weight_bytes(backbone) * (model.shape.parameters + model.shape.embedding_parameters)
        for backbone, model in models.items()
    )
    shard, hits = 0.0, 0.0
    for sizes in collections:
        rows = len(shards(sizes.passages.count, execution.shard_passages)[0])
        encoding = encoding_for(grid.ladder.recipe.encoding, sizes.name)
        for system in systems:
            shape = models[system.backbone].shape
            held = _held_bytes(system, shape.width(system.head), terms_of(system, shape, encoding))
            shard = max(shard, rows * held)
        hits = max(hits, sum(_hits_held(sizes, split) for split in sizes.splits))
    indexes = 0.0 if execution.no_index else stored["embeddings"] + stored["index"]
    return NodeNeeds(
        models=sum(model.stored_bytes for model in models.values()),
        data=(tokens + stored["arrays"] + stored["collection"]) if remote else 0.0,
        checkpoints=_WRITTEN * checkpoint if remote else checkpoint,
        copied=indexes if remote else 0.0,
        encoder=loaded + 2 * shard,
        searcher=shard + 2 * hits,
        scanner=loaded + 2 * shard + _SCANNED + 2 * hits,
        objects=max(sizes.passages.count * sizes.passages.text_bytes for sizes in collections),
    )


def _held_bytes(system: MeasuredSystem, width: int, terms: float) -> float:
    """Of a text's representation in float32; a sparse one has a term's number beside each value."""
    return 8.0 * terms if system.head.is_sparse else 4.0 * width


def _hits_held(sizes: CollectionSizes, split: str) -> float:
    texts = sizes.passages
    depth = min(protocol(sizes.name, split).search_depth, texts.count)
    return sizes.splits[split] * depth * (4.0 * texts.id_bytes + 4)
