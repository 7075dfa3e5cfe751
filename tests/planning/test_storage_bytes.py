"""Planned bytes are those of files as they are really written, format by format."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from raylab.data.known_sizes import known_collection
from raylab.data.tokens import write_store
from raylab.evaluation.runs import Run, write_run
from raylab.experiment.config import Backbone, Encoding, Lora
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.heads import DENSE, HEADS, SPARSE
from raylab.experiment.ladders import LLAMA3, PICO, find_ladder
from raylab.index.bm25 import BM25Index
from raylab.index.dense import DenseIndex
from raylab.index.embeddings import write_shard
from raylab.index.sparse import SparseIndex
from raylab.models.backbone import add_lora, load_backbone
from raylab.models.hub import save_weights, state_to_save
from raylab.planning.collections import KnownSizes, Texts, sizes_of
from raylab.planning.flops import ACTIVE_SHARE, Shape
from raylab.planning.models import plan_model
from raylab.planning.node_needs import node_needs
from raylab.planning.plan_table import size, storage_notes, stored_rows
from raylab.planning.storage_bytes import (
    MeasuredSystem,
    StageBytes,
    StoragePlan,
    adapter_bytes,
    bm25_bytes,
    embedding_bytes,
    index_bytes,
    measured_bytes,
    plan_storage,
    terms_of,
    token_store_bytes,
)
from raylab.stages.search import write_hits

COUNT, SHARD, TERMS = 3_000, 1_000, 50
SHAPE = Shape(2, 64, 128, 4, 4, 16, 2_000, tied=True)
IDS = [f"{n:07d}" for n in range(COUNT)]


@dataclasses.dataclass
class Sizes:
    """A collection of 3,000 passages with ids of 7 bytes, and 100 queries of a split."""

    name: str = "mine"
    training_groups: int = 0
    query_bytes: float = 30.0

    @property
    def passages(self) -> Texts:
        return Texts(COUNT, 7, 300.0, 0)

    @property
    def splits(self) -> dict[str, int]:
        return {"test": 100}

    def sample(self, counts):
        raise NotImplementedError


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_representations_and_indexes(tmp_path, head, precision):
    rng = np.random.default_rng(0)
    encoding = Encoding(top_k_passage=TERMS, top_k_query=5, precision=precision)
    for start in range(0, COUNT, SHARD):
        part, index = tmp_path / "parts" / str(start), tmp_path / "indexes" / str(start)
        part.mkdir(parents=True)
        if head == "dense":
            matrix = rng.standard_normal((SHARD, 64)).astype(np.float32)
        else:
            terms = np.sort(
                [rng.choice(2_000, TERMS, replace=False) for _ in range(SHARD)], axis=1
            ).ravel()
            values = rng.uniform(0.1, 2, SHARD * TERMS).astype(np.float32)
            matrix = sp.csr_matrix(
                (values, terms, np.arange(0, SHARD * TERMS + 1, TERMS)), (SHARD, 2_000)
            )
        write_shard(part, IDS[start : start + SHARD], matrix, precision)
        if head == "dense":
            DenseIndex.over(part, index)
        else:
            SparseIndex.build([part], index)
    system = MeasuredSystem(Backbone("tiny", "tiny"), HEADS[head], True)
    execution = Execution(shard_passages=SHARD)
    passages, _ = embedding_bytes(system, SHAPE, encoding, Sizes(), execution)
    # Manifests stand beside: 1 kB each.
    assert passages - 5_000 == pytest.approx(written(tmp_path / "parts"), rel=0.01)
    index = index_bytes(system, SHAPE, encoding, Sizes(), execution)
    assert index - 3_000 == pytest.approx(written(tmp_path / "indexes"), rel=0.02)


def test_a_passage_store(tmp_path, model_folder):
    rng = np.random.default_rng(0)
    model = plan_model(Backbone("tiny", str(model_folder)), None, False)
    tokens = [rng.integers(0, 400, rng.integers(20, 60)) for _ in range(COUNT)]
    write_store(tmp_path, [(IDS, tokens, [0] * COUNT)], np.uint16)

    class Sampled(Sizes):
        def sample(self, counts):
            from raylab.planning.collections import Sample

            lengths = np.array([len(own) for own in tokens])
            return Sample(lengths, lengths)

    (size_bytes,) = token_store_bytes({Backbone("tiny", "tiny"): model}, Sampled()).values()
    assert size_bytes == pytest.approx(written(tmp_path), rel=0.01)


def test_runs_and_hits(tmp_path):
    """Of random hits among as many ids as there are passages; how well scores are packed depends on the system."""
    rng = np.random.default_rng(0)
    ids = np.array([rng.choice(IDS, 100, replace=False) for _ in range(100)])
    scores = np.sort(rng.standard_normal((100, 100)).astype(np.float32) * 3 + 20)[:, ::-1]
    queries = [f"q{n}" for n in range(100)]
    write_run(
        Run.from_topk(queries, ids, scores), tmp_path / "run.trec.gz", "sparse-pico-1x96-cl-seed0"
    )
    planned = measured_bytes(Sizes(), 0)["run"] - 1_000  # BM25's alone
    assert planned == pytest.approx((tmp_path / "run.trec.gz").stat().st_size, rel=0.2)
    (tmp_path / "hits").mkdir()
    write_hits(tmp_path / "hits", "test", queries, ids, scores)
    assert pytest.approx(written(tmp_path / "hits"), rel=0.01) == 100 * 100 * (7 + 4)


@pytest.mark.parametrize("lora", [None, Lora(), Lora(train_embeddings=True, dropout=0.0)])
def test_adapters_and_weights(tmp_path, model_folder, lora):
    backbone = Backbone("tiny", str(model_folder))
    model = add_lora(load_backbone(backbone, str(model_folder)), lora)
    save_weights(model, state_to_save(model), tmp_path)
    shape = plan_model(backbone, None, False).shape
    assert adapter_bytes(shape, lora, 4) == pytest.approx(
        next(tmp_path.glob("*.safetensors")).stat().st_size,
        rel=0.1,  # names of tensors
    )


def test_bm25_of_real_text(tmp_path):
    """SciFact's: the constants were fitted on it; NFCorpus' and larger ones' distinct words agree (docstring)."""
    from raylab.data.collections import read_passages
    from raylab.data.sources import open_collection

    passages = list(read_passages(open_collection("scifact").passages))
    BM25Index.build(
        [p.passage_id for p in passages], [f"{p.title} {p.text}" for p in passages]
    ).save(tmp_path)
    sizes = sizes_of(open_collection("scifact"), lambda _: None)
    assert bm25_bytes(sizes.passages) == pytest.approx(written(tmp_path), rel=0.1)


