"""The charts of the grid tables: what is described is what the table says, and what is drawn is it."""

import io
import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import altair as alt
import numpy as np
import pandas as pd
import pytest
from jsonschema import ValidationError
from PIL import Image

from raylab.report.charts import drawing, quality
from raylab.report.charts.chart import shown_tables
from raylab.report.charts.theme import labels, styles
from raylab.report.rows import Variation, benchmarks, read_rows
from raylab.report.tables import grid_table
from tests.report.conftest import budgeted
from tests.report.vega import Figure, walk

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def tables_of(results):
    rows = read_rows(results)
    return [grid_table(rows, benchmark) for benchmark in benchmarks(rows)]


_KEPT = {}  # charts, by what is shown


def fresh_charts_of(results):
    return {chart.name: chart for chart in quality.charts(shown_tables(tables_of(results)))}


def charts_of(results):
    """Of tables that are equal, made once."""
    shown = repr(tables_of(results))
    if shown not in _KEPT:
        _KEPT[shown] = fresh_charts_of(results)
    return _KEPT[shown]


def scaling_of(results):
    return charts_of(results)["scaling"]


def panels_of(results):
    return Figure(scaling_of(results)).panels


def files_of(chart):
    return drawing.to_svg(chart), drawing.to_png(chart), drawing.to_json(chart)


def with_costs(results):
    trained = results["kind"] == "trained"
    sparse = trained & (results["head"] == "sparse")
    results.loc[sparse, "passage_postings"] = results["parameters"] / 1e4
    results.loc[sparse, "retrieval_flops"] = 12.5
    results.loc[trained, "index_bytes"] = results["parameters"] * 2
    return results


def test_both_formats_are_valid_and_the_png_is_not_blank(results):
    svg, png, _ = files_of(scaling_of(results))
    assert png.startswith(PNG_SIGNATURE)
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_description_is_vega_lite(results):
    """Its parts are not checked when they are put together; here the whole is, by Altair's schema."""
    for chart in charts_of(with_costs(results)).values():
        alt.HConcatChart.from_dict(chart.spec)
    broken = json.loads(json.dumps(chart.spec))
    broken["hconcat"][0]["concat"][0]["layer"][0]["mark"] = {"type": "no such mark"}
    with pytest.raises(ValidationError, match="no such mark"):
        alt.HConcatChart.from_dict(broken)


def test_bytes_are_a_function_of_the_results(results):
    first = files_of(fresh_charts_of(results)["scaling"])
    with alt.theme.enable("dark"):
        assert files_of(fresh_charts_of(results)["scaling"]) == first
    shuffled = results.sample(frac=1, random_state=2)
    assert files_of(fresh_charts_of(shuffled)["scaling"]) == first
    assert b"<metadata" not in first[0]
    assert not any(name in first[1] for name in (b"tEXt", b"iTXt", b"tIME"))


def test_an_svg_has_no_ids_that_another_on_the_page_could_have_and_fetches_nothing(results):
    for chart in charts_of(with_costs(results)).values():
        svg = drawing.to_svg(chart).decode()
        names = {name for element in ET.fromstring(svg).iter() for name in element.attrib}
        assert not {name for name in names if name == "id" or name.endswith("href")}
        assert "url(" not in svg


def test_settings_of_the_process_are_left_alone(results):
    def settings():
        return alt.theme.active, alt.theme.options, alt.data_transformers.active

    before = settings()
    files_of(fresh_charts_of(results)["scaling"])
    assert settings() == before


def test_what_draws_is_imported_only_for_a_report_that_is_written():
    code = "import sys, raylab.report; print({'altair', 'vl_convert'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert printed.stdout.decode().strip() == "set()"


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
        figure, rows = Figure(charts[name]), results.query(charts[name].rows_filter[0])
        by_system = rows.set_index("system")
        panel = figure.panels[0]
        for point in panel.of("trained", "untrained"):
            row = by_system.loc[point["system"]]
            assert (point["x"], point["y"]) == (row[number], row["value"])
            assert (point["low"], point["high"]) == (row["ci_low"], row["ci_high"])
        assert {row["system"] for row in panel.rows} == set(by_system.index)
        assert figure.spec["usermeta"]["rows_filter"] == list(charts[name].rows_filter)
        assert figure.spec["usermeta"]["note"] == charts[name].note


def test_a_chart_without_data_is_left_out(results):
    assert set(charts_of(results)) == {"scaling", "flops"}
    results["spent_flops"] = None
    assert set(charts_of(results)) == {"scaling"}


