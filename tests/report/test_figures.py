"""The scaling plot: valid and deterministic bytes, and what is drawn is what the table says."""

import io
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from raylab.report import figures
from raylab.report.rows import benchmarks, read_rows
from raylab.report.tables import grid_table

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def tables_of(results):
    rows = read_rows(results)
    return [grid_table(rows, benchmark) for benchmark in benchmarks(rows)]


def axes_of(results):
    return figures._figure(figures.drawn(tables_of(results))).axes


def series_of(axes):
    return {c.get_label(): c.lines[0] for c in axes.containers}


def test_both_formats_are_valid_and_the_png_is_not_blank(results):
    plot = figures.scaling_plot(tables_of(results))
    assert plot["png"].startswith(PNG_SIGNATURE)
    pixels = imread(io.BytesIO(plot["png"]))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    assert ET.fromstring(plot["svg"]).tag == "{http://www.w3.org/2000/svg}svg"


def test_bytes_are_a_function_of_the_results(results):
    tables = tables_of(results)
    first = figures.scaling_plot(tables)
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other"}):
        assert figures.scaling_plot(tables) == first
    assert figures.scaling_plot(tables_of(results.sample(frac=1, random_state=2))) == first
    assert b"<metadata" not in first["svg"]


def test_settings_of_the_process_are_left_alone(results):
    before = dict(matplotlib.rcParams)
    figures.scaling_plot(tables_of(results))
    assert dict(matplotlib.rcParams) == before


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


def test_series_can_be_told_apart_without_colour_and_bars_do_not_coincide(results):
    (axes,) = axes_of(results)
    series = series_of(axes)
    trained = {name: line for name, line in series.items() if "untrained" not in name}
    looks = {(line.get_linestyle(), line.get_marker()) for line in trained.values()}
    assert len(looks) == len(trained) == 6
    hollow = [line for name, line in series.items() if "untrained" in name]
    assert {line.get_markerfacecolor() for line in hollow} == {"white"}
    first_positions = [line.get_xdata()[0] for line in series.values()]
    assert len(set(first_positions)) == len(first_positions)


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
    plot = figures.scaling_plot(tables_of(odd_results))
    assert plot["png"].startswith(PNG_SIGNATURE)
    ET.fromstring(plot["svg"])