# ------------------------------------------------------------------------------ the whole


@pytest.fixture(scope="module")
def paper():
    """The plan of the paper's grid on MS MARCO, without data or models."""
    grid = Grid(LLAMA3, "msmarco", epochs="recipe")
    collections = [KnownSizes(known_collection("msmarco"), True)]
    models = {b: plan_model(b, None, True) for b in LLAMA3.backbones}
    return grid, Execution(workers=4, concurrent_trials=2), models, collections


def test_dense_embeddings_of_ms_marco(paper):
    """8.84 M x (2,048 + 3,072 + 4,096) x 2 bytes, for an untrained and three trained systems of each size."""
    grid, execution, models, collections = paper
    dense = dataclasses.replace(grid, heads=(DENSE,))
    storage = plan_storage(dense, execution, models, collections)
    stored = {stage.stage: stage for stage in storage.stages}
    vectors = 8_841_823 * (2_048 + 3_072 + 4_096) * 2 * 4
    assert stored["embeddings"].stored == pytest.approx(vectors, rel=0.01)
    assert stored["index"].stored < 0.05 * vectors  # no second copy
    assert stored["embeddings"].without_index < 0.01 * vectors
    assert storage.terms is None
    assert storage.without_index < 0.05 * storage.stored


def test_untrained_sparse_systems_are_told_of(paper):
    grid, execution, models, collections = paper
    sparse = dataclasses.replace(grid, heads=(SPARSE,))
    storage = plan_storage(sparse, execution, models, collections)
    terms = ACTIVE_SHARE * 128_256
    assert storage.terms == (300, pytest.approx(terms))
    # 6 bytes an entry in an embedding, 4 in an index: three sizes.
    assert storage.untrained == pytest.approx(3 * 8_841_823 * terms * 10, rel=0.01)
    told = " ".join(storage_notes(storage))
    assert "300 terms a passage once trained (assumed without Top-K) and 41,042 untrained" in told
    assert "--top-k-query 40 --top-k-passage 400, or --no-index" in told
    encoding = dataclasses.replace(sparse.ladder.recipe.encoding, top_k_query=40, top_k_passage=400)
    recipe = dataclasses.replace(sparse.ladder.recipe, encoding=encoding)
    pruned = dataclasses.replace(sparse, ladder=dataclasses.replace(sparse.ladder, recipe=recipe))
    storage = plan_storage(pruned, execution, models, collections)
    assert storage.untrained == 0
    assert len(storage_notes(storage)) == 2
    system = MeasuredSystem(LLAMA3.backbones[0], SPARSE, False)
    assert terms_of(system, models[LLAMA3.backbones[0]].shape, encoding) == 400


