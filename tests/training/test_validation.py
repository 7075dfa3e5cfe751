"""Held-out curves: what is measured, that it changes nothing, and when something is said to be wrong."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from raylab.data.supervision.batches import pad
from raylab.evaluation.entropy import contrastive_entropy
from raylab.stages.validation import ValidationQueries, validation_texts
from raylab.training.distributed import ensure_process_group
from raylab.training.engine import make_engine
from raylab.training.fine_tuning import FineTuningTask
from raylab.training.validation import MOST_SHARE, Validation, mean_cosine, points_of
from tests.workers import (
    STEPS,
    FolderReporter,
    in_workers,
    make_task,
    optimization,
    store_of,
    train,
)

QUERIES = ValidationQueries(
    "valid",
    ("a", "b", "c"),
    ("cell protein", "gene virus mouse", "drug dose"),
    (("p03", "p04"), ("nowhere", "p07"), ("nowhere",)),
    ("a", "p03", "p04", "p05", "p07"),
)
POINTS = (1, 2, 4, 8)


def validated(task: FineTuningTask, folder: Path, micro: int = 0) -> FineTuningTask:
    """The task with validation after four of its steps."""
    tuning = task.cell.fine_tuning
    tokenizer = task.batches.tokenizer
    texts = validation_texts(QUERIES, store_of(folder), tokenizer, tuning)
    task.validation = Validation(texts, tokenizer.pad_id, task.cell.head, task.shape, tuning, micro)
    task.measured_at = POINTS
    return task


def test_queries_keep_the_first_relevant_passage_that_is_there(model_folder, tmp_path):
    task = make_task(model_folder, tmp_path)
    tokenizer, tuning = task.batches.tokenizer, task.cell.fine_tuning
    store = store_of(tmp_path)
    texts = validation_texts(QUERIES, store, tokenizer, tuning)
    assert len(texts.queries) == len(texts.relevant) == 2  # the third has none
    rows = store.rows(["p03", "p07"])
    for row, text in zip(rows, texts.relevant, strict=True):
        assert np.array_equal(text, tokenizer.framed(store.tokens(row, 512), "passage", 512))
    # All others but what is judged, in the collection's order: it has fewer than 256.
    judged = {"p03", "p04", "p05", "p07"}
    others = [i for i in range(len(store)) if store.passage_ids(slice(i, i + 1))[0] not in judged]
    assert len(texts.negatives) == len(others)


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_the_entropy_is_that_of_the_evaluation(model_folder, tmp_path, head):
    ensure_process_group()
    kept = {"top_k_query": 9, "top_k_passage": 30} if head == "sparse" else {}
    task = validated(make_task(model_folder, tmp_path, head=head, **kept), tmp_path, micro=5)
    validation = task.validation
    engine = make_engine(task.module, lambda: STEPS, optimization(zero=0))
    engine.train()
    found = task.evaluate(engine)
    assert engine.training
    task.module.eval()
    with torch.no_grad():
        reps = []
        for text in validation.texts:
            ids, mask = pad([text], len(text), validation.pad_id)
            reps.append(
                task.module(
                    (
                        torch.from_numpy(ids),
                        torch.from_numpy(mask),
                        torch.zeros(1, dtype=torch.int64),
                    )
                )[0][0]
            )
    queries, passages = torch.stack(reps[:2]).numpy(), torch.stack(reps[2:]).numpy()
    negatives = range(2, len(passages))
    active_terms = (passages > 0).sum(1).mean()
    if kept:
        queries, passages = _largest(queries, 9), _largest(passages, 30)
    expected = contrastive_entropy(
        queries, [passages], [[0], [1]], [negatives, negatives], task.cell.fine_tuning.temperature
    )
    assert found.values["held_out"] == pytest.approx(expected.mean(), rel=1e-5)
    whole = torch.stack(reps[4:]).numpy()
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
    assert found.values["collapse"] == pytest.approx(cosines.mean(), abs=1e-5)
    if head == "sparse":
        assert found.values["active_terms"] == pytest.approx(active_terms, rel=1e-2)
    else:
        assert "active_terms" not in found.values
    assert found.flops > 0


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Rows with all but their largest values 0."""
    bound = np.sort(values, axis=1)[:, [-count]]
    return np.where(values >= bound, values, 0.0)


