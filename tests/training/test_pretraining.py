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
from raylab.training.lessons import Lessons
from raylab.training.pretraining import (
    FolderReporter,
    Phase,
    Pretraining,
    TaughtTask,
    beginning,
    pretrain,
)
from raylab.training.rungs import Rung, train_tokenizer
from raylab.training.teaching import Distillation, MaskedTokens, TaughtModule

RUNG = Rung("tiny", layers=1, hidden=16, heads=2, intermediate=32)
WORDS = ["cell", "protein", "gene", "tumour", "virus", "mouse", "patient", "drug", "dose", "heart"]
EXCERPTS = Excerpts(short=2, shortest=2, longest=4, long=1, long_shortest=6, long_longest=9)
BOTH = (
    Distillation("dense", cosine=True),
    Distillation("sparse", temperature=1.0, flops_weight=3e-4),
)
BAG = Phase(BOTH[:1], steps=30, bag=True, batch=5, learning_rate=1e-2)
WHOLE = Phase(BOTH, steps=12, batch=5, learning_rate=3e-3)
CONFIG = Pretraining(phases=(BAG, WHOLE), held_out=6, limit=20, meaning_share=0.0)


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


def task_of(lessons, seed=0, **changes) -> TaughtTask:
    """The second phase, changed."""
    config = dataclasses.replace(
        CONFIG, phases=(BAG, dataclasses.replace(WHOLE, **changes)), seed=seed
    )
    documents, held_out = lessons.split(config.held_out, 0)
    return TaughtTask(None, None, lessons, config, 1, 95, documents, held_out)  # type: ignore[arg-type]


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
    task = task_of(lessons, batch=4)
    assert len(task.documents) == 20
    epochs = [
        np.concatenate([task._documents(step) for step in range(5 * e, 5 * e + 5)])
        for e in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == sorted(task.documents)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_step_that_spans_two_epochs_takes_the_end_of_one_and_the_beginning_of_the_next(lessons):
    by_4, by_8 = (task_of(lessons, batch=size) for size in (4, 8))
    joined = np.concatenate([by_4._documents(step) for step in range(10)])
    np.testing.assert_array_equal(joined, np.concatenate([by_8._documents(s) for s in range(5)]))


def test_rows_of_a_batch_are_of_one_document_with_the_teachers_embeddings(lessons):
    task = task_of(lessons)
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
    first, again, other = (task_of(lessons, seed).batch(3) for seed in (1, 1, 2))
    assert torch.equal(first.long[0], again.long[0])
    assert first.long[0].tolist() != other.long[0].tolist()


def test_held_out_documents_are_disjoint_and_the_same_for_all(lessons):
    train, held_out = lessons.split(6, 0)
    assert sorted([*train, *held_out]) == list(range(26))
    np.testing.assert_array_equal(lessons.split(6, 0)[1], held_out)
    with pytest.raises(ConfigError, match="held_out"):
        lessons.split(26, 0)


def test_only_real_tokens_are_masked_and_never_the_first(lessons, tokenizer):
    task = task_of(lessons, losses=(MaskedTokens(),), batch=10)
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
    bag, whole = made[2].fit(0), made[2].fit(1)
    assert (bag[0]["step"], bag[-1]["step"], whole[0]["step"], whole[-1]["step"]) == (0, 30, 0, 12)
    assert bag[-1]["held_out_kl_dense"] < 0.7 * bag[0]["held_out_kl_dense"]
    assert whole[-1]["held_out_kl_sparse"] < whole[0]["held_out_kl_sparse"]


def test_the_second_phase_begins_where_the_first_one_ended(made):
    """Left out, the blocks add nothing; taken in, they add nothing yet: the fit is the same."""
    bag, whole = made[2].fit(0)[-1], made[2].fit(1)[0]
    assert whole["held_out_kl_dense"] == pytest.approx(bag["held_out_kl_dense"], rel=0.2)


def test_a_bag_of_embeddings_is_the_model_whose_blocks_add_nothing(lessons, tokenizer):
    model = beginning(RUNG, tokenizer, lessons, np.arange(20), CONFIG)
    batch = task_of(lessons).batch(0)
    losses = [float(TaughtModule(model, BOTH, bag=bag)(batch).detach()) for bag in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    model.model.layers[0].self_attn.o_proj.weight.data.normal_()
    assert float(TaughtModule(model, BOTH)(batch).detach()) != pytest.approx(losses[0], rel=1e-3)


def test_a_bag_trains_embeddings_alone(made, tokenizer, lessons, tmp_path):
    config = dataclasses.replace(CONFIG, phases=(BAG,))
    start = beginning(RUNG, tokenizer, lessons, lessons.split(6, 0)[0], config).state_dict()
    pretrain(RUNG, tokenizer, lessons, config, tmp_path / "m", tmp_path / "w", lambda _: None)
    end = AutoModelForCausalLM.from_pretrained(str(tmp_path / "m")).state_dict()
    for name, tensor in start.items():
        same = torch.equal(tensor.half(), end[name].half())
        assert same == (name not in ("model.embed_tokens.weight", "lm_head.weight")), name


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stopped_at", [(20, 30), (8, 12)], ids=["first phase", "second phase"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    made, tokenizer, lessons, tmp_path, monkeypatch, stopped_at
):
    whole = AutoModelForCausalLM.from_pretrained(str(made[0])).state_dict()
    progress = FolderReporter.progress

    def stop(self, told):
        progress(self, told)
        if (told.step, told.steps) == stopped_at:
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
        lambda self, told: taken.append((told.steps, told.step)) or progress(self, told),
    )
    pretrain(*arguments)
    steps, first = taken[0]
    assert steps == stopped_at[1]  # a phase that was done is not done again
    assert 1 < first <= stopped_at[0]  # from a checkpoint, not from the start
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "m")).state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name
    assert not list((tmp_path / "w").glob("*/newest"))


