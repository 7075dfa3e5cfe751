"""The training loop without Ray: exact resume, the same steps as plain PyTorch, and what stops it."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.heads import SPARSE
from raylab.models.checkpoint import save_retriever
from raylab.models.hub import load_tokenizer, state_to_save
from raylab.models.retriever import Retriever
from raylab.training.distributed import ensure_process_group, rank_and_world
from raylab.training.engine import gathered
from raylab.training.faults import TrainingError
from tests.batch_texts import padded, texts_of
from tests.workers import STEPS, FolderReporter, in_workers, make_task, train

# ------------------------------------------------------------------------------------ resuming


def run_whole(model_folder: Path, folder: Path, reporter, **options):
    """(weights, learning rate, AdamW's state, progress, history) of a run of the tiny cell."""
    task = make_task(model_folder, folder, **options)
    engine, done, history = train(task, reporter, zero=1, checkpoints=STEPS)
    adam = [
        {k: torch.as_tensor(v) for k, v in state.items()}
        for state in engine.optimizer.optimizer.state.values()
    ]
    trained = [(n, p) for n, p in task.module.named_parameters() if p.requires_grad]
    weights = {name: weight.detach().clone() for name, weight in trained}
    return weights, engine.get_lr(), adam, done, history


def test_a_run_stopped_at_any_step_and_resumed_is_bit_for_bit_the_same(model_folder, tmp_path):
    """Weights, optimizer, schedule, sampler position and random state (dropout is on)."""
    ensure_process_group()
    options = {"micro": 5}
    kept = FolderReporter(tmp_path / "kept")
    weights, rate, adam, done, history = run_whole(model_folder, tmp_path, kept, **options)
    assert kept.steps == list(range(1, STEPS + 1))
    assert {"loss", "learning_rate", "spent_flops"} <= history[-1].keys()
    for stop in range(1, STEPS):
        second = FolderReporter(tmp_path / "kept", resume_at=stop)
        torch.manual_seed(stop)  # whatever the new process draws before it resumes
        again = run_whole(model_folder, tmp_path, second, **options)
        assert second.steps == list(range(stop + 1, STEPS + 1))
        assert all(torch.equal(tensor, again[0][name]) for name, tensor in weights.items())
        assert again[1] == rate
        for ours, reference in zip(again[2], adam, strict=True):
            assert all(torch.equal(ours[name], reference[name]) for name in reference)
        assert (again[3].spent_flops, again[3].tokens, again[3].padded_tokens, again[3].loss) == (
            done.spent_flops,
            done.tokens,
            done.padded_tokens,
            done.loss,
        )
        assert again[4] == history


@pytest.mark.parametrize(("stop", "first"), [(3, 1), (4, 4), (7, 7)])
def test_a_worker_that_dies_goes_on_from_its_newest_checkpoint(model_folder, tmp_path, stop, first):
    """Two checkpoints in 8 steps: after steps 3 and 6; a step dies before its own checkpoint."""
    ensure_process_group()
    folder = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        train(make_task(model_folder, tmp_path), FolderReporter(folder, stop_after=stop))
    second = FolderReporter(folder)
    train(make_task(model_folder, tmp_path), second)
    assert second.steps[0] == first


def resume_on_workers(model_folder: Path, folder: Path):
    whole = run_whole(model_folder, folder, FolderReporter(folder / "two"))
    parts = [
        run_whole(model_folder, folder, FolderReporter(folder / "two", resume_at=stop))
        for stop in (1, 4, 7)
    ]
    return [(weights, rate, history) for weights, rate, _, _, history in (whole, *parts)]


@pytest.mark.long
def test_two_workers_resume_where_they_were(model_folder, tmp_path):
    make_task(model_folder, tmp_path)  # writes the store once
    for results in in_workers(2, resume_on_workers, model_folder, tmp_path):
        (weights, rate, history), *resumed = results
        for again, again_rate, again_history in resumed:
            assert again_rate == rate
            assert [p["loss"] for p in again_history] == pytest.approx(
                [p["loss"] for p in history], abs=1e-6
            )
            for name, tensor in weights.items():
                assert torch.allclose(again[name], tensor, rtol=0, atol=1e-6), name


# ---------------------------------------------------------------------------- ZeRO and PyTorch


TWENTY = 20
# The paper's. At fifty times that, a maximum that flips between two tokens shows by 1e-4 after 20 steps,
# under any pair of these loops.
RATE = 1e-4


def losses_on_workers(model_folder: Path, folder: Path, ways: list[tuple[int, int]]):
    """Twenty steps by ZeRO stages, whole (0), or by micro-batches with gradient checkpointing."""
    losses = {}
    for zero, micro in ways:
        options = {"dropout": 0.0, "embeddings": False, "checkpointing": micro > 0}
        task = make_task(model_folder, folder, micro=micro, **options)
        task.steps = TWENTY
        _, _, history = train(task, FolderReporter(folder / "none"), zero, checkpoints=0, lr=RATE)
        losses[zero, micro] = [point["loss"] for point in history]
    return losses


def plain_pytorch(task, rate: float = RATE) -> list[float]:
    """The same twenty steps with nothing of ours but the batches: torch's AdamW, LambdaLR, clipping."""
    tuning, model, K = task.cell.fine_tuning, task.module.model, task.batches.passages
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / 3 if s < 2 else (TWENTY - s) / (TWENTY - 2)
    )

    def represent(ids, mask):
        ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
        hidden = model.get_base_model().model(ids, attention_mask=mask.long()).last_hidden_state
        logits = model.get_base_model().lm_head(hidden) * hidden.shape[-1] ** -0.25
        return logits.masked_fill(~mask[..., None], -1e6).amax(1).relu().log1p()

    losses = []
    for step in range(TWENTY):
        batch = task.batches.collate(task.batches.draw(step))
        texts, queries = texts_of(batch), len(batch.excluded_QP)
        q, p = represent(*padded(texts[:queries])), represent(*padded(texts[queries:]))
        scores = q @ p.T
        contrast, kl = [], []
        for i in range(len(q)):
            kept = torch.from_numpy(~batch.excluded_QP[i])
            everything = scores[i] / tuning.temperature
            contrast.append(everything[kept].logsumexp(0) - everything[i * K])
            own = everything[i * K : (i + 1) * K].log_softmax(0)
            teacher = torch.from_numpy(batch.teacher_QK[i]).log_softmax(0)
            kl.append((teacher.exp() * (teacher - own)).sum())
        loss = 0.5 * (torch.stack(contrast).mean() + torch.stack(kl).mean())
        ramp = min(step / (TWENTY / 3), 1) ** 2
        loss = loss + ramp * tuning.lambda_query * (q.mean(0) ** 2).sum()
        loss = loss + ramp * tuning.lambda_passage * (p.mean(0) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.long
@pytest.mark.parametrize(
    "ways",
    [
        [(0, 5), (3, 0)],  # 1 and 2: in bf16 below, and on every checkpoint and branch
        pytest.param([(0, 0), (1, 0), (1, 5)], marks=pytest.mark.slow),
        pytest.param([(2, 0), (2, 5), (3, 5)], marks=pytest.mark.slow),
    ],
)
def test_every_zero_stage_takes_the_steps_of_plain_pytorch(model_folder, tmp_path, ways):
    options = {"dropout": 0.0, "embeddings": False}
    reference = plain_pytorch(make_task(model_folder, tmp_path, **options))
    still = plain_pytorch(make_task(model_folder, tmp_path, **options), rate=0.0)
    assert abs(reference[-1] - still[-1]) > 1e-3  # the steps do move the loss
    for losses in in_workers(2, losses_on_workers, model_folder, tmp_path, ways):
        for key, ours in losses.items():
            assert ours == pytest.approx(reference, abs=1e-5), f"ZeRO stage, micro-batch {key}"


def bf16_losses(model_folder: Path, folder: Path, ways: list[tuple[int, int]]):
    losses = {}
    for zero, micro in ways:
        options = {"dropout": 0.0, "embeddings": False, "checkpointing": True}
        task = make_task(model_folder, folder, micro=micro, **options)
        task.module.bfloat16()
        reporter = FolderReporter(folder / "none")
        _, _, history = train(
            task, reporter, zero, checkpoints=0, lr=1e-3, compute_dtype="bfloat16"
        )
        losses[zero, micro] = [point["loss"] for point in history]
    return losses


@pytest.mark.long
@pytest.mark.parametrize(
    "ways", [[(1, 5), (2, 0)], pytest.param([(0, 0), (3, 5)], marks=pytest.mark.slow)]
)
def test_bf16_trains_under_every_zero_stage(model_folder, tmp_path, ways):
    """Close to fp32: bf16 has 8 bits of mantissa, and the losses here are about 1 to 3."""
    task = make_task(model_folder, tmp_path, dropout=0.0, embeddings=False)
    ensure_process_group()
    _, _, history = train(task, FolderReporter(tmp_path / "none"), checkpoints=0, lr=1e-3)
    reference = [point["loss"] for point in history]
    for losses in in_workers(2, bf16_losses, model_folder, tmp_path, ways):
        for key, ours in losses.items():
            assert ours == pytest.approx(reference, abs=0.05), f"ZeRO stage, micro-batch {key}"


@pytest.mark.parametrize("objective", ["cl", "kd", "cl+kd"])
@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_every_head_and_objective_learns_its_batches(model_folder, tmp_path, head, objective):
    ensure_process_group()
    task = make_task(model_folder, tmp_path, head=head, objective=objective, dropout=0.0)
    task.steps = 32
    _, done, history = train(task, FolderReporter(tmp_path / "x"), checkpoints=0, lr=1e-2)
    assert done.step == 32
    losses = [point["loss"] for point in history]
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])  # batches of two epochs of 16 groups