def test_it_changes_nothing_and_stands_in_the_history(model_folder, tmp_path):
    """Dropout is on: a random number that validation drew would show in the weights."""
    ensure_process_group()
    plain = make_task(model_folder, tmp_path)
    _, without, history = train(plain, FolderReporter(tmp_path / "plain"))
    assert not any("held_out" in point for point in history)
    task = validated(make_task(model_folder, tmp_path), tmp_path)
    kept = FolderReporter(tmp_path / "kept")
    _, done, history = train(task, kept, checkpoints=STEPS)
    for (name, ours), theirs in zip(
        task.module.named_parameters(), plain.module.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert (done.spent_flops, done.tokens) == (without.spent_flops, without.tokens)
    assert done.measuring_flops == pytest.approx(len(POINTS) * task.validation.flops)
    assert without.measuring_flops == 0 < done.measuring_seconds
    measured = [point for point in history if "held_out" in point]
    assert [point["step"] for point in measured] == list(POINTS)
    assert all(point["loss"] and point["gradient_norm"] > 0 for point in measured)
    again = validated(make_task(model_folder, tmp_path), tmp_path)
    second = FolderReporter(tmp_path / "kept", resume_at=3)
    _, resumed, repeated = train(again, second, checkpoints=STEPS)
    assert repeated == history
    assert resumed.measuring_flops == done.measuring_flops


def measure_on_workers(model_folder: Path, folder: Path, zero: int):
    task = validated(make_task(model_folder, folder), folder, micro=4)
    engine = make_engine(task.module, lambda: STEPS, optimization(zero=zero))
    return dict(task.evaluate(engine).values)


@pytest.mark.long
def test_workers_share_it_under_zero_3(model_folder, tmp_path):
    store_of(tmp_path)
    (alone,) = in_workers(1, measure_on_workers, model_folder, tmp_path, 0)
    for ours in in_workers(2, measure_on_workers, model_folder, tmp_path, 3):
        assert ours == pytest.approx(alone, rel=1e-5)


def test_points_are_even_in_the_logarithm_and_within_a_share_of_the_run():
    assert points_of([10_000], 12, 1.0, 1e5) == (
        *(100, 152, 231, 351, 534, 811, 1233, 1874, 2848, 4329, 6579),
        10_000,
    )
    for cost, count in ((0.25, 12), (0.5, 6), (1.0, 3), (1.4, 2), (2.9, 1), (3.1, 0)):
        points = points_of([200], 12, cost, 0.5)
        assert len(points) == count
        assert count * cost <= MOST_SHARE * 1e2
        assert points[-1:] == (200,) if points else cost > 3
    assert points_of([5], 12, 1.0, 1e9) == (1, 2, 3, 4, 5)
    assert points_of([200], 0, 1.0, 1e9) == points_of([200], 12, 4.0, 0.5) == ()


def test_runs_that_share_their_beginning_share_the_points():
    ends = [300, 1_000, 100]
    points = points_of(ends, 6, 1.0, 1.0)
    assert {300, 1_000} <= set(points)
    assert 100 in points  # 3 % of it are three points
    assert len(points) == 6
    assert points_of(ends, 2, 1.0, 1.0) == (300, 1_000)
    # One point is 3 % of 200 steps: the run of 100 has none of its own, and all together hold the bound.
    dear = points_of(ends, 12, 6.0, 1.0)
    assert 100 not in dear
    assert {300, 1_000} <= set(dear)
    assert len(dear) * 6.0 <= MOST_SHARE * 1_000


def test_a_rise_beyond_the_noise_is_overfitting_and_is_said_once(model_folder, tmp_path):
    task = validated(make_task(model_folder, tmp_path), tmp_path)
    validation = task.validation
    rng = np.random.default_rng(0)
    own = rng.normal(2.0, 1.0, 40)  # queries differ by far more than the run moves
    values = {"held_out": 0.0, "collapse": 0.1}

    def said(shift: float, noise: float = 0.1) -> str:
        entropies = own + shift + rng.normal(0, noise, 40)
        return validation._warning(entropies, values | {"held_out": entropies.mean()})

    assert not said(0.5)
    assert not said(0.0)
    assert not said(0.02)  # within the noise
    assert "overfits" in said(0.3)
    assert not said(0.6)  # once


def test_representations_that_are_all_alike_have_collapsed(model_folder, tmp_path):
    validation = validated(make_task(model_folder, tmp_path), tmp_path).validation
    chance = math.log(validation.n_negatives + 1)
    entropies = np.full(2, chance)
    alike = {"held_out": chance, "collapse": 0.999, "active_terms": 3.0}
    assert not validation._warning(entropies, alike | {"collapse": 0.6})
    assert not validation._warning(entropies, alike | {"held_out": 0.5 * chance})
    assert "collapsed" in validation._warning(entropies, alike)
    empty = validated(make_task(model_folder, tmp_path), tmp_path).validation
    assert "no passage has an active term" in empty._warning(
        entropies, {"held_out": chance, "collapse": 0.0, "active_terms": 0.0}
    )


def test_the_cosine_of_rows():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert mean_cosine(rows) == pytest.approx(1 / 3)
    assert mean_cosine(rows[:1]) == 0.0
    assert mean_cosine(torch.zeros(3, 2)) == 0.0
