"""`raylab fit` on a synthetic storage: what it prints and writes, and how it ends."""

import csv

import pandas as pd
import pytest
from typer.testing import CliRunner

from raylab.cli.main import app
from raylab.scaling import COLUMNS
from raylab.storage.store import Store
from raylab.storage.tables import PER_QUERY, RESULTS, QueryValue, Result
from tests.scaling.planted import BUDGETS, SIZES, study, tables
from tests.tables import as_table


def write(folder, pieces):
    """A storage of the rows of several (results, per-query) tables."""
    store = Store(str(folder))
    kinds = (RESULTS, Result), (PER_QUERY, QueryValue)
    for (name, row), own in zip(kinds, zip(*pieces, strict=True), strict=True):
        path = folder / "table.parquet"
        rows = pd.concat(own, ignore_index=True).astype(object)
        as_table(rows.where(rows.notna(), None).to_dict("records"), row).to_parquet(path)
        store.put_bytes(name, path.read_bytes())
        path.unlink()
    return str(folder)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    options = {"sizes": SIZES[::2], "budgets": BUDGETS[::2], "runs": 0.005, "queries": 0.2}
    grid = {
        (size, n, head, objective, "nDCG@10"): [0.4 + gain * (objective == "cl"), 0.405]
        for size, n, gain in (("s1", 10**4, 0.0), ("s2", 10**5, 0.1), ("s3", 10**6, 0.2))
        for head in ("sparse", "dense")
        for objective in ("cl", "kd")
    }
    pieces = [study("chinchilla", **options), tables(grid)]
    return write(tmp_path_factory.mktemp("lab"), pieces)


def run(*arguments):
    done = CliRunner().invoke(app, ["fit", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


def test_it_prints_fits_forecasts_optima_and_claims(storage, tmp_path):
    out = tmp_path / "fits.csv"
    code, text, err = run("--storage", storage, "--draws", 60, "--out", out)
    assert (code, err) == (0, "")
    for part in (
        "fits",
        "forecasts",
        "isoFLOP optima",
        "claims",
        "chinchilla",
        "with_head",
    ):
        assert part in text
    assert "nDCG@10 budget 1e+12: size has 3 parameters and needs 4 design points" in text
    assert "sizes s1, s2, s3; budgets 1e+12; 6 runs" in text
    with open(out) as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {row["row"] for row in rows} == {"fit", "forecast", "optimum", "claim"}
    fits = [r for r in rows if (r["row"], r["law"], r["n"]) == ("fit", "chinchilla", "parameters")]
    assert [row["quantity"] for row in fits] == ["E", "A", "a", "B", "b"]
    assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in fits)
    assert {(r["n_runs"], r["points"], r["clusters"], r["seeds"]) for r in fits} == {
        ("12", "12", "4 sizes", "0")
    }
    assert {round(float(r["degrees_of_freedom"]), 1) for r in fits} == {1.0}
    assert {row["verdict"] for row in rows if row["row"] == "forecast"} <= {"held", "missed"}
    again = tmp_path / "again.csv"
    assert run("--storage", storage, "--draws", 60, "--out", again)[1] == text
    assert again.read_bytes() == out.read_bytes()


def test_one_law_of_one_series(storage):
    code, text, _ = run(
        "--storage", storage, "--law", "joint", "--measure", "CE@256", "--head", "sparse",
        "--objective", "cl", "--collection", "planted", "--split", "test", "--draws", 20,
        "--data", "examples",
    )  # fmt: skip
    assert code == 0
    assert "joint" in text
    assert "chinchilla" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--law", "linear"], "--law linear: it must be all or one of size"),
        (["--data", "words"], "--data words: it must be one of tokens, examples"),
        (["--head", "late"], "no trained run with values of head late"),
        (["--measure", "MAP"], "no trained run with values of measure ['MAP']"),
        (["--margin", "-1"], "margin = -1"),
        (["--storage", "nowhere-at-all"], "nowhere-at-all: no results.parquet there"),
    ],
)
def test_bad_input_ends_with_one_line_and_status_2(storage, arguments, message):
    code, _, err = run("--storage", storage, "--law", "joint", "--draws", 20, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_what_was_left_out_is_told_where_nothing_is_fitted(tmp_path):
    """A run without values per query, of so few that no law can be fitted."""
    grid = {
        (s, n, "dense", "cl", "nDCG@10"): [0.4, 0.41] for s, n in (("s1", 10**4), ("s2", 10**5))
    }
    results, per_query = tables(grid)
    lost = per_query["system"].str.contains("s2")
    assert lost.any()
    lab = write(tmp_path, [(results, per_query[~lost])])
    code, text, err = run("--storage", lab, "--draws", 20)
    assert (code, err) == (0, "")
    assert "not fitted: " in text
    assert "excluded: dense-s2-cl-seed0: no values per query" in text


def test_slopes_out_of_domain_stand_beside_those_in_domain(tmp_path):
    """The dense slope is half as steep on the other collection; the runs are the same."""
    sizes = (("s1", 10**4), ("s2", 10**5), ("s3", 10**6), ("s4", 10**7))
    pieces = []
    for collection, gain in (("planted", 0.1), ("other", 0.05)):
        grid = {
            (size, n, "dense", "cl", "nDCG@10"): [0.3 + gain * place, 0.302 + gain * place]
            for place, (size, n) in enumerate(sizes)
        }
        results, per_query = (one.assign(collection=collection) for one in tables(grid))
        pieces.append((results.assign(trained_on="planted"), per_query))
    out = tmp_path / "fits.csv"
    folder = tmp_path / "lab"
    folder.mkdir()
    code, text, err = run("--storage", write(folder, pieces), "--draws", 100, "--out", out)
    assert (code, err) == (0, "")
    assert "in domain and out of domain" in text
    with out.open() as file:
        rows = [row for row in csv.DictReader(file) if row["row"] == "domain"]
    slopes = {row["quantity"]: float(row["value"]) for row in rows if not row["law"]}
    assert slopes == pytest.approx(
        {"in domain": 0.1, "out of domain": 0.05, "difference": -0.05}, abs=1e-6
    )
    (difference,) = [row for row in rows if row["quantity"] == "difference" and not row["law"]]
    assert (difference["verdict"], difference["collection"], difference["domain"]) == (
        "differs", "other", "out of domain",
    )  # fmt: skip