# ------------------------------------------------------------------------------------ stopping


def poisoned(task, step: int, rank: int = 0) -> None:
    """Representations of NaN at a step, on one worker."""
    calls = itertools.count()

    def spoil(module, inputs, outputs):
        if next(calls) == step and rank_and_world()[0] == rank:
            return tuple(reps * float("nan") for reps in outputs)
        return outputs

    task.module.register_forward_hook(spoil)


class Watching(FolderReporter):
    """Keeps the weights as they were after the last step that was taken."""

    def __init__(self, model):
        super().__init__(Path("nowhere"))
        self.model, self.weights = model, {}

    def progress(self, progress):
        super().progress(progress)
        self.weights = copy.deepcopy(self.model.state_dict())


def stop_on_nan(model_folder: Path, folder: Path, rank: int):
    task = make_task(model_folder, folder)
    watching = Watching(task.module.model)
    poisoned(task, 3, rank)
    with pytest.raises(TrainingError) as fault:
        train(task, watching, checkpoints=0)
    after = task.module.model.state_dict()
    unchanged = all(torch.equal(after[name], kept) for name, kept in watching.weights.items())
    names = [task.batches.groups.query_ids[g] for g in task.batches.draw(3).groups_Q]
    return str(fault.value), watching.steps, unchanged, ", ".join(names)


