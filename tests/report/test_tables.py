"""The grid table: values of the frame, order, marks, seeds, and grids that are not the default."""

import csv
import io

import pandas as pd
import pytest
from rich.console import Console

from raylab.report.formats import cells, quantity, to_csv, to_markdown, to_rich
from raylab.report.rows import benchmarks, read_rows
from raylab.report.tables import below_untrained, grid_table


def tables_of(results):
    rows = read_rows(results)
    return [grid_table(rows, benchmark) for benchmark in benchmarks(rows)]


def having(results, **facts):
    """The rows of the frame with these facts, as a mask."""
    mask = pd.Series(True, index=results.index)
    for name, value in facts.items():
        mask &= results[name] == value
    return mask


def printed(table, width=200):
    console = Console(width=width, file=io.StringIO())
    console.print(to_rich(table))
    return console.file.getvalue()


def test_every_value_and_interval_is_that_of_the_frame(results):
    for table in tables_of(results):
        split, measure = table.benchmark.split, table.benchmark.primary
        own = results[having(results, split=split, measure=measure)].set_index("system")
        assert len(table.lines) == len(own) == 25
        for line in table.lines:
            row = own.loc[line.system]
            assert line.estimate.value == row["value"]
            text = f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
            assert cells(line)[3].removeprefix("* ") == text


def test_lines_go_by_parameters_then_head_then_objective(results):
    lines = tables_of(results)[0].lines
    assert lines[0].system == "BM25"
    sizes = list(dict.fromkeys(line.size for line in lines[1:]))
    assert sizes == ["pico-1x64", "pico-2x128", "pico-4x256"]
    first = [(line.head, cells(line)[2]) for line in lines[1:9]]
    objectives = ["untrained", "CL", "KD", "CL+KD"]
    assert first == [(head, o) for head in ("sparse", "dense") for o in objectives]


def test_the_order_of_the_frame_does_not_matter(results):
    shuffled = results.sample(frac=1, random_state=1)
    assert tables_of(shuffled) == tables_of(results)
    assert to_csv(read_rows(shuffled)) == to_csv(read_rows(results))


def test_the_best_trained_cell_of_each_head_is_marked_and_never_another_row(results):
    results.loc[having(results, kind="untrained", head="dense"), "value"] = 0.9
    for table in tables_of(results):
        split, measure = table.benchmark.split, table.benchmark.primary
        own = results[having(results, kind="trained", split=split, measure=measure)]
        best = {own.loc[group["value"].idxmax(), "system"] for _, group in own.groupby("head")}
        assert {line.system for line in table.lines if line.best} == best
        marked = [line for line in printed(table).splitlines() if "* 0." in line]
        assert len(marked) == 2


def test_a_cell_below_its_own_untrained_row_is_marked(results):
    where = {"split": "test", "measure": "nDCG@10"}
    cell = having(results, system="dense-pico-2x128-kd", **where)
    untrained = results[having(results, system="untrained-dense-pico-2x128", **where)]
    results.loc[cell, "value"] = untrained["value"].item() - 0.02
    tables = tables_of(results)
    ((benchmark, line),) = below_untrained(tables)
    assert (benchmark.split, line.system) == ("test", "dense-pico-2x128-kd")
    assert line.gain == pytest.approx(-0.02)
    assert "-0.020 below untrained" in printed(tables[0])
    assert to_markdown(tables).count("below untrained") == 1


def test_several_seeds_show_their_mean_and_range_not_a_mean_of_intervals(make_results):
    results = make_results(seeds=[0, 1, 2])
    table = tables_of(results)[0]
    own = results[having(results, split="test", measure="nDCG@10", kind="trained")]
    groups = own.groupby("system")["value"]
    trained = table.of("trained")
    assert len(trained) == 18
    for line in trained:
        values = groups.get_group(line.system)
        low, high = values.min(), values.max()
        assert line.estimate.value == pytest.approx(values.mean())
        assert (line.estimate.low, line.estimate.high, line.estimate.seeds) == (low, high, 3)
        assert cells(line)[3].endswith(f"{values.mean():.3f} ({low:.3f}..{high:.3f})")
    assert all("[" in cells(line)[3] for line in table.lines if line.kind != "trained")
    assert "up to 3 seeds" in printed(table)


