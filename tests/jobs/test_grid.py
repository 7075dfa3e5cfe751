"""The whole chain on Ray: every stage real, on a tiny collection, from the experiment's own command line."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.jobs.commands import measures, run_here
from tests.jobs.conftest import CELLS


def test_the_table_has_a_row_for_every_system_split_and_measure(finished_grid):
    lab = finished_grid.lab
    table = pd.read_parquet(lab / "results.parquet")
    systems = {*CELLS, "untrained-sparse-tiny", "untrained-dense-tiny", "BM25"}
    assert set(table["system"]) == systems
    assert set(table["split"]) == {"test", "valid"}
    measured = table[table["measure"] != "CE@256"]
    assert len(measured) == len(systems) * 2 * 3
    entropy = table[table["measure"] == "CE@256"]
    assert set(entropy["system"]) == systems - {"BM25"}
    assert len(entropy) == (len(systems) - 1) * 2
    assert (table["ci_low"] <= table["value"]).all()
    assert (table["value"] <= table["ci_high"]).all()
    trained = table[table["kind"] == "trained"]
    # The contract: planned and spent within 2 %, cells of one budget within 1 % of each other.
    assert (trained["spent_flops"] / trained["budget_flops"] - 1).abs().max() <= 0.02
    assert trained["spent_flops"].max() / trained["spent_flops"].min() <= 1.01


def test_values_are_the_means_of_the_per_query_values(finished_grid):
    lab = finished_grid.lab
    table = pd.read_parquet(lab / "results.parquet")
    keys = ["system", "split", "measure"]
    means = pd.read_parquet(lab / "per_query.parquet").groupby(keys)["value"].mean()
    assert table.set_index(keys)["value"].sort_index().to_numpy() == pytest.approx(
        means.sort_index().to_numpy()
    )


def test_the_end_says_where_everything_is(finished_grid):
    lab, output = finished_grid.lab, finished_grid.output
    for file in (
        "results.parquet",
        "report/index.html",
        "report/scaling.png",
        "report/scaling.svg",
    ):
        assert (lab / file).exists()
        assert file in output
    assert "cells 4/4" in output
    assert "Last result" not in output  # Tune is silent


def test_the_ledger_has_every_stage(finished_grid):
    lab = finished_grid.lab
    ledger = pd.read_parquet(lab / "ledger.parquet")
    assert set(ledger["stage"]) == {
        "collection",
        "tokens",
        "groups",
        "arrays",
        "backbone",
        "retriever",
        "embeddings",
        "embedding-part",
        "index",
        "run",
        "measures",
        "profile",
    }
    assert (ledger.loc[ledger["stage"] == "retriever", "flops"] > 0).all()


def test_the_same_command_again_does_nothing(finished_grid):
    lab, arguments = finished_grid.lab, finished_grid.arguments
    before = {p: p.stat().st_mtime_ns for p in lab.rglob("manifest.json")}
    table = measures(lab)
    output = run_here(arguments)
    assert "everything was done already" in output
    assert {p: p.stat().st_mtime_ns for p in lab.rglob("manifest.json")} == before
    pd.testing.assert_frame_equal(measures(lab), table)


@pytest.fixture
def copied(finished_grid, tmp_path) -> tuple[Path, list[str]]:
    """(storage, command) of a copy of the finished grid."""
    lab = shutil.copytree(finished_grid.lab, tmp_path / "lab")
    return lab, [a.replace(str(finished_grid.lab), str(lab)) for a in finished_grid.arguments]


def test_a_total_budget_that_is_spent_starts_nothing_more_and_says_so(copied):
    """The six cells of the ladder, of which four are trained."""
    lab, arguments = copied
    place = arguments.index("--cells")
    before = measures(lab)
    spent = before[before["kind"] == "trained"].drop_duplicates("system")["spent_flops"].sum()
    total = ["--total-budget", f"{spent * 1.1:g}"]
    output = run_here([*arguments[:place], *arguments[place + 2 :], *total])
    assert "2 cell(s) are not started" in output
    assert "not trained, the total budget is spent: " in output
    assert "sparse-tiny-kd-seed0" in output
    pd.testing.assert_frame_equal(measures(lab), before)


@pytest.mark.slow
def test_without_an_index_the_table_is_the_same(finished_grid, copied):
    """`--no-index`: no embedding of a passage is kept, and only that is told apart."""
    lab, arguments = copied
    for stage in ("embeddings", "embedding-part", "index", "run", "measures"):
        shutil.rmtree(lab / stage)
    output = run_here([*arguments, "--no-index"])
    assert "bytes of embeddings not stored" in output
    assert all(index.name.startswith("bm25-") for index in (lab / "index").iterdir())
    pd.testing.assert_frame_equal(
        measures(lab).drop(columns="index_bytes"),
        measures(finished_grid.lab).drop(columns="index_bytes"),
    )


@pytest.mark.slow
def test_the_other_two_cells_join_and_none_is_trained_again(finished_grid, copied):
    lab, arguments = copied
    place = arguments.index("--cells")
    output = run_here([*arguments[:place], *arguments[place + 2 :]])
    assert "cells 6/6" in output
    table = pd.read_parquet(lab / "results.parquet")
    trained = set(table.loc[table["kind"] == "trained", "system"])
    assert trained == {f"{h}-tiny-{o}" for h in ("sparse", "dense") for o in ("cl", "kd", "cl+kd")}
    own = measures(lab)
    own = own[own["system"].isin(measures(finished_grid.lab)["system"])].reset_index(drop=True)
    assert set(own["fingerprint"].dropna()) == set(
        measures(finished_grid.lab)["fingerprint"].dropna()
    )


def test_every_run_leaves_its_curve(finished_grid):
    curves = pd.read_parquet(finished_grid.lab / "curves.parquet")
    ledger = pd.read_parquet(finished_grid.lab / "ledger.parquet").set_index("fingerprint")
    assert set(curves["system"]) == set(CELLS)
    for (system, fingerprint), own in curves.groupby(["system", "fingerprint"]):
        assert own["step"].is_monotonic_increasing
        assert own["step"].iloc[-1] == own["steps"].iloc[-1]
        assert own["flops"].iloc[-1] == pytest.approx(ledger.loc[fingerprint, "spent_flops"])
        assert own[["loss", "gradient_norm", "tokens"]].notna().all(axis=None), system
        measured = own[own["held_out"].notna()]
        assert len(measured)
        assert measured["step"].iloc[-1] == own["steps"].iloc[-1]
        assert measured["active_terms"].notna().all() == system.startswith("sparse")
        cost = ledger.loc[fingerprint, "measuring_flops"]
        assert 0 < cost <= 0.03 * ledger.loc[fingerprint, "spent_flops"]
        assert ledger.loc[fingerprint, "measuring_seconds"] > 0
        padded = ledger.loc[fingerprint, "padded_tokens"] / ledger.loc[fingerprint, "tokens"]
        assert 1 <= padded < 1.2  # 1.05 at the paper's batches; a group is cut at 8 texts at least
