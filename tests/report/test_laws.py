"""Laws in the report: recovered from runs that follow one, refused where the runs are too few, and told."""

import csv
import io
import re

import altair as alt
import numpy as np
import pandas as pd
import pytest

from raylab import report
from raylab.report.charts import isoflops
from raylab.report.charts.theme import STAR
from raylab.report.laws import study
from raylab.report.page.law_blocks import section, to_csv
from raylab.report.rows import read_rows
from raylab.scaling import COLUMNS
from raylab.storage.store import Store
from tests.report.conftest import results_frame
from tests.report.test_heads import per_query_of
from tests.report.test_page import Page, files_of, table_headed
from tests.report.vega import Figure

pytestmark = pytest.mark.usefixtures("drawn_once")

BUDGETS = (1e12, 2e12, 4e12, 8e12)
SIZES = {"s1": 100_000, "s2": 200_000, "s3": 400_000, "s4": 800_000, "s5": 1_600_000}
E, A, B, ALPHA, BETA = 1.0, 60.0, 9000.0, 0.4, 0.6


def isoflop_results(heads=("sparse", "dense"), sizes=SIZES, budgets=BUDGETS, splits=("test",)):
    """Runs whose contrastive entropy is E + A/N^a + B/D^b exactly, C = 6 N D."""
    rows = []
    for split in splits:
        for head in heads:
            for size, n in sizes.items():
                for budget in budgets:
                    d = budget / (6 * n)
                    loss = E + A / n**ALPHA + B / d**BETA
                    name = f"{head}-{size}-cl" + (f"-{budget:g}" if len(budgets) > 1 else "")
                    cell = {
                        "kind": "trained", "system": name, "size": size, "head": head,
                        "objective": "cl", "seed": 0, "collection": "scifact", "split": split,
                        "queries": 40, "parameters": n, "budget_flops": budget,
                        "spent_flops": budget, "tokens": d, "fingerprint": f"{name}-{split}",
                        "head_parameters": 0 if head == "dense" else 50_000,
                        "variant": f"{budget:g}" if len(budgets) > 1 else "",
                        "varied": "budget" if len(budgets) > 1 else "",
                    }  # fmt: skip
                    for measure, value in (("CE@256", loss), ("nDCG@10", 1 - loss / 10)):
                        rows.append(cell | {"measure": measure, "value": value})
    return results_frame(rows)


def studied(results, draws=60):
    return study(read_rows(results), results, per_query_of(results), draws)


def test_surfaces_are_fitted_and_the_law_behind_the_runs_is_found():
    made = studied(isoflop_results())
    (fitted,) = [
        f
        for f in made.fits
        if (f.law, f.n, f.head, f.measure) == ("chinchilla", "parameters", "dense", "CE@256")
    ]
    for name, value in {"E": E, "a": ALPHA, "b": BETA}.items():
        assert fitted.parameters[name].value == pytest.approx(value, rel=0.02)
    assert {f.law for f in made.fits} == {"joint", "chinchilla"}
    assert {f.n for f in made.fits if f.head == "sparse"} == {"parameters", "with_head"}
    assert {f.n for f in made.fits if f.head == "dense"} == {"parameters"}
    assert {f.measure for f in made.fits} == {"CE@256", "nDCG@10"}
    assert {f.hold_out for f in made.forecasts} == {"size", "budget"}
    assert not made.refused


def test_validation_splits_are_not_fitted():
    made = studied(isoflop_results(heads=("dense",), splits=("test", "valid")))
    assert {one.split for one in made.made()} == {"test"}


def test_one_budget_is_a_law_of_size_or_a_refusal_in_one_line():
    few = dict(list(SIZES.items())[:3])
    made = studied(isoflop_results(sizes=few, budgets=(1e12,)))
    assert not made.fits
    lines = section(made).refused
    assert len(lines) == 1
    assert lines[0].startswith("size: 3 sizes, 3 parameters: no degree of freedom (")
    for name in ("sparse CL", "dense CL", "CE@256", "nDCG@10"):
        assert name in lines[0]
    whole = studied(isoflop_results(budgets=(1e12,)))
    assert {f.law for f in whole.fits} == {"size"}


def test_heads_are_not_compared_by_entropies_of_two_temperatures():
    tests = [one for one in studied(isoflop_results()).claims if one.size]
    assert {one.measure for one in tests} == {"nDCG@10"}
    assert len(tests) == len(SIZES) * len(BUDGETS)


def test_the_csv_has_a_row_an_estimate_under_the_columns_of_scaling():
    made = studied(isoflop_results(heads=("dense",)))
    lines = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert tuple(lines[0]) == COLUMNS
    fits = [line for line in lines if line["row"] == "fit"]
    assert len(fits) == sum(len(f.parameters) for f in made.fits)
    assert {line["row"] for line in lines} == {"fit", "forecast", "optimum", "claim"}


