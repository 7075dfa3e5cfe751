"""Synthetic results tables and ledgers, typed by the real schemas."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raylab.report.charts import drawing, quality
from raylab.report.charts.chart import Chart
from raylab.report.tables import GridTable
from raylab.storage.store import Store
from raylab.storage.tables import LedgerRow, Result, schema_of, write_table

_DESCRIBED: dict[str, list[Chart]] = {}  # by the tables
_DRAWN: dict[tuple[str, str], bytes] = {}  # by the format and the description


@pytest.fixture
def drawn_once(monkeypatch):
    """Charts of equal tables are described and drawn once a session, which is most of what a report takes.

    That their bytes are a function of the results is in tests/report/test_figures.py.
    """

    def kept(draw: Callable[[Chart], bytes]) -> Callable[[Chart], bytes]:
        def drawn(chart: Chart) -> bytes:
            key = draw.__name__, json.dumps(chart.spec)
            if key not in _DRAWN:
                _DRAWN[key] = draw(chart)
            return _DRAWN[key]

        return drawn

    for draw in (drawing.to_svg, drawing.to_png):
        monkeypatch.setattr(drawing, draw.__name__, kept(draw))
    describe = quality.charts

    def described(tables: Sequence[GridTable]) -> list[Chart]:
        shown = repr(tables)
        if shown not in _DESCRIBED:
            _DESCRIBED[shown] = describe(tables)
        return _DESCRIBED[shown]

    monkeypatch.setattr(quality, "charts", described)


# Named so that the order by name is not the order by parameters.
SIZES = {"pico-1x64": 123_456, "pico-4x256": 4_200_000, "pico-2x128": 656_000}
TEST_AND_VALID = (("scifact", "test"), ("scifact", "valid"))
BEIR_MEASURES = ("RR@10", "R@100", "nDCG@10")


def results_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as the driver makes them: absent facts are nulls."""
    schema = schema_of(Result)
    blank = dict.fromkeys(schema.names) | {"variant": "", "varied": ""}
    full = [blank | row for row in rows]
    return pa.Table.from_pylist(full, schema=schema).to_pandas()


def store_table(store: Store, path: str, frame: pd.DataFrame, row: type) -> pd.DataFrame:
    """A table as the driver stores it, and as it is read back."""
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return write_table(store, path, [row(**record) for record in records], row)


def _systems(
    sizes: Sequence[str], heads: Sequence[str], objectives: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    systems: list[dict[str, Any]] = [
        {"kind": "baseline", "system": "BM25", "fingerprint": "b" * 64}
    ]
    for size in sizes:
        for head in heads:
            model = {"size": size, "head": head, "parameters": SIZES[size]}
            name = f"untrained-{head}-{size}"
            systems.append(model | {"kind": "untrained", "system": name, "fingerprint": "c" * 64})
            systems += [
                model
                | {
                    "kind": "trained",
                    "system": f"{head}-{size}-{objective}",
                    "objective": objective,
                    "seed": seed,
                    "budget_flops": 4e12,
                    "spent_flops": 3.9e12,
                    "steps": 1234,
                    "seconds": 40.5,
                    "fingerprint": sha256(f"{head}-{size}-{objective}-{seed}".encode()).hexdigest(),
                }
                for objective in objectives
                for seed in seeds
            ]
    return systems


def _value(system: dict[str, Any], rng: np.random.Generator) -> float:
    if system["kind"] == "baseline":
        return 0.676
    if system["kind"] == "untrained":
        return 0.30 + rng.uniform(0, 0.02)
    growth = {"cl": 0.05, "kd": 0.01}.get(system["objective"], 0.04)
    lead = 0.04 if system["head"] == "sparse" else 0.0
    return 0.38 + lead + growth * np.log10(system["parameters"] / 1e5) + rng.uniform(0, 0.05)


def synthetic(
    sizes: Sequence[str] = tuple(SIZES),
    heads: Sequence[str] = ("dense", "sparse"),
    objectives: Sequence[str] = ("kd", "cl", "cl+kd"),
    seeds: Sequence[int] = (0,),
    splits: Sequence[tuple[str, str]] = TEST_AND_VALID,
    measures: Sequence[str] = BEIR_MEASURES,
    queries: int = 300,
) -> pd.DataFrame:
    """A results table with a row for each system, split and measure."""
    rng = np.random.default_rng(0)
    rows = []
    for collection, split in splits:
        for system in _systems(sizes, heads, objectives, seeds):
            for measure in measures:
                value = _value(system, rng)
                where = {"collection": collection, "split": split, "measure": measure}
                interval = {"value": value, "ci_low": value - 0.041, "ci_high": value + 0.043}
                rows.append(system | where | interval | {"queries": queries})
    return results_frame(rows)


@pytest.fixture(scope="session")
def make_results() -> Callable[..., pd.DataFrame]:
    return synthetic


@pytest.fixture
def results() -> pd.DataFrame:
    """The default grid: 18 cells, 6 untrained rows, BM25; splits test and valid."""
    return synthetic()


@pytest.fixture
def ledger() -> pd.DataFrame:
    rows = [
        ("collection", "scifact", 3.5, None, None, 1_000),
        ("tokens", "scifact", 1.5, None, 1.5e6, 2_000),
        ("retriever", "dense-pico-1x64-cl-seed0", 40.0, 3.9e12, 2e6, 3_000),
        ("retriever", "dense-pico-1x64-kd-seed0", 44.0, 3.8e12, 3e6, 4_000),
    ]
    names = ("stage", "name", "seconds", "flops", "tokens", "size_bytes")
    records = [dict(zip(names, row, strict=True)) | {"fingerprint": "f" * 64} for row in rows]
    return pa.Table.from_pylist(records, schema=schema_of(LedgerRow)).to_pandas()


ODD_GRIDS: dict[str, dict[str, Any]] = {
    "one cell": {"sizes": ["pico-1x64"], "heads": ["dense"], "objectives": ["cl"]},
    "only dense": {"heads": ["dense"]},
    "only cl": {"objectives": ["cl"]},
    "no test split": {"splits": [("scifact", "valid")]},
    "three seeds": {"seeds": [0, 1, 2]},
    "ms marco": {"splits": [("msmarco-slice", s) for s in ("dev", "dl19", "dl20")]},
    "four held-out splits": {"splits": [(c, "test") for c in ("a", "b", "c", "d")]},
    "nothing trained": {"objectives": []},
    "only bm25": {"sizes": []},
    "one measure": {"measures": ["nDCG@10"]},
    "an unforeseen measure": {"measures": ["AP"]},
}


@pytest.fixture(params=list(ODD_GRIDS))
def odd_results(request: pytest.FixtureRequest) -> pd.DataFrame:
    """Grids that are not the default one."""
    return synthetic(**ODD_GRIDS[request.param])


def budgeted(results: pd.DataFrame, budgets: Sequence[float]) -> pd.DataFrame:
    """The grid under each budget, as isoFLOP runs are named; a larger one is a little better."""
    rest, trained = (results[results["kind"] == "trained"], results[results["kind"] != "trained"])[
        ::-1
    ]
    parts = [rest]
    for place, budget in enumerate(sorted(budgets)):
        own = trained.assign(
            variant=f"{budget:g}", varied="budget", budget_flops=budget, spent_flops=budget * 1.004
        )
        own["system"] += f"-{budget:g}"
        own["fingerprint"] = [
            sha256(f"{f}{budget:g}".encode()).hexdigest() for f in own["fingerprint"]
        ]
        own[["value", "ci_low", "ci_high"]] += 0.01 * place
        parts.append(own)
    return pd.concat(parts, ignore_index=True)
