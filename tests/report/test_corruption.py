"""Charts of corruption: values by share, relative to the same cell with nothing wrong."""

import numpy as np
import pandas as pd
import pytest

from raylab.report.charts import corruption
from raylab.report.rows import benchmarks, read_rows
from raylab.report.tables import grid_table
from tests.report.conftest import chart_looks
from tests.report.test_heads import per_query_of

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
            own = own.assign(variant=name, system=trained["system"] + f"-{name}")
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
    values, kept = chart.panels
    own = results.query(chart.rows_filter[0]).set_index("system")
    for panel in chart.panels:
        assert len(panel.series) == len(set(chart_looks(panel))) == 4
    for one in values.series:
        assert one.x == SHARES
        assert list(one.y) == [own.loc[name, "value"] for name in one.names]
    for one in kept.series:
        assert one.y == pytest.approx([1 - 0.5 * share for share in SHARES])
        assert (one.low[0], one.high[0]) == (1, 1)
        inside = [low < y < high for low, y, high in zip(one.low, one.y, one.high, strict=True)]
        assert all(inside[1:])


def test_the_interval_of_what_is_kept_draws_the_same_queries_for_both(make_results):
    results = corrupted_results(make_results)
    per_query = per_query_of(results)
    clean = per_query["system"] == "sparse-pico-2x128-cl"
    half = per_query["system"] == "sparse-pico-2x128-cl-changed0.5"
    per_query.loc[half, "value"] = per_query.loc[clean, "value"].to_numpy() * 0.75
    (chart,) = charts_of(results, per_query)
    (one,) = [s for s in chart.panels[1].series if s.label == "sparse CL"]
    assert np.allclose([one.low[-1], one.high[-1]], 0.75)


def test_without_values_per_query_there_are_no_bars_and_no_share_0_no_panel(make_results):
    (chart,) = charts_of(corrupted_results(make_results))
    assert set(chart.panels[1].series[0].low) == {None}
    (chart,) = charts_of(corrupted_results(make_results, shares=(0.1, 0.5)))
    assert len(chart.panels) == 1


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
    other = results[results["variant"] == ""].assign(variant="causal")
    other["system"] += "-causal"
    (chart,) = charts_of(pd.concat([results, other], ignore_index=True))
    assert chart.name == name
    assert {one.x for one in chart.panels[0].series} == {SHARES}
    assert not any("causal" in system for one in chart.panels[0].series for system in one.names)


def test_nothing_corrupted_nothing_drawn(results):
    assert charts_of(results) == []
