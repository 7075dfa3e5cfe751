"""Making a ladder: the tokenizer's contract, models that other tools load, crops from inside a passage."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Backbone
from raylab.models.backbone import load_backbone
from raylab.planning.flops import Shape
from raylab.training.distributed import ensure_process_group
from raylab.training.mntp import next_token_losses
from raylab.training.pretraining import CropTask, Pretraining, Rung, pretrain, train_tokenizer

RUNG = Rung("tiny", layers=2, hidden=16, heads=2, intermediate=32)
CONFIG = Pretraining(steps=2, batch=3, shortest_crop=4, longest_crop=8, passage_crop=12)
WORDS = ["cell", "protein", "gene", "tumour", "virus", "mouse", "patient", "drug", "dose", "heart"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 4, 290)


# ---------------------------------------------------------------------------------- tokenizer


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


# -------------------------------------------------------------------------------------- crops


MASK = 9_999


class Recorder:
    """Stands in for the engine: keeps what it is given, the crops without their padding."""

    def __init__(self):
        self.short: list[np.ndarray] = []
        self.long: list[np.ndarray] = []
        self.masked: list[tuple[np.ndarray, ...]] = []  # inputs, targets, selected, visible

    def backward(self, loss):
        """Nothing is trained."""

    def __call__(self, short, long, inputs, selected, visible):
        for kept, (ids, mask) in ((self.short, short), (self.long, long)):
            kept += [row[own].numpy() for row, own in zip(ids, mask, strict=True)]
        self.masked.append(tuple(t.numpy() for t in (inputs, long[0], selected, visible)))
        return torch.zeros(())


def crops(passages: list[np.ndarray], config: Pretraining) -> Recorder:
    shape = Shape.of(RUNG.config(10_000))
    task = CropTask(None, shape, passages, config, MASK)  # type: ignore[arg-type]
    engine = Recorder()
    for step in range(config.steps):
        task.backward(engine, step)
    return engine


# Every token is its passage times 100 plus its place, so that a crop shows where it comes from.
PASSAGES = [np.arange(100 * i, 100 * i + n) for i, n in ((1, 16), (2, 40), (3, 90), (4, 17))]


def test_crops_are_pieces_of_one_passage_within_their_lengths():
    config = dataclasses.replace(CONFIG, steps=60, batch=4)
    seen = crops(PASSAGES, config)
    for short, long in zip(seen.short, seen.long, strict=True):
        for crop in (short, long):
            assert (np.diff(crop) == 1).all()  # contiguous, in order
            own = PASSAGES[crop[0] // 100 - 1]
            assert crop[-1] in own
        assert short[0] // 100 == long[0] // 100  # a pair is of one passage
        assert 4 <= len(short) <= 8
        assert len(long) == 12
    assert {len(crop) for crop in seen.short} == {4, 5, 6, 7, 8}
    # Pairs differ: the crops are drawn apart.
    assert len({(s[0], long[0]) for s, long in zip(seen.short, seen.long, strict=True)}) > 100


def test_every_passage_is_seen_once_an_epoch_in_an_order_of_its_own():
    seen = crops(PASSAGES, dataclasses.replace(CONFIG, steps=6, batch=4))
    order = [int(crop[0]) // 100 for crop in seen.short]
    epochs = [order[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(epoch) == [1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_only_selected_tokens_are_hidden_and_never_the_first():
    """MNTP predicts a token from the state before it: the first has none."""
    seen = crops(PASSAGES, dataclasses.replace(CONFIG, steps=200, batch=4))
    inputs, targets, selected, visible = (
        np.concatenate(part) for part in zip(*seen.masked, strict=True)
    )
    assert (inputs[~selected] == targets[~selected]).all()
    assert not selected[:, 0].any()
    assert not (selected & visible).any()  # what is shown is not asked for as hidden
    assert (inputs == MASK).sum() / selected.sum() == pytest.approx(0.8, abs=0.05)  # BERT's 80 %
    assert selected[:, 1:].mean() == pytest.approx(0.2, abs=0.02)
    assert visible[:, 1:].mean() == pytest.approx(0.8 * 0.1, abs=0.02)


def test_the_seed_decides_the_crops():
    first, again, other = (
        [c.tolist() for c in crops(PASSAGES, dataclasses.replace(CONFIG, seed=seed)).short]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


# ----------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """A rung after two steps: (folder, lines said, final progress)."""
    folder = tmp_path_factory.mktemp("ladder") / "tiny"
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 30)) for _ in range(7)] + ["cell gene"]  # too short to crop
    said: list[str] = []
    done = pretrain(RUNG, tokenizer, texts, CONFIG, folder, "tests", "make it", said.append)
    return folder, said, done


def test_the_folder_is_a_model_that_other_tools_load(made, tokenizer):
    folder, _, _ = made
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.is_causal is False
    assert model.config.vocab_size == len(tokenizer)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    again = AutoTokenizer.from_pretrained(str(folder))
    assert again("A cell_gene")["input_ids"] == tokenizer("A cell_gene")["input_ids"]
    assert again.pad_token_id == 0
    load_backbone(Backbone("tiny", str(folder)), str(folder))  # probes attention both ways


def test_training_changed_the_weights_and_kept_them_finite(made, tokenizer):
    folder, _, done = made
    torch.manual_seed(CONFIG.seed)
    fresh = AutoModelForCausalLM.from_config(RUNG.config(len(tokenizer)))
    trained = AutoModelForCausalLM.from_pretrained(str(folder)).float()  # shipped in float16
    pairs = zip(fresh.named_parameters(), trained.named_parameters(), strict=True)
    for (name, before), (_, after) in pairs:
        assert torch.isfinite(after).all(), name
        assert not torch.equal(before, after), name
        assert torch.allclose(before, after, atol=0.1), name  # same start, two small steps
    assert (done.step, done.steps) == (2, 2)
    # Guessing evenly costs ln 290 for a hidden token, half of that for a visible one, ln 3 for a pair.
    assert 0 < done.loss < 1.5 * np.log(290) + np.log(3) + 2


def test_the_card_says_what_it_was_made_from_and_how(made):
    folder, said, done = made
    card = (folder / "README.md").read_text()
    assert "# tiny" in card
    assert "`make it`" in card
    assert "7 abstracts" in card  # the short one gives no crops
    assert f"{done.loss:.3f}" in card
    assert '"steps": 2' in card
    assert "license:" in card
    assert any(line.startswith("step 2/2  loss") for line in said)


def test_held_out_passages_are_measured_and_not_trained_on(tokenizer, tmp_path, monkeypatch):
    ensure_process_group()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 30)) for _ in range(9)]
    config = dataclasses.replace(CONFIG, held_out=4, steps=30, learning_rate=1e-2)
    tasks = []
    monkeypatch.setattr(
        "raylab.training.pretraining.CropTask",
        lambda *parts: tasks.append(CropTask(*parts)) or tasks[0],
    )
    pretrain(RUNG, tokenizer, texts, config, tmp_path / "m", "tests", "make it", str)
    (task,) = tasks
    encoded = sorted(ids for ids in tokenizer(texts)["input_ids"])
    assert sorted(text.tolist() for text in [*task.passages, *task.held_out]) == encoded
    assert len(task.held_out) == 4
    (line,) = re.findall(
        r"MNTP on 4 held-out passages \| loss ([\d.]+) \(before: ([\d.]+)\), "
        r"accuracy ([\d.]+) \(before: ([\d.]+)\)",
        (tmp_path / "m" / "README.md").read_text(),
    )
    loss, before, accuracy, _ = map(float, line)
    assert loss < before
    # One token at a time, in float64; masked as the task masks them.
    seen = []
    monkeypatch.setattr(
        "raylab.training.pretraining.next_token_losses",
        lambda model, *arrays: seen.append(arrays) or next_token_losses(model, *arrays),
    )
    model = task.module.model
    measured = task.evaluate(model).values
    total, right, count = 0.0, 0, 0
    for inputs, truth, selected in seen:
        for row, ids, chosen in zip(inputs, truth, selected, strict=True):
            with torch.no_grad():
                logits = model(row[None]).logits[0].double().numpy()
            for i in range(1, len(row)):
                if chosen[i]:
                    total += np.log(np.exp(logits[i - 1]).sum()) - logits[i - 1][ids[i]]
                    right += int(logits[i - 1].argmax() == ids[i])
                    count += 1
    assert measured["held_out_loss"] == pytest.approx(total / count, rel=1e-5)
    assert measured["held_out_accuracy"] == right / count
    assert loss == pytest.approx(total / count, abs=6e-4)  # three digits in the card
    assert accuracy == pytest.approx(right / count, abs=6e-4)
