"""Tables to series: what belongs to one, in which order, in which numbers, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from raylab.experiment.config import ConfigError
from raylab.scaling import series, slices
from tests.scaling.planted import BUDGETS, SIZES, planted, study, tables

PLAIN = {
    (size, n, head, "cl", measure): [0.3, 0.4]
    for size, n in (("b", 2_000), ("a", 1_000))
    for head in ("sparse", "dense")
    for measure in ("nDCG@10", "CE@256", "RR@10")
}


def test_tables_become_the_series_that_were_planted():
    one = planted("chinchilla", seeds=2, runs=0.02, queries=0.3)
    (own,) = series(*study("chinchilla", seeds=2, runs=0.02, queries=0.3))
    assert (own.systems, own.seeds, own.sizes) == (one.systems, one.seeds, one.sizes)
    assert own.query_ids == tuple(sorted(one.query_ids))
    np.testing.assert_allclose(own.losses_R, one.losses_R)
    for name, numbers in one.numbers.items():
        np.testing.assert_allclose(own.numbers[name], numbers, rtol=1e-4)


def test_the_order_of_rows_does_not_matter():
    results, per_query = study("chinchilla", queries=0.3, runs=0.1)
    (one,) = series(results, per_query)
    mixed = (table.sample(frac=1, random_state=0) for table in (results, per_query))
    (other,) = series(*mixed)
    assert other.systems == one.systems
    assert other.losses_RQ.tobytes() == one.losses_RQ.tobytes()


def test_losses_are_entropy_itself_and_what_a_measure_lacks_to_1():
    found = series(*tables(PLAIN))
    assert [(s.measure, s.head, s.sizes) for s in found] == [
        ("CE@256", "dense", ("a", "a", "b", "b")),
        ("CE@256", "sparse", ("a", "a", "b", "b")),
        ("nDCG@10", "dense", ("a", "a", "b", "b")),
        ("nDCG@10", "sparse", ("a", "a", "b", "b")),
    ]
    np.testing.assert_allclose(found[0].losses_R, [0.3, 0.4, 0.3, 0.4])
    np.testing.assert_allclose(found[2].losses_R, [0.7, 0.6, 0.7, 0.6])


def test_nulls_are_unknown_and_the_vocabulary_head_counts_where_there_is_one():
    results, per_query = tables(PLAIN)
    with pytest.raises(ConfigError, match=r"lacks the column\(s\) tokens"):
        series(results.drop(columns="tokens"), per_query)
    (sparse,) = series(results, per_query, ("nDCG@10",), head="sparse")
    assert np.isnan(sparse.numbers["tokens"]).all()
    assert np.isnan(sparse.numbers["with_head"]).all()
    heads = results.assign(head_parameters=np.where(results["head"] == "sparse", 500, 0))
    sparse, dense = (series(heads, per_query, ("nDCG@10",), head=h)[0] for h in ("sparse", "dense"))
    np.testing.assert_array_equal(dense.numbers["with_head"], [1_000, 1_000, 2_000, 2_000])
    np.testing.assert_array_equal(sparse.numbers["with_head"], [1_500, 1_500, 2_500, 2_500])


def test_variants_are_chosen_by_glob_and_by_default_are_plain_or_budgets():
    results, per_query = tables(PLAIN)
    # A name says nothing: "16" is no budget, and a budget may be called anything.
    names = {"": "", "small": "budget", "16": "recipe", "causal": "recipe", "causal-2": "recipe"}
    tags = [
        (
            r.assign(variant=name, varied=varied, system=r["system"] + name),
            q.assign(system=q["system"] + name),
        )
        for name, varied in names.items()
        for r, q in [(results, per_query)]
    ]
    all_results, values = (pd.concat(own, ignore_index=True) for own in zip(*tags, strict=True))

    def variants(glob):
        return set(series(all_results, values, variant=glob)[0].variants)

    assert variants(None) == {"", "small"}
    assert variants("causal*") == {"causal", "causal-2"}
    assert variants("") == {""}
    assert variants("*") == set(names)


def test_only_trained_runs_count_and_what_cannot_is_excluded_with_the_reason():
    results, per_query = tables({("a", 1_000, "dense", "cl", "nDCG@10"): [0.3, 0.4, 1.0, 0.5]})
    baseline = results.assign(kind="baseline", system="BM25")
    values = per_query[per_query["seed"] != 1].copy()
    values.loc[values["seed"] == 2, "value"] = 1.0
    values.loc[(values["seed"] == 3) & (values["query_id"] == "q0"), "value"] = np.nan
    (one,) = series(pd.concat([results, baseline]), values)
    assert one.systems == ("dense-a-cl",)
    assert one.excluded == (
        "dense-a-cl-seed1: no values per query",
        "dense-a-cl-seed3: a value is not finite",
        "dense-a-cl-seed2: its loss is not positive",
    )


def test_no_trained_run_is_no_series():
    results, per_query = tables(PLAIN)
    assert series(results.assign(kind="untrained"), per_query) == []
    assert series(results, per_query, ("MAP",)) == []
    assert series(results, per_query[:0]) == []


def test_a_law_of_size_is_about_a_budget_and_one_of_data_about_a_size():
    one = planted("chinchilla")
    by_budget = slices(one, "size")
    assert [s.where for s in by_budget] == [f"budget {b:.6g}" for b in BUDGETS]
    assert all(len(set(s.budgets)) == 1 and len(s.systems) == 8 for s in by_budget)
    assert [s.where for s in slices(one, "data")] == [f"size {n:.4g}" for n in SIZES]
    assert slices(one, "joint") == [one]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, q: (r.drop(columns="size"), q), r"results table lacks the column\(s\) size"),
        (lambda r, q: (r, q.drop(columns="value")), r"per-query table lacks the column\(s\) value"),
        (lambda r, q: (pd.concat([r, r[:1]]), q), "two rows of the results table are about"),
        (lambda r, q: (r, pd.concat([q, q[:1]])), "sparse-b-cl-seed0: a query has two values"),
        (lambda r, q: (r, q[1:]), "other queries than sparse-a-cl-seed0 has"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        series(*change(*tables(PLAIN)))
