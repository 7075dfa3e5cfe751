"""The page and the written report: self-contained, complete, and the same when made again."""

import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from raylab import report
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, RESULTS, LedgerRow, Result
from tests.report.conftest import store_table

pytestmark = pytest.mark.usefixtures("drawn_once")

VOID = {"meta", "br", "path", "use"}


class Page(HTMLParser):
    """What a browser would fetch or run, the cells of every table, the tags left open."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.open = [], set(), []
        self.tables, self.in_cell = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        names = ("src", "href", "xlink:href", "action")
        self.links += [value for name, value in attrs if name in names]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def files_of(store):
    folder = Path(store.root, report.FOLDER)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def page_of(tmp_path, results, ledger):
    store = Store(str(tmp_path / "lab"))
    report.write(store, results, ledger)
    text = files_of(store)["index.html"].decode()
    return text, Page(text)


def table_headed(page, *names):
    (found,) = [t for t in page.tables if t[0][: len(names)] == list(names)]
    return found


def test_everything_is_written_through_the_store(tmp_path, results, ledger):
    store = Store(str(tmp_path / "lab"))
    written = report.write(store, results, ledger)
    charts = {f"{name}.{kind}" for name in ("scaling", "flops") for kind in ("png", "svg", "json")}
    assert set(files_of(store)) == {"index.html", "table.md", "table.tex", "table.csv"} | charts
    assert all(Path(path).is_file() for path in written.paths.values())
    assert written.paths["png"] == f"{store.uri}/report/scaling.png"
    console = Console(width=100, file=io.StringIO())
    written.show(console)
    text = console.file.getvalue()
    assert text.index("scifact test: nDCG@10") < text.index("scifact valid (validation)")


def test_object_storage_gets_the_same_files(tmp_path, results, ledger):
    store = Store("memory://raylab-report-test")
    written = report.write(store, results, ledger)
    assert written.paths["html"] == "memory://raylab-report-test/report/index.html"
    local = Store(str(tmp_path / "lab"))
    report.write(local, results, ledger)
    for name, content in files_of(local).items():
        assert store.fs.cat_file(f"{store.root}/report/{name}") == content


def test_rebuilding_from_the_stored_tables_gives_the_same_bytes(tmp_path, results, ledger):
    store = Store(str(tmp_path / "lab"))
    in_memory = [
        store_table(store, path, frame, row)
        for path, frame, row in ((RESULTS, results, Result), (LEDGER, ledger, LedgerRow))
    ]
    report.write(store, *in_memory)
    before = files_of(store)
    for path in Path(store.root, report.FOLDER).iterdir():
        path.unlink()
    assert report.rebuild(store.uri).paths["html"].startswith(store.uri)
    assert files_of(store) == before


def test_rebuilding_an_empty_storage_says_so_and_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        report.rebuild(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_results_that_cannot_be_reported_leave_nothing_behind(tmp_path, results, ledger):
    with pytest.raises(ValueError, match="no rows"):
        report.write(Store(str(tmp_path / "lab")), results.iloc[:0], ledger)
    assert not (tmp_path / "lab").exists()


def test_the_page_needs_nothing_from_elsewhere(tmp_path, results, ledger):
    text, page = page_of(tmp_path, results, ledger)
    outside = [link for link in page.links if not link.startswith("#")]
    assert set(outside) == set(files_of(Store(str(tmp_path / "lab")))) - {"index.html"}
    assert not {"script", "link", "iframe", "img"} & page.tags
    assert not re.search(r"@import|@font-face|url\((?!#)", text)
    assert not re.search(r"(?:src|href)=.https?:", text)
    assert "svg" in page.tags
    assert page.open == []
    assert text.lstrip().startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in text


def test_every_figure_tells_its_rows_command_seeds_fingerprints_and_freedom(
    tmp_path, results, ledger
):
    store = Store(str(tmp_path / "lab"))
    report.write(store, results, ledger, command="python experiments/grid.py --seeds 1 <x>")
    written = files_of(store)
    text = written["index.html"].decode()
    figures = re.findall(r"<figure>.*?</figure>", text, re.S)
    charts = [name.removesuffix(".json") for name in written if name.endswith(".json")]
    assert len(figures) == len(charts) == 2
    for figure in figures:
        (name,) = [name for name in charts if f'href="{name}.json"' in figure]
        for rows in json.loads(written[f"{name}.json"])["usermeta"]["rows_filter"]:
            assert len(results.query(rows))
            assert html.escape(rows, quote=True).replace("&#x27;", "&#39;") in figure
        assert "python experiments/grid.py --seeds 1 &lt;x&gt;" in figure
        for fact in ("Seeds</dt><dd>0", "Degrees of freedom</dt>", 'href="#fingerprints"'):
            assert fact in figure
    # The command is kept, and read when the report is made again.
    assert (tmp_path / "lab" / report.COMMAND).read_text().startswith("python experiments")
    for path, frame, row in ((RESULTS, results, Result), (LEDGER, ledger, LedgerRow)):
        store_table(store, path, frame, row)
    report.rebuild(store.uri)
    assert files_of(store) == written


def test_published_figures_are_always_there(tmp_path, results, ledger):
    _, page = page_of(tmp_path, results, ledger)
    table = table_headed(page, "system", "about", "MS MARCO dev")
    assert ["Lion-SP-8B", "sparse, CL+KD", "41.7", "-", "-", "75.8", "55.2"] in [
        row[:7] for row in table
    ]
    assert len(table) == 1 + 5
    assert {row[-1] for row in table[1:]} == {
        "arXiv 2502.15526",
        "arXiv 2403.06789",
        "arXiv 2603.13277",
    }


def test_the_contract_has_a_verdict(tmp_path, make_results, ledger):
    results = make_results()
    results["spent_flops"] = results["budget_flops"] * 1.004
    text, page = page_of(tmp_path / "kept", results, ledger)
    assert (
        "All 18 cells spent within 2 % of what was planned: the largest deviation is 0.40 %" in text
    )
    assert "Cells of one budget spent within 1 % of each other" in text
    off = results["system"] == "dense-pico-2x128-kd"
    results.loc[off, "spent_flops"] = 4e12 * 1.03
    text, page = page_of(tmp_path / "off", results, ledger)
    assert "NOT all 18 cells spent within 2 % of what was planned" in text
    assert "3.00 % (dense-pico-2x128-kd seed 0)" in text
    assert "Cells of one budget spent NOT within 1 % of each other" in text
    (_, line) = table_headed(page, "budget", "cells")
    assert line == ["4.00 TFLOPs", "18", "3.00 %", "dense-pico-2x128-kd seed 0", "2.59 %"]


def test_no_path_of_the_machine_is_in_the_report(tmp_path, results, ledger):
    store = Store(str(tmp_path / "lab"))
    report.write(store, results, ledger)
    assert not [name for name, data in files_of(store).items() if str(tmp_path).encode() in data]


def test_the_page_holds_the_grid_and_every_measure(tmp_path, results, ledger):
    text, page = page_of(tmp_path, results, ledger)
    values = {cell.removeprefix("* ") for table in page.tables for row in table for cell in row}
    for row in results.to_dict("records"):
        assert f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" in values
    assert text.count('class="trained best') == 4
    assert "No trained cell ends below" in text


def test_the_ledger_is_summed_by_stage(tmp_path, results, ledger):
    made = ledger["stage"] == "retriever"
    ledger.loc[made, "planned_flops"], ledger.loc[made, "spent_flops"] = 4e12, 3.9e12
    ledger.loc[made, "device_seconds"], ledger.loc[made, "lost_flops"] = 84.0, 0.0
    ledger.loc[made, "retries"], ledger.loc[made, "lost_seconds"] = [1, 2], [4.5, 0.0]
    table = table_headed(page_of(tmp_path, results, ledger)[1], "stage")
    assert table == [
        [
            "stage",
            "artifacts",
            "planned FLOPs",
            "spent FLOPs",
            "measured FLOPs",
            "seconds",
            "device-seconds",
            "tokens",
            "with padding",
            "retries",
            "lost FLOPs",
            "lost seconds",
            "bytes",
        ],
        ["collection", "1", "-", "-", "-", "3.5", "-", "-", "-", "-", "-", "-", "1.00 k"],
        ["tokens", "1", "-", "-", "-", "1.5", "-", "1.50 M", "-", "-", "-", "-", "2.00 k"],
        [
            "retriever",
            "2",
            "8.00 T",
            "7.80 T",
            "7.70 T",
            "84.0",
            "168.0",
            "5.00 M",
            "-",
            "3",
            "0",
            "4.5",
            "7.00 k",
        ],
        [
            "all",
            "4",
            "8.00 T",
            "7.80 T",
            "7.70 T",
            "89.0",
            "168.0",
            "6.50 M",
            "-",
            "3",
            "0",
            "4.5",
            "10.0 k",
        ],
    ]


def test_the_budget_and_the_fingerprint_of_every_cell_are_there(tmp_path, make_results, ledger):
    results = make_results(seeds=[0, 1])
    _, page = page_of(tmp_path, results, ledger)
    budget = table_headed(page, "system", "seed", "planned FLOPs")
    assert len(budget) == 1 + 36
    assert budget[1][2:5] == ["4.00 T", "3.90 T", "97.5%"]
    fingerprints = table_headed(page, "system", "seed", "split", "fingerprint")
    trained = results[results["kind"] == "trained"]
    wanted = {(r.system, str(int(r.seed)), r.fingerprint) for r in trained.itertuples()}
    assert wanted <= {(system, seed, fingerprint) for system, seed, _, fingerprint in fingerprints}


def test_cells_below_their_untrained_row_are_listed(tmp_path, results, ledger):
    results.loc[results["system"] == "sparse-pico-1x64-kd", "value"] = 0.1
    text, _ = page_of(tmp_path, results, ledger)
    listed = text[text.index('<ul class="negative">') :]
    listed = listed[: listed.index("</ul>")]
    assert listed.count("<li>") == 2
    assert "sparse-pico-1x64-kd on scifact test" in listed
    assert 'class="trained below"' in text


def test_notes_say_what_the_intervals_seeds_and_law_rest_on(tmp_path, make_results, ledger):
    few = make_results(splits=[("msmarco-slice", "dl19")], queries=43)
    text, _ = page_of(tmp_path, few, ledger)
    assert "msmarco-slice dl19: n = 43" in text
    assert "only large differences" in text
    assert "Seeds: one a cell" in text
    assert "3 size(s) leave a scaling law of 3 parameters" in text
    assert "no degree of freedom" in text
    several, _ = page_of(tmp_path, make_results(seeds=[0, 1, 2]), ledger)
    assert "Seeds: 3 a cell" in several
    assert "not a confidence interval" in several


def test_a_name_is_shown_and_never_run(tmp_path, make_results, ledger):
    results = make_results(splits=[("<script>x</script>", "test")])
    text, page = page_of(tmp_path, results, ledger)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text


def test_odd_grids_and_an_empty_ledger_give_a_page(tmp_path, odd_results, ledger):
    _, page = page_of(tmp_path, odd_results, ledger.iloc[:0])
    assert page.open == []
    assert table_headed(page, "stage")[1:] == [["all", "0", *["-"] * 11]]


def test_bm25_is_a_row_of_every_table_of_values(tmp_path, results, ledger):
    results.loc[results["system"] != "BM25", "query_ms"] = 0.3  # of its runs it was not measured
    _, page = page_of(tmp_path, results, ledger)
    grid, costs, wide = (
        ("size", "head"),
        ("system", "seed", "measured by"),
        ("system", "seed", "nDCG@10"),
    )
    for head in (grid, costs, wide):
        tables = [t for t in page.tables if tuple(t[0][: len(head)]) == head]
        assert tables, head
        for table in tables:
            assert any(row[0] == "BM25" for row in table[1:]), head
    csv_rows = files_of(Store(str(tmp_path / "lab")))["table.csv"].decode().splitlines()
    assert sum(",BM25," in row for row in csv_rows) == 2  # a split each


def test_costs_stand_beside_the_primary_measure(tmp_path, results, ledger):
    where = (results["system"] == "sparse-pico-1x64-cl") & (results["split"] == "test")
    results.loc[where, "passage_postings"] = 123.45
    results.loc[where, "retrieval_flops"] = 1.75
    results.loc[where, "index_bytes"] = 45_600_000
    results.loc[where, "query_ms"] = 0.456
    _, page = page_of(tmp_path, results, ledger)
    table = table_headed(page, "system", "seed", "measured by")
    assert {row[2] for row in table[1:]} == {
        "scifact test: nDCG@10"
    }  # the other split has no costs
    (line,) = [row for row in table if row[0] == "sparse-pico-1x64-cl"]
    *start, value, postings, queries, flops, size, milliseconds = line
    assert start == ["sparse-pico-1x64-cl", "0", "scifact test: nDCG@10"]
    expected = results[where & (results["measure"] == "nDCG@10")]["value"].item()
    assert value == f"{expected:.3f}"
    assert (postings, queries, flops, size, milliseconds) == ("123.5", "-", "1.8", "45.6 M", "0.46")


def test_what_counts_as_zero_and_what_the_entropy_means_is_told(tmp_path, results, ledger):
    text, _ = page_of(tmp_path / "a", results, ledger)
    assert "CE@256" not in text
    assert "count 0" not in text
    results.loc[results["measure"] == "RR@10", "without_relevant"] = 7
    results.loc[results["measure"] == "R@100", "measure"] = "CE@256"
    text, page = page_of(tmp_path / "b", results, ledger)
    assert "count 0, as in trec_eval (scifact test RR@10: 7; scifact valid RR@10: 7)" in text
    assert "CE@256: contrastive entropy in nats" in text
    assert any("CE@256" in table[0] for table in page.tables)
    assert text.count("scifact test: nDCG@10") > 0  # still what it is measured by