def test_rates_of_matrices_fall_with_the_width_and_those_of_embeddings_do_not(tokenizer, lessons):
    ensure_process_group()
    for hidden in (16, 32):
        rung = dataclasses.replace(RUNG, hidden=hidden)
        model = beginning(rung, tokenizer, lessons, np.arange(20), CONFIG)
        config = dataclasses.replace(CONFIG, reference_hidden=16)
        optimization = config.optimization(WHOLE, hidden)
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
def test_phases_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(WHOLE, **wrong)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"phases": ()}, "phases"),
        ({"phases": (WHOLE, BAG)}, "bags of words first"),
        ({"residual_scale": 1.0}, "residual_scale"),
        ({"limit": 0}, "limit"),
    ],
)
def test_recipes_that_cannot_be_are_refused(wrong, named):
    with pytest.raises(ConfigError, match=named):
        dataclasses.replace(CONFIG, **wrong)


# --------------------------------------------------------------------------------------- card


def test_the_card_says_what_it_was_made_from_and_how(made):
    _, _, trained = made
    origin = Provenance("some text", "odc-by", "a teacher", "Apache-2.0", EXCERPTS, "make it")
    text = card(RUNG, CONFIG, trained, origin)
    assert "license: odc-by" in text
    assert "# tiny" in text
    assert "some text: 20 documents, 6 more held out" in text
    assert "| a teacher, Apache-2.0; its similarities were distilled |" in text
    assert "30 steps of 5 documents, 7.5 epochs; 12 steps of 5 documents, 3.0 epochs" in text
    tokens = sum(phase.tokens for phase in trained.phases)
    assert tokens > 42 * 2 * 5
    assert f"{tokens / trained.shape.parameters:.3g} a non-embedding parameter" in text
    assert "steps=12" in text
    assert "`make it`" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| 12 ")]
    last = trained.fit(1)[-1]
    assert rows[-1][1:3] == [
        f"{last['held_out_kl_dense']:.3f}",
        f"{last['held_out_kl_sparse']:.3f}",
    ]