def assert_stopped(results) -> None:
    for message, steps, unchanged, names in results:
        assert message == f"the loss is nan at step 3 (queries {names})"
        assert steps == [1, 2, 3]
        assert unchanged


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_weights(model_folder, tmp_path):
    ensure_process_group()
    assert_stopped([stop_on_nan(model_folder, tmp_path, 0)])


@pytest.mark.long
def test_all_workers_stop_when_one_has_a_bad_batch(model_folder, tmp_path):
    make_task(model_folder, tmp_path)
    assert_stopped(in_workers(2, stop_on_nan, model_folder, tmp_path, 1))


def stop_on_infinite_gradient(model_folder: Path, folder: Path) -> None:
    for zero in (0, 1, 2, 3):
        task = make_task(model_folder, folder)
        calls = itertools.count()

        def spoil(module, inputs, outputs, calls=calls):
            if next(calls) == 2:
                outputs[0].register_hook(lambda gradient: gradient * float("inf"))

        task.module.register_forward_hook(spoil)
        reporter = FolderReporter(folder / "none")
        with pytest.raises(TrainingError, match="gradient is not finite at step 2, where the loss"):
            train(task, reporter, zero, checkpoints=0)
        assert reporter.steps == [1, 2]


@pytest.mark.long
def test_a_gradient_that_is_not_finite_stops_the_run(model_folder, tmp_path):
    """DeepSpeed alone would skip such a step in silence, or take it.

    In a process of its own: ZeRO-3 replaces torch's linear function for good.
    """
    in_workers(1, stop_on_infinite_gradient, model_folder, tmp_path)


