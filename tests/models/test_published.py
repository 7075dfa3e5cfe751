"""Folders in the format of the paper's authors load, and encode by the paper's formulas.

The folders are made here as their training and their converter write them: a peft adapter whose base
class is `LlamaBiForMNTP` (sparse) or `LlamaBiModel` (dense), keys with or without the LM's level.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylab.experiment.config import ConfigError
from raylab.experiment.heads import HEADS
from raylab.models.retriever import Retriever

BASE_ID = "meta-llama/Llama-3.2-1B"
RANK, ALPHA = 4, 8
PROJECTIONS = [f"self_attn.{n}_proj" for n in "qkvo"] + [
    f"mlp.{n}_proj" for n in ("gate", "up", "down")
]
CLASSES = {"sparse": "LlamaBiForMNTP", "dense": "LlamaBiModel"}
PREFIXES = {"sparse": "base_model.model.model.layers", "dense": "base_model.model.layers"}
TEXTS = ["cell gene protein tumour", "the risk of cancer", "immune"]


@pytest.fixture(scope="module")
def models_dir(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(model_folder, folder / "Llama-3.2-1B")
    return folder


def deltas(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) of every adapted projection, by its place below the decoder."""
    generator = torch.Generator().manual_seed(4)
    made = {}
    for layer in range(model.config.num_hidden_layers):
        for projection in PROJECTIONS:
            place = f"{layer}.{projection}"
            weight = model.get_submodule(f"model.layers.{place}").weight
            a = torch.randn(RANK, weight.shape[1], generator=generator) * 0.1
            b = torch.randn(weight.shape[0], RANK, generator=generator) * 0.1
            made[place] = (a, b)
    return made


def write(folder, head, model_folder, base=BASE_ID, binary=False):
    """An adapter folder as the authors publish it."""
    folder.mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(str(model_folder))
    state = {}
    for place, (a, b) in deltas(model).items():
        state[f"{PREFIXES[head]}.{place}.lora_A.weight"] = a
        state[f"{PREFIXES[head]}.{place}.lora_B.weight"] = b
    parent = "scaling_retriever.modeling.bidirectional_llama"
    config = {
        "auto_mapping": {"base_model_class": CLASSES[head], "parent_library": parent},
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": [p.rpartition(".")[2] for p in PROJECTIONS],
        "task_type": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if binary:
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(str(model_folder)).save_pretrained(str(folder))
    return folder


def by_the_paper(model_folder, head, text) -> np.ndarray:
    """The formulas of 2502.15526 on the stock model, its projections changed by hand, in float64."""
    model = AutoModelForCausalLM.from_pretrained(str(model_folder)).double().eval()
    with torch.no_grad():
        for place, (a, b) in deltas(model).items():
            weight = model.get_submodule(f"model.layers.{place}").weight
            weight += (ALPHA / RANK) * b.double() @ a.double()
        ids = AutoTokenizer.from_pretrained(str(model_folder))(text, return_tensors="pt")
        states = model.model(ids["input_ids"]).last_hidden_state[0]
        if head == "dense":
            return (states / states.norm(dim=1, keepdim=True)).mean(0).numpy()
        logits = states @ model.lm_head.weight.T * states.shape[1] ** -0.25
        return torch.log1p(torch.relu(logits.max(0).values)).numpy()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_it_encodes_by_the_papers_formulas(model_folder, models_dir, tmp_path, head, binary):
    folder = write(tmp_path / "lion", head, model_folder, binary=binary)
    retriever = Retriever.load(folder, models_dir=str(models_dir))
    assert retriever.head == HEADS[head]
    found = retriever.encode_passages(TEXTS)
    found = found if isinstance(found, np.ndarray) else found.toarray()
    expected = np.stack([by_the_paper(model_folder, head, text) for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    untouched = AutoModelForCausalLM.from_pretrained(str(model_folder))
    assert not torch.equal(
        untouched.model.layers[0].mlp.up_proj.weight,
        retriever.model.model.layers[0].mlp.up_proj.weight,
    )


def test_a_base_folder_of_another_machine_is_named(model_folder, tmp_path):
    """The authors' repository has such an adapter (its issue 3)."""
    folder = write(tmp_path / "lion", "sparse", model_folder, base="/gypsum/work1/llama")
    with pytest.raises(ConfigError, match="'/gypsum/work1/llama' is a folder of another machine"):
        Retriever.load(folder)


def test_a_base_folder_of_another_machine_is_found_among_the_models(
    model_folder, models_dir, tmp_path
):
    folder = write(tmp_path / "lion", "dense", model_folder, base="/gypsum/work1/Llama-3.2-1B")
    assert Retriever.load(folder, models_dir=str(models_dir)).encode_queries(TEXTS).shape == (3, 32)


def test_tensors_that_do_not_fit_are_refused(model_folder, models_dir, tmp_path):
    """peft itself loads nothing from them and says nothing."""
    folder = write(tmp_path / "lion", "sparse", model_folder)
    save_file(
        {f"{PREFIXES['sparse']}.7.mlp.up_proj.lora_A.weight": torch.zeros(RANK, 32)},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(ConfigError, match="the adapter does not fit"):
        Retriever.load(folder, models_dir=str(models_dir))
