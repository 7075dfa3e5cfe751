"""The charts of the grid tables: what is described is what the table says, and what is drawn is it."""

import io
import itertools
import json
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from raylab.report.charts import drawing, figures
from raylab.report.charts.chart import looks, to_json
from raylab.report.rows import benchmarks, read_rows
from raylab.report.tables import grid_table
from tests.report.conftest import budgeted, chart_looks

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def tables_of(results):
    rows = read_rows(results)
    return [grid_table(rows, benchmark) for benchmark in benchmarks(rows)]


def scaling_of(results):
    return figures.charts(tables_of(results))[0]


def charts_of(results):
    return {chart.name: chart for chart in figures.charts(tables_of(results))}


def axes_of(results):
    return drawing.figure(scaling_of(results)).axes


def series_of(axes):
    return {c.get_label(): c.lines[0] for c in axes.containers}


def with_costs(results):
    trained = results["kind"] == "trained"
    sparse = trained & (results["head"] == "sparse")
    results.loc[sparse, "passage_postings"] = results["parameters"] / 1e4
    results.loc[sparse, "retrieval_flops"] = 12.5
    results.loc[trained, "index_bytes"] = results["parameters"] * 2
    return results


def test_both_formats_are_valid_and_the_png_is_not_blank(results):
    plot = drawing.render(scaling_of(results))
    assert plot["png"].startswith(PNG_SIGNATURE)
    pixels = imread(io.BytesIO(plot["png"]))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    assert ET.fromstring(plot["svg"]).tag == "{http://www.w3.org/2000/svg}svg"


def test_bytes_are_a_function_of_the_results(results):
    first = drawing.render(scaling_of(results))
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other"}):
        assert drawing.render(scaling_of(results)) == first
    assert drawing.render(scaling_of(results.sample(frac=1, random_state=2))) == first
    assert b"<metadata" not in first["svg"]


def test_settings_of_the_process_are_left_alone(results):
    before = dict(matplotlib.rcParams)
    drawing.render(scaling_of(results))
    assert dict(matplotlib.rcParams) == before


def test_a_description_holds_the_values_and_intervals_of_the_results(results):
    results = with_costs(results)
    numbers = {
        "scaling": "parameters",
        "flops": "spent_flops",
        "sparsity": "passage_postings",
        "index-bytes": "index_bytes",
    }
    charts = charts_of(results)
    assert set(charts) == set(numbers)
    for name, number in numbers.items():
        panel, rows = charts[name].panels[0], results.query(charts[name].rows_filter[0])
        own = rows.set_index("system")
        described = json.loads(to_json(charts[name]))["panels"][0]["series"]
        seen = set()
        for series in described:
            for x, y, low, high, system in zip(
                *(series[k] for k in ("x", "y", "low", "high", "names")), strict=True
            ):
                row = own.loc[system]
                assert (x, y) == (row[number], row["value"])
                assert (low, high) == (row["ci_low"], row["ci_high"])
                seen.add(system)
        assert seen | {rule.label for rule in panel.rules} == set(own.index)


def test_a_chart_without_data_is_left_out(results):
    assert set(charts_of(results)) == {"scaling", "flops"}
    results["spent_flops"] = None
    assert set(charts_of(results)) == {"scaling"}


def test_a_series_a_head_and_objective_with_the_values_of_the_table(results):
    (table, _) = tables_of(results)
    (axes,) = axes_of(results)
    series = series_of(axes)
    assert len(series) == 6 + 2
    lines = [x for x in table.of("trained") if (x.head, x.objective) == ("sparse", "cl+kd")]
    drawn = series["sparse CL+KD"]
    assert list(drawn.get_ydata()) == [line.estimate.value for line in lines]
    near = [
        abs(np.log(x / line.parameters)) for x, line in zip(drawn.get_xdata(), lines, strict=True)
    ]
    assert max(near) < 0.4
    assert axes.get_xscale() == "log"


def test_bars_of_equal_x_do_not_coincide(results):
    (axes,) = axes_of(results)
    first_positions = [line.get_xdata()[0] for line in series_of(axes).values()]
    assert len(set(first_positions)) == len(first_positions)


