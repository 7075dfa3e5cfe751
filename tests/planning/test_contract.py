"""Budgets as they are typed, and the steps that spend them."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylab.experiment.config import Adaptation, Backbone, ConfigError, FineTuning
from raylab.experiment.families import start_of
from raylab.experiment.grid import Cell, Grid, Variant
from raylab.experiment.heads import DENSE
from raylab.experiment.ladders import PICO
from raylab.experiment.objectives import CL
from raylab.experiment.variants import budget_variants
from raylab.models.backbone import load_config, resolve_source
from raylab.planning.contract import (
    Budget,
    parse_budget,
    parse_budgets,
    rounding,
    steps_of,
    within_total,
)
from raylab.planning.devices import DEVICES
from raylab.planning.flops import Shape, passages_per_query
from raylab.planning.plan import GridPlan, Lengths, plan_cell

H100 = DEVICES["h100"]


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        (None, Budget()),
        ("1e15", Budget(flops=1e15)),
        ("2h@h100", Budget(flops=2 * 3600 * H100.peak_flops * H100.efficiency)),
        ("3epochs", Budget(epochs=3.0)),
        ("0.5epochs", Budget(epochs=0.5)),
        ("epochs", Budget(epochs="recipe")),
    ],
)
def test_a_budget_as_it_is_typed(text, budget):
    assert parse_budget(text) == budget


def test_an_efficiency_of_ones_own():
    assert parse_budget("1h@h100", 0.5).flops == pytest.approx(0.5 * 3600 * H100.peak_flops)


@pytest.mark.parametrize(
    "text", ["", "much", "-1", "0", "inf", "nan", "h@h100", "3h", "epochs3", "-2epochs", "1h@"]
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"^budget .*: it must be FLOPs"):
        parse_budget(text)


def test_an_unknown_device_is_named():
    with pytest.raises(ConfigError, match="'abacus': it must be one of"):
        parse_budget("3h@abacus")


def test_several_budgets():
    assert parse_budgets("1e12,2e12") == (1e12, 2e12)
    for text in ("", ",", "1e12,many", "0"):
        with pytest.raises(ConfigError, match=r"^budgets"):
            parse_budgets(text)


def cell(budget: float = 0.0, **more) -> Cell:
    tuning = FineTuning(batch_queries=8, pseudo_fraction=more.pop("pseudo", 0.0))
    return Cell(Backbone("t", "nowhere"), DENSE, CL, tuning, budget, **more)


@given(st.lists(st.floats(1.0, 1.1), min_size=300, max_size=300), st.floats(50.0, 250.0))
def test_short_runs_are_within_half_a_step_of_their_budget(costs, budget):
    steps = steps_of(cell(budget), costs.__getitem__, 0, 0.0)
    spent = sum(costs[:steps])
    assert abs(spent - budget) <= max(costs) / 2 + 1e-9


@given(st.integers(0, 2**32 - 1), st.floats(400.0, 4000.0))
def test_long_runs_are_within_a_percent_of_it(seed, budget):
    """Of batches whose cost varies by a tenth, as padded lengths of small batches do."""
    import numpy as np

    costs = np.random.default_rng(seed).uniform(0.9, 1.1, 5000)
    steps = steps_of(cell(budget), lambda step: costs[step], 0, 0.0)
    assert costs[:steps].sum() == pytest.approx(budget, rel=0.015)


def test_epochs_are_over_queries_and_titles_are_none():
    """Half of each batch of 8 are titles: 100 queries last 25 steps."""
    costs = itertools.repeat(1.0).__next__
    assert steps_of(cell(epochs=3.0), lambda _: costs(), 100, 0.0) == round(3 * 100 / 8)
    assert steps_of(cell(epochs=2.0, pseudo=0.5), lambda _: costs(), 100, 0.0) == 50


def test_mntp_is_paid_first_where_it_is_charged():
    own = cell(100.0, charged_adaptation=True, adaptation=Adaptation())
    assert steps_of(own, lambda _: 1.0, 0, 40.0) == 60
    assert steps_of(cell(100.0), lambda _: 1.0, 0, 40.0) == 100
    with pytest.raises(ConfigError, match="of which MNTP is paid first"):
        steps_of(own, lambda _: 1.0, 0, 99.9)


def test_a_budget_below_half_a_step_is_refused():
    with pytest.raises(
        ConfigError, match=r"too small for dense-t-cl-seed0: one step costs 10 FLOPs"
    ):
        steps_of(cell(4.9), lambda _: 10.0, 0, 0.0)
    assert steps_of(cell(5.1), lambda _: 10.0, 0, 0.0) == 1


def test_what_whole_steps_cannot_make_alike_is_said():
    shape = Shape.of(load_config(PICO.backbones[2], resolve_source(PICO.backbones[2], None)))
    budgets = (1e11, 4e11)
    grid = Grid(
        PICO, "scifact", heads=(DENSE,), objectives=(CL,), variants=budget_variants(budgets)
    )

    def lengths(cell: Cell) -> Lengths:
        texts = np.full(cell.fine_tuning.batch_queries * (1 + passages_per_query(cell)), 128.0)
        return Lengths(texts, texts)

    def said(**more) -> str | None:
        own = dataclasses.replace(grid, **more)
        plan = GridPlan(tuple(plan_cell(c, shape, lengths(c), None, 100) for c in own.cells()))
        return rounding(own, plan)

    found = said()
    assert found is not None
    assert "cl-1e+11-seed0 is" in found
    assert said(variants=budget_variants((1e13, 4e13))) is None
    assert said(variants=budget_variants((1e11,)), sizes=("pico-1x96",)) is None, "alone"
    assert said(variants=(Variant(),), epochs=1.0) is None


def test_a_total_holds_cells_and_the_mntp_that_they_share_once():
    grid = Grid(PICO, "scifact", sizes=("pico-1x96", "pico-1x192"), heads=(DENSE,), seeds=(0, 1))
    cells = [c for c in grid.cells() if c.objective == CL]
    small, large = cells[:2], cells[2:]

    def chosen(total, missing=cells, spent=0.0, starts=()):
        return within_total(total, spent, missing, lambda _: 10.0, lambda _: 5.0, starts)

    assert chosen(None) == set(cells)
    assert chosen(50.0) == set(cells), "two of MNTP and four cells"
    assert chosen(49.9) == {*small, large[0]}
    assert chosen(24.9) == {small[0]}
    assert chosen(14.9) == set()
    done = {"missing": large, "spent": 20.0, "starts": {start_of(small[0])}}
    assert chosen(50.0, **done) == set(large)
    assert chosen(39.9, **done) == set()
