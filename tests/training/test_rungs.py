"""What a ladder is made of: the tokenizer's contract, the shapes, and how the weights start."""

import numpy as np
import pytest
import torch

from raylab.data.tokenizer import Tokenizer
from raylab.models.backbone import hidden_states
from raylab.training.rungs import (
    INITIAL_SPREAD,
    Rung,
    give_meaning,
    principal,
    start,
    token_meanings,
    train_tokenizer,
)

RUNG = Rung("tiny", layers=2, hidden=16, heads=2, intermediate=32)
WORDS = ["cell", "protein", "gene", "tumour", "virus", "mouse", "patient", "drug", "dose", "heart"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 4, 290)


def test_the_tokenizer_keeps_the_contract(tokenizer, tmp_path):
    """Padding is id 0, `_` (which MNTP masks with) is one token, nothing is added to a text."""
    assert len(tokenizer) == 290
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.pad_token_id == 0
    assert tokenizer.convert_tokens_to_ids("_") not in (None, tokenizer.unk_token_id)
    plain = tokenizer.backend_tokenizer.encode("cell gene", add_special_tokens=False).ids
    assert tokenizer("cell gene")["input_ids"] == plain
    tokenizer.save_pretrained(str(tmp_path))
    ours = Tokenizer(str(tmp_path))
    assert ours.pad_id == 0
    assert ours.tokens([ours.mask_id]) == ["_"]


def test_case_is_ignored_and_any_text_has_tokens(tokenizer):
    assert tokenizer("Cell GENE")["input_ids"] == tokenizer("cell gene")["input_ids"]
    strange = "\u017ftrange 細胞 🧬"  # never seen in training: bytes
    ids = tokenizer(strange)["input_ids"]
    assert 0 not in ids
    assert tokenizer.decode(ids).strip() == "strange 細胞 🧬"  # NFKC makes the long s short


def test_the_configuration_is_a_tied_bidirectional_llama_of_its_size():
    config = RUNG.config(320)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (2, 16, 320)
    assert config.tie_word_embeddings
    assert config.is_causal is False
    assert config.bos_token_id is None
    assert config.pad_token_id == 0


def states(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        row = torch.tensor([ids])
        return hidden_states(model, row, torch.ones_like(row))[0]


def test_without_residual_outputs_a_state_is_its_tokens_embedding():
    model = start(RUNG, 50, seed=1, residual_scale=0.0)
    embeddings = model.get_input_embeddings().weight.detach()[[3, 7, 3]]
    expected = embeddings / embeddings.square().mean(1, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(states(model, [3, 7, 3]), expected)


def test_the_scale_is_of_what_the_blocks_add():
    """The first layer's addition grows with the scale; the same seed gives the same other weights."""
    one = Rung("one", layers=1, hidden=16, heads=2, intermediate=32)
    whole, half = (start(one, 50, seed=1, residual_scale=s) for s in (1.0, 0.5))
    for (name, a), (_, b) in zip(whole.named_parameters(), half.named_parameters(), strict=True):
        factor = 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        torch.testing.assert_close(b, factor * a, msg=name)


def planted(count=4_000, vocabulary=30, width=8):
    """Texts, and a teacher that is the mean of their tokens' true meanings."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(vocabulary, width)).astype(np.float32)
    true[:5] = 0.0  # words that say nothing
    ids = [rng.integers(0, vocabulary, int(rng.integers(3, 9))) for _ in range(count)]
    return true, ids, np.stack([true[text].mean(0) for text in ids])


def test_meanings_are_found_again():
    true, ids, taught = planted()
    found = token_meanings(ids, taught, 30)
    lengths = np.linalg.norm(found, axis=1)
    assert lengths[:5].max() < 0.25 * lengths[5:].min()
    cosines = (found[5:] * true[5:]).sum(1) / lengths[5:] / np.linalg.norm(true[5:], axis=1)
    assert cosines.min() > 0.95


def test_meanings_are_a_ridge_regression():
    """Against numpy's least squares on rows that hold the penalty."""
    _, ids, taught = planted(count=40)
    shares = np.stack([np.bincount(text, minlength=30) / len(text) for text in ids])
    ridge = np.trace(shares.T @ shares) / 30
    rows = np.vstack([shares, np.sqrt(ridge) * np.eye(30)])
    expected = np.linalg.lstsq(rows, np.vstack([taught, np.zeros((30, 8))]), rcond=None)[0]
    np.testing.assert_allclose(token_meanings(ids, taught, 30), expected, atol=1e-5)


def test_principal_directions_hold_the_most():
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(500, 6)) * [1, 5, 0.1, 3, 0.1, 0.1]).astype(np.float32)
    directions = principal(rows, 2)
    assert directions.shape == (6, 2)
    np.testing.assert_allclose(np.abs(directions[[1, 3], [0, 1]]), 1, atol=0.05)
    assert principal(rows, 10).shape == (6, 6)


def test_tokens_begin_with_their_meaning_and_keep_their_length():
    true, ids, taught = planted()
    meanings = token_meanings(ids, taught, 30)
    model = start(RUNG, 30, seed=0, residual_scale=0.0)
    before = model.get_input_embeddings().weight.detach().clone()
    give_meaning(model, meanings, taught, 5.0)
    after = model.get_input_embeddings().weight.detach()
    lengths = after.norm(dim=1)[1:]
    torch.testing.assert_close(lengths, torch.full((29,), INITIAL_SPREAD * 4.0))
    cosines = torch.cosine_similarity(before, after, dim=1)
    # What says nothing mostly keeps its own direction; padding, the first, has none.
    assert cosines[1:5].min() > 0.6 > cosines[5:].mean()
    normed = after / after.norm(dim=1, keepdim=True)
    unit = true[5:] / np.linalg.norm(true[5:], axis=1, keepdims=True)
    similar = np.corrcoef((unit @ unit.T).ravel(), (normed[5:] @ normed[5:].T).numpy().ravel())
    assert similar[0, 1] > 0.9
    give_meaning(model, meanings, taught, 0.0)
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), after)
