"""Decoders of other families, attention implementations and file formats: bidirectional, the same numbers."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from raylab.experiment.config import Backbone, ConfigError, Encoding, Lora
from raylab.experiment.heads import HEADS
from raylab.models.backbone import (
    add_lora,
    final_norm,
    hidden_states,
    load_backbone,
    output_weight,
    scaled_norm_weight,
)
from raylab.models.checkpoint import save_retriever
from raylab.models.hub import load_base, state_to_save
from raylab.models.retriever import Retriever

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "smollm3")
_SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODING = Encoding(query_length=16, passage_length=40, top_k_query=0, top_k_passage=0)
TEXTS = ["cell gene protein " * 5, "the risk of cancer", "immune"]


@pytest.fixture(scope="module")
def folders(model_folder, tmp_path_factory):
    """A hub folder of a random model of each family, causal as its family is."""
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("families") / family
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **_SIZES))
        with torch.no_grad():  # random norms: folding must not rely on a weight of one
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.add_(torch.rand_like(weight) * 0.3)
        model.save_pretrained(str(folder))
        AutoTokenizer.from_pretrained(str(model_folder)).save_pretrained(str(folder))
        made[family] = str(folder)
    return made


def first_states(model, ids, mask=None):
    ids = torch.tensor([ids])
    with torch.no_grad():
        return hidden_states(
            model, ids, torch.ones_like(ids) if mask is None else torch.tensor([mask])
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_looks_both_ways_and_ignores_padding(folders, family):
    model = load_backbone(Backbone(family, folders[family]), folders[family])
    alone = first_states(model, [5, 6, 7])
    assert not torch.allclose(alone[0, 0], first_states(model, [5, 6, 8])[0, 0])
    right = first_states(model, [5, 6, 7, 9, 9], [1, 1, 1, 0, 0])
    left = first_states(model, [9, 9, 5, 6, 7], [0, 0, 1, 1, 1])
    torch.testing.assert_close(right[:, :3], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(left[:, 2:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["sparse", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_saves_and_loads_under_both_heads(folders, family, head, tmp_path):
    """The sparse head's scale goes into norms whose weight is a factor, and into Gemma's one plus weight."""
    backbone = Backbone(family, folders[family])
    model, tokenizer = load_base(backbone, None)
    model = add_lora(model, Lora(rank=2, dropout=0.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    expected = Retriever(model, tokenizer, HEADS[head], ENCODING).encode_passages(TEXTS)
    facts = {"name": "x"}
    save_retriever(
        tmp_path, model, state_to_save(model), tokenizer, backbone, HEADS[head], ENCODING, facts
    )
    found = Retriever.load(tmp_path).encode_passages(TEXTS)
    if head == "sparse":
        found, expected = found.toarray(), expected.toarray()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", None),
        ("qwen3", None),
        ("gemma2", None),
        # Compiled for half a minute.
        pytest.param("llama", "flex_attention", marks=pytest.mark.slow),
    ],
)
def test_attention_implementations_agree(folders, family, attention):
    """eager is the reference; Gemma 2 caps its scores, which sdpa does not know, and is refused it."""
    ids, mask = [5, 6, 7, 9, 9], [1, 1, 1, 0, 0]
    backbone = Backbone(family, folders[family])
    reference = first_states(load_backbone(backbone, folders[family], attention="eager"), ids, mask)
    model = load_backbone(backbone, folders[family], attention=attention)
    found = first_states(model, ids, mask)
    torch.testing.assert_close(found[:, :3], reference[:, :3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_norm_takes_the_scale(folders, family):
    model = load_backbone(Backbone(family, folders[family]), folders[family])
    norm, states = final_norm(model), torch.randn(3, 32)
    before = norm(states)
    with torch.no_grad():
        norm.weight.copy_(scaled_norm_weight(norm, 0.42))
    torch.testing.assert_close(norm(states), before * 0.42)


def test_an_lm_head_that_is_more_than_a_product_is_refused(folders, tmp_path):
    """Granite divides its logits: the sparse head would not be the model's own."""
    config = AutoConfig.for_model("granite", **_SIZES, logits_scaling=4.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="not its last states times its LM head"):
        load_backbone(Backbone("granite", str(tmp_path)), str(tmp_path))


# ---------------------------------------------------------------------------------------- GGUF


def write_gguf(model, tokenizer, path) -> None:
    """A Llama in llama.cpp's format: its names, its order of query and key rows, its tokenizer's parts."""
    gguf = pytest.importorskip("gguf")
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    by_id = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(by_id)
    writer.add_token_types([1] * len(by_id))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for add in (writer.add_pad_token_id, writer.add_bos_token_id, writer.add_eos_token_id):
        add(0)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    heads = config.num_attention_heads
    for name, tensor in state.items():
        if name == "lm_head.weight":
            continue
        array = tensor.numpy()
        if ".q_proj" in name or ".k_proj" in name:
            rows, columns = array.shape
            halves = array.reshape(heads, 2, rows // heads // 2, columns)
            array = halves.swapaxes(1, 2).reshape(rows, columns)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_folder_gives_the_states_of_its_safetensors(model_folder, tmp_path):
    stock = AutoModelForCausalLM.from_pretrained(str(model_folder))
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    write_gguf(stock, tokenizer, tmp_path / "tiny.gguf")
    model, own = load_base(Backbone("tiny", str(tmp_path)), None)
    assert own.vocabulary == 400  # its tokenizer has gained a token that the embeddings lack
    expected = load_backbone(Backbone("tiny", str(model_folder)), str(model_folder))
    torch.testing.assert_close(
        first_states(model, [5, 6, 7]), first_states(expected, [5, 6, 7]), atol=1e-5, rtol=0
    )
    assert torch.equal(output_weight(model), output_weight(expected))