def test_a_series_a_head_and_objective_with_the_values_of_the_table(results):
    (table, _) = tables_of(results)
    (panel,) = panels_of(results)
    assert len(panel.series()) == 6 + 2
    lines = [x for x in table.of("trained") if (x.head, x.objective) == ("sparse", "cl+kd")]
    points = panel.series()["sparse CL+KD"]
    assert [point["y"] for point in points] == [line.estimate.value for line in lines]
    near = [
        abs(np.log(point["place"] / line.parameters))
        for point, line in zip(points, lines, strict=True)
    ]
    assert max(near) < 0.4
    assert panel.layer("point")["x"]["field"] == "place"
    assert panel.layer("point")["x"]["scale"]["type"] == "log"
    assert "log scale" in panel.layer("point")["x"]["title"]


def test_what_vega_draws_is_each_point_at_its_value(results):
    chart = scaling_of(results)
    figure = Figure(chart)
    points = figure.panels[0].of("trained", "untrained")
    (symbols,) = [items for kind, items in figure.drawn if kind == "symbol" and len(items) > 20]
    assert len(symbols) == len(points)
    values = sorted(point["y"] for point in points)
    pixels = sorted((symbol["y"] for symbol in symbols), reverse=True)  # down is larger
    slope, start = np.polyfit(values, pixels, 1)
    assert pixels == pytest.approx([start + slope * value for value in values], abs=0.01)
    bars = [items for kind, items in figure.drawn if kind == "rule" and len(items) == len(points)]
    ends = sorted((max(bar["y"], bar["y2"]), min(bar["y"], bar["y2"])) for bar in bars[0])
    wanted = sorted((start + slope * p["low"], start + slope * p["high"]) for p in points)
    assert np.array(ends) == pytest.approx(np.array(wanted), abs=0.01)


def test_bars_of_equal_x_do_not_coincide(results):
    (panel,) = panels_of(results)
    first_places = [points[0]["place"] for points in panel.series().values()]
    assert len({points[0]["x"] for points in panel.series().values()}) == 1
    assert len(set(first_places)) == len(first_places)


@pytest.mark.parametrize("budgets", [(), (1e12, 1.6e12, 2.5e12, 4e12)])
@pytest.mark.parametrize("objectives", [("cl",), ("cl", "kd", "cl+kd")])
def test_series_can_be_told_apart_without_colour(make_results, budgets, objectives):
    results = make_results(objectives=objectives)
    results = with_costs(budgeted(results, budgets) if budgets else results)
    for chart in charts_of(results).values():
        for panel in Figure(chart).panels:
            looks = panel.looks()
            assert len(set(looks)) == len(looks) > 0, chart.name
            assert len(looks) <= 12 + 2


def test_styles_of_many_series_are_distinct():
    keys = list(
        itertools.product(("sparse", "dense", "other"), ("cl", "kd", "new"), map(str, range(14)))
    )
    looks = [(style.shape, style.hollow, style.dash) for style in styles(keys).values()]
    assert len(set(looks)) == len(keys)


def test_labels_of_series_are_distinct_where_budgets_read_alike():
    budgets = [Variation(name, float(name)) for name in ("1.2e+12", "1.2004e+12", "4e+12")]
    keys = [("sparse", "cl", budgets[0]), ("sparse", "cl", budgets[1]), ("dense", "cl", budgets[2])]
    assert len(set(labels(keys).values())) == 3
    assert labels(keys)[keys[2]] == "dense CL 4.00 TFLOPs"


def test_the_legend_names_every_series_with_its_line_and_mark(results):
    figure = Figure(scaling_of(results))
    keys = {key["mark"]: (key["line"], key["point"]) for key in figure.legend}
    (panel,) = figure.panels
    assert set(keys) == {row["series"] for row in panel.rows}
    for label in panel.series("trained"):
        assert keys[label] == (True, True)
    for label in panel.series("untrained"):
        assert keys[label] == (False, True)
    assert keys["BM25"] == (True, False)
    assert " ".join(figure.heading) == "bars: 95 % bootstrap interval over queries"


def test_hollow_is_untrained_and_only_that(results):
    assert Figure(scaling_of(results)).hollow == {"sparse untrained", "dense untrained"}


def test_budgets_are_series_in_numeric_order_and_sizes_those_of_compute(make_results):
    results = budgeted(make_results(objectives=["cl"]), (2e12, 1e12, 1e13))
    charts = charts_of(results)
    names = [key["mark"] for key in Figure(charts["scaling"]).legend]
    assert names[:3] == ["sparse CL 1.00 TFLOPs", "sparse CL 2.00 TFLOPs", "sparse CL 10.0 TFLOPs"]
    figure = Figure(charts["flops"])
    names = [key["mark"] for key in figure.legend]
    assert names[:3] == ["sparse CL pico-1x64", "sparse CL pico-2x128", "sparse CL pico-4x256"]
    assert [len(points) for points in figure.panels[0].series().values()] == [3] * 6


