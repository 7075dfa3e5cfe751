"""What experiments vary, as the cells that come of it; and which of them one run makes."""

import dataclasses

import pytest

from raylab.experiment.config import ConfigError, FineTuning
from raylab.experiment.families import families, start_of
from raylab.experiment.grid import Grid, Variant
from raylab.experiment.heads import DENSE, SPARSE
from raylab.experiment.ladders import LLAMA3, PICO, SMOLLM2
from raylab.experiment.objectives import CL
from raylab.experiment.variants import ablation_variants, budget_variants, corruption_variants


def grid(variants, **more) -> Grid:
    return Grid(PICO, "scifact", sizes=("pico-1x96",), variants=variants, **more)


def test_several_budgets_of_a_cell_are_one_family_smallest_first():
    cells = grid(budget_variants((4e12, 1e12, 2e12)), objectives=(CL,), seeds=(0, 1)).cells()
    assert len(cells) == 12
    found = families(cells)
    assert [[cell.budget_flops for cell in family] for family in found] == [[1e12, 2e12, 4e12]] * 4
    assert {(f[0].head, f[0].seed) for f in found} == {
        (h, s) for h in (SPARSE, DENSE) for s in (0, 1)
    }
    assert [cell.name for cell in found[0]] == [
        f"sparse-pico-1x96-cl-{b}" for b in ("1e+12", "2e+12", "4e+12")
    ]


def test_what_has_no_stable_phase_is_run_alone():
    """A linear schedule, a warm-up or a ramp that depends on the run's length."""
    plain = [Variant(f"{b:g}", budget_flops=b) for b in (1e12, 2e12)]
    assert {len(f) for f in families(grid(tuple(plain)).cells())} == {1}
    for missing in ("warmup_steps", "ramp_steps"):
        settings = {"schedule": "wsd", "warmup_steps": 4, "ramp_steps": 20, missing: None}
        variants = [Variant(f"{b:g}", budget_flops=b, fine_tuning=settings) for b in (1e12, 2e12)]
        cells = grid(tuple(variants), heads=(SPARSE,)).cells()
        assert {len(f) for f in families(cells)} == {1}, missing


@pytest.mark.parametrize("ladder", [PICO, SMOLLM2, LLAMA3])
def test_several_budgets_keep_the_recipe_of_their_ladder(ladder):
    """But for the schedule; the smallest budget paces warm-up and ramp, where the recipe does not."""
    plain = Grid(ladder, "c", objectives=(CL,))
    several = dataclasses.replace(plain, variants=budget_variants((4e18, 1e18)))
    recipes = {(c.head, c.backbone): c.fine_tuning for c in plain.cells()}
    for cell in several.cells():
        recipe = recipes[cell.head, cell.backbone]
        tuning = cell.fine_tuning
        pace = {"schedule": "wsd", "pace_flops": None if ladder is PICO else 1e18}
        assert tuning == dataclasses.replace(recipe, **pace, **ladder.recipe.stable)
        assert tuning.extends
    assert len(families(several.cells())) == len(plain.cells())
    if ladder is LLAMA3:
        assert {c.fine_tuning.batch_queries for c in several.cells()} == {112, 128}
        assert {c.fine_tuning.learning_rate for c in several.cells()} == {1e-4}


def test_warm_up_and_ramp_are_those_of_the_smallest_budget():
    tuning = FineTuning(schedule="wsd", pace_flops=1e18).paced(250)
    assert (tuning.warmup_steps, tuning.ramp_steps, tuning.pace_flops) == (10, 83, None)
    assert FineTuning(warmup_steps=3, pace_flops=1e18).paced(250).warmup_steps == 3


def test_corruption_touches_nothing_but_supervision():
    cells = grid(corruption_variants((0.0, 0.5)), heads=(DENSE,), objectives=(CL,)).cells()
    right, wrong = cells
    assert right.fine_tuning.corrupted_positives == 0
    assert wrong.fine_tuning.corrupted_scores == 0.5
    assert start_of(right) == start_of(wrong)


def test_ablations_change_one_thing_each_and_start_where_they_should():
    cells = {cell.name: cell for cell in grid(ablation_variants()).cells()}
    plain = cells["sparse-pico-1x96-kd"]
    assert cells["sparse-pico-1x96-kd-no-mntp"].adaptation.steps == 0
    assert not cells["dense-pico-1x96-cl-causal"].backbone.bidirectional
    starts = {start_of(cell) for cell in cells.values()}
    assert len(starts) == 3  # the recipe's, without MNTP, causal
    assert cells["dense-pico-1x96-cl-random-negatives"].fine_tuning.random_fraction == 1
    assert "dense-pico-1x96-cl-flops-0.1" not in cells, "the dense head has no FLOPS weights"
    assert "sparse-pico-1x96-cl-wrong-scores-0.5" not in cells, "CL has no teacher"
    assert cells["sparse-pico-1x96-kd-wrong-scores-0.5"].fine_tuning != plain.fine_tuning


def test_the_papers_epochs_are_the_recipes():
    cells = Grid(LLAMA3, "c", epochs="recipe").cells()
    assert {(c.backbone.name, c.objective.name): c.epochs for c in cells} == LLAMA3.recipe.epochs
    assert {c.budget_flops for c in cells} == {0.0}
    with pytest.raises(ConfigError, match="lists none for pico-1x64 and cl"):
        Grid(PICO, "c", epochs="recipe").cells()
    with pytest.raises(ConfigError, match="FLOPs or epochs, not both"):
        Grid(PICO, "c", epochs=1.0, budget_flops=1e12)


def test_epochs_leave_nothing_to_charge_mntp_to():
    with pytest.raises(ConfigError, match="a budget in FLOPs: epochs leave nothing"):
        Grid(PICO, "c", epochs=1.0, adaptation_charge="charged").cells()
