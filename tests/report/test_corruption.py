"""Charts of corruption: values by share, relative to the same cell with nothing wrong."""

import numpy as np
import pandas as pd
import pytest

from raylab.report.charts import corruption
from raylab.report.rows import benchmarks, read_rows
from raylab.report.tables import grid_table
from tests.report.test_heads import per_query_of
from tests.report.vega import Figure

SHARES = (0, 0.1, 0.25, 0.5)


BOTH = ("corrupted_positives", "corrupted_scores")


def corrupted_results(make_results, columns=BOTH, shares=SHARES):
    """Cells of two objectives and heads whose `columns` say each of the shares; 0 is the plain recipe."""
    base = make_results(sizes=["pico-2x128"], objectives=["cl", "kd"], splits=[("scifact", "test")])
    trained = base[base["kind"] == "trained"]
    parts = [base[base["kind"] != "trained"]]
    for share in shares:
        own = trained.assign(variant="", **dict.fromkeys(BOTH, 0.0))
        own = own.assign(**dict.fromkeys(columns, share))
        if share:
            name = f"changed{share:g}"
            own = own.assign(variant=name, varied="recipe", system=trained["system"] + f"-{name}")
        own[["value", "ci_low", "ci_high"]] *= 1 - 0.5 * share
        parts.append(own)
    return pd.concat(parts, ignore_index=True)


def charts_of(results, per_query=None):
    rows = read_rows(results)
    return corruption.charts([grid_table(rows, b) for b in benchmarks(rows)], per_query)


def test_a_point_a_share_and_the_part_that_is_kept(make_results):
    results = corrupted_results(make_results)
    (chart,) = charts_of(results, per_query_of(results))
    assert chart.name == "corruption"
    values, kept = Figure(chart).panels
    by_system = results.query(chart.rows_filter[0]).set_index("system")
    for panel in (values, kept):
        assert len(panel.series()) == len(set(panel.looks())) == 4
    for points in values.series().values():
        assert tuple(point["x"] for point in points) == SHARES
        assert [p["y"] for p in points] == [by_system.loc[p["system"], "value"] for p in points]
    for points in kept.series().values():
        assert [point["y"] for point in points] == pytest.approx([1 - 0.5 * x for x in SHARES])
        assert (points[0]["low"], points[0]["high"]) == (1, 1)
        assert all(point["low"] < point["y"] < point["high"] for point in points[1:])


def test_the_interval_of_what_is_kept_draws_the_same_queries_for_both(make_results):
    results = corrupted_results(make_results)
    per_query = per_query_of(results)
    clean = per_query["system"] == "sparse-pico-2x128-cl"
    half = per_query["system"] == "sparse-pico-2x128-cl-changed0.5"
    per_query.loc[half, "value"] = per_query.loc[clean, "value"].to_numpy() * 0.75
    (chart,) = charts_of(results, per_query)
    last = Figure(chart).panels[1].series()["sparse CL"][-1]
    assert np.allclose([last["low"], last["high"]], 0.75)


def test_without_values_per_query_there_are_no_bars_and_no_share_0_no_panel(make_results):
    (chart,) = charts_of(corrupted_results(make_results))
    assert {row["low"] for row in Figure(chart).panels[1].of("trained")} == {None}
    (chart,) = charts_of(corrupted_results(make_results, shares=(0.1, 0.5)))
    assert len(Figure(chart).panels) == 1


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (BOTH, "corruption"),
        (("corrupted_positives",), "corruption-positives"),
        (("corrupted_scores",), "corruption-scores"),
    ],
)
def test_a_chart_of_each_kind_of_corruption_starts_at_the_plain_recipe(make_results, columns, name):
    results = corrupted_results(make_results, columns)
    plain = (results["kind"] == "trained") & (results["variant"] == "")
    other = results[plain].assign(variant="causal", varied="recipe")
    other["system"] += "-causal"
    (chart,) = charts_of(pd.concat([results, other], ignore_index=True))
    assert chart.name == name
    panel = Figure(chart).panels[0]
    assert {tuple(p["x"] for p in points) for points in panel.series().values()} == {SHARES}
    assert not any("causal" in row["system"] for row in panel.rows)


def test_nothing_corrupted_nothing_drawn(results):
    assert charts_of(results) == []