def test_one_seed_of_several_below_untrained_is_told_though_the_mean_is_above(make_results):
    results = make_results(seeds=[0, 1, 2])
    cell = having(results, split="test", measure="nDCG@10", system="sparse-pico-4x256-cl", seed=1)
    results.loc[cell, "value"] = 0.2
    ((_, line),) = below_untrained(tables_of(results))
    assert not line.below_untrained
    assert cells(line)[4].endswith("(1 of 3 seeds below untrained)")


def test_held_out_splits_come_first_and_validation_says_so(results, make_results):
    assert [t.benchmark.split for t in tables_of(results)] == ["test", "valid"]
    markdown = to_markdown(tables_of(results))
    assert markdown.index("### scifact test") < markdown.index("#### scifact valid (validation)")
    marco = make_results(splits=[("msmarco-slice", s) for s in ("dev", "dl19")])
    found = [
        (t.benchmark.split, t.benchmark.primary, t.benchmark.held_out) for t in tables_of(marco)
    ]
    assert found == [("dl19", "nDCG@10", True), ("dev", "RR@10", False)]


def test_a_collection_with_only_a_validation_split_reports_it_first(make_results):
    (table,) = tables_of(make_results(splits=[("scifact", "valid")]))
    assert table.benchmark.held_out


def test_the_csv_holds_every_row_in_full_precision(make_results):
    results = make_results(seeds=[0, 1])
    lines = list(csv.DictReader(io.StringIO(to_csv(read_rows(results)))))
    assert len(lines) == len(results) / 3
    index = {(x["split"], x["system"], x["seed"]): x for x in lines}
    for row in results.to_dict("records"):
        seed = "" if pd.isna(row["seed"]) else str(int(row["seed"]))
        line = index[row["split"], row["system"], seed]
        assert float(line[row["measure"]]) == row["value"]
        assert float(line[row["measure"] + " low"]) == row["ci_low"]
        assert line["fingerprint"] == row["fingerprint"]


def test_a_filter_names_the_rows_of_its_table(results):
    for table in tables_of(results):
        own = results.query(table.benchmark.primary_filter)
        assert sorted(own["system"]) == sorted(line.system for line in table.lines)


def test_the_console_table_fits_80_columns_without_cutting_a_word(results):
    for line in printed(tables_of(results)[0], width=80).splitlines():
        assert len(line) <= 80
        assert "…" not in line


def test_odd_grids_give_tables(odd_results):
    for table in tables_of(odd_results):
        own = odd_results.query(table.benchmark.primary_filter)
        assert sum(line.estimate.seeds for line in table.lines) == len(own)
        assert len({len(cells(line)) for line in table.lines}) == 1
        printed(table)


def test_a_null_interval_and_null_facts_leave_the_value(results):
    results[["ci_low", "ci_high", "budget_flops", "spent_flops", "steps", "parameters"]] = float(
        "nan"
    )
    line = tables_of(results)[0].of("trained")[0]
    assert cells(line)[3].removeprefix("* ") == f"{line.estimate.value:.3f}"
    assert cells(line)[5:] == ("-", "-")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.iloc[:0], "no rows"),
        (lambda r: r.drop(columns=["value", "split"]), "lacks the column.s. split, value"),
        (lambda r: pd.concat([r, r.iloc[[3]]]), "two rows"),
        (lambda r: r.assign(kind="learned"), "kind = 'learned'"),
    ],
)
def test_a_table_that_cannot_be_reported_is_named(results, change, message):
    with pytest.raises(ValueError, match=message):
        read_rows(change(results))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (999, "999"), (1_234, "1.23 k"), (45_600_000, "45.6 M"),
     (3.9e12, "3.90 T"), (123e9, "123 G"), (4.1e19, "4.10e+19")],
)  # fmt: skip
def test_quantities_have_three_digits(value, text):
    assert quantity(value) == text
