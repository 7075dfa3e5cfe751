"""A trained retriever out of a storage: its checkpoint folder, with the grid's measures on its card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from raylab.experiment.config import ConfigError
from raylab.models.card import write_card
from raylab.models.checkpoint import load_contract
from raylab.storage.merging import read_current
from raylab.storage.store import Store
from raylab.storage.tables import RESULTS


def rows_of_run(storage: str, results: pd.DataFrame, run: str) -> list[dict[str, Any]]:
    """The rows of a trained run, such as `sparse-1b-cl-seed0`.

    Raises:
        ConfigError: no such run; the message names those there are.
    """
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in results.to_dict("records"):
        if row["kind"] == "trained":
            # A column with nulls, which the baselines' seeds are, comes back as floats.
            by_run.setdefault(f"{row['system']}-seed{int(row['seed'])}", []).append(row)
    if run not in by_run:
        known = ", ".join(sorted(by_run)) or "none"
        raise ConfigError(f"{storage}: no trained run {run!r}; there are: {known}")
    return by_run[run]


def export_retriever(storage: str, run: str, folder: Path) -> int:
    """Copy the checkpoint of `run` (such as `sparse-1b-cl-seed0`) to `folder`; returns its measures' count.

    Raises:
        ConfigError: no results in the storage, no such run in them, or a folder that is not empty.
        DamagedArtifact: the checkpoint is not whole.
    """
    store = Store(storage)
    try:
        results = read_current(store, RESULTS)
    except FileNotFoundError:
        raise ConfigError(f"{storage}: no {RESULTS} there; run experiments/grid.py first") from None
    rows = rows_of_run(storage, results, run)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: it must not exist, or be empty")
    source = store.local(store.known("retriever", run, rows[0]["fingerprint"]))
    try:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        write_card(folder, load_contract(folder), rows)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return len(rows)
