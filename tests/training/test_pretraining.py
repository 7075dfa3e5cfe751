"""Pre-training a rung: the same data for all, rates by width, a stopped run that goes on, a card that tells."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylab.data.records import Passage
from raylab.experiment.config import Backbone, ConfigError
from raylab.models.backbone import load_backbone
from raylab.training.distributed import ensure_process_group
from raylab.training.engine import make_engine
from raylab.training.excerpts import Excerpts, cut
from raylab.training.ladder_card import Provenance, card
from raylab.training.pretraining import (
    FolderReporter,
    Lessons,
    Pretraining,
    TaughtTask,
    beginning,
    pretrain,
)
from raylab.training.rungs import Rung, train_tokenizer
from raylab.training.teaching import MaskedTokens

RUNG = Rung("tiny", layers=1, hidden=16, heads=2, intermediate=32)
WORDS = ["cell", "protein", "gene", "tumour", "virus", "mouse", "patient", "drug", "dose", "heart"]
EXCERPTS = Excerpts(short=2, shortest=2, longest=4, long=1, long_shortest=6, long_longest=9)
CONFIG = Pretraining(steps=12, batch=5, held_out=6, limit=20, learning_rate=3e-3, meaning_share=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 4, 290)


@pytest.fixture(scope="module")
def lessons(tokenizer):
    """Documents of three words each; the teacher says which words a text holds."""
    rng = np.random.default_rng(0)
    documents = [
        Passage(0, f"d{i}", "", " ".join(rng.choice(rng.choice(WORDS, 3), 30))) for i in range(26)
    ]
    texts = cut(documents, EXCERPTS)
    held = [[text.split().count(word) for word in WORDS] for text in texts.texts]
    taught = np.array(held, np.float32)
    taught /= np.linalg.norm(taught, axis=1, keepdims=True)
    return Lessons.of(texts, taught.astype(np.float16), tokenizer, CONFIG.limit)


def task_of(lessons, config, documents=None) -> TaughtTask:
    train, held_out = lessons.split(config.held_out, config.seed)
    documents = train if documents is None else documents
    return TaughtTask(None, None, lessons, config, 95, documents, held_out)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------- batches


def owners(lessons, part) -> list[int]:
    """The document of each row of a batch, by its tokens."""
    texts = lessons.texts
    by_tokens = {}
    for document in range(len(texts)):
        for place in [*texts.short_NS[document], *texts.long_NL[document]]:
            by_tokens.setdefault(tuple(lessons.ids[place]), document)
    ids, mask = part
    return [by_tokens[tuple(row[own].tolist())] for row, own in zip(ids, mask.bool(), strict=True)]


def test_every_document_is_seen_once_an_epoch_in_an_order_of_its_own(lessons):
    task = task_of(lessons, dataclasses.replace(CONFIG, batch=4))
    assert len(task.documents) == 20
    epochs = [
        np.concatenate([task._documents(step) for step in range(5 * e, 5 * e + 5)])
        for e in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == sorted(task.documents)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_step_that_spans_two_epochs_takes_the_end_of_one_and_the_beginning_of_the_next(lessons):
    by_4, by_5 = (task_of(lessons, dataclasses.replace(CONFIG, batch=size)) for size in (4, 8))
    joined = np.concatenate([by_4._documents(step) for step in range(10)])
    np.testing.assert_array_equal(joined, np.concatenate([by_5._documents(s) for s in range(5)]))


def test_rows_of_a_batch_are_of_one_document_with_the_teachers_embeddings(lessons):
    task = task_of(lessons, CONFIG)
    for step in range(6):
        batch = task.batch(step)
        documents = task._documents(step)
        np.testing.assert_array_equal(owners(lessons, batch.long), documents)
        for document, ids, mask, taught in zip(
            documents, *batch.short, batch.taught[0], strict=True
        ):
            places = lessons.texts.short_NS[document]
            same = [p for p in places if lessons.ids[p].tolist() == ids[mask.bool()].tolist()]
            assert any(np.allclose(lessons.taught_NT[p], taught.numpy(), atol=2e-3) for p in same)
        torch.testing.assert_close(batch.taught[1].norm(dim=1), torch.ones(5))


def test_batches_follow_from_seed_and_step(lessons):
    first, again, other = (
        task_of(lessons, dataclasses.replace(CONFIG, seed=seed)).batch(3) for seed in (1, 1, 2)
    )
    assert torch.equal(first.long[0], again.long[0])
    assert first.long[0].tolist() != other.long[0].tolist()


def test_held_out_documents_are_disjoint_and_the_same_for_all(lessons):
    train, held_out = lessons.split(6, 0)
    assert sorted([*train, *held_out]) == list(range(26))
    np.testing.assert_array_equal(lessons.split(6, 0)[1], held_out)
    with pytest.raises(ConfigError, match="held_out"):
        lessons.split(26, 0)


def test_only_real_tokens_are_masked_and_never_the_first(lessons, tokenizer):
    config = dataclasses.replace(CONFIG, losses=(MaskedTokens(),), batch=10)
    task = task_of(lessons, config)
    task.shape = type("", (), {"vocabulary": len(tokenizer)})()
    selected = visible = real = hidden = 0
    for step in range(60):
        batch = task.batch(step)
        masked, mask = batch.masked, batch.long[1].bool()
        assert masked is not None
        assert torch.equal(masked.targets_BL, batch.long[0])
        assert torch.equal(
            masked.inputs_BL[~masked.selected_BL], batch.long[0][~masked.selected_BL]
        )
        assert not masked.selected_BL[:, 0].any()
        assert not (masked.selected_BL & masked.visible_BL).any()
        assert not ((masked.selected_BL | masked.visible_BL) & ~mask).any()
        selected += int(masked.selected_BL.sum())
        visible += int(masked.visible_BL[:, 1:].sum())
        real += int(mask[:, 1:].sum())
        hidden += int((masked.inputs_BL == 95)[masked.selected_BL].sum())
    assert selected / real == pytest.approx(0.2, abs=0.02)
    assert visible / real == pytest.approx(0.8 * 0.1, abs=0.02)
    assert hidden / selected == pytest.approx(0.8, abs=0.05)  # BERT's 80 %


# ----------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def made(tokenizer, lessons, tmp_path_factory):
    """A rung after its steps: (folder, lines said, what came of it)."""
    folder = tmp_path_factory.mktemp("ladder")
    said: list[str] = []
    trained = pretrain(RUNG, tokenizer, lessons, CONFIG, folder / "tiny", folder / "w", said.append)
    return folder / "tiny", said, trained


def test_the_folder_is_a_model_that_other_tools_load(made, tokenizer):
    folder, said, _ = made
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.is_causal is False
    assert model.lm_head.weight is model.model.embed_tokens.weight
    again = AutoTokenizer.from_pretrained(str(folder))
    assert again("A cell_gene")["input_ids"] == tokenizer("A cell_gene")["input_ids"]
    load_backbone(Backbone("tiny", str(folder)), str(folder))  # probes attention both ways
    assert any(line.startswith("step 12/12  loss") for line in said)


def test_training_fits_the_teacher_on_documents_that_were_held_out(made):
    fit = made[2].fit()
    for name in ("held_out_kl_dense", "held_out_kl_sparse"):
        assert fit[-1][name] < 0.9 * fit[0][name]
    assert fit[0]["step"] == 0
    assert fit[-1]["step"] == 12


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_weights(made, tokenizer, lessons, tmp_path, monkeypatch):
    whole = AutoModelForCausalLM.from_pretrained(str(made[0])).state_dict()
    progress = FolderReporter.progress

    def stop(self, told):
        progress(self, told)
        if told.step == 8:
            raise Stopped

    arguments = RUNG, tokenizer, lessons, CONFIG, tmp_path / "m", tmp_path / "w", lambda _: None
    with monkeypatch.context() as patched:
        patched.setattr(FolderReporter, "progress", stop)
        with pytest.raises(Stopped):
            pretrain(*arguments)
    assert not (tmp_path / "m").exists()
    taken = []
    monkeypatch.setattr(
        FolderReporter,
        "progress",
        lambda self, told: taken.append(told.step) or progress(self, told),
    )
    pretrain(*arguments)
    assert 1 < taken[0] <= 8  # from a checkpoint, not from the start
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "m")).state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name
    assert not (tmp_path / "w").exists()


def test_rates_of_matrices_fall_with_the_width_and_those_of_embeddings_do_not(tokenizer, lessons):
    ensure_process_group()
    for hidden in (16, 32):
        rung = dataclasses.replace(RUNG, hidden=hidden)
        model = beginning(rung, tokenizer, lessons, np.arange(20), CONFIG)
        optimization = dataclasses.replace(CONFIG, reference_hidden=16).optimization(hidden)
        engine = make_engine(model, lambda: 10, optimization)
        rates = {}
        for group in engine.optimizer.param_groups:
            assert group["betas"] == CONFIG.betas
            for parameter in group["params"]:
                rates[id(parameter)] = group["lr"]
        outside = rates[id(model.get_input_embeddings().weight)]
        assert outside == rates[id(model.model.norm.weight)]
        for name, parameter in model.model.layers.named_parameters():
            ratio = rates[id(parameter)] / outside
            assert ratio == pytest.approx(16 / hidden if parameter.ndim == 2 else 1.0), name
        assert len(rates) == len(list(model.parameters()))  # each in one group


def test_meaning_can_be_left_out(tokenizer, lessons):
    with_meaning = dataclasses.replace(CONFIG, meaning_share=1.0)
    starts = [
        beginning(RUNG, tokenizer, lessons, np.arange(20), c).get_input_embeddings().weight
        for c in (CONFIG, with_meaning)
    ]
    assert not torch.equal(*starts)
    torch.manual_seed(CONFIG.seed)
    plain = AutoModelForCausalLM.from_config(RUNG.config(len(tokenizer)))
    assert torch.equal(starts[0], plain.get_input_embeddings().weight)


@pytest.mark.parametrize("wrong", [{"losses": ()}, {"steps": 0}, {"batch": 0}])
def test_recipes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Pretraining(**wrong)


# --------------------------------------------------------------------------------------- card


def test_the_card_says_what_it_was_made_from_and_how(made):
    _, _, trained = made
    origin = Provenance("some text", "odc-by", "a teacher", "Apache-2.0", EXCERPTS, "make it")
    text = card(RUNG, CONFIG, trained, origin)
    assert "license: odc-by" in text
    assert "# tiny" in text
    assert "some text: 20 documents, 6 more held out" in text
    assert "| a teacher, Apache-2.0; its similarities were distilled |" in text
    assert "12, 3.0 epochs" in text
    tokens = trained.progress.tokens
    assert f"{tokens / trained.shape.parameters:.3g} a non-embedding parameter" in text
    assert "steps=12" in text
    assert "`make it`" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| 12 ")]
    last = trained.fit()[-1]
    assert rows[0][1:3] == [
        f"{last['held_out_kl_dense']:.3f}",
        f"{last['held_out_kl_sparse']:.3f}",
    ]
