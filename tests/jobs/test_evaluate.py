"""Further collections: every system is measured on them, in one table, and nothing is trained for it."""

import json
import shutil

import pandas as pd
import pytest

from tests.jobs.commands import run_disturbed, run_here
from tests.jobs.conftest import CELLS
from tests.jobs.test_crash import kill_one


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory, collection_folder):
    """A smaller collection of other texts, of which a model trained elsewhere sees the split test alone."""
    folder = tmp_path_factory.mktemp("other") / "other"
    (folder / "qrels").mkdir(parents=True)
    lines = (collection_folder / "corpus.jsonl").read_text().splitlines()[40:]
    passages = [json.loads(line) for line in lines]
    for passage in passages:
        passage["text"] = " ".join(reversed(passage["text"].split()))
    queries = [
        {"_id": f"o{i}", "text": " ".join(p["text"].split()[:5])} for i, p in enumerate(passages)
    ]
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, numbers in (("train", range(30)), ("test", range(30, 45))):
        judged = [f"o{i}\t{passages[i]['_id']}\t1" for i in numbers]
        (folder / "qrels" / f"{split}.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n"
        )
    return folder


@pytest.fixture(scope="module")
def extended(finished_grid, tmp_path_factory, other_folder):
    """(storage, output): a finished grid, and the same command with one collection more; an actor dies at its work."""
    lab = tmp_path_factory.mktemp("extended") / "lab"
    shutil.copytree(finished_grid.lab, lab)
    arguments = [str(lab) if a == str(finished_grid.lab) else a for a in finished_grid.arguments]
    kill = kill_one("ray::WorkActor.work")
    more = ("--evaluate", str(other_folder), "--encoders", "2")
    return lab, run_disturbed([*arguments, *more], kill)


def test_it_is_measured_and_nothing_is_trained(finished_grid, extended):
    lab, output = extended
    for stage in ("teach", "arrange", "train"):
        assert f"{stage}: " not in output
    table = pd.read_parquet(lab / "results.parquet")
    here = table[table["collection"] == "other"]
    assert set(here["split"]) == {"test"}
    assert set(here.loc[here["kind"] == "trained", "system"]) == set(CELLS)
    assert set(here.loc[here["kind"] == "untrained", "system"]) == {
        "untrained-sparse-tiny",
        "untrained-dense-tiny",
    }
    assert "BM25" in set(here["system"])
    assert here["queries"].max() == 15
    trained = table[table["kind"] == "trained"]
    assert set(trained["trained_on"]) == {"tiny"}
    # What was there stands as it stood.
    before = pd.read_parquet(finished_grid.lab / "results.parquet")
    same = table[table["collection"] == "tiny"].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, before)
    assert (lab / "report" / "table.md").read_text().count("other test") > 0


def test_search_measures_the_same(extended, other_folder, tmp_path, in_this_process):
    """The figures are those of `raylab search` with the exported checkpoint, which makes everything anew."""
    import sys

    lab, _ = extended
    name = "sparse-tiny-cl-seed0"
    module = [sys.executable, "-m", "raylab.cli.main"]
    run_here([*module, "export", name, str(tmp_path / "model"), "--storage", str(lab)])
    where = [str(tmp_path / "model"), str(other_folder), "--storage", str(tmp_path / "lab")]
    printed = run_here([*module, "search", *where, "--split", "test"])
    table = pd.read_parquet(lab / "results.parquet")
    here = table[(table["collection"] == "other") & (table["system"] == "sparse-tiny-cl")]
    value = float(here.loc[here["measure"] == "nDCG@10", "value"].iloc[0])
    assert f"nDCG@10  {value:.4f}" in printed


@pytest.mark.slow
def test_without_an_index_the_table_is_the_same(extended, finished_grid, other_folder, tmp_path):
    """In one pass over each collection; a system's model is loaded once for all of them."""
    lab = tmp_path / "lab"
    for stage in ("collection", "tokens", "candidates", "scores", "groups", "arrays", "backbone"):
        shutil.copytree(finished_grid.lab / stage, lab / stage)
    shutil.copytree(finished_grid.lab / "retriever", lab / "retriever")
    arguments = [str(lab) if a == str(finished_grid.lab) else a for a in finished_grid.arguments]
    run_here([*arguments, "--evaluate", str(other_folder), "--no-index"])
    columns = ["collection", "system", "split", "measure", "value", "ci_low", "ci_high"]
    tables = [
        pd.read_parquet(path / "results.parquet")[columns]
        .sort_values(columns)
        .reset_index(drop=True)
        for path in (lab, extended[0])
    ]
    pd.testing.assert_frame_equal(*tables)
    assert not (lab / "embedding-part").exists()