def test_isoflop_charts_hold_the_runs_the_surface_and_its_optima():
    results = isoflop_results()
    made = studied(results)
    charts = {chart.name: chart for chart in isoflops.charts(made)}
    assert set(charts) == {"isoflop-sparse", "isoflop-dense"}
    alt.HConcatChart.from_dict(charts["isoflop-dense"].spec)  # else it is no Vega-Lite
    figure = Figure(charts["isoflop-dense"])
    (panel,) = figure.panels
    measured, surfaces = panel.series("trained"), panel.series("fitted")
    assert len(measured) == len(surfaces) == len(BUDGETS)
    by_system = results.query(charts["isoflop-dense"].rows_filter[0]).set_index("system")
    assert {point["system"] for point in panel.of("trained")} == set(by_system.index)
    for point in panel.of("trained"):
        assert point["y"] == pytest.approx(by_system.loc[point["system"], "value"])
        assert point["x"] == by_system.loc[point["system"], "parameters"]
    for budget, curve in zip(BUDGETS, surfaces.values(), strict=True):
        n = np.array([point["x"] for point in curve])
        loss = E + A / n**ALPHA + B / (budget / 6 / n) ** BETA
        assert [point["y"] for point in curve] == pytest.approx(loss, rel=0.02)
    assert len(set(panel.looks())) == len(BUDGETS)
    dashes = [tuple(figure.styles("strokeDash")[label]) for label in surfaces]
    assert len(set(dashes)) == len(dashes)
    stars = stars_of(figure)
    placed = [
        o for o in made.optima if (o.head, o.law, o.measure) == ("dense", "chinchilla", "CE@256")
    ]
    surface = [o for o in placed if o.method == "surface"]
    within = [o for o in surface if o.place in ("interior", "open")]
    assert within
    assert [star["mark"] in figure.hollow for star in stars] == [o.place == "open" for o in within]
    low, high = min(SIZES.values()), max(SIZES.values())
    for star, o in zip(stars, within, strict=True):
        assert star["x"] == min(max(o.optimal_n.value, low), high)
    beyond = [row for row in panel.of("optimum") if "beyond" in row["mark"]]
    assert len(beyond) == len(surface) - len(within)


def stars_of(figure):
    """The optima of the surfaces, by budget; the legend has each kind of mark that is drawn."""
    (panel,) = figure.panels
    assert {row["mark"] for row in panel.of("optimum")} <= {key["mark"] for key in figure.legend}
    shapes = figure.styles("shape")
    return [row for row in panel.of("optimum") if shapes[row["mark"]] == STAR]


def test_an_optimum_outside_the_sizes_tried_has_no_number_but_that():
    small = {name: n // 200 for name, n in SIZES.items()}
    made = studied(isoflop_results(heads=("dense",), sizes=small))
    (chart,) = isoflops.charts(made)
    (panel,) = Figure(chart).panels
    beyond = [row for row in panel.of("optimum") if "beyond" in row["mark"]]
    assert len(beyond) == len(BUDGETS)
    assert all(row["x"] == max(small.values()) for row in beyond)
    of_surface = [o for o in made.optima if o.method == "surface" and o.law == "chinchilla"]
    assert {o.place for o in of_surface if o.measure == "CE@256"} == {"above"}
    assert any("lie outside the sizes tried" in line for line in section(made).negative)
    optima = section(made).optima
    names = [column.name for column in optima.columns]
    told = [dict(zip(names, row, strict=True)) for row in optima.rows]
    for row in told:
        if (row["method"], row["measure"]) == ("surface", "CE@256"):
            assert row["place"] == "above the sizes tried"
            assert row["N*"] == row["D*"] == row["exponent of N in C"] == "-"
    for line in csv.DictReader(io.StringIO(to_csv(made))):
        if line["row"] == "optimum" and line["verdict"] == "above":
            assert (line["value"], line["low"], line["high"]) == ("", "", "")


def test_the_page_shows_laws_claims_and_what_did_not_hold(tmp_path):
    results = isoflop_results()
    store = Store(str(tmp_path / "lab"))
    report.write(store, results, pd.DataFrame({"stage": []}), per_query_of(results), draws=60)
    files = files_of(store)
    text = files["index.html"].decode()
    page = Page(text)
    fits = table_headed(page, "head", "objective", "split", "measure", "part", "law", "N")
    assert len(fits) == 1 + 2 * 2 + 2 * 2 * 2
    assert re.fullmatch(r"0\.4\S* \[.*\].*", fits[2][fits[0].index("a")])
    claims = table_headed(page, "claim")
    assert [row[0] for row in claims[1:]] == ["improves with size"] * 4 + ["sparse beats dense"]
    assert "No law is fitted here" not in text
    assert "laws.csv" in files
    report.write(store, results, pd.DataFrame({"stage": []}), per_query_of(results), draws=60)
    assert files_of(store) == files
    report.write(store, results, pd.DataFrame({"stage": []}))
    assert "laws.csv" not in files_of(store)
    assert "isoflop-dense.png" not in files_of(store)
    assert "No law is fitted here" in files_of(store)["index.html"].decode()
