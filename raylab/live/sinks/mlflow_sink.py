"""MLflow: an experiment a laboratory, in a database of the storage's folder or on a tracking server."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from raylab.live.facts import Point
from raylab.live.sinks.sink import LoggedRun, own_folder, values_of
from raylab.storage.store import Store

_KEY = "raylab.key"
_AT_ONCE = 900  # of metrics or parameters in a request; the server takes 1,000
_PARAMS_AT_ONCE = 100
_LONGEST_VALUE = 6_000


def open_sink(store: Store, where: str | None) -> MlflowSink:
    """On a tracking server, or in a database in a folder.

    `where`: address of the server; not given: `MLFLOW_TRACKING_URI`, else a folder of the storage.
    """
    where = where or os.environ.get("MLFLOW_TRACKING_URI") or own_folder(store, "mlflow")
    return MlflowSink(where, f"raylab {store.uri}")


class MlflowSink:
    """Tells a tracking server.

    Args:
        where: its address; or a folder, which gets a database of its own and the artifacts.
        experiment: name of the laboratory there.
    """

    def __init__(self, where: str, experiment: str):
        self.folder = None if re.match(r"[\w+]{2,}:", where) else Path(where).absolute()
        self.where, self.name = where, experiment
        self.runs: dict[str, Run] = {}
        self._client: MlflowClient | None = None
        self._experiment = ""

    def last_step(self, run: LoggedRun) -> int:
        history = self.client.get_metric_history(self._run(run).info.run_id, "loss")
        return max((metric.step for metric in history), default=0)

    def config(self, run: LoggedRun, values: Mapping[str, Any]) -> None:
        """What a parameter already is, it stays: MLflow does not change them."""
        there = self._run(run).data.params
        fresh = [
            Param(_allowed(name), str(value)[:_LONGEST_VALUE])
            for name, value in values.items()
            if _allowed(name) not in there
        ]
        for start in range(0, len(fresh), _PARAMS_AT_ONCE):
            batch = fresh[start : start + _PARAMS_AT_ONCE]
            self.client.log_batch(self._run(run).info.run_id, params=batch)
        there.update({param.key: param.value for param in fresh})

    def points(self, run: LoggedRun, points: Sequence[Point]) -> None:
        metrics = [
            Metric(name, value, int(point.at * 1000), point.step)
            for point in points
            for name, value in values_of(point).items()
        ]
        # The loss of a point is written last, since `last_step` goes by it.
        metrics.sort(key=lambda metric: (metric.step, metric.key == "loss"))
        for start in range(0, len(metrics), _AT_ONCE):
            batch = metrics[start : start + _AT_ONCE]
            self.client.log_batch(self._run(run).info.run_id, metrics=batch)

    def measures(self, run: LoggedRun, values: Mapping[str, float], step: int) -> None:
        there = self._run(run).data.metrics
        names = {_allowed(name): value for name, value in values.items()}
        fresh = {name: value for name, value in names.items() if there.get(name) != value}
        for name, value in fresh.items():
            self.client.log_metric(self._run(run).info.run_id, name, value, step=step)
        there.update(fresh)

    def file(self, run: LoggedRun, name: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            inside = None if path.parent == Path(folder) else str(Path(name).parent)
            self.client.log_artifact(self._run(run).info.run_id, str(path), inside)

    def end(self, run: LoggedRun) -> None:
        self.client.set_terminated(self._run(run).info.run_id)

    def close(self) -> None:
        """Every request was answered."""

    @property
    def client(self) -> MlflowClient:
        if self._client is None:
            where, artifacts = self.where, None
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                where = f"sqlite:///{self.folder}/mlflow.db"
                artifacts = (self.folder / "artifacts").as_uri()
            with _quiet():
                client = MlflowClient(tracking_uri=where)
                found = client.get_experiment_by_name(self.name)
                self._experiment = (
                    client.create_experiment(self.name, artifact_location=artifacts)
                    if found is None
                    else found.experiment_id
                )
            self._client = client
        return self._client

    def _run(self, run: LoggedRun) -> Run:
        if run.key not in self.runs:
            client, asked = self.client, f"tags.`{_KEY}` = '{run.key}'"
            found = client.search_runs([self._experiment], filter_string=asked, max_results=1)
            if found:
                client.update_run(found[0].info.run_id, status="RUNNING")
            self.runs[run.key] = (
                found[0]
                if found
                else client.create_run(self._experiment, run_name=run.name, tags={_KEY: run.key})
            )
        return self.runs[run.key]


def _allowed(name: str) -> str:
    """A name as MLflow takes it: `nDCG@10` is `nDCG-10` there."""
    return re.sub(r"[^\w\-. :/]", "-", name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It tells of every table of a new database."""
    names = "mlflow.store.db.utils", "alembic"
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
