"""Runs that share their stable phase: each ends as a run of its own would, whatever was killed on the way."""

import numpy as np
import pytest
import torch

from raylab.training.distributed import ensure_process_group
from raylab.training.engine import decay_start
from raylab.training.loop import run, run_branches
from tests.workers import FolderReporter, in_workers, make_task, optimization, seed_worker

ENDS = (5, 9, 14)
WSD = {"schedule": "wsd", "decay_fraction": 0.4, "warmup_steps": 2}
TUNING = {"schedule": "wsd", "warmup_steps": 2, "ramp_steps": 3}


class Branching(FolderReporter):
    """Whose newest checkpoint is read while the run goes on, as Ray Train's is."""


def weights(task):
    return {n: p.detach().clone() for n, p in task.module.named_parameters() if p.requires_grad}


def own_run(model_folder, folder, end, zero=1):
    task = make_task(model_folder, folder, **TUNING)
    task.steps = end
    seed_worker(5)
    _, done, _ = run(task, optimization(zero, **WSD), FolderReporter(folder / "none"), 0)
    return weights(task), done


def branched(model_folder, folder, kept, ends=ENDS, zero=1, made=None, **reporter):
    """Every end's weights and progress; `made` are those of a run before, which had them committed."""
    task = make_task(model_folder, folder, **TUNING)
    task.steps = max(ends)
    made = {} if made is None else made
    seed_worker(5)

    def finished(end, done, history):
        assert history[-1]["step"] == end
        made[end] = weights(task), done

    left = {end: None for end in ends if end not in made}
    run_branches(task, optimization(zero, **WSD), Branching(kept, **reporter), 2, left, finished)
    return made


def same(ours, reference):
    assert all(torch.equal(ours[0][name], tensor) for name, tensor in reference[0].items())
    assert ours[1].step == reference[1].step
    assert ours[1].spent_flops == reference[1].spent_flops
    assert ours[1].tokens == reference[1].tokens


@pytest.mark.long
def test_every_branch_is_bit_for_bit_a_run_of_its_own(model_folder, tmp_path):
    """Dropout is on, so the random state comes back too."""
    ensure_process_group()
    made = branched(model_folder, tmp_path, tmp_path / "kept")
    assert set(made) == set(ENDS)
    for end in ENDS:
        same(made[end], own_run(model_folder, tmp_path, end))


def test_what_is_shared_is_counted_once(model_folder, tmp_path):
    """Own FLOPs of all branches together: the longest run, and the other runs' decays."""
    ensure_process_group()
    made = branched(model_folder, tmp_path, tmp_path / "kept")
    task = make_task(model_folder, tmp_path, **TUNING)
    costs = np.array([task.cost(step) for step in range(max(ENDS))])
    decays = [costs[decay_start(end, 0.1, 0.4, 2) : end].sum(0) for end in ENDS[:-1]]
    own = np.zeros(3)
    for _, done in made.values():
        own += done.spent_flops - done.shared_flops, done.tokens - done.shared_tokens, 0
        own[2] += done.padded_tokens - done.shared_padded_tokens
    assert own == pytest.approx(costs.sum(0) + sum(decays))
    assert own[1] < own[2]


@pytest.mark.parametrize(
    "stop", [5, 9, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (2, 4, 8, 11, 13))]
)
def test_killed_anywhere_it_goes_on_and_ends_the_same(model_folder, tmp_path, stop):
    ensure_process_group()
    kept, made = tmp_path / "kept", {}
    with pytest.raises(KeyboardInterrupt):
        branched(model_folder, tmp_path, kept, made=made, stop_after=stop)
    branched(model_folder, tmp_path, kept, made=made)
    for end in ENDS:
        same(made[end], own_run(model_folder, tmp_path, end))


def test_a_checkpoint_past_a_branch_that_is_wanted_is_not_taken_up(model_folder, tmp_path):
    """Its run had other ends: the stable phase it kept has passed the new one's decay."""
    ensure_process_group()
    with pytest.raises(KeyboardInterrupt):
        branched(model_folder, tmp_path, tmp_path / "kept", ends=(14,), stop_after=12)
    made = branched(model_folder, tmp_path, tmp_path / "kept", ends=(5, 14))
    for end in (5, 14):
        same(made[end], own_run(model_folder, tmp_path, end))


def test_another_schedule_shares_nothing(model_folder, tmp_path):
    task = make_task(model_folder, tmp_path)
    with pytest.raises(ValueError, match="schedule = 'linear': only wsd"):
        run_branches(
            task, optimization(), FolderReporter(tmp_path), 0, dict.fromkeys(ENDS), lambda *_: None
        )


def on_workers(model_folder, folder, zero, ends):
    made = branched(model_folder, folder, folder / f"kept{zero}", ends=ends, zero=zero)
    own = {end: own_run(model_folder, folder, end, zero) for end in ends}
    return [(made[end][0], own[end][0]) for end in ends]


@pytest.mark.long
@pytest.mark.parametrize(
    ("zero", "ends"),
    [(2, ENDS[:2]), *(pytest.param(zero, ENDS, marks=pytest.mark.slow) for zero in (0, 2, 3))],
)
def test_branches_of_sharded_state(model_folder, tmp_path, zero, ends):
    make_task(model_folder, tmp_path, **TUNING)  # writes the store once
    for pairs in in_workers(2, on_workers, model_folder, tmp_path, zero, ends):
        for ours, reference in pairs:
            for name, tensor in reference.items():
                assert torch.allclose(ours[name], tensor, rtol=0, atol=1e-6), name