@pytest.mark.parametrize("budgets", [(), (1e12, 1.6e12, 2.5e12, 4e12)])
@pytest.mark.parametrize("objectives", [("cl",), ("cl", "kd", "cl+kd")])
def test_series_can_be_told_apart_without_colour(make_results, budgets, objectives):
    results = make_results(objectives=objectives)
    results = with_costs(budgeted(results, budgets) if budgets else results)
    for chart in figures.charts(tables_of(results)):
        for panel in chart.panels:
            marks = chart_looks(panel)
            assert len(set(marks)) == len(marks) > 0, chart.name
            assert len(marks) <= 12 + 2


def test_looks_of_many_series_are_distinct():
    keys = list(
        itertools.product(("sparse", "dense", "other"), ("cl", "kd", "new"), map(str, range(14)))
    )
    found = [(look.marker, look.hollow, look.dash) for look in looks(keys).values()]
    assert len(set(found)) == len(keys)


def test_hollow_is_untrained_and_only_that(results):
    (axes,) = axes_of(results)
    hollow = {n for n, line in series_of(axes).items() if line.get_markerfacecolor() == "white"}
    assert hollow == {"sparse untrained", "dense untrained"}


def test_budgets_are_series_in_numeric_order_and_sizes_those_of_compute(make_results):
    results = budgeted(make_results(objectives=["cl"]), (2e12, 1e12, 1e13))
    charts = charts_of(results)
    names = [s.label for s in charts["scaling"].panels[0].series if s.look.hue == "sparse"]
    assert names[:3] == ["sparse CL 1.00 TFLOPs", "sparse CL 2.00 TFLOPs", "sparse CL 10.0 TFLOPs"]
    names = [s.label for s in charts["flops"].panels[0].series]
    assert names[:3] == ["sparse CL pico-1x64", "sparse CL pico-2x128", "sparse CL pico-4x256"]
    assert [len(s.x) for s in charts["flops"].panels[0].series] == [3] * 6


def test_other_variants_are_not_drawn_as_the_plain_recipe(make_results):
    results = make_results(objectives=["cl"])
    other = results[results["kind"] == "trained"].assign(variant="causal")
    other["system"] += "-causal"
    both = pd.concat([results, other], ignore_index=True)
    assert [p.series for p in scaling_of(both).panels] == [
        p.series for p in scaling_of(results).panels
    ]
    own = both.query(scaling_of(both).rows_filter[0])
    assert set(own["system"]) == set(results["system"])
    assert not own["system"].str.endswith("causal").any()


def test_bm25_is_a_dashed_horizontal_line(results):
    (axes,) = axes_of(results)
    (line,) = [line for line in axes.lines if line.get_label() == "BM25"]
    assert list(line.get_ydata()) == [0.676, 0.676]
    assert line.get_linestyle() == "--"


def test_error_bars_are_the_interval(results):
    (table, _) = tables_of(results)
    (axes,) = axes_of(results)
    (container,) = [c for c in axes.containers if c.get_label() == "dense CL"]
    (bars,) = container.lines[2]
    ends = [(low[1], high[1]) for low, high in bars.get_segments()]
    lines = [x for x in table.of("trained") if (x.head, x.objective) == ("dense", "cl")]
    expected = [(line.estimate.low, line.estimate.high) for line in lines]
    assert np.array(ends) == pytest.approx(np.array(expected))


def test_a_panel_a_held_out_split_and_at_most_three(results, make_results):
    assert len(axes_of(results)) == 1
    marco = make_results(splits=[("msmarco-slice", s) for s in ("dev", "dl19", "dl20")])
    assert [a.get_title(loc="left") for a in axes_of(marco)] == [
        "msmarco-slice dl19",
        "msmarco-slice dl20",
    ]
    assert len(axes_of(make_results(splits=[(c, "test") for c in "abcd"]))) == 3


def test_odd_grids_are_drawn(odd_results):
    plot = drawing.render(scaling_of(odd_results))
    assert plot["png"].startswith(PNG_SIGNATURE)
    ET.fromstring(plot["svg"])


@pytest.mark.parametrize(
    ("low", "high"), [(1e12, 4e12), (9e4, 5e6), (13, 40), (1, 1e9), (2e5, 2.1e5)]
)
def test_ticks_of_logarithmic_axes_are_few_and_within(low, high):
    ticks = drawing.log_ticks(low, high)
    assert len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
