"""Identity is not execution: what is computed makes the addresses of a grid, and where it runs never does."""

import contextlib
import dataclasses
import shutil
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from raylab.data.sources import open_collection
from raylab.experiment.config import Adaptation, Backbone, Encoding, FineTuning, Lora, Tokenization
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid, Ladder, Recipe
from raylab.experiment.heads import DENSE, SPARSE, Head
from raylab.experiment.objectives import CL, KD
from raylab.jobs.progress import Monitor
from raylab.models.identity import model_checksums, weights_fingerprint
from raylab.pipeline.grid import GridPipeline
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store
from tests.own.judged_share import JUDGED
from tests.stages.collections import committed


@pytest.fixture(scope="module")
def lab(tmp_path_factory, collection_folder):
    store = Store(str(tmp_path_factory.mktemp("lab")))
    return store, committed(store, collection_folder)


@pytest.fixture(scope="module")
def grid(model_folder, collection_folder) -> Grid:
    tuning = FineTuning(top_k_query=4, top_k_passage=5, kd_loss="kl")
    recipe = Recipe(Adaptation(), {("dense", "cl"): tuning}, Encoding(), 1e12)
    ladder = Ladder("mine", (Backbone("tiny", str(model_folder)),), recipe)
    return Grid(ladder, str(collection_folder), heads=(DENSE,), objectives=(CL,))


def addresses(
    lab, grid: Grid, execution: Execution | None = None, further: tuple[Artifact, ...] = ()
) -> dict[tuple[str, str], str]:
    """Path of every stage by kind and name, and by what it makes where a name stands several times."""
    store, collection = lab
    pipeline = GridPipeline(
        grid,
        execution or Execution(storage=store.uri),
        open_collection(grid.collection),
        (),
        None,
        None,  # type: ignore[arg-type]  # no plan is needed to list the stages
        store,
        Monitor("off"),
        contextlib.ExitStack(),
    )
    stages = pipeline._stages([collection, *further]).all()
    if further:
        return {(s.kind, s.address.path): s.address.path for s in stages}
    return {(s.kind, s.name): s.address.path for s in stages}


def test_further_collections_change_no_address(lab, grid, tmp_path, collection_folder):
    """They are encoded, searched and measured, and nothing else; the untrained systems and BM25 too."""
    shutil.copytree(collection_folder, tmp_path / "other")
    (tmp_path / "other" / "queries.jsonl").write_text(
        (collection_folder / "queries.jsonl").read_text().replace("cell", "cells")
    )
    other = committed(lab[0], tmp_path / "other")
    before = set(addresses(lab, grid).values())
    more = addresses(lab, grid, further=(other,))
    assert before < set(more.values())
    added = [kind for (kind, path) in more if path not in before]
    # An untrained and a trained system on the split test, and BM25.
    assert {kind: added.count(kind) for kind in added} == {
        "ingest": 1, "tokenise": 1, "encode": 4, "search": 3, "evaluate": 3, "profile": 2,
    }  # fmt: skip


def another(value: Any, hint: Any) -> Any:
    """A valid value of the same type that differs."""
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(hint, types.UnionType) and value is None:
        return another({int: 1, float: 0.5, str: "x"}.get(get_args(hint)[0]), get_args(hint)[0])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, Lora):
        return replace(value, rank=value.rank + 1)
    if isinstance(value, Tokenization):
        return replace(value, special_tokens=not value.special_tokens)
    if isinstance(value, tuple):
        return value[:-1]
    raise AssertionError(f"no other value of {value!r}")


def changed_fields(config: Any, without: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """(field, the configuration with that field changed) of every field."""
    hints = get_type_hints(type(config))
    names = [f.name for f in dataclasses.fields(config) if f.name not in without]
    return [
        (name, replace(config, **{name: another(getattr(config, name), hints[name])}))
        for name in names
    ]


EXECUTIONS = {
    "storage": "elsewhere", "workers": 2, "zero_stage": 3, "micro_batch_texts": 4,
    "concurrent_trials": 0, "encoding_actors": 0, "encoder_cpus": 0.5, "no_index": True,
    "use_gpu": True, "encode_batch_tokens": 64, "shard_passages": 7, "checkpoint_minutes": 0.0,
    "fault_hours": 5.0, "max_devices": 9,
    "max_failures": 0, "models_dir": "/nowhere", "device": "h100", "ray_options": {"num_cpus": 9},
    "cache_gib": 1.0, "validate": 0, "device_hour_price": 3.0,
}  # fmt: skip


def test_every_field_of_execution_is_tried():
    assert set(EXECUTIONS) == {field.name for field in dataclasses.fields(Execution)}


@pytest.mark.parametrize("name", EXECUTIONS)
def test_where_it_runs_changes_no_address(lab, grid, name):
    execution = replace(Execution(storage=lab[0].uri), **{name: EXECUTIONS[name]})
    assert addresses(lab, grid, execution) == addresses(lab, grid)


def with_recipe(grid: Grid, **changes: Any) -> Grid:
    return replace(grid, ladder=replace(grid.ladder, recipe=replace(grid.ladder.recipe, **changes)))


def with_backbone(grid: Grid, backbone: Backbone) -> Grid:
    return replace(grid, ladder=replace(grid.ladder, backbones=(backbone,)))


def differing(lab, one: Grid, other: Grid) -> set[str]:
    """Kinds of stages whose addresses differ, names left aside."""
    before, after = addresses(lab, one), addresses(lab, other)
    kinds = {kind for kind, _ in before}

    def of(paths: dict[tuple[str, str], str], kind: str) -> list[str]:
        return [path[-16:] for (own, _), path in paths.items() if own == kind]

    return {kind for kind in kinds if of(before, kind) != of(after, kind)}


LATER = {"fine-tune", "encode", "search", "evaluate", "profile"}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FineTuning)])
def test_every_hyper_parameter_of_fine_tuning_is_identity(lab, grid, name):
    tuning = grid.ladder.recipe.fine_tuning["dense", "cl"]
    other = dict(changed_fields(tuning))[name]
    changed = with_recipe(grid, fine_tuning={("dense", "cl"): other})
    assert differing(lab, grid, changed) >= LATER


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Adaptation)])
def test_every_hyper_parameter_of_mntp_is_identity(lab, grid, name):
    other = dict(changed_fields(grid.ladder.recipe.adaptation))[name]
    assert differing(lab, grid, with_recipe(grid, adaptation=other)) >= {"adapt"} | LATER


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Encoding)])
def test_every_setting_of_encoding_is_identity(lab, grid, name):
    other = dict(changed_fields(grid.ladder.recipe.encoding))[name]
    found = differing(lab, grid, with_recipe(grid, encoding=other))
    assert found == LATER - {"fine-tune"}


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(Backbone) if f.name not in ("name", "source")]
)
def test_everything_of_a_backbone_but_its_name_and_place_is_identity(lab, grid, name):
    other = dict(changed_fields(grid.ladder.backbones[0], ("name", "source")))[name]
    assert differing(lab, grid, with_backbone(grid, other)) >= {"adapt"} | LATER


