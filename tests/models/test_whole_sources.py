"""A model that lacks something is refused in one sentence, before anything is trained with random numbers."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from raylab.data.sources import open_collection
from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Backbone, ConfigError, Lora
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import find_ladder
from raylab.models.backbone import add_lora, load_backbone
from raylab.models.hub import load_base, save_weights, state_to_save, with_adapter
from raylab.models.identity import weights_fingerprint
from raylab.models.opening import find_retriever
from raylab.planning.plan import plan_grid


@pytest.fixture
def copied(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def with_tokens(folder, count: int) -> int:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens([f"<added{n}>" for n in range(count)])
    tokenizer.save_pretrained(str(folder))
    return len(tokenizer)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_tokens_without_embeddings_are_refused_by_the_plan_and_at_loading(
    copied, ladder_file, collection_folder, count
):
    tokens = with_tokens(copied, count)
    words = f"the tokenizer has {tokens} tokens, the model {tokens - count} embeddings; resize them"
    with pytest.raises(ConfigError, match=f"size 'own': {words}"):
        load_base(Backbone("own", str(copied)), None)
    ladder = ladder_file.parent / f"added{count}.toml"
    own = ladder_file.read_text().splitlines()
    own = [f'source = "{copied}"' if line.startswith("source") else line for line in own]
    ladder.write_text("\n".join(own))
    grid = Grid(find_ladder(str(ladder)), str(collection_folder), cells_filter="dense-*-cl")
    with pytest.raises(ConfigError, match=f"size 'tiny': {words}"):
        plan_grid(grid, open_collection(str(collection_folder)), Execution())


def test_vocabulary_entries_without_a_token_are_named_by_their_id(model_folder):
    tokenizer = Tokenizer(str(model_folder))
    last = tokenizer.vocabulary
    assert tokenizer.tokens([last, last + 7]) == [f"[{last}]", f"[{last + 7}]"]
    assert tokenizer.tokens([0]) == AutoTokenizer.from_pretrained(
        str(model_folder)
    ).convert_ids_to_tokens([0])


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_tensor_that_is_missing_is_refused_and_not_drawn_at_random(copied, name):
    path = copied / "model.safetensors"
    state = load_file(path)
    save_file({k: t for k, t in state.items() if k != name}, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"lacks 1 of the model's tensors, such as '{name}'"):
        load_backbone(Backbone("own", str(copied)), str(copied))


def test_an_adapter_without_some_tensors_is_refused(model_folder, tmp_path):
    model, _ = load_base(Backbone("own", str(model_folder)), None)
    adapted = add_lora(model, Lora(rank=2))
    state = state_to_save(adapted)
    for dropped in (0, 1):
        save_weights(adapted, dict(list(state.items())[dropped:]), tmp_path / str(dropped))
    plain = load_base(Backbone("own", str(model_folder)), None)[0]
    with_adapter(plain, tmp_path / "0")
    plain = load_base(Backbone("own", str(model_folder)), None)[0]
    with pytest.raises(ConfigError, match="the adapter is not whole"):
        with_adapter(plain, tmp_path / "1")


@pytest.mark.parametrize("base", [None, "", 7, "absent"])
def test_an_adapter_that_names_no_base_is_refused(tmp_path, base):
    config = {"auto_mapping": {"base_model_class": "LlamaBiDense"}, "peft_type": "LORA"}
    if base != "absent":
        config["base_model_name_or_path"] = base
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({}, tmp_path / "adapter_model.safetensors")
    words = "base_model_name_or_path is .*; it must name the adapter's base model"
    with pytest.raises(ConfigError, match=f"adapter_config.json: {words}"):
        weights_fingerprint(Backbone("own", str(tmp_path)))
    with pytest.raises(ConfigError, match=r"base_model_name_or_path|no retriever checkpoint"):
        find_retriever(str(tmp_path))


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {"a": "gone.safetensors"}}'])
def test_an_index_of_weights_that_is_none_or_names_what_is_not_there(copied, index):
    (copied / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match=r"no index of weights|lacks gone\.safetensors"):
        weights_fingerprint(Backbone("own", str(copied)))
