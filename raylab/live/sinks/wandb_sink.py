"""Weights & Biases: a run of the project for each run of the laboratory; with WANDB_MODE=offline in files alone."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

from raylab.experiment.config import ConfigError
from raylab.live.facts import Point
from raylab.live.sinks.sink import LoggedRun, values_of
from raylab.storage.store import Store

PROJECT = "raylab"
TOLD = "live/wandb.json"  # in the storage: the last step of each run, and digests of what else it was told
_RECORD: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]
_BLOCK, _HEADER = 2**15, 7  # of an offline file


def open_sink(store: Store, where: str | None) -> WandbSink:
    """In a project, of the account that is logged in.

    Raises:
        ConfigError: nobody is.
    """
    settings = wandb.setup().settings
    if settings.mode == "online" and not settings.api_key:
        raise ConfigError("nobody is logged in; run `wandb login`, or set WANDB_MODE=offline")
    return WandbSink(store, where or PROJECT)


class WandbSink:
    """Tells Weights & Biases.

    Args:
        store: remembers what has been told.
    """

    def __init__(self, store: Store, project: str):
        self.store, self.project = store, project
        self.folder = f"{store.root}/loggers" if store.is_local else None  # wandb adds /wandb
        self.offline = wandb.setup().settings.mode == "offline"
        self.runs: dict[str, wandb.Run] = {}
        self._told: dict[str, Any] | None = None
        self._asked: set[str] = set()

    def last_step(self, run: LoggedRun) -> int:
        return self._told_of(run)["step"]

    def config(self, run: LoggedRun, values: Mapping[str, Any]) -> None:
        if self._is_new(run, "config", values):
            self._run(run).config.update(dict(values), allow_val_change=True)
            self._remember(run, "config", values)

    def points(self, run: LoggedRun, points: Sequence[Point]) -> None:
        for point in points:
            # Else the last one is held back until there is another, and lost with the process.
            self._run(run).log(values_of(point), step=point.step, commit=True)
        self._told_of(run)["step"] = points[-1].step
        self._write()

    def measures(self, run: LoggedRun, values: Mapping[str, float], step: int) -> None:
        """They stand in the run's summary, which has no steps."""
        if self._is_new(run, "measures", values):
            self._run(run).summary.update(dict(values))
            self._remember(run, "measures", values)

    def file(self, run: LoggedRun, name: str, data: bytes) -> None:
        if self._is_new(run, name, data):
            artifact = wandb.Artifact(f"{run.name}-{name.replace('/', '-')}", type="report")
            with artifact.new_file(Path(name).name, mode="wb") as file:
                file.write(data)
            self._run(run).log_artifact(artifact)
            self._remember(run, name, data)

    def end(self, run: LoggedRun) -> None:
        if (opened := self.runs.pop(run.key, None)) is not None:
            opened.finish()
            self._told_of(run)["ended"] = True
            self._write()

    def close(self) -> None:
        for key in list(self.runs):
            self.end(LoggedRun("", key))

    def _run(self, run: LoggedRun) -> wandb.Run:
        if run.key not in self.runs:
            if self.folder is not None:
                Path(self.folder).mkdir(parents=True, exist_ok=True)
            self._told_of(run)["ended"] = False
            self._write()
            self.runs[run.key] = wandb.init(
                project=self.project,
                id=self._id(run),
                name=run.name,
                group=self.store.uri[-128:],
                resume="allow",
                reinit="create_new",
                dir=self.folder,
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )
        return self.runs[run.key]

    def _id(self, run: LoggedRun) -> str:
        return hashlib.sha256(f"{self.store.uri} {run.key}".encode()).hexdigest()[:16]

    def _told_of(self, run: LoggedRun) -> dict[str, Any]:
        if self._told is None:
            try:
                self._told = dict(json.loads(self.store.files.read(TOLD)))
            except (FileNotFoundError, ValueError, TypeError):
                self._told = {}
        told = self._told.setdefault(run.key, {"step": 0, "digests": {}, "ended": True})
        if run.key not in self._asked:
            self._asked.add(run.key)
            if not told[
                "ended"
            ]:  # its process was killed, and what was not sent or written is lost
                told["digests"] = {}
                told["step"] = self._kept_step(run)
        return told

    def _kept_step(self, run: LoggedRun) -> int:
        """The last step that was written, or that the server has."""
        if not self.offline:
            return max(self._run(run).starting_step - 1, 0)
        folder = Path(self.folder or os.environ.get("WANDB_DIR", "."), "wandb")
        files = folder.glob(f"*-{self._id(run)}/*.wandb")
        return max((row["_step"] for row in history_of(files)), default=0)

    def _is_new(self, run: LoggedRun, what: str, value: Mapping[str, Any] | bytes) -> bool:
        digests = self._told_of(run)["digests"]
        return _digest(value) not in digests.get(what, [])

    def _remember(self, run: LoggedRun, what: str, value: Mapping[str, Any] | bytes) -> None:
        told = self._told_of(run)["digests"].setdefault(what, [])
        told[:] = [*told, _digest(value)][-2:]  # a run's config comes in two parts
        self._write()

    def _write(self) -> None:
        self.store.put_text(TOLD, json.dumps(self._told))


def _digest(value: Mapping[str, Any] | bytes) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()[:16]


def offline_records(files: Iterable[Path]) -> Iterator[Any]:
    """What files of the offline mode hold: a log as LevelDB writes it, in blocks, each record in one or more parts."""
    for file in files:
        data, place, record = file.read_bytes(), _HEADER, b""
        while place + _HEADER <= len(data):
            left = _BLOCK - place % _BLOCK
            if left < _HEADER:
                place += left
                continue
            size, kind = struct.unpack_from("<HB", data, place + 4)
            record += data[place + _HEADER : place + _HEADER + size]
            place += _HEADER + size
            if kind in (1, 4):  # whole, or its last part
                if place <= len(data):
                    yield _RECORD.FromString(record)
                record = b""


def history_of(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The rows that were logged, with their `_step`."""
    for record in offline_records(files):
        if record.HasField("history"):
            items = record.history.item
            yield {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
