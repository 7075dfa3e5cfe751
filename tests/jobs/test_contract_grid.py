"""Budgets on a real grid: several from one run each, MNTP charged, a total that ends it cleanly.

In `make test`, tests/jobs/test_grid.py holds the contract of its cells and a total budget that is spent.
"""

import pandas as pd
import pytest

from raylab.experiment.grid import Grid
from raylab.experiment.ladders import find_ladder
from raylab.models.backbone import load_config
from raylab.planning.flops import Shape, adaptation_flops
from tests.jobs.commands import command, run_here

BUDGETS = (3e10, 6e10)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]
TOTAL = 1.3e11  # of 1.8e11 that all four would take


@pytest.fixture(scope="module")
def limited(ray_cluster, tmp_path_factory, collection_folder, ladder_file):
    """(storage, its command line, its output, its trained cells) under the total budget."""
    lab = tmp_path_factory.mktemp("contract") / "lab"
    budgets = ",".join(f"{b:g}" for b in BUDGETS)
    more = ("--cells", "*-cl-*", "--budgets", budgets, "--mntp", "charged")
    arguments = command(collection_folder, ladder_file, None, lab, *more)
    output = run_here([*arguments, "--total-budget", f"{TOTAL:g}"])
    return lab, arguments, output, trained(lab)


@pytest.fixture(scope="module")
def whole(limited):
    """(storage, trained cells of before), of the same grid without a total budget."""
    lab, arguments, _, kept = limited
    run_here(arguments)
    return lab, kept


def trained(lab) -> pd.DataFrame:
    table = pd.read_parquet(lab / "results.parquet")
    return table[table["kind"] == "trained"].drop_duplicates("system").set_index("system")


def test_a_total_budget_leaves_out_what_it_does_not_hold_and_says_so(limited):
    _, _, output, kept = limited
    assert len(kept) == 3
    assert kept["spent_flops"].sum() <= TOTAL * 1.02
    assert "1 cell(s) are not started" in output
    assert "not trained, the total budget is spent: dense-tiny-cl-6e+10-seed0" in output


def test_without_it_the_rest_is_made_and_nothing_again(whole):
    lab, kept = whole
    table = trained(lab)
    assert len(table) == 4
    assert (table.loc[kept.index, "fingerprint"] == kept["fingerprint"]).all()


def test_planned_and_spent_agree_and_cells_of_a_budget_too(whole):
    """Within 2 %, and within 1 % of each other."""
    table = trained(whole[0])
    for budget in BUDGETS:
        spent = table.loc[table["budget_flops"] == budget, "spent_flops"]
        assert len(spent) == 2
        assert spent.to_numpy() == pytest.approx(budget, rel=0.02)
        assert spent.max() / spent.min() < 1.01
    assert sorted(table["variant"]) == ["3e+10", "3e+10", "6e+10", "6e+10"]


def test_mntp_is_paid_from_every_budget(limited, ladder_file):
    table = limited[-1]
    (cell, *_) = Grid(find_ladder(str(ladder_file)), "c").cells()
    shape = Shape.of(load_config(cell.backbone, cell.backbone.source))
    assert table["charged_flops"].to_numpy() == pytest.approx(
        adaptation_flops(shape, cell.adaptation)
    )


def test_the_ledger_counts_what_runs_share_once(limited):
    """The sparse runs were one: its stable phase is in the first of them."""
    lab = limited[0]
    ledger = pd.read_parquet(lab / "ledger.parquet").set_index("name")
    own = ledger[ledger["stage"] == "retriever"]
    charged = trained(lab)["charged_flops"].iloc[0]
    sparse = own.loc[[f"sparse-tiny-cl-{b:g}-seed0" for b in BUDGETS]]
    first, second = sparse["flops"], sparse["spent_flops"] - charged
    assert first.iloc[0] == pytest.approx(second.iloc[0], rel=1e-6)
    # The longer run begins where the shorter one's decay, a fifth of it, did.
    assert first.iloc[1] == pytest.approx(second.iloc[1] - 0.8 * second.iloc[0], rel=0.02)
    assert (own["planned_flops"] > 0).all()
    assert (own["retries"] == 0).all()
    assert (own["lost_flops"] == 0).all()
    assert (own["device_seconds"] > 0).all()
    assert ledger.loc[ledger["stage"] == "backbone", "planned_flops"].notna().all()
