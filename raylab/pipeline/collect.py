"""Gather a grid's measures, and add them to the tables of the storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from raylab.evaluation.entropy import MEASURE as ENTROPY_MEASURE
from raylab.evaluation.intervals import mean_intervals
from raylab.experiment.config import Backbone, Execution
from raylab.experiment.grid import Cell
from raylab.models.backbone import load_config, resolve_source
from raylab.pipeline.measured import BM25
from raylab.planning.flops import Shape
from raylab.stages.encode import System
from raylab.stages.profile import ENTROPY
from raylab.storage.artifacts import Artifact
from raylab.storage.merging import add_rows, current
from raylab.storage.store import Store
from raylab.storage.tables import (
    LEDGER,
    PER_QUERY,
    RESULTS,
    LedgerRow,
    QueryValue,
    Result,
)

# Of a retriever's manifest, under the same names.
_NOTED = (
    "tokens",
    "examples",
    "head_parameters",
    "epochs",
    "charged_flops",
    "spent_flops",
    "steps",
)


@dataclass(frozen=True)
class Measured:
    """What a grid ended with.

    Args:
        trained_on: the collection whose queries trained the cells.
        systems: with the cells that made them, None for untrained ones.
        trained: retrievers by cell.
        evaluations: (run, measures) by collection, system and split.
        profiles: by collection and system; BM25 has none.
        used: every other artifact that stands behind them.
    """

    trained_on: str
    systems: Sequence[tuple[System, Cell | None]]
    trained: Mapping[Cell, Artifact]
    evaluations: Mapping[tuple[str, str, str], tuple[Artifact, Artifact]]
    profiles: Mapping[tuple[str, str], Artifact]
    used: Sequence[Artifact]


def collect(
    store: Store, measured: Measured, execution: Execution
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add to results, per-query values and ledger; returns the storage's current results, and its ledger."""
    by_name = {system.name: (system, cell) for system, cell in measured.systems}
    backbones = dict.fromkeys(system.backbone for system, _ in measured.systems)
    parameters = {backbone: _parameters(backbone, execution) for backbone in backbones}
    rows: list[dict[str, Any]] = []
    samples: list[np.ndarray] = []
    of_queries: list[tuple[dict[str, Any], pd.DataFrame]] = []
    for (collection, name, split), (run, measures) in measured.evaluations.items():
        system, cell = by_name.get(name, (None, None))
        profile = measured.profiles.get((collection, name))
        facts = _facts(system, cell, measured, run, parameters)
        facts |= _efficiency(run, profile, split)
        where = {"collection": collection, "split": split}
        zeros = measures.meta.get("without_relevant", {})
        for source, values in _sources(store, run, measures, profile, split):
            for measure, rows_of_measure in values.groupby("measure", sort=False):
                samples.append(rows_of_measure["value"].to_numpy())
                counted = {"measure": measure, "without_relevant": zeros.get(measure)}
                counted |= {"queries": len(rows_of_measure), "run": source.fingerprint}
                rows.append(_EMPTY | facts | where | counted)
            key = {"system": facts["system"], "seed": facts.get("seed"), **where}
            of_queries.append(({"fingerprint": source.fingerprint, **key}, values))
    results = []
    for row, (value, low, high) in zip(rows, mean_intervals(samples), strict=True):
        row |= {"value": value, "ci_low": low, "ci_high": high}
        results.append(Result(**row))
    used = [*measured.used, *(a for pair in measured.evaluations.values() for a in pair)]
    unique = {artifact.path: artifact for artifact in [*used, *measured.profiles.values()]}
    add_rows(store, PER_QUERY, _query_values(of_queries), QueryValue)
    ledger = add_rows(store, LEDGER, map(LedgerRow.of, unique.values()), LedgerRow)
    return current(add_rows(store, RESULTS, results, Result)), ledger


def _query_values(
    of_queries: Sequence[tuple[dict[str, Any], pd.DataFrame]],
) -> Iterator[QueryValue]:
    """The rows of the values per query, one at a time: there are millions of them."""
    names: dict[str, str] = {}  # one string for all systems that answer a query
    for key, values in of_queries:
        columns = (values[name].tolist() for name in ("measure", "query_id", "value"))
        for measure, query_id, value in zip(*columns, strict=True):
            query_id = names.setdefault(query_id, query_id)
            yield QueryValue(**key, measure=measure, query_id=query_id, value=value)


_EMPTY: dict[str, Any] = dict.fromkeys(Result.__dataclass_fields__) | {"variant": "", "varied": ""}


def _sources(
    store: Store, run: Artifact, measures: Artifact, profile: Artifact | None, split: str
) -> Iterator[tuple[Artifact, pd.DataFrame]]:
    """What per-query values are of, and the values; no row where no query has a positive."""
    yield run, pq.read_table(store.local(measures) / "measures.parquet").to_pandas()
    if profile is not None:
        table = pq.read_table(store.local(profile) / ENTROPY).to_pandas()
        table = table[table["split"] == split].drop(columns="split")
        yield profile, table.assign(measure=ENTROPY_MEASURE)


def _efficiency(run: Artifact, profile: Artifact | None, split: str) -> dict[str, float | None]:
    """What a search costs; a run whose passages were not stored has neither time nor bytes."""
    meta = run.meta
    noted = profile.meta["splits"][split] if profile is not None else meta
    seconds = meta.get("search_seconds")
    return {
        "query_postings": noted.get("query_postings"),
        "passage_postings": noted.get("passage_postings"),
        "retrieval_flops": noted.get("retrieval_flops"),
        "index_bytes": meta.get("index_bytes"),
        "query_ms": None if seconds is None else 1_000 * seconds / max(meta["queries"], 1),
    }


def _facts(
    system: System | None,
    cell: Cell | None,
    measured: Measured,
    run: Artifact,
    parameters: Mapping[Backbone, int],
) -> dict[str, Any]:
    if system is None:
        return {"kind": "baseline", "system": BM25, "fingerprint": run.fingerprint}
    facts = {
        "size": system.backbone.name,
        "head": system.head.name,
        "parameters": parameters[system.backbone],
        "compute_dtype": system.backbone.compute_dtype,
    }
    if cell is None:
        return facts | {
            "kind": "untrained",
            "system": system.name,
            "fingerprint": run.fingerprint,
        }
    noted = measured.trained[cell].meta
    return facts | {
        "kind": "trained",
        "system": cell.name,
        "objective": cell.objective.name,
        "seed": cell.seed,
        "budget_flops": cell.budget_flops,
        "seconds": noted["train_seconds"],
        "fingerprint": measured.trained[cell].fingerprint,
        "trained_on": measured.trained_on,
        "variant": cell.variant,
        "varied": cell.varied,
        "corrupted_positives": cell.fine_tuning.corrupted_positives,
        "corrupted_scores": cell.fine_tuning.corrupted_scores,
        **{name: noted[name] for name in _NOTED},
    }


def _parameters(backbone: Backbone, execution: Execution) -> int:
    source = resolve_source(backbone, execution.models_dir)
    return Shape.of(load_config(backbone, source)).parameters