def test_checkpoints_while_training_are_those_of_the_runs_at_once(paper):
    """Weights in bf16, and AdamW's two moments and a copy in fp32: 14 bytes a trained weight, twice."""
    grid, execution, models, collections = paper
    shape = models[LLAMA3.backbones[2]].shape
    trained = shape.lora_parameters(Lora())
    storage = plan_storage(grid, execution, models, collections)
    assert storage.training == 2 * 2 * 14 * trained


def test_families_of_tokenizers_share_a_store(paper):
    """Llama 3.2's 1B and 3B have one tokenizer, Llama 3's 8B another."""
    _, _, models, collections = paper
    assert len(token_store_bytes(models, collections[0])) == 2


def test_a_node_copies_from_object_storage_alone(paper):
    grid, execution, models, collections = paper
    storage = plan_storage(grid, execution, models, collections)
    local = node_needs(grid, execution, models, collections, storage)
    remote = dataclasses.replace(execution, storage="s3://bucket/lab")
    far = node_needs(grid, remote, models, collections, storage)
    assert local.data == local.copied == 0
    assert far.data > 2 * 8_841_823 * 70 * 4  # tokens of two tokenizers
    stored = {stage.stage: stage.stored for stage in storage.stages}
    assert far.copied == stored["embeddings"] + stored["index"]
    assert (
        node_needs(
            grid, dataclasses.replace(remote, no_index=True), models, collections, storage
        ).copied
        == 0
    )
    # 8 B weights in bf16.
    assert far.encoder > 8.03e9 * 2


def test_the_table_adds_up():
    storage = StoragePlan(
        (StageBytes("tokens", 1.5e9, 1.5e9), StageBytes("index", 2.5e12, 0.0)),
        4.2e6,
        0.0,
        (400, 400),
    )
    assert [list(row.values()) for row in stored_rows(storage)] == [
        ["tokens", "1.5 GB", "1.5 GB"],
        ["index", "2.5 TB", "0 B"],
        ["in all", "2.5 TB", "1.5 GB"],
    ]
    assert storage_notes(storage) == [
        "while runs train, their checkpoints take 4.2 MB more",
        "sparse systems are planned with 400 terms a passage",
    ]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (1e9, "1 GB"), (2.345e15, "2,345 TB")],
)
def test_bytes_in_words(number, text):
    assert size(number) == text


def test_pico_prunes_untrained_systems_too(ladder_file):
    for ladder in (PICO, find_ladder(str(ladder_file))):
        assert ladder.recipe.encoding.top_k_passage == 400
