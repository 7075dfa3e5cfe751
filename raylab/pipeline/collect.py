"""Gather a grid's measures into the results table, the per-query values and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from raylab.evaluation.entropy import MEASURE as ENTROPY_MEASURE
from raylab.evaluation.intervals import mean_interval
from raylab.experiment.config import Backbone, Execution
from raylab.experiment.grid import Cell
from raylab.models.backbone import load_config, resolve_source
from raylab.planning.flops import Shape
from raylab.stages.encode import Subject
from raylab.stages.profile import ENTROPY
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store
from raylab.storage.tables import (
    LEDGER,
    LEDGER_SCHEMA,
    PER_QUERY,
    PER_QUERY_SCHEMA,
    RESULTS,
    RESULTS_SCHEMA,
    ledger_row,
    write_table,
)

BM25 = "BM25"
_TOLD = (
    "tokens",
    "examples",
    "head_parameters",
    "epochs",
    "charged_flops",
)  # of a retriever's meta


@dataclass(frozen=True)
class Walked:
    """What a walk along the chain ended with."""

    subjects: list[tuple[Subject, Cell | None]]
    trained: dict[Cell, Artifact]
    evaluations: dict[
        tuple[str, str], tuple[Artifact, Artifact]
    ]  # (run, measures) by (system, split)
    profiles: dict[str, Artifact]  # by system; BM25 has none
    used: list[Artifact]  # every other artifact that stands behind them


def collect(
    store: Store, collection: str, walked: Walked, execution: Execution
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write results, per-query values and ledger; returns (results, ledger)."""
    by_name = {subject.name: (subject, cell) for subject, cell in walked.subjects}
    rows: list[dict[str, Any]] = []
    per_query: list[dict[str, Any]] = []
    for (system, split), (run, measures) in walked.evaluations.items():
        subject, cell = by_name.get(system, (None, None))
        facts = _facts(subject, cell, walked.trained, run, execution)
        where = {"collection": collection, "split": split}
        profile = walked.profiles.get(system)
        facts |= _efficiency(run, profile, split)
        table = pq.read_table(store.local(measures) / "measures.parquet").to_pandas()
        sources = [(run, table)]
        if profile is not None:
            sources.append((profile, _entropy(store, profile, split)))
        zeros = measures.meta.get("without_relevant", {})
        for source, values in sources:
            for measure, own in values.groupby("measure", sort=False):
                value, low, high = mean_interval(own["value"].to_numpy())
                interval = {"value": value, "ci_low": low, "ci_high": high, "queries": len(own)}
                counted = {"measure": measure, "without_relevant": zeros.get(measure)}
                rows.append(facts | where | counted | interval)
            key = {
                "fingerprint": source.fingerprint,
                "system": facts["system"],
                "seed": facts["seed"],
            }
            per_query += [{**key, **where, **record} for record in values.to_dict("records")]
    used = walked.used + [a for pair in walked.evaluations.values() for a in pair]
    used += walked.profiles.values()
    unique = {artifact.path: artifact for artifact in used}
    results = write_table(store, RESULTS, rows, RESULTS_SCHEMA)
    write_table(store, PER_QUERY, per_query, PER_QUERY_SCHEMA)
    return results, write_table(store, LEDGER, map(ledger_row, unique.values()), LEDGER_SCHEMA)


def _entropy(store: Store, profile: Artifact, split: str) -> pd.DataFrame:
    """Its values on a split, as a table of measures has them; no row where no query has a positive."""
    table = pq.read_table(store.local(profile) / ENTROPY).to_pandas()
    return table[table["split"] == split].drop(columns="split").assign(measure=ENTROPY_MEASURE)


def _efficiency(run: Artifact, profile: Artifact | None, split: str) -> dict[str, float | None]:
    """What a search costs; runs made before it was measured have neither time nor bytes."""
    meta = run.meta
    own = profile.meta["splits"][split] if profile is not None else meta
    seconds = meta.get("search_seconds")
    return {
        "query_postings": own.get("query_postings"),
        "passage_postings": own.get("passage_postings"),
        "retrieval_flops": own.get("retrieval_flops"),
        "index_bytes": meta.get("index_bytes"),
        "query_ms": None if seconds is None else 1_000 * seconds / max(meta["queries"], 1),
    }


def _facts(
    subject: Subject | None,
    cell: Cell | None,
    trained: Mapping[Cell, Artifact],
    run: Artifact,
    execution: Execution,
) -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(RESULTS_SCHEMA.names)
    if subject is None:
        return facts | {"kind": "baseline", "system": BM25, "fingerprint": run.fingerprint}
    facts |= {
        "size": subject.backbone.name,
        "head": subject.head.name,
        "parameters": _parameters(subject.backbone, execution),
    }
    if cell is None:
        own = {"kind": "untrained", "system": subject.name, "fingerprint": run.fingerprint}
        return facts | own
    meta = trained[cell].meta
    return facts | {
        "kind": "trained",
        "system": cell.name,
        "objective": cell.objective.name,
        "seed": cell.seed,
        "budget_flops": cell.budget_flops,
        "spent_flops": meta["spent_flops"],
        "steps": meta["steps"],
        "seconds": meta["train_seconds"],
        "fingerprint": trained[cell].fingerprint,
        "variant": cell.variant,
        "corrupted_positives": cell.fine_tuning.corrupted_positives,
        "corrupted_scores": cell.fine_tuning.corrupted_scores,
        **{name: meta[name] for name in _TOLD},
    }


def _parameters(backbone: Backbone, execution: Execution) -> int:
    source = resolve_source(backbone, execution.models_dir)
    return Shape.of(load_config(backbone, source)).parameters
