"""The cost model against the FLOPs that torch counts, and budgets into steps."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from raylab.budget import (
    DEVICES,
    Rows,
    Shape,
    device_hours,
    encode_flops,
    passages_per_query,
    planned_steps,
    train_flops,
)
from raylab.config import Backbone, Cell, ConfigError, FineTuning, Lora
from raylab.models.backbone import add_lora, hidden_states, output_weight
from raylab.models.heads import represent
from raylab.pretraining import Rung

CONFIG = Rung("t", 3, 64, 4, 160).config(500)
# The eager form spells its attention products out, so that the counter sees them.
CONFIG._attn_implementation = "eager"
SHAPE = Shape.of(CONFIG)
ROWS = Rows(6, 40)


def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG)


def counted(network, head, backward, checkpointing=False):
    if checkpointing:
        network.train()
        network.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    ids = torch.randint(500, (6, 40))
    mask = torch.ones(6, 40, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        hidden = hidden_states(network, ids, mask)
        if head == "sparse":  # the bare projection: the counter does not see sparse products
            hidden = hidden @ output_weight(network).T.detach()
        elif head == "dense":
            hidden = represent("dense", hidden, output_weight(network), mask)
        if backward:
            hidden.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_encoding_cost_is_what_torch_counts(head):
    with torch.no_grad():
        measured = counted(model(), head, backward=False)
    assert encode_flops(SHAPE, ROWS, head) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, Lora(rank=4, dropout=0.0, train_embeddings=True)])
def test_training_cost_is_what_torch_counts(lora, checkpointing):
    network = add_lora(model(), lora).train()
    measured = counted(network, "dense", backward=True, checkpointing=checkpointing)
    assert train_flops(SHAPE, [ROWS], "dense", lora, checkpointing) == pytest.approx(
        measured, rel=0.02
    )


def test_parameters_are_those_of_the_model():
    network = model()
    embeddings = network.get_input_embeddings().weight.numel()
    assert SHAPE.parameters == sum(p.numel() for p in network.parameters()) - embeddings
    assert SHAPE.embedding_parameters == embeddings
    lora = Lora(rank=4)
    trainable = sum(p.numel() for p in add_lora(network, lora).parameters() if p.requires_grad)
    assert SHAPE.lora_parameters(lora) == trainable


@pytest.mark.parametrize(
    ("layers", "hidden", "intermediate", "heads", "kv", "parameters"),
    [
        (16, 2048, 8192, 32, 8, 973_146_112),
        (28, 3072, 8192, 24, 8, 2_818_747_392),
        (32, 4096, 14336, 32, 8, 6_979_588_096),
    ],
)
def test_the_papers_three_models(layers, hidden, intermediate, heads, kv, parameters):
    """Non-embedding parameters of Llama-3.2-1B, 3.2-3B and 3-8B, by the library's own count on the meta device."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=128 if hidden > 2048 else 64,
        vocab_size=128_256,
        tie_word_embeddings=hidden < 4096,
    )
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    own = Shape.of(config)
    outside = {
        id(network.get_input_embeddings().weight),
        id(network.get_output_embeddings().weight),
    }
    assert (
        own.parameters
        == sum(p.numel() for p in network.parameters() if id(p) not in outside)
        == parameters
    )


def cell(budget: float, objective="cl") -> Cell:
    tuning = FineTuning(batch_queries=4, negatives=3, checkpointing=False)
    return Cell(Backbone("t", "nowhere"), "sparse", objective, tuning, budget)


def test_a_budget_becomes_the_nearest_number_of_steps():
    for budget, steps in ((7.4, 7), (7.6, 8), (0.51, 1), (1000.49, 1000)):
        assert planned_steps(cell(budget * 1e9), 1e9, 0) == steps
        assert abs(steps - budget) <= 0.5


def test_a_budget_too_small_for_half_a_step_is_refused():
    with pytest.raises(
        ConfigError, match=r"too small for sparse-t-cl-seed0: one step costs 1e\+09 FLOPs"
    ):
        planned_steps(cell(0.49e9), 1e9, 0)


def test_epochs_become_steps_over_the_training_queries():
    """4 queries a step; where 1 of them is a title, an epoch takes 3 a step."""
    epochs = dataclasses.replace(cell(1.0), budget_flops=0.0, epochs=2.5)
    assert planned_steps(epochs, 1e9, 100) == 62
    assert planned_steps(epochs, 1e15, 1) == 1
    tuning = dataclasses.replace(epochs.fine_tuning, pseudo_fraction=0.25)
    assert planned_steps(dataclasses.replace(epochs, fine_tuning=tuning), 1e9, 100) == 83


def test_mntp_that_is_charged_is_paid_first():
    charged = dataclasses.replace(cell(10e9), charged_adaptation=True)
    assert planned_steps(charged, 1e9, 0, adaptation_flops=4e9) == 6
    assert planned_steps(cell(10e9), 1e9, 0, adaptation_flops=4e9) == 10
    with pytest.raises(
        ConfigError, match=r"1e\+10 FLOPs, of which MNTP is paid first, is too small"
    ):
        planned_steps(charged, 1e9, 0, adaptation_flops=9.6e9)


def test_margin_mse_encodes_two_passages_a_query():
    assert passages_per_query(cell(1.0)) == 4
    assert passages_per_query(cell(1.0, "kd")) == 2


def test_hours_follow_from_peak_and_efficiency():
    assert device_hours(DEVICES["h100"].peak_flops * 0.4 * 3600, DEVICES["h100"]) == pytest.approx(
        1.0
    )
