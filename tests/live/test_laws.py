"""The law on the page is the one that `raylab.scaling` fits, and where none can be there is no curve and no band."""

import json
import shutil

import pandas as pd
import pytest

from raylab.live import laboratory
from raylab.live.facts import LivePlan, PlannedCell
from raylab.live.laboratory import Laboratory
from raylab.live.laws import laws
from raylab.report.rows import read_rows
from raylab.scaling import fit, series, slices
from raylab.storage.store import Store
from tests.live.conftest import FLOPS, ROOT, SESSION

KEY = ["sparse", "cl", "scifact", "test", "CE@256"]


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    folder = ROOT / "docs/results/isoflop"
    return (
        pd.read_parquet(folder / "results.parquet"),
        pd.read_parquet(folder / "per_query.parquet"),
    )


def plan(*cells: PlannedCell) -> LivePlan:
    return LivePlan(SESSION, 0.0, "scifact", cells, (), 1, None, 0.0)


def cell(size: str, parameters: int, state: str = "planned", variant: str = "") -> PlannedCell:
    name = f"sparse-{size}-cl-seed0"
    about = name, name, size, "sparse", "cl", 0, variant, FLOPS, 100, parameters
    return PlannedCell(*about, state)  # type: ignore[arg-type]


def told(tables, own_plan, keep=lambda results: results):
    results, per_query = keep(tables[0]), tables[1]
    per_query = per_query[per_query["system"].isin(results["system"])]
    answer = laws(list(read_rows(results)), results, per_query, own_plan)
    json.dumps(answer, allow_nan=False)
    return answer


def roles(spec: dict) -> set[str]:
    panels = spec["hconcat"][0]["concat"]
    return {row["role"] for panel in panels for row in panel["data"]["values"]}


def test_the_forecast_is_the_laws_own_of_sizes_that_are_still_to_be_measured(tables):
    measured = str(tables[0]["size"].dropna().iloc[0])
    own = plan(cell("huge", 3_000_000), cell(measured, 1), cell("left-out", 9, "left out"))
    answer = told(tables, own)
    found = [
        one
        for one in answer["forecasts"]
        if [one[name] for name in ("head", "objective", "collection", "split", "measure")] == KEY
    ]
    assert [one["size"] for one in found] == ["huge"]
    every = [one for one in series(*tables) if one.name == " ".join(KEY)]
    parts = [part for one in every for part in slices(one, "size")]
    most = max(parts, key=lambda part: (len(set(part.sizes)), max(part.budgets)))
    expected = fit(most, "size", draws=200).predict(3e6)
    assert found[0]["loss"] == pytest.approx(expected.value)
    assert (found[0]["low"], found[0]["high"]) == pytest.approx((expected.low, expected.high))
    assert "fitted" in roles(answer["spec"])
    assert "degrees of freedom" in answer["note"]
    assert [chart["name"] for chart in answer["more"]] == ["isoflop-sparse", "isoflop-dense"]


def test_without_degrees_of_freedom_there_is_no_band_and_the_reason_is_said(tables):
    def of_three_sizes(results: pd.DataFrame) -> pd.DataFrame:
        sizes = sorted(results["size"].dropna().unique())[:3]
        return results[results["size"].isin(sizes) | results["size"].isna()]

    answer = told(tables, plan(cell("huge", 3_000_000)), of_three_sizes)
    assert answer["forecasts"] == []
    assert answer["note"].startswith("No law yet")
    assert "fitted" not in roles(answer["spec"])
    assert any("degree of freedom" in reason for reason in answer["refused"])


def test_more_values_than_the_server_may_hold_are_not_fitted(tmp_path, monkeypatch):
    for name in ("results.parquet", "per_query.parquet"):
        shutil.copy(ROOT / "docs/results/seeds" / name, tmp_path)
    known = Laboratory(Store(str(tmp_path)))
    known.results.refresh()
    monkeypatch.setattr(laboratory, "MOST_VALUES", 1_000)
    answer = known.laws()
    assert "too many to fit beside a page" in answer["note"]
    assert (answer["spec"], answer["forecasts"]) == (None, [])
