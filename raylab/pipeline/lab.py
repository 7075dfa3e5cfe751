"""The laboratory from Python: run an experiment, and read what a storage holds.

lab = raylab.run(Grid(PICO, "scifact"), Execution(storage="lab"))
lab = raylab.open_lab("s3://bucket/lab")            # of a run that has ended, anywhere
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from raylab.experiment.config import ComputeDtype, ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.storage.merging import read_current
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, PER_QUERY, RESULTS, read_table

if TYPE_CHECKING:
    from raylab.jobs.progress import Display
    from raylab.models.retriever import Retriever
    from raylab.planning.plan import GridPlan
    from raylab.report import Report
    from raylab.scaling import Law, Series, Study


def run(grid: Grid, execution: Execution | None = None, display: Display = "auto") -> Lab:
    """Run an experiment, or go on with it: what is finished is never done again.

    Args:
        execution: where and how it runs; by default in `./lab`, on Ray on this machine or the cluster that
            `RAY_ADDRESS` names.
        display: of progress: "live", "lines" now and then, "off"; "auto" is live on a terminal, else lines.

    Raises:
        ConfigError, CollectionError: bad input, before anything is trained.
        TrainingError: a cell's loss is not finite.
        StorageError: the storage became full or cannot be reached.
    """
    from raylab.pipeline.grid import run_grid

    execution = execution or Execution()
    run_grid(grid, execution, display)
    return Lab(execution.storage)


def plan(grid: Grid, execution: Execution | None = None) -> GridPlan:
    """What an experiment would take: steps, tokens, FLOPs and memory of every cell, and bytes; nothing is run.

    Named models and benchmarks need not be on this machine.

    Raises:
        ConfigError, CollectionError: as `run`.
    """
    from raylab.data.known_sizes import open_or_known
    from raylab.planning.plan import plan_grid

    source = open_or_known(grid.collection)
    return plan_grid(grid, source, execution or Execution(), from_tables=True)


def open_lab(storage: str) -> Lab:
    """What stands in a storage: a folder, or any fsspec address.

    Raises:
        ConfigError: no experiment has ended there.
    """
    lab = Lab(storage)
    lab.results()
    return lab


def fit(lab: Lab | str, law: str | Law = "chinchilla", draws: int = 1_000) -> Study:
    """Fits of a scaling law on every series of a laboratory's runs, with forecasts and optima.

    Args:
        lab: or the address of its storage.
        law: one of your own, or the name of one in `raylab.scaling.LAWS`.
        draws: of the bootstrap behind the intervals.

    Raises:
        ConfigError: an unknown law, or no experiment has ended there.
    """
    from raylab.scaling import Study, find_law

    lab = open_lab(lab) if isinstance(lab, str) else lab
    law = find_law(law)
    study = Study(draws=draws)
    for series in lab.series():
        study.add(series, law)
    return study


class Lab:
    """What a storage holds of experiments.

    Args:
        storage: a folder, or any fsspec address.
    """

    def __init__(self, storage: str):
        self.store = Store(storage)

    def __repr__(self) -> str:
        return f"Lab({self.store.uri!r})"

    def results(self, superseded: bool = False) -> pd.DataFrame:
        """Every measure of every system: columns as `raylab.storage.tables.Result` says.

        Args:
            superseded: also those of runs that a later one of the same system and seed took the place of,
                with another budget, recipe or encoding.

        Raises:
            ConfigError: no experiment has ended there.
        """
        return self._table(RESULTS, superseded)

    def per_query(self, superseded: bool = False) -> pd.DataFrame:
        """The values behind the means: columns as `raylab.storage.tables.QueryValue` says.

        Args:
            superseded: as in `results`.

        Raises:
            ConfigError: no experiment has ended there.
        """
        return self._table(PER_QUERY, superseded)

    def ledger(self) -> pd.DataFrame:
        """What making each artifact took: columns as `raylab.storage.tables.LedgerRow` says.

        Raises:
            ConfigError: no experiment has ended there.
        """
        return self._table(LEDGER)

    def stages(self) -> pd.DataFrame:
        """The stages of the last experiment: kind, name, path, and whether the artifact is committed.

        Raises:
            ConfigError: no experiment was begun there.
        """
        from raylab.stages.stage import read_list

        try:
            rows = read_list(self.store)
        except FileNotFoundError:
            raise ConfigError(f"{self.store.uri}: no experiment was begun there") from None
        table = pd.DataFrame(rows)
        table["done"] = self.store.present(table["path"])
        return table

    def series(self) -> list[Series]:
        """Trained runs as laws are fitted to them: one a head, objective, split and measure."""
        from raylab.scaling import series

        return series(self.results(), self.per_query())

    def retriever(
        self, run: str, device: str | None = None, compute_dtype: ComputeDtype | None = None
    ) -> Retriever:
        """A trained retriever, such as `sparse-pico-1x96-cl-seed0`.

        Args:
            device: default CUDA where there is one, else CPU.
            compute_dtype: default that of its training.

        Raises:
            ConfigError: no such run; the message names those there are.
            DamagedArtifact: its checkpoint is not whole.
        """
        from raylab.models.backbone import torch_dtype
        from raylab.models.retriever import Retriever
        from raylab.pipeline.export import rows_of_run

        fingerprint = rows_of_run(self.store.uri, self.results(), run)[0]["fingerprint"]
        artifact = self.store.known("retriever", run, fingerprint)
        dtype = None if compute_dtype is None else torch_dtype(compute_dtype)
        return Retriever.load(self.store.local(artifact), device=device, dtype=dtype)

    def report(self, cells: str = "*") -> Report:
        """Write tables, charts and the page again, from the tables alone; returns where they are.

        Args:
            cells: the trained systems to show, as a grid's filter names them.

        Raises:
            ConfigError: no experiment has ended there, or no trained system matches.
        """
        from raylab.report import rebuild

        self.results()
        return rebuild(self.store.uri, cells=cells)

    def _table(self, name: str, superseded: bool = False) -> pd.DataFrame:
        try:
            return (read_table if superseded else read_current)(self.store, name)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.store.uri}: no {name} there; no experiment has ended"
            ) from None
