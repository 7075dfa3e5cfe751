"""Gather a grid's measures, and add them to the tables of the storage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.evaluation.entropy import MEASURE as ENTROPY_MEASURE
from raylab.evaluation.intervals import mean_intervals
from raylab.experiment.config import Backbone
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell
from raylab.models.backbone import load_config, resolve_source
from raylab.pipeline.curves import add_curves
from raylab.pipeline.measured import BM25
from raylab.planning.flops import Shape
from raylab.stages.encode import System
from raylab.stages.profile import ENTROPY
from raylab.storage.artifacts import Artifact
from raylab.storage.merging import add_rows, current, rows_without, write_rows
from raylab.storage.store import Store
from raylab.storage.tables import (
    LEDGER,
    PER_QUERY,
    RESULTS,
    LedgerRow,
    QueryValue,
    Result,
    schema_of,
)

OfQueries: TypeAlias = tuple[dict[str, Any], pd.DataFrame]
"""What values per query are of (columns of `QueryValue`), and the values."""

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
    store: Store,
    measured: Measured,
    execution: Execution,
    interim: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add to the tables what they do not hold yet; returns current results, and the ledger.

    What they hold is not read again.

    Args:
        interim: parts of tables, by table, that were added while the grid ran (`raylab.pipeline.arriving`):
            the same rows come in the grid's own order now.
    """
    before = _before(store, RESULTS, interim)
    known = set() if before is None else _subjects(current(before))
    rows, of_queries = rows_of(store, measured, execution, known)
    if rows or before is None or interim.get(RESULTS):
        values = query_values(of_queries)
        write_rows(store, PER_QUERY, values, QueryValue, interim.get(PER_QUERY, ()))
    add_curves(store, measured.trained, measured.trained_on)
    used = [*measured.used, *(a for pair in measured.evaluations.values() for a in pair)]
    unique = {artifact.path: artifact for artifact in [*used, *measured.profiles.values()]}
    ledger = _before(store, LEDGER, {})
    told = set() if ledger is None else set(ledger["fingerprint"])
    new = [artifact for artifact in unique.values() if artifact.fingerprint not in told]
    if new or ledger is None:
        ledger = add_rows(store, LEDGER, map(LedgerRow.of, new), LedgerRow)
    if rows or before is None or interim.get(RESULTS):
        before = add_rows(store, RESULTS, rows, Result, interim.get(RESULTS, ()))
    return current(before), ledger


def _before(store: Store, name: str, interim: Mapping[str, Collection[str]]) -> pd.DataFrame | None:
    try:
        return rows_without(store, name, interim.get(name, ()))
    except FileNotFoundError:
        return None


_WHERE = ("system", "seed", "collection", "split")


def _subjects(results: pd.DataFrame) -> set[tuple]:
    """What the rows are about, and the run or profile that they are of."""
    columns = [results[name].tolist() for name in (*_WHERE, "run")]
    return {
        (system, None if pd.isna(seed) else int(seed), *others)
        for system, seed, *others in zip(*columns, strict=True)
    }


def rows_of(
    store: Store,
    measured: Measured,
    execution: Execution,
    known: Collection[tuple] = frozenset(),
) -> tuple[list[Result], list[OfQueries]]:
    """Rows of the results, and values per query with what they are of.

    Args:
        known: (system, seed, collection, split, fingerprint of the run or profile), to pass over.
    """
    by_name = {system.name: (system, cell) for system, cell in measured.systems}
    backbones = dict.fromkeys(system.backbone for system, _ in measured.systems)
    parameters = {backbone: _parameters(backbone, execution) for backbone in backbones}
    rows: list[dict[str, Any]] = []
    samples: list[np.ndarray] = []
    of_queries: list[OfQueries] = []
    for (collection, name, split), (run, measures) in measured.evaluations.items():
        system, cell = by_name.get(name, (None, None))
        profile = measured.profiles.get((collection, name))
        facts = _facts(system, cell, measured, run, parameters)
        facts |= _efficiency(run, profile, split)
        where = {"collection": collection, "split": split}
        subject = (facts["system"], facts.get("seed"), collection, split)
        zeros = measures.meta.get("without_relevant", {})
        for source, read in _sources(store, run, measures, profile, split):
            if (*subject, source.fingerprint) in known:
                continue
            values = read()
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
    return results, of_queries


def query_values(of_queries: Sequence[OfQueries]) -> pa.Table:
    """The rows of the values per query, in columns: there are millions of them."""
    schema = schema_of(QueryValue)

    def part(key: dict[str, Any], values: pd.DataFrame) -> pa.Table:
        columns = [
            pa.array(values[field.name], field.type, from_pandas=True)
            if field.name in values.columns
            else pa.repeat(pa.scalar(key[field.name], field.type), len(values))
            for field in schema
        ]
        return pa.table(columns, schema=schema)

    return pa.concat_tables([schema.empty_table(), *(part(*one) for one in of_queries)])


_EMPTY: dict[str, Any] = dict.fromkeys(Result.__dataclass_fields__) | {"variant": "", "varied": ""}


def _sources(
    store: Store, run: Artifact, measures: Artifact, profile: Artifact | None, split: str
) -> Iterator[tuple[Artifact, Callable[[], pd.DataFrame]]]:
    """What values per query are of, and what reads them; no row where no query has a positive."""

    def measured() -> pd.DataFrame:
        return pq.read_table(store.local(measures) / "measures.parquet").to_pandas()

    def entropies(of: Artifact) -> pd.DataFrame:
        table = pq.read_table(store.local(of) / ENTROPY).to_pandas()
        table = table[table["split"] == split].drop(columns="split")
        return table.assign(measure=ENTROPY_MEASURE)

    yield run, measured
    if profile is not None:
        yield profile, partial(entropies, profile)


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
        "tuning": cell.tuning_origin,
        "variant": cell.variant,
        "varied": cell.varied,
        "corrupted_positives": cell.fine_tuning.corrupted_positives,
        "corrupted_scores": cell.fine_tuning.corrupted_scores,
        **{name: noted[name] for name in _NOTED},
    }


def _parameters(backbone: Backbone, execution: Execution) -> int:
    source = resolve_source(backbone, execution.models_dir)
    return Shape.of(load_config(backbone, source)).parameters
