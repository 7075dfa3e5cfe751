"""Learning rates by successive halving, on a surface that is known: no cell is trained here."""

import math

import pandas as pd
import pytest

from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.heads import DENSE, SPARSE
from raylab.experiment.ladders import PICO
from raylab.experiment.objectives import CL
from raylab.experiment.variants import budget_variants
from raylab.pipeline.tuning import Halving, tune

SIZES = ("pico-1x96", "pico-1x192")
GRID = Grid(PICO, "scifact", budget_flops=8e11, sizes=SIZES, objectives=(CL,), seeds=(0, 1))
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
BEST = {("pico-1x96", "sparse"): 4e-3, ("pico-1x96", "dense"): 2e-3}  # of 1x192: half of these


def quality(size: str, head: str, rate: float) -> float:
    best = BEST["pico-1x96", head] / (2 if size == "pico-1x192" else 1)
    return 0.6 - 0.1 * abs(math.log2(rate / best))


class Laboratory:
    """Knows the quality of every cell, and keeps what it was asked."""

    def __init__(self, split: str = "valid"):
        self.split, self.asked = split, []

    def __call__(self, grid: Grid, execution: Execution) -> pd.DataFrame:
        cells = grid.cells()
        self.asked.append(cells)
        rows = []
        for cell in cells:
            value = quality(cell.backbone.name, cell.head.name, cell.fine_tuning.learning_rate)
            for split, measured in ((self.split, value), ("test", 1 - value)):
                rows.append(
                    {
                        "kind": "trained",
                        "system": cell.name,
                        "seed": cell.seed,
                        "split": split,
                        "measure": "nDCG@10",
                        "value": measured + 0.01 * cell.seed,
                    }
                )
        return pd.DataFrame(rows)


def tuned(laboratory, grid=GRID, **halving):
    return tune(grid, Halving(RATES, **halving), Execution(), laboratory)


def test_the_best_rate_of_every_cell_is_found_on_validation():
    winners = {winner.key: winner for winner in tuned(Laboratory())}
    assert {key: winner.rate for key, winner in winners.items()} == {
        ("pico-1x96", "sparse", "cl"): 4e-3,
        ("pico-1x96", "dense", "cl"): 2e-3,
        ("pico-1x192", "sparse", "cl"): 2e-3,
        ("pico-1x192", "dense", "cl"): 1e-3,
    }
    assert winners["pico-1x192", "dense", "cl"].at_edge
    assert not winners["pico-1x96", "dense", "cl"].at_edge
    assert "beyond" in winners["pico-1x192", "dense", "cl"].tuned().about
    of = winners["pico-1x96", "dense", "cl"].values
    assert of[2e-3] == pytest.approx(0.605)  # the mean over both seeds


def test_the_better_part_of_a_cells_rates_goes_on_to_the_whole_budget():
    laboratory = Laboratory()
    tuned(laboratory, shares=(0.25, 1.0), ratio=2.5)
    first, last = laboratory.asked
    assert len(first) == 4 * len(RATES) * 2
    assert len(last) == 4 * 2 * 2  # two rates of five
    assert {cell.budget_flops for cell in first} == {2e11}
    assert {cell.budget_flops for cell in last} == {8e11}
    left = {
        cell.fine_tuning.learning_rate
        for cell in last
        if (cell.backbone.name, cell.head) == ("pico-1x96", SPARSE)
    }
    assert left == {2e-3, 4e-3}  # 2e-3 and 8e-3 are equal: the lower one
    names = {cell.name for cell in first} & {cell.name for cell in last}
    assert not names  # rounds are told apart in one storage


def test_epochs_are_shared_out_like_flops():
    laboratory = Laboratory()
    grid = Grid(PICO, "scifact", epochs=4.0, sizes=SIZES[:1], heads=(DENSE,), objectives=(CL,))
    tuned(laboratory, grid, shares=(0.5, 1.0))
    assert [{cell.epochs for cell in cells} for cells in laboratory.asked] == [{2.0}, {4.0}]


def test_no_validation_queries_no_tuning():
    with pytest.raises(ConfigError, match="no nDCG@10 on split 'valid'"):
        tuned(Laboratory(split="dev"))


def test_a_grid_that_varies_already_is_refused():
    grid = Grid(PICO, "scifact", variants=budget_variants((1e11, 2e11)))
    with pytest.raises(ConfigError, match="no variants"):
        tuned(Laboratory(), grid)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rates": (1e-3,)}, "rates"),
        ({"rates": (1e-3, 1e-3)}, "rates"),
        ({"rates": (1e-3, -1e-3)}, "rates"),
        ({"shares": (0.5,)}, "shares"),
        ({"shares": (1.0, 0.5)}, "shares"),
        ({"shares": (0.0, 1.0)}, "shares"),
        ({"shares": ()}, "shares"),
        ({"ratio": 1.0}, "ratio"),
    ],
)
def test_a_halving_that_cannot_be_is_refused(wrong, named):
    with pytest.raises(ConfigError, match=named):
        Halving(**{"rates": RATES, **wrong})


def test_at_least_one_rate_goes_on_and_a_lower_one_first_among_equals():
    halving = Halving(RATES, ratio=100)
    assert halving.survivors({1e-3: 0.5, 2e-3: 0.5}) == (1e-3,)