def test_the_budget_ends_a_run_before_it_is_overspent(model_folder, tmp_path):
    ensure_process_group()
    task = make_task(model_folder, tmp_path)
    costs = [task.cost(step)[0] for step in range(STEPS)]
    budget = sum(costs[:3]) + costs[3] / 2
    _, done, _ = train(task, FolderReporter(tmp_path / "x"), checkpoints=0, budget=budget)
    assert done.step == 3
    assert done.spent_flops == pytest.approx(sum(costs[:3]))


# ------------------------------------------------------------------------ schedules and saving


def test_a_run_follows_its_schedule(model_folder, tmp_path):
    ensure_process_group()
    task = make_task(model_folder, tmp_path)
    options = {"schedule": "wsd", "decay_fraction": 0.5}
    _, _, history = train(task, FolderReporter(tmp_path / "x"), checkpoints=0, **options)
    rates = [point["learning_rate"] for point in history]
    expected = [0.5, 1, 1, 1, 1, *(1 - np.sqrt(np.arange(1, 4) / 4))]
    assert rates == pytest.approx([5e-3 * factor for factor in expected])


def save_on_workers(model_folder: Path, folder: Path, hub: bool):
    for zero in (1, 3):  # in this order: ZeRO-3 replaces torch's linear function for good
        save_on_worker(model_folder, folder, zero, hub)


def save_on_worker(model_folder: Path, folder: Path, zero: int, hub: bool):
    """Train two steps and let rank 0 write the checkpoint, as a train worker does."""
    task = make_task(model_folder, folder, dropout=0.0, embeddings=not hub)
    task.steps = 2
    train(task, FolderReporter(folder / "none"), zero, checkpoints=0)
    model = task.module.model
    backbone = Backbone("tiny", "acme/tiny" if hub else str(model_folder))
    tokenizer = load_tokenizer(task.cell.backbone, None)
    out = folder / f"zero{zero}-{hub}"
    with gathered(model, zero):
        state = state_to_save(model)
        if rank_and_world()[0] == 0:
            save_retriever(out, model, state, tokenizer, backbone, SPARSE, Encoding(), {})


@pytest.mark.long
@pytest.mark.parametrize("hub", [False, True], ids=["whole", "adapter"])
def test_a_checkpoint_is_the_same_whether_the_weights_were_partitioned(model_folder, tmp_path, hub):
    """ZeRO-3 leaves no worker with a whole tensor, and saving needs the final norm besides."""
    make_task(model_folder, tmp_path)  # writes the store once
    models = tmp_path / "models" / "acme"
    models.mkdir(parents=True)
    (models / "tiny").symlink_to(model_folder)
    texts, found = ["cell gene protein", "dose"], {}
    in_workers(2, save_on_workers, model_folder, tmp_path, hub)
    for zero in (1, 3):
        retriever = Retriever.load(tmp_path / f"zero{zero}-{hub}", models_dir=str(models.parent))
        found[zero] = retriever.encode_passages(texts).toarray()
    np.testing.assert_allclose(found[3], found[1], atol=1e-5)
