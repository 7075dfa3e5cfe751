"""The plan of a grid whose data are there is what its runs took: the same steps, the same FLOPs."""

import json

import pandas as pd
import pytest

from tests.jobs.commands import run_here


def planned(output: str, cell: str) -> list[str]:
    (row,) = (line for line in output.splitlines() if f" {cell}-seed0 " in line and "│" in line)
    return [part.strip() for part in row.strip("│").split("│")]


def test_a_plan_is_solved_from_the_batches_that_ran(finished_grid):
    output = run_here([*finished_grid.arguments, "--dry-run"])
    results = pd.read_parquet(finished_grid.lab / "results.parquet").query("kind == 'trained'")
    for system, rows in results.groupby("system"):
        _, steps, _, real_tokens, flops, *_ = planned(output, str(system))
        took = rows.iloc[0]
        assert int(steps.replace(",", "")) == took["steps"]
        assert float(flops) == pytest.approx(took["spent_flops"], rel=5e-3)  # three digits
        assert float(real_tokens) == pytest.approx(took["tokens"], rel=5e-3)


def test_epochs_are_marked_as_an_estimate_until_the_groups_are_there(finished_grid, tmp_path):
    cell = "dense-tiny-cl"
    arguments = [*finished_grid.arguments, "--budget", "2epochs", "--dry-run"]
    exact = run_here(arguments)
    elsewhere = [str(tmp_path / "x") if a == str(finished_grid.lab) else a for a in arguments]
    estimated = run_here(elsewhere)
    steps = planned(exact, cell)[1]
    groups = [
        json.loads(path.read_text())["meta"]
        for path in (finished_grid.lab / "groups").glob("*/manifest.json")
    ]
    assert int(steps) >= 1
    assert len(groups) == 1
    assert (
        planned(estimated, cell)[1] == f"~{steps}"
    )  # every positive of a training query is a group
    assert "~: an estimate" in estimated
    assert "~" not in exact
    assert not (tmp_path / "x").exists()
