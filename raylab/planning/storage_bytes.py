"""How many bytes a grid leaves in its storage, stage by stage, with indexes and with `--no-index`.

Sizes of arrays follow from the formats (docstrings of `raylab.index`, `raylab.data.tokens`,
`raylab.data.supervision.groups`); what is compressed is taken at a measured share of what it holds. Not counted:
the report, logs, and what Ray and Tune note for themselves, a few MB.

Legend: N passages, i bytes of a passage id, D hidden size, V vocabulary, K terms a text, p bytes of a stored value,
b bytes of a trained weight, G training groups, M listed negatives, Q queries, k hits a query, S shards.

    collection   Parquet: share of the text + i + 4 a passage
    tokens       t a token (2 or 4), 10 + i a passage; a store for each family of tokenizers
    groups       Parquet: the query, and an id and a score for each of 1 + M passages; candidates before them
                 without scores, and the scores of a teacher that is a model, by pair
    arrays       37 + 8 M + the query's text and id a group
    backbone     4 a trained weight: the adapter after MNTP (4 V D more for embeddings' second name)
    retriever    as backbone where others find the base on a hub, else b for every weight; the tokenizer's files
    train        b + 12 a trained weight: the weights and AdamW's state in fp32; the newest checkpoint of each
                 run, and one that is being written; removed when a run ends
    embeddings   dense p D + i, sparse (4 + p) K + 8 + i a passage; the queries likewise
    index        dense 4 + i (the vectors are the embeddings' own), sparse (2 + p) K + 4 + i a passage, and 8 (V + 1)
                 for every window of 65,536 passages, at least one a shard; BM25 as sparse with p = 4
    run          gzip: 11.4 + log2(N)/8 a hit, 8 more for ids of more than 16 bytes
    hits         i + 4 a hit, 16 for each of 256 sampled negatives a query, 8 V (`--no-index` alone)
    measures, profile, tables    Parquet, by query
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylab.data.registry import encoding_for, protocol
from raylab.data.sources import EMBEDDED
from raylab.experiment.config import Backbone, Encoding, Lora
from raylab.experiment.execution import Execution
from raylab.experiment.families import start_of
from raylab.experiment.grid import Cell, Grid
from raylab.experiment.heads import Head
from raylab.index.embeddings import shards
from raylab.index.postings import WINDOW
from raylab.planning.collections import CollectionSizes, Texts, queries_of
from raylab.planning.flops import ACTIVE_SHARE, Shape
from raylab.planning.models import PlannedModel, weight_bytes

TRAINED_TERMS = {"passage": 300, "query": 45}
"""Terms of a text under a trained sparse system without Top-K: what regularised systems of this size have (2 to 4
hundred a passage; SPLADE's are in 2107.05720 and 2403.06789). An untrained one has `ACTIVE_SHARE` of the vocabulary."""

_MINED_NEGATIVES = 32  # raylab.stages.mine: 20 mined and 12 random ones
_PUBLISHED_NEGATIVES = 200  # as in the teacher's files of 2502.15526
_CE_NEGATIVES = 256  # raylab.evaluation.entropy
_MANIFEST, _HEADER = 1_000, 128
_DICTIONARY = 2**20  # bytes of a dictionary page of Parquet, beyond which values stand as they are
_GROUPS_A_FILE = 16_384
# Measured on finished runs (docs/log.md, 2026-11-29).
_TEXT_SHARE = 0.58
_POSTINGS_A_WORD, _WORD_BYTES = 0.45, 7.1
_HEAPS, _HEAPS_POWER = 1.56, 0.7
_MEASURE_BYTES, _PROFILE_BYTES, _TABLE_BYTES = 2.4, 12.7, 3.4  # a value
_PARQUET = 1_500  # of a table's own description


@dataclass(frozen=True)
class StageBytes:
    """Bytes of one stage's artifacts when all is done."""

    stage: str
    stored: float
    without_index: float


@dataclass(frozen=True)
class StoragePlan:
    """What a grid stores.

    ``training``: of checkpoints while runs train, which go when they end. ``untrained``: of embeddings and
    indexes those of untrained sparse systems without Top-K, most of whose terms training takes away. ``terms``: of a
    passage, (trained, untrained), that sparse systems are planned with; None without such.
    """

    stages: tuple[StageBytes, ...]
    training: float
    untrained: float
    terms: tuple[float, float] | None

    @property
    def stored(self) -> float:
        return sum(stage.stored for stage in self.stages)

    @property
    def without_index(self) -> float:
        return sum(stage.without_index for stage in self.stages)


@dataclass(frozen=True)
class MeasuredSystem:
    """A system as storage sees it: a cell's retriever, or an untrained backbone under a head."""

    backbone: Backbone
    head: Head
    trained: bool


def systems_of(cells: Sequence[Cell]) -> list[MeasuredSystem]:
    """All that a grid measures beside BM25."""
    pairs = dict.fromkeys((cell.backbone, cell.head) for cell in cells)
    untrained = [MeasuredSystem(backbone, head, False) for backbone, head in pairs]
    return untrained + [MeasuredSystem(cell.backbone, cell.head, True) for cell in cells]


def plan_storage(
    grid: Grid,
    execution: Execution,
    models: Mapping[Backbone, PlannedModel],
    collections: Sequence[CollectionSizes],
) -> StoragePlan:
    """What the grid stores.

    Args:
        models: of the cells' backbones.
        collections: the one that trains first.
    """
    cells, recipe = grid.cells(), grid.ladder.recipe
    systems = Counter(systems_of(cells))  # those that are stored alike, and how many
    measured = ("hits", "run", "measures", "profile", "tables")
    bytes_by_stage: dict[str, float] = dict.fromkeys(measured, 0.0)
    representations = indexes = queries_stored = bm25 = untrained = 0.0
    for sizes in collections:
        encoding = encoding_for(recipe.encoding, sizes.name)
        bm25 += bm25_bytes(sizes.passages)
        for system, copies in systems.items():
            shape = models[system.backbone].shape
            passages, queries = embedding_bytes(system, shape, encoding, sizes, execution)
            index = index_bytes(system, shape, encoding, sizes, execution)
            representations += copies * passages
            queries_stored += copies * queries
            indexes += copies * index
            bytes_by_stage["hits"] += copies * hits_bytes(system, shape, sizes)
            if system.head.is_sparse and not system.trained and encoding.top_k_passage == 0:
                untrained += copies * (passages + index)
        for stage, size in measured_bytes(sizes, systems.total()).items():
            bytes_by_stage[stage] += size
    data = data_bytes(grid, models, collections)
    hits = bytes_by_stage.pop("hits")
    stages = [StageBytes(stage, size, size) for stage, size in data.items()]
    stages += [
        StageBytes("backbone", *2 * (backbone_bytes(cells, models),)),
        StageBytes("retriever", *2 * (sum(retriever_bytes(cell, models) for cell in cells),)),
        StageBytes("embeddings", representations + queries_stored, queries_stored),
        StageBytes("index", indexes + bm25, bm25),
        StageBytes("hits", 0.0, hits),
        *(StageBytes(stage, size, size) for stage, size in bytes_by_stage.items()),
    ]
    return StoragePlan(
        tuple(stages),
        training_bytes(cells, models, execution),
        untrained,
        _planned_terms(cells, models, recipe.encoding),
    )


# --------------------------------------------------------------------------------------- data


def data_bytes(
    grid: Grid, models: Mapping[Backbone, PlannedModel], collections: Sequence[CollectionSizes]
) -> dict[str, float]:
    """Bytes of the collections, their tokens, and the training groups, by stage."""
    stored = {"collection": 0.0, "tokens": 0.0}
    for sizes in collections:
        texts = sizes.passages
        stored["collection"] += texts.count * (texts.text_bytes * _TEXT_SHARE + texts.id_bytes + 4)
        stored["tokens"] += sum(token_store_bytes(models, sizes).values())
    trains = collections[0]
    negatives = _listed_negatives(grid)
    groups = trains.training_groups
    if any(cell.fine_tuning.pseudo_fraction > 0 for cell in grid.cells()):
        groups += trains.passages.titled
    query = trains.query_bytes
    an_id, a_score = _listed_bytes(negatives, groups, trains.passages)
    listed = 1 + negatives
    mined = grid.collection not in EMBEDDED and not _is_file(grid.teacher)
    if mined:
        stored["candidates"] = groups * (query + 12 + listed * an_id)
    if mined and grid.teacher is not None:
        stored["scores"] = groups * listed * (an_id + a_score + math.log2(max(groups, 2)) / 8 + 1)
    stored["groups"] = groups * (query + 12 + listed * (an_id + a_score))
    stored["arrays"] = groups * (37 + 8 * negatives + query + trains.passages.id_bytes)
    return stored


def token_store_bytes(
    models: Mapping[Backbone, PlannedModel], sizes: CollectionSizes
) -> dict[str, float]:
    """Bytes of a collection's passage stores, by family of tokenizers."""
    texts, stores = sizes.passages, {}
    for model in models.values():
        counts = model.counts
        mean = float(sizes.sample(counts).passages.mean()) - counts.overhead("passage")
        stores[counts.family] = texts.count * (mean * counts.token_bytes + 10 + texts.id_bytes)
    return stores


def _is_file(teacher: str | None) -> bool:
    return teacher is not None and Path(teacher).is_file()


def _listed_negatives(grid: Grid) -> int:
    published = _is_file(grid.teacher) and grid.collection not in EMBEDDED
    return _PUBLISHED_NEGATIVES if published else _MINED_NEGATIVES


def _listed_bytes(negatives: int, groups: int, texts: Texts) -> tuple[float, float]:
    """Of (an id, a score) in Parquet, whose values stand in a dictionary as long as this holds them."""
    values = max(min(groups, _GROUPS_A_FILE) * (1 + negatives), 2)
    fits = min(texts.count, values) * (texts.id_bytes + 4) <= _DICTIONARY
    an_id = math.log2(max(texts.count, 2)) / 8 if fits else texts.id_bytes + 4
    return an_id, 4 + (math.log2(values) / 8 if 4 * values <= _DICTIONARY else 0)


# --------------------------------------------------------------------------------- checkpoints


def adapter_bytes(shape: Shape, lora: Lora | None, a_weight: int) -> float:
    """Of what differs from the backbone: an adapter in fp32, or all weights, of `a_weight` bytes, without one."""
    if lora is None:
        return float(a_weight * (shape.parameters + shape.embedding_parameters))
    # Tied embeddings stand under both of their names.
    second = shape.vocabulary * shape.hidden if lora.train_embeddings and shape.tied else 0
    return 4.0 * (shape.trainable_parameters(lora) + second)


def backbone_bytes(cells: Sequence[Cell], models: Mapping[Backbone, PlannedModel]) -> float:
    """Of the backbones after MNTP, and of those that start without it."""
    return sum(
        adapter_bytes(models[backbone].shape, adaptation.lora, weight_bytes(backbone)) + _MANIFEST
        for backbone, adaptation in dict.fromkeys(map(start_of, cells))
    )


def retriever_bytes(cell: Cell, models: Mapping[Backbone, PlannedModel]) -> float:
    """Of a cell's checkpoint folder."""
    model, backbone = models[cell.backbone], cell.backbone
    b = weight_bytes(backbone)
    whole = backbone.layers is not None or backbone.start != "pretrained"
    local = backbone.source.startswith("package:") or Path(backbone.source).exists()
    lora = None if whole or local else cell.fine_tuning.lora
    return adapter_bytes(model.shape, lora, b) + model.counts.file_bytes + 10 * _MANIFEST


def checkpoint_bytes(shape: Shape, lora: Lora | None, a_weight: int) -> float:
    """Of a training checkpoint: trained weights, and AdamW's state with its copy of them in fp32."""
    return float((a_weight + 12) * shape.trainable_parameters(lora))


def training_bytes(
    cells: Sequence[Cell], models: Mapping[Backbone, PlannedModel], execution: Execution
) -> float:
    """Of the checkpoints of the runs that train at once, the largest ones: two of each."""
    each = sorted(
        (
            checkpoint_bytes(
                models[cell.backbone].shape, cell.fine_tuning.lora, weight_bytes(cell.backbone)
            )
            for cell in cells
        ),
        reverse=True,
    )
    return 2 * sum(each[: execution.concurrent_trials or len(each)])


# -------------------------------------------------------------------- representations, indexes


def terms_of(
    system: MeasuredSystem, shape: Shape, encoding: Encoding, kind: str = "passage"
) -> float:
    """Terms of a text under a sparse system.

    Top-K's, which pico's trained systems fill up too, where it prunes; else as it is assumed.
    """
    top_k = encoding.top_k_passage if kind == "passage" else encoding.top_k_query
    full = TRAINED_TERMS[kind] if system.trained else ACTIVE_SHARE * shape.vocabulary
    return float(min(top_k if top_k > 0 else full, shape.vocabulary))


def _value_bytes(encoding: Encoding) -> int:
    return 2 if encoding.precision == "float16" else 4


def _text_bytes(
    system: MeasuredSystem, shape: Shape, encoding: Encoding, id_bytes: int, kind: str
) -> float:
    """Of a text's representation in an embedding shard."""
    p = _value_bytes(encoding)
    if system.head.is_sparse:
        return terms_of(system, shape, encoding, kind) * (4 + p) + 8 + id_bytes
    return float(shape.width(system.head) * p + id_bytes)


def embedding_bytes(
    system: MeasuredSystem,
    shape: Shape,
    encoding: Encoding,
    sizes: CollectionSizes,
    execution: Execution,
) -> tuple[float, float]:
    """Of a system's representations of (passages, queries) of a collection."""
    texts = sizes.passages
    count = len(shards(texts.count, execution.shard_passages))
    around = _MANIFEST + 5 * _HEADER
    passages = texts.count * _text_bytes(system, shape, encoding, texts.id_bytes, "passage")
    queries = queries_of(sizes) * _text_bytes(system, shape, encoding, _QUERY_ID, "query")
    # Beside the shards, the artifact that names them.
    whole = 2 * _MANIFEST + 80 * count
    return passages + count * around + whole, queries + len(sizes.splits) * around


def index_bytes(
    system: MeasuredSystem,
    shape: Shape,
    encoding: Encoding,
    sizes: CollectionSizes,
    execution: Execution,
) -> float:
    """Of the indexes of a system's passages."""
    texts = sizes.passages
    parts = shards(texts.count, execution.shard_passages)
    size = texts.count * (texts.id_bytes + 4) + len(parts) * (_MANIFEST + 5 * _HEADER)
    if not system.head.is_sparse:
        return float(size)
    windows = sum(math.ceil(len(part) / WINDOW) for part in parts)
    terms = terms_of(system, shape, encoding)
    postings = texts.count * terms * (2 + _value_bytes(encoding))
    return size + postings + 8.0 * windows * (shape.vocabulary + 1)


def bm25_bytes(texts: Texts) -> float:
    """Of BM25's index of a collection, one shard of all; distinct stems by Heaps' law.

    Its two constants were fitted on SciFact, and are within 30 % of Lucene's counts for NFCorpus, TREC-COVID, NQ and
    Touché.
    """
    words = texts.count * texts.text_bytes / _WORD_BYTES
    stems = _HEAPS * max(words, 1.0) ** _HEAPS_POWER
    windows = math.ceil(texts.count / WINDOW)
    vocabulary = 10.5 * stems  # as JSON
    postings = 6 * _POSTINGS_A_WORD * words
    return texts.count * (texts.id_bytes + 4) + postings + 8 * windows * stems + vocabulary


# ------------------------------------------------------------------------------ what is measured

_QUERY_ID = 8


def measured_bytes(sizes: CollectionSizes, systems: int) -> dict[str, float]:
    """Bytes of the runs, measures, profiles and rows of tables of a collection, BM25's among them."""
    texts, sums = sizes.passages, {"run": 0.0, "measures": 0.0, "profile": 0.0, "tables": 0.0}
    a_hit = 11.4 + math.log2(max(texts.count, 2)) / 8 + (8 if texts.id_bytes > 16 else 0)
    for split, queries in sizes.splits.items():
        rules = protocol(sizes.name, split)
        hits = queries * min(rules.run_depth, texts.count)
        values = queries * len(rules.measures)
        sums["run"] += (systems + 1) * (hits * a_hit + _MANIFEST)
        sums["measures"] += (systems + 1) * (values * _MEASURE_BYTES + _PARQUET + _MANIFEST)
        sums["tables"] += (systems + 1) * (values + queries) * _TABLE_BYTES
    sums["profile"] = systems * (queries_of(sizes) * _PROFILE_BYTES + _PARQUET + _MANIFEST)
    return sums


def hits_bytes(system: MeasuredSystem, shape: Shape, sizes: CollectionSizes) -> float:
    """Of the hits that `--no-index` keeps of a system in place of embeddings and indexes."""
    texts = sizes.passages
    size = 2.0 * _MANIFEST
    for split, queries in sizes.splits.items():
        depth = min(protocol(sizes.name, split).search_depth, texts.count)
        size += queries * (depth * (texts.id_bytes + 4) + _QUERY_ID)
        size += queries * 16 * min(_CE_NEGATIVES + 1, texts.count)
    return size + (8.0 * (shape.vocabulary + 1) if system.head.is_sparse else 0.0)


def _planned_terms(
    cells: Sequence[Cell], models: Mapping[Backbone, PlannedModel], encoding: Encoding
) -> tuple[float, float] | None:
    sparse = [system for system in systems_of(cells) if system.head.is_sparse]
    if not sparse:
        return None
    terms = {s.trained: terms_of(s, models[s.backbone].shape, encoding) for s in sparse}
    return terms[True], terms[False]
