"""The paper's layout: a row a size and head, a group an objective; LaTeX that balances; published rows."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from raylab.data.registry import BEIR_SETS
from raylab.report import published
from raylab.report.heads import compare_heads, mark
from raylab.report.layout import (
    latex,
    layout,
    published_markdown,
    to_latex,
    to_markdown,
    to_rich,
)
from raylab.report.rows import benchmarks, read_rows
from raylab.report.tables import grid_table
from tests.report.conftest import budgeted
from tests.report.test_heads import per_query_of

pytestmark = pytest.mark.usefixtures("drawn_once")

MARCO = [("msmarco", split) for split in ("dev", "dl19", "dl20")]


def layout_of(results, per_query=None):
    rows = read_rows(results)
    tests = [] if per_query is None else compare_heads(rows, per_query)
    return layout([mark(grid_table(rows, benchmark), tests) for benchmark in benchmarks(rows)])


def test_a_row_a_size_and_head_with_the_values_of_each_objective(results):
    made = layout_of(results)
    assert made.groups == ("CL", "KD", "CL+KD")
    assert made.columns == ("scifact test",)  # what choices were made on is not of the layout
    assert [names for names, _ in made.rows[:3]] == [
        ("pico-1x64", "sparse"),
        ("pico-1x64", "dense"),
        ("pico-2x128", "sparse"),
    ]
    own = results.query("split == 'test' and measure == 'nDCG@10'").set_index("system")["value"]
    for (size, head), entries in made.rows:
        for objective, entry in zip(("cl", "kd", "cl+kd"), entries, strict=True):
            assert entry.value == own[f"{head}-{size}-{objective}"]
    assert made.references[0][0] == "BM25"


def test_budgets_are_a_column_in_numeric_order(make_results):
    made = layout_of(budgeted(make_results(objectives=["cl"]), (2e12, 1e13, 1e12)))
    assert made.names == ("size", "head", "budget")
    assert [names[2] for names, _ in made.rows[:3]] == ["1.00 T", "2.00 T", "10.0 T"]


def test_published_rows_stand_beside_the_same_benchmark_and_no_other(make_results):
    made = layout_of(make_results(splits=MARCO))
    assert made.headings == ("MS MARCO dev MRR@10", "DL19 nDCG@10", "DL20 nDCG@10")
    rows = {name.partition(" (")[0]: entries for name, entries in made.references}
    assert [e and e.value for e in rows["SPLADE-v3"][:3]] == [0.402, 0.723, 0.754]
    assert rows["SPLADE-v3"][3:] == (None,) * 6
    # Beside cells of its own objective, CL+KD.
    assert [e and e.value for e in rows["Lion-SP-8B"]] == [None] * 6 + [0.417, None, None]
    sliced = layout_of(make_results(splits=[("msmarco-slice", s) for _, s in MARCO]))
    assert [name for name, _ in sliced.references] == ["BM25"]


def test_many_of_beirs_sets_stand_as_their_mean_which_says_of_how_many(make_results):
    sets = [(name, "test") for name in BEIR_SETS]
    marco = [("msmarco", "dl19")]
    results = make_results(sizes=["pico-1x64"], objectives=["cl"], splits=marco + sets)
    made = layout_of(results)
    assert made.columns == ("DL19", "BEIR-13")
    values = results[(results["kind"] == "trained") & (results["measure"] == "nDCG@10")]
    for (size, head, *_), entries in made.rows:
        own = values[(values["size"] == size) & (values["head"] == head)]
        own = own[own["collection"].isin(BEIR_SETS)]
        assert len(own) == 13
        assert entries[-1].value == pytest.approx(own["value"].mean())
    rows = {name.partition(" (")[0]: entries for name, entries in made.references}
    assert rows["Lion-DS-8B"][-1].value == 0.501
    fewer = layout_of(make_results(sizes=["pico-1x64"], objectives=["cl"], splits=sets[:12]))
    assert fewer.columns == ("BEIR, 12 of 13 sets",)
    few = layout_of(make_results(sizes=["pico-1x64"], objectives=["cl"], splits=sets[:3]))
    assert few.columns == tuple(f"{name} test" for name in BEIR_SETS[:3])


def trained_on(results, collection):
    """The results of cells that one collection trained."""
    return results.assign(trained_on=np.where(results["kind"] == "trained", collection, None))


def test_in_domain_stands_before_out_of_domain_and_headings_say_which(make_results):
    splits = [("nfcorpus", "test"), ("scifact", "test"), ("scifact", "valid"), ("fever", "dev")]
    made = layout_of(trained_on(make_results(objectives=["cl"], splits=splits), "scifact"))
    # Choices were made on a validation split of the collection that trains, and on no other.
    assert made.headings == (
        "scifact test nDCG@10, in domain",
        "fever dev nDCG@10, out of domain",
        "nfcorpus test nDCG@10, out of domain",
    )
    text, tex = to_markdown(made), to_latex(made)
    assert "| CL scifact test nDCG@10, in domain | CL fever dev nDCG@10, out of domain |" in text
    assert r" &  & in domain & \multicolumn{2}{c}{out of domain} \\" in tex
    assert layout_of(make_results(splits=splits[1:3])).headings == ("scifact test nDCG@10",)


def test_the_papers_table_is_marco_the_tracks_and_the_mean_out_of_domain(make_results):
    sets = [(name, "test") for name in BEIR_SETS]
    results = make_results(sizes=["pico-1x64"], splits=[*sets, *MARCO])
    made = layout_of(trained_on(results, "msmarco"))
    assert made.headings == (
        "MS MARCO dev MRR@10, in domain",
        "DL19 nDCG@10, in domain",
        "DL20 nDCG@10, in domain",
        "BEIR-13 nDCG@10, out of domain",
    )
    rows = {name.partition(" (")[0]: entries for name, entries in made.references}
    assert [e and e.value for e in rows["SPLADE-v3"][:4]] == [0.402, 0.723, 0.754, 0.517]
    # Trained on one of BEIR's sets, the mean is of the twelve others.
    made = layout_of(trained_on(results, "scifact"))
    assert (made.columns[0], made.columns[-1]) == ("scifact test", "BEIR, 12 of 13 sets")
    assert made.domains == ("in domain",) + ("out of domain",) * 4
    (size, head), entries = made.rows[0]
    own = results[(results["system"] == f"{head}-{size}-cl") & (results["measure"] == "nDCG@10")]
    others = own[own["collection"].isin(BEIR_SETS) & (own["collection"] != "scifact")]
    assert entries[len(made.columns) - 1].value == pytest.approx(others["value"].mean())


def test_the_terminal_has_a_line_a_cell_and_a_column_a_benchmark(make_results):
    made = layout_of(make_results(splits=MARCO))
    console = Console(width=80, file=io.StringIO())
    console.print(to_rich(made))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    own = {tuple(line[:3]): line[3:] for line in lines if len(line) == 6}
    assert len(own) == 3 * 2 * 3
    entries = dict(made.rows)
    for (size, head, objective), values in own.items():
        start = 3 * made.groups.index(objective)
        assert values == [e.marked for e in entries[size, head][start : start + 3]]
    assert [line[-3:] for line in lines if line[:1] == ["SPLADE-v3"]] == [["40.2", "72.3", "75.4"]]


def test_marks_are_those_of_the_tests(make_results):
    results = make_results(objectives=["cl"], splits=[("scifact", "test")])
    results.loc[results["system"] == "sparse-pico-1x64-cl", "value"] += 0.2
    results.loc[results["system"] == "dense-pico-4x256-cl", "value"] += 0.3
    per_query = per_query_of(results)
    tests = compare_heads(read_rows(results), per_query)
    winners = {one.winner for one in tests} - {None}
    assert {"sparse-pico-1x64-cl", "dense-pico-4x256-cl"} <= winners
    made = layout_of(results, per_query)
    marked = {
        f"{head}-{size}-cl" for (size, head), (entry,) in made.rows if "\u2020" in entry.marked
    }
    assert marked == winners


def test_latex_balances_and_every_row_has_every_column(make_results):
    for results in (
        make_results(splits=MARCO),
        budgeted(make_results(objectives=["cl"]), (1e12, 2e12)),
        make_results(seeds=[0, 1]),
        make_results(splits=[("odd_name & 100%", "test")]),
        trained_on(make_results(splits=[*MARCO, ("nfcorpus", "test")]), "msmarco"),
    ):
        made = layout_of(results)
        text = to_latex(made)
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}")
        begun, ended = (re.findall(rf"\\{w}{{(\w+)}}", text) for w in ("begin", "end"))
        assert begun == ended[::-1] == ["table", "tabular"]
        (columns,) = re.findall(r"\\begin{tabular}{([lr]+)}", text)
        assert len(columns) == len(made.names) + len(made.groups) * len(made.columns)
        for line in text.splitlines():
            if line.endswith(r"\\"):
                spans = [int(n) for n in re.findall(r"\\multicolumn{(\d+)}", line)]
                cells = len(re.findall(r"(?<!\\)&", line)) + 1
                assert cells - len(spans) + sum(spans) == len(columns), line
        assert not re.search(r"(?<!\\)[%#_]", text.split("\n", 1)[1])
        assert text.isascii()


def test_special_characters_are_set_as_they_are():
    assert latex("a_b & 50% {x} ~^\\") == (
        r"a\_b \& 50\% \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


def test_nothing_trained_gives_no_layout(make_results):
    made = layout_of(make_results(objectives=[]))
    assert made.empty
    assert to_markdown(made) == ""
    assert to_latex(made).startswith("%")


def test_what_is_published_says_where():
    text = published_markdown()
    for one in published.PUBLISHED:
        assert one.system in text
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}", one.source)
        assert set(one.values) <= set(published.COLUMNS)