def test_lines_join_their_points_in_the_order_of_the_rows(results):
    results = with_costs(results)
    sparse = (results["kind"] == "trained") & (results["head"] == "sparse")
    results.loc[sparse, "index_bytes"] = 1e9 - results["index_bytes"]  # the larger the fewer
    (panel,) = Figure(charts_of(results)["index-bytes"]).panels
    assert all(
        layer["mark"]["order"] is False
        for layer in panel.spec["layer"]
        if layer["mark"]["type"] == "line"
    )
    places = [point["x"] for point in panel.series()["sparse CL"]]
    assert places == sorted(places, reverse=True)


def test_other_variants_are_not_drawn_as_the_plain_recipe(make_results):
    results = make_results(objectives=["cl"])
    other = results[results["kind"] == "trained"].assign(variant="causal", varied="recipe")
    other["system"] += "-causal"
    both = pd.concat([results, other], ignore_index=True)
    assert [p.rows for p in panels_of(both)] == [p.rows for p in panels_of(results)]
    shown = both.query(scaling_of(both).rows_filter[0])
    assert set(shown["system"]) == set(results["system"])
    assert not shown["system"].str.endswith("causal").any()


def test_bm25_is_a_dashed_horizontal_line(results):
    figure = Figure(scaling_of(results))
    (panel,) = figure.panels
    ((row,),) = panel.series("baseline").values()
    assert (row["series"], row["y"]) == ("BM25", 0.676)
    rule = panel.layer("rule")
    assert rule["y"]["field"] == "y"
    assert "x" not in rule
    ink, gap = figure.styles("strokeDash")["BM25"]
    assert ink > 0
    assert gap > 0


def test_error_bars_are_the_interval(results):
    (table, _) = tables_of(results)
    (panel,) = panels_of(results)
    ends = [(point["low"], point["high"]) for point in panel.series()["dense CL"]]
    lines = [x for x in table.of("trained") if (x.head, x.objective) == ("dense", "cl")]
    assert ends == [(line.estimate.low, line.estimate.high) for line in lines]
    bars = panel.layer("errorbar")
    assert (bars["y"]["field"], bars["y2"]["field"]) == ("low", "high")


def test_a_panel_a_held_out_split_and_at_most_three(results, make_results):
    assert len(panels_of(results)) == 1
    marco = make_results(splits=[("msmarco-slice", s) for s in ("dev", "dl19", "dl20")])
    assert [p.title for p in panels_of(marco)] == ["msmarco-slice dl19", "msmarco-slice dl20"]
    assert len(panels_of(make_results(splits=[(c, "test") for c in "abcd"]))) == 3


def test_what_is_not_finite_is_drawn_as_unknown(results):
    results.loc[results["kind"] == "trained", "ci_high"] = np.inf
    chart = scaling_of(results)
    json.loads(drawing.to_json(chart), parse_constant=lambda name: pytest.fail(name))
    assert {row["high"] for row in Figure(chart).panels[0].of("trained")} == {None}
    ET.fromstring(drawing.to_svg(chart))


def test_odd_grids_are_drawn(odd_results):
    svg, png, _ = files_of(scaling_of(odd_results))
    assert png.startswith(PNG_SIGNATURE)
    ET.fromstring(svg)


def test_labels_of_sizes_that_are_near_each_other_do_not_touch(make_results):
    results = make_results()
    results.loc[results["size"] == "pico-2x128", "parameters"] = 150_000
    (panel,) = panels_of(results)
    axis = panel.layer("point")["x"]["axis"]
    assert axis["values"] == [123_456, 150_000, 4_200_000]
    padding = axis["labelPadding"]
    assert padding["condition"]["test"]["oneOf"] == [150_000]
    assert padding["condition"]["value"] > padding["value"] + 20  # two lines of text
    axis = panels_of(make_results())[0].layer("point")["x"]["axis"]
    assert axis["labelPadding"]["condition"]["test"]["oneOf"] == []


def test_every_size_is_named_on_its_axis(results):
    figure = Figure(scaling_of(results))
    texts = [part.get("text") for part in walk(figure.scene)]
    for size, parameters in (("pico-1x64", "123 k"), ("pico-2x128", "656 k")):
        assert [parameters, size] in texts


def test_an_axis_names_no_value_that_is_not_there(make_results):
    """Of one value alone, Vega would name the axis after the value, rounded to a whole number."""
    figure = Figure(scaling_of(make_results(sizes=[])))
    texts = [str(part["text"]) for part in walk(figure.scene) if "text" in part]
    numbers = [float(text) for text in texts if re.fullmatch(r"[\d.]+", text)]
    assert len(numbers) > 2
    assert all(0.5 < number < 0.8 for number in numbers)


@pytest.mark.parametrize(
    ("low", "high"), [(1e12, 4e12), (9e4, 5e6), (13, 40), (1, 1e9), (2e5, 2.1e5)]
)
def test_ticks_of_logarithmic_axes_are_few_and_within(low, high):
    ticks = drawing.log_ticks(low, high)
    assert len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