@pytest.mark.parametrize(
    "change",
    [
        {"heads": (SPARSE,)},
        {"heads": (replace(DENSE, pooling="tests.own.dense_last:last_token"),)},
        {"objectives": (replace(CL, loss="tests.own.listwise:soft_labels"),)},
        {"seeds": (1,)},
        {"budget_flops": 2e12},
        {"epochs": 1.0},
        {"adaptation_charge": "charged"},
        {"compute_dtype": "bfloat16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_a_grid_says_is_identity(lab, grid, change):
    whole = with_recipe(
        grid,
        fine_tuning={
            (head, objective): FineTuning()
            for head in ("sparse", "dense")
            for objective in ("cl", "kd")
        },
    )
    assert differing(lab, whole, replace(whole, **change)) & LATER


def test_a_measure_of_ones_own_is_identity_of_the_values_alone(lab, grid):
    """Added to a finished grid, it is measured, and nothing is trained or searched again."""
    judged = JUDGED.at(5)
    own = replace(grid, measures=(judged,))
    assert differing(lab, grid, own) == {"evaluate"}
    for name, other in (("name", "J"), ("cutoff", 3), ("function", "tests.own.other:judged")):
        changed = replace(own, measures=(replace(judged, **{name: other}),))
        assert differing(lab, own, changed) == {"evaluate"}


def test_labels_and_colours_are_no_identity(lab, grid):
    painted = replace(DENSE, label="Vectors", colour="black")
    assert isinstance(painted, Head)
    assert not differing(lab, grid, replace(grid, heads=(painted,)))
    assert not differing(lab, grid, replace(grid, objectives=(replace(CL, label="InfoNCE"),)))
    assert KD.recipe_name == "kd"


# --------------------------------------------------------------------------------- models


def test_a_model_is_its_content_wherever_it_is(lab, grid, model_folder, tmp_path, monkeypatch):
    shutil.copytree(model_folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for place in ("moved", str(tmp_path / "moved"), "./moved/../moved"):
        moved = with_backbone(grid, Backbone("tiny", place))
        assert addresses(lab, moved) == addresses(lab, grid)


def test_a_hub_id_and_its_local_copy_are_one(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "acme" / "tiny")
    copied = weights_fingerprint(Backbone("a", "acme/tiny"), str(tmp_path))
    assert copied == weights_fingerprint(Backbone("b", str(model_folder)))


def test_a_hub_id_in_the_hubs_cache_is_its_content(model_folder, tmp_path, monkeypatch):
    """The cache's own layout: refs/main names the snapshot."""
    home = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(model_folder, home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = weights_fingerprint(Backbone("a", "acme/tiny"))
    assert cached == weights_fingerprint(Backbone("b", str(model_folder)))


def rewritten(folder: Path, name: str) -> None:
    """One bit of a file changed, and nothing else that is easily seen."""
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "sharded bin"])
def test_other_weights_under_the_same_path_are_noticed(model_folder, tmp_path, form):
    import torch
    from transformers import LlamaForCausalLM

    folder = shutil.copytree(model_folder, tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(str(folder))
    if form == "sharded":
        (folder / "model.safetensors").unlink()
        model.save_pretrained(str(folder), max_shard_size="40KB")
    elif "bin" in form:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if form == "sharded bin":
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
        (folder / "pytorch_model.bin.index.json").write_text(
            '{"weight_map": {"x": "pytorch_model-00001-of-00001.bin"}}'
        )
    loaded = [
        n for n in model_checksums(str(folder), True, "t") if ".safetensors" in n or ".bin" in n
    ]
    assert loaded
    before = weights_fingerprint(Backbone("t", str(folder)))
    for name in loaded:
        if not name.endswith(".json"):
            rewritten(folder, name)
            after = weights_fingerprint(Backbone("t", str(folder)))
            assert after != before
            before = after


def test_what_is_not_loaded_does_not_count(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    before = weights_fingerprint(Backbone("t", str(folder)))
    (folder / "README.md").write_text("words")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights in another form")
    assert weights_fingerprint(Backbone("t", str(folder))) == before
    (folder / "tokenizer_config.json").write_text("{}")
    assert weights_fingerprint(Backbone("t", str(folder))) != before
