"""The cost model against the FLOPs that torch counts, and budgets into steps.

The counter sees dense products alone, so the sparse head's backward pass is counted where it forms its
sparse ones; on the meta device, which has no data to look for maxima in, the head is a bare product.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from raylab.experiment.config import (
    LORA_TARGETS,
    Adaptation,
    Backbone,
    FineTuning,
    Lora,
)
from raylab.experiment.grid import Cell
from raylab.experiment.heads import DENSE, HEADS, SPARSE
from raylab.experiment.objectives import CL
from raylab.models import sparse_head
from raylab.models.backbone import add_lora, hidden_states, output_weight
from raylab.models.heads import represent
from raylab.planning.flops import (
    ACTIVE_SHARE,
    Rows,
    Shape,
    adaptation_flops,
    encode_flops,
    fine_tuning_flops,
    score_flops,
    selected_tokens,
    train_flops,
)
from raylab.training.fine_tuning import FineTuningModule
from raylab.training.mntp import next_token_losses
from raylab.training.rungs import Rung

CONFIG = Rung("t", 3, 64, 4, 160).config(500)
# The eager form spells its attention products out, so that the counter sees them.
CONFIG._attn_implementation = "eager"
SHAPE = Shape.of(CONFIG)
ROWS = Rows(6, 40)
FREED = Lora(rank=4, dropout=0.0, train_embeddings=True)


def model(config=CONFIG):
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def for_training(network, lora, checkpointing):
    """As `raylab.jobs.workers` sets a model up."""
    network = add_lora(network, lora).train()
    if checkpointing:
        network.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        network.enable_input_require_grads()
    return network


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
            hidden = represent(DENSE, hidden, output_weight(network), mask)
        if backward:
            hidden.sum().backward()
    return counter.get_total_flops()


@pytest.fixture
def entries(monkeypatch) -> list[int]:
    """Entries of every sparse matrix that the sparse head's backward pass multiplies."""
    seen: list[int] = []
    make = sparse_head._csr

    def recorded(rows_E, *others):
        seen.append(len(rows_E))
        return make(rows_E, *others)

    monkeypatch.setattr(sparse_head, "_csr", recorded)
    return seen


# ----------------------------------------------------------------------------- a tiny model, executed


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_encoding_cost_is_what_torch_counts(head):
    with torch.no_grad():
        measured = counted(model(), head, backward=False)
    assert encode_flops(SHAPE, ROWS, HEADS[head]) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, FREED])
def test_training_cost_is_what_torch_counts(lora, checkpointing):
    network = add_lora(model(), lora).train()
    measured = counted(network, "dense", backward=True, checkpointing=checkpointing)
    assert train_flops(SHAPE, [ROWS], DENSE, lora, checkpointing) == pytest.approx(
        measured, rel=0.02
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("targets", "error"),
    [
        (LORA_TARGETS, 1e-6),
        (("o_proj", "up_proj"), 1e-6),
        (("gate_proj",), 1e-6),
        (("down_proj",), 1e-6),
        # The first layer's keys need no gradient; a fused attention has it with those of the others.
        (("q_proj", "v_proj"), 0.01),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, tuple) else "",
)
def test_nothing_is_counted_below_the_first_adapter(targets, error, checkpointing):
    """Frozen weights have no gradient, and what precedes every adapter has none either."""
    lora = Lora(rank=4, dropout=0.1, targets=targets)
    network = for_training(model(), lora, checkpointing)
    with FlopCounterMode(display=False) as counter:
        hidden_states(network, torch.zeros(6, 40).long(), torch.ones(6, 40)).sum().backward()
    own = train_flops(SHAPE, [ROWS], DENSE, lora, checkpointing)
    assert own == pytest.approx(counter.get_total_flops(), rel=error)


