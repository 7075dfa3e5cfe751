"""Sparse against dense on the page: the right twins, values over seeds, one family, scipy's p."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raylab import report
from raylab.report.formats import cells, header, note
from raylab.report.heads import compare_heads, mark
from raylab.report.rows import read_rows
from raylab.report.tables import grid_table
from raylab.scaling import claims
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, PER_QUERY, RESULTS, LedgerRow, QueryValue, Result
from tests.report.conftest import budgeted, store_table
from tests.report.test_page import Page, files_of, table_headed

pytestmark = pytest.mark.usefixtures("drawn_once")


def per_query_of(results, queries=40):
    """Values of single queries whose means are those of the results."""
    rng = np.random.default_rng(3)
    keys = ["fingerprint", "system", "seed", "collection", "split", "measure"]
    parts = []
    for row in results.to_dict("records"):
        noise = rng.normal(0, 0.1, queries)
        values = row["value"] + noise - noise.mean()
        part = pd.DataFrame({"query_id": [f"q{n}" for n in range(queries)], "value": values})
        parts.append(part.assign(**{key: row[key] for key in keys}))
    return pd.concat(parts, ignore_index=True)


def test_twins_are_tested_per_split_on_the_primary_measure_over_the_mean_of_seeds(make_results):
    results = make_results(seeds=[0, 1])
    per_query = per_query_of(results)
    found = compare_heads(read_rows(results), per_query)
    assert [(one.benchmark.split, one.size, one.objective) for one in found[:4]] == [
        ("test", "pico-1x64", "cl"),
        ("test", "pico-1x64", "kd"),
        ("test", "pico-1x64", "cl+kd"),
        ("test", "pico-2x128", "cl"),
    ]
    assert len(found) == 2 * 9
    for one in found:
        test = one.comparison
        assert test.family == 9  # of the split, by its primary measure
        assert (test.a, test.b) == tuple(
            f"{head}-{one.size}-{one.objective}" for head in ("dense", "sparse")
        )
        own = per_query[
            (per_query["split"] == one.benchmark.split) & (per_query["measure"] == "nDCG@10")
        ]
        means = own.groupby(["system", "query_id"])["value"].mean()
        expected = stats.ttest_rel(means[test.b], means[test.a])
        assert test.p_t == pytest.approx(expected.pvalue)
        assert test.difference == pytest.approx((means[test.b] - means[test.a]).mean())


def test_out_of_domain_all_pairs_on_all_collections_are_one_family(tmp_path, make_results, ledger):
    """Holm is over 9 pairs x 3 collections; the pairs in domain keep a family of theirs."""
    outside = [("fiqa", "test"), ("nfcorpus", "test"), ("trec-covid", "test")]
    results = make_results(splits=[("scifact", "test"), *outside])
    results["trained_on"] = np.where(results["kind"] == "trained", "scifact", None)
    results["head_parameters"] = results["head_parameters"].fillna(0)
    results.loc[results["collection"] == "fiqa", "value"] -= 0.05 * results["head"].eq("sparse")
    per_query = per_query_of(results)
    rows = read_rows(results)
    found = compare_heads(rows, per_query)
    assert [one.benchmark.collection for one in found[::9]] == [
        "scifact", "fiqa", "nfcorpus", "trec-covid",
    ]  # fmt: skip
    assert [one.comparison.family for one in found] == [9] * 9 + [27] * 27
    told = {one.twins.question for one in found[9:]}
    assert told == {"sparse against dense on 3 collections out of domain by nDCG@10"}
    for own in (found[:9], found[9:]):
        raw = np.array([one.comparison.p_t for one in own])
        order = np.argsort(raw)
        steps = np.maximum.accumulate(np.minimum(1, raw[order] * np.arange(len(raw), 0, -1)))
        by_hand = np.empty(len(raw))
        by_hand[order] = steps
        assert [one.comparison.p_t_holm for one in own] == pytest.approx(list(by_hand))
    # The same in the claims, whatever part of them is asked for, and in the tables' marks.
    expected = {(f.benchmark.collection, f.size, f.objective): f.comparison.p_t_holm for f in found}
    for chosen in ({}, {"collection": "fiqa"}, {"objective": "kd"}):
        tests = [one for one in claims(results, per_query, draws=10, **chosen) if one.size]
        assert tests
        for one in tests:
            assert one.p == expected[one.collection, one.size, one.objective]
            assert one.family == (9 if one.collection == "scifact" else 27)
    store = Store(str(tmp_path / "lab"))
    written = report.write(store, results, ledger, per_query, draws=10)
    for table in written.tables:
        winners = {one.winner for one in found if one.benchmark == table.benchmark} - {None}
        assert {line.system for line in table.lines if line.beats_twin} == winners
    text = files_of(store)["index.html"].decode()
    assert (
        "one family a question: sparse against dense on scifact test by nDCG@10, 9 pairs; sparse against "
        "dense on 3 collections out of domain by nDCG@10, 27 pairs." in text
    )


def test_cells_of_two_collections_are_no_twins(make_results):
    results = make_results(sizes=["pico-1x64"], splits=[("nfcorpus", "test")])
    results["trained_on"] = np.where(results["head"] == "dense", "scifact", "fiqa")
    assert compare_heads(read_rows(results), per_query_of(results)) == []


def test_twins_of_each_variant_are_tested_and_the_better_cell_is_marked(make_results):
    results = budgeted(make_results(objectives=["cl"], splits=[("scifact", "test")]), (1e13, 2e12))
    results.loc[results["system"] == "sparse-pico-2x128-cl-2e+12", "value"] += 0.3
    rows, per_query = read_rows(results), per_query_of(results)
    found = compare_heads(rows, per_query)
    assert [one.variant.name for one in found] == ["2e+12", "1e+13"] * 3
    assert {one.comparison.family for one in found} == {6}
    (one,) = [one for one in found if (one.size, one.variant.name) == ("pico-2x128", "2e+12")]
    assert one.winner == one.comparison.b == "sparse-pico-2x128-cl-2e+12"
    table = mark(grid_table(rows, one.benchmark), found)
    assert {line.system for line in table.lines if line.beats_twin} == {
        test.winner for test in found if test.comparison.p_t_holm <= 0.05
    }
    (line,) = [line for line in table.lines if line.system == one.winner]
    assert "budget" in header(table)
    assert cells(line, table.varied)[3] == "2.00 T"
    assert cells(line, table.varied)[4].endswith(" \u2020")
    assert "\u2020: better than its twin" in note(table)


@pytest.mark.long
def test_the_page_shows_them_and_is_the_same_when_made_again(tmp_path, results, ledger):
    store = Store(str(tmp_path / "lab"))
    per_query = per_query_of(results)
    for path, frame, row in (
        (RESULTS, results, Result),
        (PER_QUERY, per_query, QueryValue),
        (LEDGER, ledger, LedgerRow),
    ):
        store_table(store, path, frame, row)
    report.write(store, results, ledger, per_query)
    before = files_of(store)
    page = Page(before["index.html"].decode())
    table = table_headed(page, "split", "size", "objective", "sparse", "dense")
    (row,) = [r for r in table[1:] if r[:3] == ["scifact test", "pico-2x128", "CL+KD"]]
    where = (results["split"] == "test") & (results["measure"] == "nDCG@10")
    values = results[where].set_index("system")["value"]
    sparse, dense = (values[f"{head}-pico-2x128-cl+kd"] for head in ("sparse", "dense"))
    assert row[3:5] == [f"{sparse:.3f}", f"{dense:.3f}"]
    assert row[5].startswith(f"{sparse - dense:+.3f} [")
    text = before["index.html"].decode()
    assert (
        "one family a question: sparse against dense on scifact test by nDCG@10, 9 pairs; " in text
    )
    report.rebuild(store.uri)
    assert files_of(store) == before


def test_without_twins_or_values_nothing_is_tested(tmp_path, make_results, ledger):
    for facts in ({"heads": ["dense"]}, {"objectives": []}, {"sizes": []}):
        results = make_results(**facts)
        assert compare_heads(read_rows(results), per_query_of(results)) == []
    results = make_results()
    assert compare_heads(read_rows(results), per_query_of(results, queries=1)) == []
    assert compare_heads(read_rows(results), per_query_of(results).iloc[:0]) == []
    store = Store(str(tmp_path / "lab"))
    report.write(store, results, ledger)
    assert "Sparse against dense" not in files_of(store)["index.html"].decode()


def test_one_question_has_one_family_wherever_it_is_asked(tmp_path, make_results, ledger):
    """Cells of the table, pairs, claims of the page and claims of the command line: the same winners.

    Whatever is shown of them: a second split, a variant or a choice of objectives moves no p.
    """
    results = make_results(seeds=[0, 1])
    plain = (results["kind"] == "trained") & (results["split"] == "test")
    other = results[plain & (results["objective"] == "cl")].assign(variant="x", varied="recipe")
    other["system"] += "-x"
    results = pd.concat([results, other], ignore_index=True)
    results["head_parameters"] = results["head_parameters"].fillna(0)
    per_query = per_query_of(results)
    rows = read_rows(results)
    found = [one for one in compare_heads(rows, per_query) if one.benchmark.split == "test"]
    assert {one.comparison.family for one in found} == {12}
    expected = {(f.size, f.objective, f.variant.name): f.comparison.p_t_holm for f in found}
    raw = [one.comparison.p_t for one in found]
    ranked = sorted(raw)
    steps = [min(1.0, (12 - place) * p) for place, p in enumerate(ranked)]
    by_hand = [max(steps[: ranked.index(p) + 1]) for p in raw]
    assert list(expected.values()) == pytest.approx(by_hand)
    for chosen in ({}, {"objective": "kd"}, {"variant": "*"}, {"split": "test"}):
        tests = [
            one for one in claims(results, per_query, draws=10, **chosen)
            if one.claim == "sparse beats dense" and one.split == "test"
        ]  # fmt: skip
        assert tests
        for one in tests:
            assert one.p == expected[one.size, one.objective, one.where]
            assert (one.family, one.question) == (12, found[0].twins.question)
    marked = {
        line.system
        for line in mark(grid_table(rows, found[0].benchmark), found).lines
        if line.beats_twin
    }
    assert marked == {one.winner for one in found} - {None}
