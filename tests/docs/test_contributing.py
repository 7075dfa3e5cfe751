"""What CONTRIBUTING.md says can be added: a measure, a law and a collection, each really added here.

A head and an objective are added in tests/jobs/test_lab.py, which takes them through a whole grid.
"""

import ast
import re
from pathlib import Path

import ir_measures
import numpy as np
import pytest

import raylab
from raylab.data.collections import read_passages
from raylab.data.registry import BENCHMARKS, Benchmark, Protocol, Split, protocol
from raylab.data.sources import open_collection
from raylab.evaluation import measures
from raylab.evaluation.measures import Measure
from raylab.evaluation.runs import read_run
from raylab.experiment.config import ConfigError
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO
from raylab.experiment.measures import OwnMeasure
from raylab.pipeline.lab import Lab
from raylab.report.page.law_blocks import section
from raylab.scaling import LAWS, Law, Series, Study, rows
from raylab.scaling.laws import ChinchillaLaw
from tests.own.compute_law import COMPUTE
from tests.own.judged_share import JUDGED

ROOT = Path(__file__).resolve().parents[2]
QRELS = {"q1": {"a": 1, "e": 1, "x": 1, "b": 0}}
FLOPS_R = np.geomspace(1e11, 1e14, 9)
LOSSES_R = (5e10 / FLOPS_R) ** 0.3 + 0.2


def test_a_measure_is_one_entry(monkeypatch, tmp_path):
    """trec_eval's set_map: precision times recall of what was retrieved, whatever its order."""
    with pytest.raises(ConfigError, match="unknown measure 'SetAP'"):
        measures.evaluate({}, {"q1": {"a": 1}}, ["SetAP"])
    monkeypatch.setitem(measures.MEASURES, "SetAP", Measure("SetAP", "set_map"))
    values = measures.evaluate(run_of_five(tmp_path), QRELS, ["SetAP"])
    assert values["SetAP"]["q1"] == pytest.approx((2 / 5) * (2 / 3), abs=1e-6)
    assert Protocol(("SetAP",), 100, "SetAP").measures == ("SetAP",)


def test_a_measure_is_a_function_in_a_file_of_its_own(tmp_path):
    """ir_measures has it too, as Judged@k; tests/jobs/test_lab.py takes it through a grid."""
    run, own = run_of_five(tmp_path), [JUDGED.at(2), JUDGED.at(4), JUDGED.at(5)]
    values = measures.evaluate(run, {**QRELS, "q2": {"a": 1}}, [*own, "R@5"])
    hits = {"q1": dict(zip("abcde", range(9, 4, -1), strict=True))}
    names = ["Judged@2", "Judged@4", "Judged@5", "R@5"]
    assert list(values) == names
    for metric in ir_measures.iter_calc(map(ir_measures.parse_measure, names), QRELS, hits):
        found = values[str(metric.measure)]
        assert found == {"q1": pytest.approx(metric.value), "q2": 0.0}, metric


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (("R@5", "tests.own.judged_share:judged"), "measure.name = 'R@5': it must be another name"),
        (("Judged", "tests.own.no_such:judged"), "'tests.own.no_such:judged' cannot be loaded"),
        (("Judged", "tests/own/judged_share.py"), "measure.function = .* package.module:function"),
        (("Judged 5", "tests.own.judged_share:judged"), "measure.name = 'Judged 5'"),
        (("Judged", "tests.own.judged_share:judged", 0), "measure.cutoff = 0"),
        (("Odd", "tests.docs.test_contributing:nothing"), "measure Odd = nan"),
    ],
)
def test_a_measure_that_cannot_be_is_refused(tmp_path, measure, message):
    with pytest.raises(ConfigError, match=message):
        measures.evaluate(run_of_five(tmp_path), QRELS, [OwnMeasure(*measure)])


def nothing(passage_ids, grades) -> float:
    return float("nan")


def test_a_grid_has_measures_of_distinct_names():
    with pytest.raises(ConfigError, match=r"measures = \['Judged@5', 'Judged@5'\]"):
        Grid(PICO, "scifact", measures=(JUDGED.at(5), JUDGED.at(5)))


def run_of_five(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("".join(f"q1 Q0 {p} {r} {9 - r} tag\n" for r, p in enumerate("abcde", 1)))
    return read_run(path)


@pytest.mark.parametrize("registered", [False, True])
def test_a_law_is_one_object(monkeypatch, registered):
    """Given as an object, or by its name in the table: its parameters come back from exact runs."""
    if registered:
        monkeypatch.setitem(LAWS, COMPUTE.name, COMPUTE)
    study = Study(draws=20)
    study.add(runs_of(FLOPS_R, LOSSES_R), COMPUTE.name if registered else COMPUTE)
    (fitted,) = study.fits
    found = {name: one.value for name, one in fitted.parameters.items()}
    assert found == pytest.approx({"A": 5e10, "a": 0.3, "d": 0.2}, rel=1e-2)
    assert fitted.predict(1e15).value == pytest.approx((5e10 / 1e15) ** 0.3 + 0.2, rel=1e-3)
    assert not study.forecasts  # of one size, none can be held out
    assert [one.named for one in study.refused] == ["compute without the largest size"]
    assert {row["law"] for row in rows(fitted)} == {"compute"}
    assert "(A/C)^a" in section(study).fits.note


def test_a_law_of_the_api_is_a_name_or_an_object(monkeypatch):
    lab = Lab("memory://nowhere")
    monkeypatch.setattr(lab, "series", lambda: [runs_of(FLOPS_R, LOSSES_R)])
    (fitted,) = raylab.fit(lab, COMPUTE, draws=20).fits
    assert (fitted.law, fitted.formula) == ("compute", "(A/C)^a + d")
    with pytest.raises(ConfigError, match="law = 'compute': it must be one of size"):
        raylab.fit(lab, "compute", draws=20)


def test_a_law_may_name_its_parameters_and_form_as_it_likes():
    """The scale of a sum stands outside of the power, and its floor is reported first."""
    law = ChinchillaLaw("sum", "floor + K/C^k", ("floor", "K", "k"), ("C",), hold_out=("budget",))
    study = Study(draws=20)
    study.add(runs_of(FLOPS_R, LOSSES_R), law)
    found = {name: one.value for name, one in study.fits[0].parameters.items()}
    assert found == pytest.approx({"floor": 0.2, "K": 5e10**0.3, "k": 0.3}, rel=2e-2)
    (forecast,) = study.forecasts
    assert abs(forecast.predictions[0].relative_error) < 1e-3
    assert "K" in [column.name for column in section(study).fits.columns]


@pytest.mark.parametrize(
    ("parameters", "covariates", "message"),
    [
        (("A", "d"), ("C",), "2 parameters for 1 covariates; .* 3 parameters"),
        (("d",), (), "1 parameters for 0 covariates; it needs a covariate"),
    ],
)
def test_a_law_that_cannot_be_is_refused(parameters, covariates, message):
    with pytest.raises(ConfigError, match=f"law 'odd': {message}"):
        Law("odd", "?", parameters, covariates)


def test_a_law_of_a_number_that_runs_lack_is_refused():
    law = Law("watts", "(A/W)^a + d", ("A", "a", "d"), ("watts",))
    with pytest.raises(ConfigError, match="covariate 'watts': it must be N, D, C or one of param"):
        Study(draws=2).add(runs_of(FLOPS_R, LOSSES_R), law)


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