@pytest.mark.parametrize("top_k", [0, 9])
@pytest.mark.parametrize("head", ["sparse", "dense"])
@pytest.mark.parametrize("lora", [None, Lora(rank=4, dropout=0.0), FREED])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_fine_tuning_step_costs_what_torch_counts(lora, head, top_k, checkpointing, entries):
    """Padded blocks, a head that multiplies no padding, its sparse backward pass, and the scores."""
    tuning = FineTuning(
        batch_queries=4,
        negatives=2,
        lora=lora,
        checkpointing=checkpointing,
        top_k_query=top_k,
        top_k_passage=top_k,
    )
    own = Cell(Backbone("t", "nowhere"), HEADS[head], CL, tuning, 1.0)
    module = FineTuningModule(for_training(model(), lora, checkpointing), HEADS[head])
    texts = []
    for count, length, real in ((4, 16, 12), (12, 40, 31)):
        mask = torch.zeros(count, length, dtype=torch.bool)
        mask[:, :real] = True
        texts.append((torch.randint(500, (count, length)), mask, torch.full((count,), top_k)))
    with FlopCounterMode(display=False) as counter:
        queries_QD, passages_PD = module(*texts)
        (queries_QD @ passages_PD.T).sum().backward()
    measured = counter.get_total_flops() + sum(2 * 64 * found for found in entries)

    rows = [Rows(4, 16, 4 * 12), Rows(12, 40, 12 * 31)]
    if head == "dense" or top_k:
        assert fine_tuning_flops(own, SHAPE, rows) == pytest.approx(measured, rel=0.001)
    else:  # all that is active: more than is assumed in a model that has learnt nothing
        active = [(reps.count_nonzero() / len(reps)).item() for reps in (queries_QD, passages_PD)]
        exact = train_flops(SHAPE, rows, HEADS[head], lora, checkpointing, active) + score_flops(
            4, 12, 500
        )
        assert exact == pytest.approx(measured, rel=0.001)
        assert fine_tuning_flops(own, SHAPE, rows) == pytest.approx(measured, rel=0.02)


def test_without_top_k_a_stated_share_of_the_vocabulary_is_assumed():
    """A third of the vocabulary in the backward pass is below 1/3 of a token's logits forward."""
    rows = [Rows(1, 40)]
    none, assumed = (
        train_flops(SHAPE, rows, SPARSE, Lora(), False, active) for active in ([0.0], None)
    )
    assert assumed - none == pytest.approx(2 * 64 * 500 * ACTIVE_SHARE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [None, Lora(rank=4, dropout=0.05), FREED])
def test_an_mntp_step_costs_what_torch_counts(lora, tied, checkpointing):
    """Logits of 8 of 40 tokens a block; an untied vocabulary stays frozen beside freed embeddings."""
    config = Rung("t", 3, 64, 4, 160).config(500)
    config._attn_implementation = "eager"
    config.tie_word_embeddings = tied
    network = for_training(model(config), lora, checkpointing)
    ids = torch.randint(500, (5, 41))
    chosen = torch.zeros(5, 41, dtype=torch.bool)
    chosen[:, 1::5] = True
    with FlopCounterMode(display=False) as counter:
        losses, _ = next_token_losses(network, ids, ids, chosen)
        losses.sum().backward()
    adaptation = Adaptation(
        steps=7, batch_blocks=5, block_length=41, lora=lora, checkpointing=checkpointing
    )
    assert selected_tokens(adaptation) == chosen.sum()
    own = adaptation_flops(Shape.of(config), adaptation) / 7
    assert own == pytest.approx(counter.get_total_flops(), rel=0.001)


# ------------------------------------------------------------- the paper's models, on the meta device

# layers, hidden, intermediate, heads, key-value heads, head dimension, tied; non-embedding parameters
LLAMAS = {
    "1b": ((16, 2048, 8192, 32, 8, 64, True), 973_146_112),
    "3b": ((28, 3072, 8192, 24, 8, 128, True), 2_818_747_392),
    "8b": ((32, 4096, 14336, 32, 8, 128, False), 6_979_588_096),
}

SOME_LLAMAS = ["1b", pytest.param("3b", marks=pytest.mark.slow), "8b"]


