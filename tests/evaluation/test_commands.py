"""`raylab evaluate | compare | beir` as a user runs them: what they print, write and refuse."""

import csv
import gzip
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from raylab.cli.main import app
from raylab.data.collections import read_qrels
from raylab.data.registry import BEIR_SETS
from raylab.evaluation.measures import coverage, evaluate
from raylab.evaluation.runs import Run, read_run, write_qrels, write_run
from raylab.storage.store import Store
from raylab.storage.tables import PER_QUERY, RESULTS, QueryValue, Result, write_table
from tests.tables import query_value, result

QUERIES = [f"q{n:02d}" for n in range(30)]


def process(*arguments, expect=0):
    """(stdout, stderr) of a process of its own, as a user starts it."""
    done = subprocess.run(
        [sys.executable, "-m", "raylab.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


def raylab(*arguments, expect=0):
    """The same within this process: a start costs a second, and there are many."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == expect, done.output
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs of rising quality and the qrels of 30 queries, of which two are odd."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    qrels = {q: {f"p{n}": 1 + n % 2 for n in rng.choice(40, 6, replace=False)} for q in QUERIES}
    for system, share in (("weak", 0.05), ("fair", 0.5), ("good", 1.0)):
        pairs = {
            q: [
                (f"p{n}", float(np.round(rng.random() + share * (f"p{n}" in qrels[q]), 2)))
                for n in range(40)
            ]
            for q in QUERIES
        }
        write_run(Run.from_pairs(pairs), folder / f"{system}.trec.gz")
    qrels["lost"] = {"p1": 1}
    qrels["hopeless"] = {"p1": 0}
    write_qrels(qrels, folder / "qrels.tsv")
    return folder


def test_evaluate_prints_means_intervals_and_what_counts_as_zero(folder, tmp_path):
    out = tmp_path / "per-query.tsv"
    arguments = ("--measures", "nDCG@10 RR(rel=2)@10", "--per-query", out)
    printed, _ = raylab("evaluate", folder / "good.trec.gz", folder / "qrels.tsv", *arguments)
    table = pd.read_csv(out, sep="\t")
    assert list(table.columns) == ["query_id", "measure", "value"]
    assert len(table) == 2 * 32
    for measure, own in table.groupby("measure"):
        pattern = rf"{re.escape(measure)} +(0\.\d{{4}}) +\[(0\.\d{{4}}), (0\.\d{{4}})\]"
        mean, low, high = map(float, re.search(pattern, printed).groups())
        assert mean == pytest.approx(own["value"].mean(), abs=5.1e-5)
        assert low < mean < high
    assert "relevant from grade 1 on: 32 judged queries; 1 without a relevant passage" in printed
    assert "2 without a relevant passage, counted as 0 (hopeless, lost)" in printed
    assert "2 missing from the run, counted as 0 (hopeless, lost)" in printed


def test_evaluate_per_query_values_are_those_of_the_library(folder, tmp_path):
    out = tmp_path / "per-query.tsv.gz"
    raylab("evaluate", folder / "fair.trec.gz", folder / "qrels.tsv", "--per-query", out)
    with gzip.open(out, "rt") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    qrels = {}
    for line in (folder / "qrels.tsv").read_text().splitlines():
        query_id, _, passage_id, grade = line.split()
        qrels.setdefault(query_id, {})[passage_id] = int(grade)
    expected = evaluate(read_run(folder / "fair.trec.gz"), qrels, ["nDCG@10", "RR@10", "R@1000"])
    assert {(r["measure"], r["query_id"]): float(r["value"]) for r in rows} == {
        (measure, query_id): value
        for measure, own in expected.items()
        for query_id, value in own.items()
    }


def test_evaluate_by_a_protocol_cuts_the_run_and_drops_the_querys_own_document(tmp_path):
    write_qrels({"a": {"b": 1}}, tmp_path / "qrels")
    hits = [("a", 200.0), *((f"x{n}", 150.0 - n) for n in range(99)), ("b", 1.0), ("c", 0.5)]
    write_run(Run.from_pairs({"a": hits}), tmp_path / "run")
    arguments = ("evaluate", tmp_path / "run", tmp_path / "qrels", "--measures", "RR R@1000")
    for protocol, expected in (
        (None, "0.0099"),
        ("arguana/test", "0.0100"),
        ("scifact/test", "0.0000"),
    ):
        printed, _ = raylab(*arguments, *(("--protocol", protocol) if protocol else ()))
        assert re.search(rf"^RR +{expected} ", printed, re.MULTILINE), (protocol, printed)


def test_compare_prints_and_writes_tests_of_every_pair_and_states_the_family(folder, tmp_path):
    runs = [folder / f"{name}.trec.gz" for name in ("weak", "fair", "good")]
    out = tmp_path / "tests.csv"
    arguments = ("--measures", "nDCG@10 AP", "--draws", 2_000, "--out", out)
    printed, _ = raylab("compare", *runs, folder / "qrels.tsv", *arguments)
    assert "Family: 6 comparison(s)" in printed
    assert re.search(r"^A +weak +0\.\d{4} +0\.\d{4}", printed, re.MULTILINE)
    assert "qrels.tsv: 32 queries" in printed
    with out.open() as lines:
        rows = list(csv.DictReader(lines))
    assert {(r["measure"], r["a"], r["b"]) for r in rows} == {
        (measure, *pair)
        for measure in ("nDCG@10", "AP")
        for pair in (("weak", "fair"), ("weak", "good"), ("fair", "good"))
    }
    values = {}
    for name in ("weak", "good"):
        path = tmp_path / name
        raylab(
            "evaluate", folder / f"{name}.trec.gz", folder / "qrels.tsv", "--per-query", path
        )  # fmt: skip
        own = pd.read_csv(path, sep="\t").query("measure == 'nDCG@10'")
        values[name] = own.sort_values("query_id")["value"].to_numpy()
    (row,) = [r for r in rows if (r["measure"], r["a"], r["b"]) == ("nDCG@10", "weak", "good")]
    expected = stats.ttest_rel(values["good"], values["weak"])
    assert float(row["p_t"]) == pytest.approx(expected.pvalue)
    assert float(row["p_t_bonferroni"]) == pytest.approx(min(1, 6 * expected.pvalue))
    assert float(row["difference"]) == pytest.approx((values["good"] - values["weak"]).mean())
    first, _ = raylab("compare", *runs, folder / "qrels.tsv", "--baseline", "--draws", 100)
    assert "Family: 6 comparison(s)" in first  # 2 pairs, 3 measures
    assert "C - B" not in first


def test_compare_of_a_constant_difference_prints_no_number_made_of_rounding(tmp_path):
    """Reciprocal ranks 1/2 against 1/3 and 1/3 against 1/6: every query differs by 1/6."""
    ranks = {"a": (2, 3, 2, 3), "b": (3, 6, 3, 6)}
    for name, of_queries in ranks.items():
        lines = [
            f"q{q} Q0 {'rel' if rank == own else f'x{rank}'} {rank} {9 - rank} t\n"
            for q, own in enumerate(of_queries)
            for rank in range(1, 8)
        ]
        (tmp_path / f"{name}.trec").write_text("".join(lines))
    (tmp_path / "qrels.txt").write_text("".join(f"q{q} 0 rel 1\n" for q in range(4)))
    files = [tmp_path / name for name in ("a.trec", "b.trec", "qrels.txt")]
    printed, _ = raylab("compare", *files, "--measures", "RR@10", "--out", tmp_path / "tests.csv")
    assert "-0.1667 [-0.1667, -0.1667]" in printed
    assert "-inf [-inf, -inf]" in printed
    (row,) = csv.DictReader((tmp_path / "tests.csv").open())
    assert (float(row["p_t"]), float(row["p_random"])) == (0, 2 / 2**4)


def test_compare_names_the_queries_that_a_run_lacks_as_evaluate_does(folder, tmp_path):
    whole = read_run(folder / "good.trec.gz")
    lacking = sorted(whole)[3:5]
    pairs = {
        query: [(str(p), float(s)) for p, s in zip(hits.passage_ids, hits.scores, strict=True)]
        for query, hits in whole.items()
        if query not in lacking
    }
    write_run(Run.from_pairs(pairs), tmp_path / "fewer.trec")
    expected = str(coverage(Run.from_pairs(pairs), read_qrels(folder / "qrels.tsv")))
    files = (folder / "fair.trec.gz", tmp_path / "fewer.trec", folder / "qrels.tsv")
    printed, _ = raylab("compare", *files, "--draws", 10)
    assert f"fewer: {expected}" in printed.splitlines()
    assert all(query in expected for query in lacking)
    evaluated, _ = raylab("evaluate", *files[1:])
    assert expected in evaluated


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A storage as a grid leaves it: two seeds of a cell and BM25 on two splits of SciFact."""
    rng, rows, results = np.random.default_rng(1), [], []
    for system, seed, lift in (("BM25", None, 0.0), ("dense-x-cl", 0, 0.3), ("dense-x-cl", 1, 0.1)):
        for split in ("test", "valid"):
            for measure in ("nDCG@10", "RR@10"):
                where = {"collection": "scifact", "split": split, "measure": measure}
                key = {"fingerprint": "f", "system": system, "seed": seed, **where}
                values = rng.random(20) / 2 + lift
                rows += [
                    {**key, "query_id": f"q{n}", "value": v} for n, v in enumerate(values.tolist())
                ]
                results.append(key | {"kind": "trained", "value": float(values.mean())})
    store = Store(str(tmp_path_factory.mktemp("lab")))
    write_table(store, PER_QUERY, [query_value(**row) for row in rows], QueryValue)
    write_table(store, RESULTS, [result(**row) for row in results], Result)
    return store, pd.DataFrame(rows)


def test_compare_of_a_storage_is_per_split_by_its_primary_measure_over_the_mean_of_seeds(
    storage, tmp_path
):
    store, table = storage
    out = tmp_path / "tests.csv"
    arguments = ("--storage", store.uri, "--draws", 500, "--out", out)
    printed, _ = raylab("compare", "BM25", "dense-x-cl", *arguments)
    assert "scifact test: 20 queries" in printed
    assert "scifact valid: 20 queries" in printed
    assert "Family: 2 comparison(s)" in printed
    with out.open() as lines:
        rows = {(r["where"], r["measure"]): r for r in csv.DictReader(lines)}
    assert set(rows) == {("scifact test", "nDCG@10"), ("scifact valid", "nDCG@10")}
    own = table[(table["split"] == "test") & (table["measure"] == "nDCG@10")]
    means = own.groupby(["system", "query_id"])["value"].mean()
    expected = stats.ttest_rel(means["dense-x-cl"], means["BM25"]).pvalue
    assert float(rows["scifact test", "nDCG@10"]["p_t"]) == pytest.approx(expected)
    one_seed, _ = raylab("compare", "BM25", "dense-x-cl-seed1", *arguments[:-2], "--split", "test")
    assert "Family: 1 comparison(s)" in one_seed
    seed = own[own["seed"] == 1]["value"].mean()
    assert f"dense-x-cl-seed1   {seed:.4f}" in re.sub(" +", "   ", one_seed)


def test_a_mean_over_seeds_of_which_one_lacks_a_query_is_refused(storage, tmp_path):
    _, table = storage
    fewer = table[~((table["seed"] == 1) & (table["query_id"] == "q7"))]
    rows = fewer.astype(object).where(fewer.notna(), None).to_dict("records")
    store = Store(str(tmp_path / "lab"))
    write_table(store, PER_QUERY, [query_value(**row) for row in rows], QueryValue)
    _, err = raylab("compare", "BM25", "dense-x-cl", "--storage", store.uri, expect=2)
    assert "query 'q7' of 'dense-x-cl' has values of 1 of 2 seeds" in err


def test_a_beir_mean_names_the_sets_it_lacks(storage):
    store, table = storage
    _, refused = raylab("beir", store.uri, expect=2)
    missing = ", ".join(name for name in BEIR_SETS if name != "scifact")
    assert refused == f"error: a BEIR mean is over 13 sets; missing: {missing}\n"
    printed, _ = raylab("beir", store.uri, "--partial")
    own = table[(table["split"] == "test") & (table["measure"] == "nDCG@10")]
    bm25 = own[own["system"] == "BM25"]["value"].mean()
    assert f"BM25  nDCG@10 {bm25:.4f} over 1 of the 13 BEIR sets, without {missing}" in printed
    assert "dense-x-cl-seed1  nDCG@10" in printed


# ------------------------------------------------------------------------------------ bad input


def refused(*arguments, run=raylab):
    """The one line that a refused command prints, and nothing else."""
    printed, said = run(*arguments, expect=2)
    assert printed == ""
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said.removeprefix("error: ").strip()


@pytest.mark.long
def test_processes_print_the_same_and_end_with_the_same_status(folder, tmp_path):
    good, fair, qrels = folder / "good.trec.gz", folder / "fair.trec.gz", folder / "qrels.tsv"
    for arguments in (
        ("evaluate", good, qrels),
        ("compare", good, fair, qrels, "--draws", 100, "--measures", "AP"),
    ):
        assert process(*arguments) == raylab(*arguments)
    for arguments in (("evaluate", tmp_path, qrels), ("compare", good, qrels), ("beir", tmp_path)):
        assert refused(*arguments, run=process) == refused(*arguments)


def test_bad_files_are_named_by_line(folder, tmp_path):
    bad = tmp_path / "bad.trec"
    bad.write_text("q00 Q0 p1 1 2.0 x\nq00 Q0 p2 2 high x\n")
    qrels = folder / "qrels.tsv"
    assert refused("evaluate", bad, qrels).startswith(f"{bad}:2: score 'high'")
    three = tmp_path / "three.tsv"
    three.write_text("q00 0 p1 1\nq00 p2 1\n")
    assert refused("evaluate", folder / "good.trec.gz", three).startswith(f"{three}:2: 3 fields")
    assert "cannot be opened" in refused("evaluate", tmp_path / "nowhere", qrels)
    assert refused("compare", folder / "good.trec.gz", bad, qrels).startswith(f"{bad}:2: ")


def test_a_run_of_another_collection_is_refused(folder, tmp_path):
    other = tmp_path / "other.trec"
    other.write_text("z1 Q0 p1 1 2.0 x\n")
    assert "no query of the run (such as 'z1')" in refused("evaluate", other, folder / "qrels.tsv")


def test_bad_options_leave_nothing_behind(folder, tmp_path, storage):
    run, qrels, out = folder / "good.trec.gz", folder / "qrels.tsv", tmp_path / "out"
    store, _ = storage
    for arguments, words in (
        (
            ("evaluate", run, qrels, "--measures", "MRR@10"),
            "unknown measure 'MRR@10'; did you mean RR@10? known are",
        ),
        (("evaluate", run, qrels, "--measures", " "), "--measures: none is named"),
        (("evaluate", run, qrels, "--confidence", "2"), "confidence is 2.0"),
        (
            ("evaluate", run, qrels, "--protocol", "scifact"),
            "must be one of scifact/train, scifact/test",
        ),
        (("evaluate", run, qrels, "--protocol", "x/test"), "no 'x'; there are msmarco"),
        (
            ("evaluate", run, qrels, "--per-query", out / "no" / "a.tsv"),
            "a.tsv: there is no folder",
        ),
        (("compare", run, qrels, "--out", out), "compare needs two runs"),
        (("compare", run, run, qrels, "--out", out), "is named twice"),
        (("compare", run, run, qrels, "--split", "test"), "--split: it needs --storage"),
        (("compare", "BM25", "x", "--storage", store.uri), "it has BM25, dense-x-cl"),
        (("compare", "BM25", "dense-x-cl", "--storage", tmp_path), "no per_query.parquet there"),
        (("beir", store.uri, "--measure", "AP", "--partial"), "no AP on a test split of BEIR"),
    ):
        assert words in refused(*arguments), arguments
    assert not list(tmp_path.iterdir())
