"""The laboratory from Python, with a head, an objective and a measure that stand outside the package."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import raylab
from raylab.evaluation.runs import read_run
from raylab.experiment.config import Adaptation, ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.heads import DENSE
from raylab.experiment.ladder_file import read_ladder
from raylab.experiment.objectives import CL
from tests.jobs.test_crash import begin_after
from tests.own.dense_last import DENSE_LAST
from tests.own.judged_share import JUDGED
from tests.own.listwise import LISTWISE


@pytest.fixture(scope="module")
def scores(tmp_path_factory, collection_folder):
    """Teacher scores of every training query: its positive and five more passages."""
    import pandas as pd

    rows = [
        {
            "query_id": f"q{q:03d}",
            "passage_id": f"p{(q + k) % 120:03d}",
            "score": float(5 - k),
            "rank": k,
        }
        for q in range(60)
        for k in range(6)
    ]
    path = tmp_path_factory.mktemp("scores") / "scores.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def grid(ladder_file, collection_folder, scores):
    """A head, an objective and a measure from files of their own, beside the usual ones."""
    ladder = read_ladder(ladder_file)
    tuning = {
        key: dataclasses.replace(one, pseudo_fraction=0.0)
        for key, one in ladder.recipe.fine_tuning.items()
    }
    recipe = dataclasses.replace(ladder.recipe, adaptation=Adaptation(steps=0), fine_tuning=tuning)
    return Grid(
        dataclasses.replace(ladder, name="of my own", recipe=recipe),
        str(collection_folder),
        heads=(DENSE, DENSE_LAST),
        objectives=(CL, LISTWISE),
        teacher=str(scores),
        cells_filter="dense-last-*-listwise",
        measures=(JUDGED.at(5),),
    )


@pytest.fixture(scope="module")
def lab(finished_grid, grid, tmp_path_factory):
    """Of the same collection as the finished grid: its passages and their tokens are taken over."""
    storage = tmp_path_factory.mktemp("lab") / "lab"
    begin_after(finished_grid.lab, storage, ("collection", "tokens"))
    execution = Execution(storage=str(storage), concurrent_trials=1, encoding_actors=1)
    return raylab.run(grid, execution, display="off")


def test_a_head_and_an_objective_of_ones_own_go_through_the_whole_grid(lab):
    results = lab.results()
    trained = results[results["kind"] == "trained"]
    assert set(zip(trained["head"], trained["objective"], strict=True)) == {
        ("dense-last", "listwise")
    }
    assert (trained["retrieval_flops"] == 32).all()
    assert (trained["head_parameters"] == 0).all()


def test_a_measure_of_ones_own_is_measured_of_every_system_and_split(lab):
    """Query n is judged of passage n alone: a fifth where that is among the five hits, as R@5 would say."""
    results, values = lab.results(), lab.per_query().query("measure == 'Judged@5'")
    asked = results[results["measure"] == "nDCG@10"]
    own = results[results["measure"] == "Judged@5"]
    keys = ["system", "collection", "split"]
    assert set(map(tuple, own[keys].to_numpy())) == set(map(tuple, asked[keys].to_numpy()))
    assert set(values["value"]) <= {0.0, 0.2}
    assert values["value"].max() == 0.2
    (path,) = Path(lab.store.root).glob("run/BM25-test-*/attempt-*/run.trec.gz")
    for query_id, ranking in read_run(path).items():
        found = query_id.replace("q", "p") in [passage_id for passage_id, _ in ranking][:5]
        (value,) = values.query(f"system == 'BM25' and query_id == '{query_id}'")["value"]
        assert value == 0.2 * found
    page = lab.store.fs.cat_file(f"{lab.store.root}/report/index.html").decode()
    assert "Judged@5" in page


def test_it_is_not_the_usual_one(lab, finished_grid):
    """Untrained, the same model has another quality under each head."""
    usual = raylab.open_lab(str(finished_grid.lab)).results()
    values = []
    for results, system in ((lab.results(), "dense-last"), (usual, "dense")):
        rows = results[results["system"] == f"untrained-{system}-tiny"]
        values.append(rows.query("split == 'test' and measure == 'nDCG@10'")["value"].item())
    assert values[0] != values[1]


def test_its_report_knows_them(lab):
    report = lab.report()
    page = lab.store.fs.cat_file(f"{lab.store.root}/report/index.html").decode()
    assert "dense-last" in page or DENSE_LAST.label in page
    assert "listwise" in page or LISTWISE.label in page
    assert report.paths


def test_its_checkpoint_is_opened_by_what_it_says(lab):
    retriever = lab.retriever("dense-last-tiny-listwise-seed0")
    assert retriever.head == DENSE_LAST
    assert retriever.encode_passages(["cell gene", "bone"]).shape == (2, 32)
    with pytest.raises(
        ConfigError, match=r"no trained run 'dense-x'; there are: dense-last-tiny-listwise"
    ):
        lab.retriever("dense-x")


def test_the_tables_are_pandas(lab):
    assert len(lab.per_query()) > len(lab.results()) > 0
    assert {"retriever", "run", "measures"} <= set(lab.ledger()["stage"])
    stages = lab.stages()
    assert stages["done"].all()
    assert {"ingest", "tokenise", "teach", "fine-tune", "encode", "search"} <= set(stages["kind"])


def test_a_storage_is_opened_without_running(lab):
    again = raylab.open_lab(lab.store.uri)
    assert again.results().equals(lab.results())


def test_a_failure_raises(grid, tmp_path):
    with pytest.raises(ConfigError, match="no experiment has ended"):
        raylab.open_lab(str(tmp_path / "nothing"))
    small = dataclasses.replace(grid, budget_flops=1.0)
    with pytest.raises(ConfigError, match="too small"):
        raylab.run(small, Execution(storage=str(tmp_path / "lab")), display="off")
    assert not (tmp_path / "lab").exists()


def test_importing_raylab_loads_nothing():
    code = "import raylab, sys; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    for heavy in ("torch", "ray", "transformers", "pandas", "numpy", "pyarrow"):
        assert f"'{heavy}'" not in loaded
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        raylab.nonsense  # noqa: B018