def llama(size: str, attention: str = "eager") -> LlamaForCausalLM:
    """One of the paper's models without its weights."""
    layers, hidden, intermediate, heads, kv, head_dim, tied = LLAMAS[size][0]
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head_dim,
        vocab_size=128_256,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    config.is_causal = False
    config._attn_implementation = attention
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def states_on_meta(network, length: int = 128):
    """Last hidden states of 2 texts; no mask, as the library looks into one to see whether all is real."""
    decoder = network.get_base_model() if hasattr(network, "get_base_model") else network
    ids = torch.zeros(2, length, dtype=torch.long, device="meta")
    return decoder.model(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("size", LLAMAS)
@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_encoding_with_the_papers_models(size, head):
    network = llama(size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        states = states_on_meta(network)
        if head == "sparse":
            _ = states @ output_weight(network).T
    own = encode_flops(Shape.of(network.config), Rows(2, 128), HEADS[head])
    assert own == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize("size", SOME_LLAMAS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, Lora()], ids=["full", "lora"])
def test_training_the_papers_models(size, lora, checkpointing):
    """Both heads: the sparse one is a bare product, forward, as its backward pass is no dense product."""
    network = for_training(llama(size), lora, checkpointing).to("meta")
    shape = Shape.of(network.config)
    with FlopCounterMode(display=False) as blocks:
        states = states_on_meta(network)
        states.sum().backward()
    with FlopCounterMode(display=False) as projection:
        _ = states.detach() @ output_weight(network).detach().T
    measured = blocks.get_total_flops()
    rows = [Rows(2, 128)]
    assert train_flops(shape, rows, DENSE, lora, checkpointing) == pytest.approx(measured, rel=0.02)
    measured += projection.get_total_flops()
    assert train_flops(shape, rows, SPARSE, lora, checkpointing, [0.0]) == pytest.approx(
        measured, rel=0.02
    )
    # What the sparse backward pass adds at most, without Top-K.
    assert train_flops(shape, rows, SPARSE, lora, checkpointing) == pytest.approx(
        measured, rel=0.02
    )


@pytest.mark.long
@pytest.mark.parametrize("size", SOME_LLAMAS)
@pytest.mark.parametrize("lora", [None, Lora()], ids=["full", "lora"])
def test_mntp_with_the_papers_models(size, lora):
    """The recipe's blocks of 512, of which 102 tokens each are predicted."""
    network = for_training(llama(size), lora, checkpointing=True).to("meta")
    with FlopCounterMode(display=False) as counter:
        before = states_on_meta(network, 512)[:, :102].reshape(204, -1)
        (before @ output_weight(network).T).sum().backward()
    adaptation = Adaptation(steps=1, batch_blocks=2, lora=lora)
    assert adaptation_flops(Shape.of(network.config), adaptation) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


@pytest.mark.parametrize("size", LLAMAS)
def test_the_papers_three_models(size):
    """Non-embedding parameters of Llama-3.2-1B, 3.2-3B and 3-8B, by the library's own count."""
    network = llama(size)
    outside = {
        id(network.get_input_embeddings().weight),
        id(network.get_output_embeddings().weight),
    }
    assert (
        Shape.of(network.config).parameters
        == sum(p.numel() for p in network.parameters() if id(p) not in outside)
        == LLAMAS[size][1]
    )


def test_parameters_are_those_of_the_model():
    network = model()
    embeddings = network.get_input_embeddings().weight.numel()
    assert SHAPE.parameters == sum(p.numel() for p in network.parameters()) - embeddings
    assert SHAPE.embedding_parameters == embeddings
    lora = Lora(rank=4)
    trainable = sum(p.numel() for p in add_lora(network, lora).parameters() if p.requires_grad)
    assert SHAPE.lora_parameters(lora) == trainable


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [None, Lora(rank=4), FREED])
def test_the_optimizer_holds_what_is_trained(lora, tied):
    config = Rung("t", 3, 64, 4, 160).config(500)
    config.tie_word_embeddings = tied
    network = add_lora(model(config), lora)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    shape = Shape.of(config)
    assert shape.trainable_parameters(lora) == trained
    assert shape.trains_vocabulary(lora) == output_weight(network).requires_grad
