"""MNTP: the loss by a naive loop, held-out blocks that are never trained on, any number of workers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raylab.data.supervision.batches import MaskedBlocks
from raylab.data.tokens import PassageStore, write_store
from raylab.experiment.config import Adaptation, Backbone, ConfigError, Lora
from raylab.models.backbone import add_lora
from raylab.models.hub import load_base
from raylab.planning.flops import Shape, adaptation_flops
from raylab.training.distributed import ensure_process_group
from raylab.training.engine import make_engine
from raylab.training.mntp import AdaptationTask, MaskedModule, held_out_summary, next_token_losses
from tests.workers import FolderReporter, in_workers, optimization, train


def make_mntp(model_folder: Path, folder: Path, dropout=0.0, **changes) -> AdaptationTask:
    """MNTP of the tiny model on 90 blocks of 16 tokens."""
    model, tokenizer = load_base(Backbone("tiny", str(model_folder)), None)
    lora = Lora(rank=4, dropout=dropout, train_embeddings=True)
    torch.manual_seed(0)  # of the adapters
    model = add_lora(model, lora).train()
    if not (folder / "blocks").exists():
        rng = np.random.default_rng(3)
        ids = [f"p{i:02d}" for i in range(48)]
        # Every token is the one before it plus 1: there is something to learn.
        tokens = [(rng.integers(60) + np.arange(30)) % 60 + 40 for _ in ids]
        write_store(folder / "blocks", [(ids, tokens, [0] * 48)], np.uint16)
    settings = {"steps": 12, "batch_blocks": 4, "block_length": 16} | changes
    adaptation = Adaptation(**settings, lora=lora, checkpointing=False)
    blocks = MaskedBlocks(PassageStore(folder / "blocks"), tokenizer, adaptation, seed=0)
    return AdaptationTask(MaskedModule(model), adaptation, Shape.of(model.config), blocks)


def naive(model, inputs, targets, selected) -> tuple[float, int, int]:
    """(sum of losses, right, count), one block, one token at a time, in float64."""
    total, right, count = 0.0, 0, 0
    for row, truth, chosen in zip(inputs, targets, selected, strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(row)[None]).logits[0].double().numpy()
        for i in range(1, len(row)):
            if chosen[i]:
                before = logits[i - 1]
                highest = before.max()
                log_sum = highest + np.log(sum(np.exp(x - highest) for x in before))
                total += log_sum - before[truth[i]]
                right += int(np.argmax(before) == truth[i])
                count += 1
    return total, right, count


def test_a_token_is_predicted_from_the_state_before_it(model_folder, tmp_path):
    """Closed form in float64: the model itself is float64 here."""
    task = make_mntp(model_folder, tmp_path)
    model = task.module.model.eval().double()
    arrays = task.blocks.batch(3)
    losses_N, right_N = next_token_losses(model, *(torch.from_numpy(a) for a in arrays))
    total, right, count = naive(model, *arrays)
    assert len(losses_N) == count > 5
    assert float(losses_N.detach().double().sum()) == pytest.approx(total, rel=1e-6)
    assert int(right_N.sum()) == right


def test_the_first_token_is_never_predicted(model_folder, tmp_path):
    task = make_mntp(model_folder, tmp_path)
    ids = torch.arange(32).view(2, 16) + 40
    chosen = torch.zeros(2, 16, dtype=torch.bool)
    chosen[:, 0] = True
    losses_N, right_N = next_token_losses(task.module.model, ids, ids, chosen)
    assert len(losses_N) == len(right_N) == 0


def test_the_loss_of_a_step_is_the_mean_over_its_masked_tokens(model_folder, tmp_path):
    ensure_process_group()
    task = make_mntp(model_folder, tmp_path)
    total, _, count = naive(task.module.model.eval(), *task.blocks.batch(2))
    engine = make_engine(task.module, lambda: 12, optimization(zero=0))
    assert task.backward(engine, 2) == pytest.approx(total / count, rel=1e-5)


# ------------------------------------------------------------------------------------- held out


def test_held_out_blocks_are_never_trained_on(model_folder, tmp_path):
    task = make_mntp(model_folder, tmp_path, held_out_blocks=7)
    training, held_out = task.blocks.split
    assert len(held_out) == 7
    assert sorted([*training, *held_out]) == list(range(90))
    read: list[int] = []
    store = task.blocks.store
    original = store.block
    store.block = lambda index, *more: read.append(index) or original(index, *more)
    for step in range(83):  # four epochs
        task.blocks.batch(step)
    assert sorted(read) == sorted(np.repeat(training, 4).tolist())
    assert read[:83] != read[83:166]  # in another order
    read.clear()
    list(task.blocks.held_out_batches())
    assert set(read) == set(held_out.tolist())


@pytest.mark.parametrize(("wanted", "given"), [(0, 0), (5, 5), (64, 9)])
def test_at_most_a_tenth_is_held_out(model_folder, tmp_path, wanted, given):
    task = make_mntp(model_folder, tmp_path, held_out_blocks=wanted)
    assert len(task.blocks.split[1]) == given


def test_a_negative_number_of_held_out_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"adaptation\.held_out_blocks = -1"):
        Adaptation(held_out_blocks=-1)


def test_held_out_numbers_are_those_of_a_naive_loop(model_folder, tmp_path):
    ensure_process_group()
    task = make_mntp(model_folder, tmp_path, dropout=0.5, held_out_blocks=7)
    engine = make_engine(task.module, lambda: 12, optimization(zero=0))
    engine.train()
    state = torch.get_rng_state()
    measured = task.evaluate(engine).values
    assert torch.equal(torch.get_rng_state(), state)
    assert engine.training
    again = task.evaluate(engine).values  # the masks are fixed
    assert again == measured
    total, right, count = 0.0, 0, 0
    model = task.module.model.eval()
    held_out = task.blocks.split[1]
    arrays = [np.concatenate(part) for part in zip(*task.blocks.held_out_batches(), strict=True)]
    assert not arrays[2][7:].any()  # the last share is filled up
    for number, block in enumerate(held_out):
        truth = task.blocks.store.block(int(block), 16)
        assert (arrays[1][number] == truth).all()
    total, right, count = naive(model, *arrays)
    assert measured["held_out_loss"] == pytest.approx(total / count, rel=1e-5)
    assert measured["held_out_accuracy"] == right / count


def test_a_run_logs_held_out_numbers_before_on_the_way_and_at_the_end(model_folder, tmp_path):
    ensure_process_group()
    task = make_mntp(model_folder, tmp_path, steps=60, batch_blocks=8)
    engine, done, history = train(task, FolderReporter(tmp_path / "x"), checkpoints=2, lr=1e-2)
    measured = {int(p["step"]): p for p in history if "held_out_loss" in p}
    assert sorted(measured) == [0, 12, 24, 36, 48, 60]
    assert done.step == 60
    assert measured[60]["held_out_loss"] < 0.8 * measured[0]["held_out_loss"]
    assert task.evaluate(engine).values["held_out_loss"] == measured[60]["held_out_loss"]
    assert held_out_summary(history) == {
        "held_out_loss": measured[60]["held_out_loss"],
        "held_out_accuracy": measured[60]["held_out_accuracy"],
        "held_out_loss_before": measured[0]["held_out_loss"],
        "held_out_accuracy_before": measured[0]["held_out_accuracy"],
    }
    assert done.spent_flops == pytest.approx(adaptation_flops(task.shape, task.adaptation))
    assert all("loss" in p for p in history if p["step"] > 0)


def test_without_held_out_blocks_there_is_nothing_to_say(model_folder, tmp_path):
    ensure_process_group()
    task = make_mntp(model_folder, tmp_path, held_out_blocks=0, steps=2)
    _, _, history = train(task, FolderReporter(tmp_path / "x"), checkpoints=0)
    assert held_out_summary(history) == {}
    assert [p["step"] for p in history] == [1, 2]


# -------------------------------------------------------------------------------------- workers


def history_of(model_folder: Path, folder: Path, zero: int):
    task = make_mntp(model_folder, folder, held_out_blocks=7, steps=5)
    return train(task, FolderReporter(folder / "none"), zero, checkpoints=0, lr=1e-3)[2]


@pytest.mark.long
def test_workers_share_training_and_measuring(model_folder, tmp_path):
    """Seven held-out blocks by shares of two a worker: one worker's last share is filled up."""
    make_mntp(model_folder, tmp_path)  # writes the store once
    (reference,) = in_workers(1, history_of, model_folder, tmp_path, 0)
    for zero in (1, 3):
        for history in in_workers(2, history_of, model_folder, tmp_path, zero):
            assert [p["step"] for p in history] == [0, 1, 2, 3, 4, 5]
            for ours, theirs in zip(history, reference, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5)


def test_an_adaptation_that_stops_resumes_bit_for_bit(model_folder, tmp_path):
    ensure_process_group()
    options = {"dropout": 0.3, "steps": 4}
    kept = FolderReporter(tmp_path / "kept")
    engine, _, history = train(make_mntp(model_folder, tmp_path, **options), kept, checkpoints=4)
    weights = {n: p.detach().clone() for n, p in engine.module.named_parameters()}
    for stop in (1, 2, 3):
        second = FolderReporter(tmp_path / "kept", resume_at=stop)
        task = make_mntp(model_folder, tmp_path, **options)
        _, _, again = train(task, second, checkpoints=4)
        assert again == history
        assert all(torch.equal(p, weights[n]) for n, p in task.module.named_parameters())
