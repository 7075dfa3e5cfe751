"""What CONTRIBUTING.md says can be added: a measure, a law and a collection, each really added here.

A head and an objective are added in tests/jobs/test_lab.py, which takes them through a whole grid.
"""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from raylab.data.collections import read_passages
from raylab.data.registry import BENCHMARKS, Benchmark, Protocol, Split, protocol
from raylab.data.sources import open_collection
from raylab.evaluation import measures
from raylab.evaluation.runs import read_run
from raylab.experiment.config import ConfigError
from raylab.scaling import LAWS, Law, Series, Study

ROOT = Path(__file__).resolve().parents[2]


def test_a_measure_is_one_entry(monkeypatch, tmp_path):
    """trec_eval's set_map: precision times recall of what was retrieved, whatever its order."""
    with pytest.raises(ConfigError, match="unknown measure 'SetAP'"):
        measures.evaluate({}, {"q1": {"a": 1}}, ["SetAP"])
    monkeypatch.setitem(measures._TREC_NAMES, "SetAP", ("set_map", None))
    path = tmp_path / "run.trec"
    path.write_text("".join(f"q1 Q0 {p} {r} {9 - r} tag\n" for r, p in enumerate("abcde", 1)))
    qrels = {"q1": {"a": 1, "e": 1, "x": 1, "b": 0}}
    values = measures.evaluate(read_run(path), qrels, ["SetAP"])
    assert values["SetAP"]["q1"] == pytest.approx((2 / 5) * (2 / 3), abs=1e-6)
    assert Protocol(("SetAP",), 100, "SetAP").measures == ("SetAP",)


def test_a_law_is_one_entry(monkeypatch):
    """Loss against compute: its own parameters come back from runs that follow it exactly."""
    monkeypatch.setitem(LAWS, "compute", Law("compute", "(A/C)^a + d", ("A", "a", "d"), ("C",)))
    flops_R = np.geomspace(1e11, 1e14, 9)
    losses_R = (5e10 / flops_R) ** 0.3 + 0.2
    study = Study(draws=20)
    study.add(runs_of(flops_R, losses_R), "compute")
    (fitted,) = study.fits
    found = {name: one.value for name, one in fitted.parameters.items()}
    assert found == pytest.approx({"A": 5e10, "a": 0.3, "d": 0.2}, rel=1e-2)
    assert fitted.predict(1e15).value == pytest.approx((5e10 / 1e15) ** 0.3 + 0.2, rel=1e-3)


def runs_of(flops_R, losses_R):
    """Runs of one size and nine budgets, of ten queries that are all as hard."""
    runs = range(len(flops_R))
    numbers = dict.fromkeys(("parameters", "with_head"), np.full(len(flops_R), 1e6))
    numbers |= dict.fromkeys(("spent_flops", "budget_flops", "tokens", "examples"), flops_R)
    return Series(
        head="dense",
        objective="cl",
        collection="planted",
        split="test",
        measure="CE@256",
        systems=tuple(f"run{r}" for r in runs),
        sizes=("1m",) * len(flops_R),
        variants=tuple(f"{flops:g}" for flops in flops_R),
        seeds=(0,) * len(flops_R),
        numbers=numbers,
        query_ids=tuple(f"q{q}" for q in range(10)),
        losses_RQ=np.repeat(losses_R[:, None], 10, axis=1),
    )


def test_a_collection_is_a_folder_and_one_entry(monkeypatch, collection_folder):
    """A folder is read and measured as BEIR is; an entry of its name says how else."""
    source = open_collection(str(collection_folder))
    assert len(list(read_passages(source.passages))) == 120
    assert protocol(source.name, "test").measures == ("nDCG@10", "RR@10", "R@100")
    own = Protocol(("P@5", "nDCG@10"), run_depth=50, primary="P@5")
    entry = Benchmark(source.name, "", {"test": Split(None, own)})
    monkeypatch.setitem(BENCHMARKS, source.name, entry)
    assert protocol(source.name, "test") == own


def test_every_test_that_is_named_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert len(files) >= 5
    assert not [file for file in files if not (ROOT / file).is_file()]
    names = set(re.findall(r"`(test_\w+)`", text))
    here = {
        node.name for node in ast.parse(Path(__file__).read_text()).body if hasattr(node, "name")
    }
    assert names
    assert names <= here
