"""TensorBoard: event files in a folder a run. Held-out points and measures are scalars, tables text, figures images."""

from __future__ import annotations

import functools
import json
import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)

from raylab.live.facts import Point
from raylab.live.sinks.sink import LoggedRun, own_folder, values_of
from raylab.storage.store import Store

_ALL = {"scalars": 0, "images": 1, "tensors": 1}


def open_sink(store: Store, where: str | None) -> TensorBoardSink:
    """Below a folder: that of the storage, or another one."""
    return TensorBoardSink(Path(where or own_folder(store, "tensorboard")))


@dataclass
class _Open:
    """A run's folder, with what it held when it was opened and what was written since."""

    folder: Path
    last_step: int = 0
    scalars: dict[str, float] = field(default_factory=dict)  # the last value of each
    texts: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)

    @functools.cached_property
    def writer(self) -> SummaryWriter:
        """Makes a file, of a name of its own: two of the same second would be one."""
        return SummaryWriter(str(self.folder), filename_suffix=f".{uuid.uuid4().hex[:8]}")

    def close(self) -> None:
        """What was written is in its file."""
        if "writer" in vars(self):
            self.writer.close()


class TensorBoardSink:
    """Writes event files.

    Args:
        folder: below which each run has its own.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.open: dict[str, _Open] = {}

    def last_step(self, run: LoggedRun) -> int:
        return self._opened(run).last_step

    def config(self, run: LoggedRun, values: Mapping[str, Any]) -> None:
        before = self._opened(run).texts.get("config", b"{}")
        text = json.dumps({**json.loads(before), **values}, indent=1, sort_keys=True, default=str)
        self._text(run, "config", "\n".join(f"    {line}" for line in text.splitlines()))

    def points(self, run: LoggedRun, points: Sequence[Point]) -> None:
        opened = self._opened(run)
        for point in points:
            for name, value in values_of(point).items():
                opened.writer.add_scalar(name, value, point.step, walltime=point.at)
            opened.last_step = point.step
        opened.writer.flush()

    def measures(self, run: LoggedRun, values: Mapping[str, float], step: int) -> None:
        opened = self._opened(run)
        for name, value in values.items():
            tag, single = _allowed(f"measures/{name}"), _as_float32(value)
            if opened.scalars.get(tag) != single:
                opened.writer.add_scalar(tag, value, step)
                opened.scalars[tag] = single
                opened.writer.flush()

    def file(self, run: LoggedRun, name: str, data: bytes) -> None:
        """Only Markdown and PNG: it has no room for others."""
        name = _allowed(name)
        if name.endswith(".md"):
            self._text(run, name.removesuffix(".md"), data.decode())
        elif name.endswith(".png"):
            self._image(run, name.removesuffix(".png"), data)

    def end(self, run: LoggedRun) -> None:
        if opened := self.open.pop(run.key, None):
            opened.close()

    def close(self) -> None:
        for opened in self.open.values():
            opened.close()
        self.open.clear()

    def _text(self, run: LoggedRun, tag: str, text: str) -> None:
        opened = self._opened(run)
        if opened.texts.get(tag) != text.encode():
            opened.writer.add_text(tag, text, 0)
            opened.texts[tag] = text.encode()
            opened.writer.flush()

    def _image(self, run: LoggedRun, tag: str, data: bytes) -> None:
        opened = self._opened(run)
        if opened.images.get(tag) != data:
            width, height = struct.unpack(">II", data[16:24])  # of a PNG's header
            image = Summary.Image(
                height=height, width=width, colorspace=4, encoded_image_string=data
            )
            writer = opened.writer.file_writer
            assert writer is not None
            writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), 0)
            opened.images[tag] = data
            opened.writer.flush()

    def _opened(self, run: LoggedRun) -> _Open:
        if run.key not in self.open:
            folder = self.folder / re.sub(r"[^\w.+-]", "-", run.key)
            before = EventAccumulator(str(folder), _ALL).Reload() if folder.is_dir() else None
            opened = _Open(folder)
            if before is not None:
                _remember(opened, before)
            self.open[run.key] = opened
        return self.open[run.key]


def _remember(opened: _Open, before: EventAccumulator) -> None:
    tags = before.Tags()
    for tag in tags["scalars"]:
        events = before.Scalars(tag)
        opened.scalars[tag] = events[-1].value
        if not tag.startswith("measures/"):
            opened.last_step = max(opened.last_step, *(event.step for event in events))
    for tag in tags["images"]:
        opened.images[tag] = before.Images(tag)[-1].encoded_image_string
    for tag in tags["tensors"]:
        strings = before.Tensors(tag)[-1].tensor_proto.string_val
        if strings:
            opened.texts[tag.removesuffix("/text_summary")] = strings[0]


def _allowed(name: str) -> str:
    """A name as event files have it: `nDCG@10` is `nDCG-10` there."""
    return re.sub(r"[^\w./-]", "-", name)


def _as_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
