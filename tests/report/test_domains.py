"""In domain and out of it side by side: on the page, in Markdown and in laws.csv, or why not."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from raylab import report
from raylab.report.laws import study
from raylab.report.page.law_blocks import section
from raylab.report.rows import read_rows
from raylab.storage.store import Store
from tests.report.conftest import results_frame
from tests.report.test_heads import per_query_of
from tests.report.test_laws import SIZES
from tests.report.test_page import Page, files_of, table_headed

pytestmark = pytest.mark.usefixtures("drawn_once")

INSIDE, OUTSIDE = 0.5, 0.25
COLLECTIONS = {"scifact": INSIDE, "fiqa": OUTSIDE, "nfcorpus": OUTSIDE}


def results_of(sizes=SIZES, objectives=("cl",), heads=("dense",)):
    """Runs of one budget, trained on SciFact, with entropy 1 + (A/N)^a exactly; a is another out of domain."""
    rows = []
    for collection, exponent in COLLECTIONS.items():
        for head in heads:
            for objective in objectives:
                for size, n in sizes.items():
                    loss = 1 + (1e5 / n) ** exponent
                    cell = {
                        "kind": "trained", "system": f"{head}-{size}-{objective}", "size": size,
                        "head": head, "objective": objective, "seed": 0, "collection": collection,
                        "split": "test", "queries": 40, "parameters": n, "budget_flops": 1e12,
                        "spent_flops": 1e12, "tokens": 1e6, "head_parameters": 0,
                        "trained_on": "scifact", "fingerprint": f"{head}-{size}-{objective}",
                    }  # fmt: skip
                    for measure, value in (("CE@256", loss), ("nDCG@10", 1 - loss / 10)):
                        rows.append(cell | {"measure": measure, "value": value})
    return results_frame(rows)


def test_exponents_and_slopes_stand_side_by_side_with_their_difference(tmp_path):
    results = results_of()
    per_query = per_query_of(results, 1_000)
    store = Store(str(tmp_path / "lab"))
    report.write(store, results, pd.DataFrame({"stage": []}), per_query, draws=60)
    files = files_of(store)
    # The paper's table is the first of the page and of the Markdown.
    headings = [f"CL {name}" for name in (
        "scifact test nDCG@10, in domain", "fiqa test nDCG@10, out of domain",
        "nfcorpus test nDCG@10, out of domain",
    )]  # fmt: skip
    assert Page(files["index.html"].decode()).tables[0][0] == ["size", "head", *headings]
    assert files["table.md"].decode().startswith("### The grid\n\n| size | head | " + headings[0])
    table = table_headed(Page(files["index.html"].decode()), "head", "objective", "measure", "of")
    rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    # The mean over collections is first, then each; slope and exponent of both measures.
    assert [row["out of domain"] for row in rows] == ["2 collections out of domain"] * 4 + [
        "fiqa test"] * 2 + ["nfcorpus test"] * 2 + ["fiqa test"] * 2 + ["nfcorpus test"] * 2  # fmt: skip
    exponents = [row for row in rows if row["of"] == "a of size" and row["measure"] == "CE@256"]
    for row in exponents:
        values = [
            float(row[name].split()[0])
            for name in ("value in domain", "value out of domain", "out less in")
        ]
        assert values == pytest.approx([INSIDE, OUTSIDE, OUTSIDE - INSIDE], abs=0.02)
        assert (row["in domain"], row["verdict"]) == ("scifact test", "differs")
        assert row["df"] == "2 of 5 sizes"
    assert "### In domain and out of domain" in files["table.md"].decode()
    lines = list(csv.DictReader(io.StringIO(files["laws.csv"].decode())))
    told = [line for line in lines if line["row"] == "domain"]
    assert len(told) == 3 * len(rows)
    assert {line["quantity"] for line in told} == {"in domain", "out of domain", "difference"}
    assert {line["degrees_of_freedom"] for line in told if " of size" in line["about"]}
    domains = {(line["collection"], line["domain"]) for line in lines if line["row"] == "fit"}
    assert domains == {
        ("scifact", "in domain"), ("fiqa", "out of domain"), ("nfcorpus", "out of domain"),
        ("2 collections", "out of domain"),
    }  # fmt: skip


def test_no_test_of_significance_is_of_a_mean_over_collections():
    results = results_of(heads=("dense", "sparse"))
    made = study(read_rows(results), results, per_query_of(results), 20)
    assert {one.collection for one in made.claims if one.size} == set(COLLECTIONS)
    assert all(np.isnan(one.p) for one in made.claims if one.collection == "2 collections")


def test_few_sizes_are_refused_with_the_reason():
    few = dict(list(SIZES.items())[:2])
    results = results_of(sizes=few)
    made = study(read_rows(results), results, per_query_of(results), 20)
    assert not made.domains
    (line,) = [line for line in section(made).refused if line.startswith("difference of")]
    assert line.startswith("difference of slope per decade: ")
    assert "there are 2 sizes" in line
    assert not section(made).domains.rows


def test_in_domain_alone_nothing_is_compared():
    results = results_of()
    results = results[results["collection"] == "scifact"].reset_index(drop=True)
    made = study(read_rows(results), results, per_query_of(results), 20)
    assert made.fits
    assert not made.domains
    assert not made.refused
