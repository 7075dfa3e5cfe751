"""Parquet shards of passages in id order, written in one pass over sorted batches.

Memory is bounded by a batch: of the passages that came before, only the last one's id is kept, since
in sorted order a duplicate is a neighbour, across batches and shards too.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made at run time)

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raylab.data.collections import Passage, read_passages
from raylab.data.faults import CollectionError, Fault, Kind, OnFault, left_out, refuse

SHARD_ROWS = 16_384
_PARSE_ROWS, _PARSE_CHARACTERS = 4_096, 16 * 1024**2
_LONGEST_COUNTED = 65_535  # characters; longer passages count as this in the percentiles

# `file` counts the files of a part from 0; `fault` is a record's fault as JSON, null where all is well.
PARSED = pa.schema(
    [
        ("passage_id", pa.string()),
        ("file", pa.int32()),
        ("line", pa.int64()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("fault", pa.string()),
    ]
)
SORT_KEY = ["passage_id", "file", "line"]
_WRITTEN = ["passage_id", "title", "text", "line"]


def parsed(address: str, number: int, quarantine: bool) -> Iterator[pa.Table]:
    """Tables (`PARSED`) of one file's records; with `quarantine` the faulty ones too, by their fault.

    Raises:
        CollectionError: the first fault, without `quarantine`.
    """
    records: list[Passage | Fault] = []
    characters = 0
    for passage in read_passages(address, records.append if quarantine else refuse):
        records.append(passage)
        characters += len(passage.text)
        if len(records) >= _PARSE_ROWS or characters >= _PARSE_CHARACTERS:
            yield _table(records, number)
            records.clear()
            characters = 0
    if records:
        yield _table(records, number)


def _table(records: list[Passage | Fault], number: int) -> pa.Table:
    rows = [
        ("", number, r.line, "", "", json.dumps(r._asdict()))
        if isinstance(r, Fault)
        else (r.passage_id, number, r.line, r.title, r.text, None)
        for r in records
    ]
    columns = zip(*rows, strict=True)
    return pa.table(
        [pa.array(values, f.type) for values, f in zip(columns, PARSED, strict=True)], schema=PARSED
    )


class _Statistics:
    """Counts, lengths and bytes of the passages written."""

    def __init__(self) -> None:
        self.lengths = np.zeros(_LONGEST_COUNTED + 1, np.int64)
        self.bytes = {"title": 0, "text": 0}
        self.with_title = self.characters = self.longest = 0

    def add(self, batch: pa.Table) -> None:
        total = np.zeros(len(batch), np.int64)
        for name in self.bytes:
            column = batch[name].combine_chunks()
            total += pc.utf8_length(column).to_numpy(zero_copy_only=False)
            sizes = pc.binary_length(column).to_numpy(zero_copy_only=False)
            self.bytes[name] += int(sizes.sum())
            if name == "title":
                self.with_title += int((sizes > 0).sum())
        self.characters += int(total.sum())
        self.longest = max(self.longest, int(total.max()))
        self.lengths += np.bincount(
            np.minimum(total, _LONGEST_COUNTED), minlength=len(self.lengths)
        )

    def facts(self) -> dict[str, Any]:
        count = int(self.lengths.sum())
        below = np.cumsum(self.lengths)
        half, most = (int(np.searchsorted(below, np.ceil(share * count))) for share in (0.5, 0.95))
        return {
            "passages": count,
            "with_title": self.with_title,
            "title_bytes": self.bytes["title"],
            "text_bytes": self.bytes["text"],
            "characters": {
                "mean": self.characters / count,
                "median": half,
                "95%": most,
                "longest": self.longest,
            },
        }


class _Writer:
    """Numbered shards of exactly `shard_rows` rows, the last one fewer."""

    def __init__(self, folder: Path, shard_rows: int):
        self.folder, self.shard_rows = folder, shard_rows
        self.shards: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, table: pa.Table) -> None:
        while len(table):
            if self._writer is None:
                name = f"part-{len(self.shards):05d}.parquet"
                self._writer = pq.ParquetWriter(self.folder / name, table.schema)
                self.shards.append(
                    {"file": name, "rows": 0, "first": table["passage_id"][0].as_py()}
                )
            shard = self.shards[-1]
            part = table.slice(0, self.shard_rows - shard["rows"])
            self._writer.write_table(part)
            shard["rows"] += len(part)
            shard["last"] = part["passage_id"][-1].as_py()
            table = table.slice(len(part))
            if shard["rows"] == self.shard_rows:
                self.close()

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
            self.shards[-1]["bytes"] = (self.folder / self.shards[-1]["file"]).stat().st_size


def write_shards(
    folder: Path,
    batches: Iterable[pa.Table],
    files: Sequence[str],
    wanted: set[str] = frozenset(),  # type: ignore[assignment]
    on_fault: OnFault = refuse,
    shard_rows: int | None = None,
) -> tuple[dict[str, Any], set[str]]:
    """Write passages from batches (`PARSED`) sorted by `SORT_KEY`; of two with one id the first is kept.

    Returns the statistics, with the shards' names, rows, first and last ids; and those of the
    `wanted` ids that are there.

    Raises:
        CollectionError: a fault (`on_fault` permitting), a duplicate id, or no passage at all.
    """
    writer = _Writer(folder, SHARD_ROWS if shard_rows is None else shard_rows)
    statistics, present = _Statistics(), set()
    unique = _Unique(files, on_fault)
    try:
        for batch in batches:
            # Whoever sorted may have other string types, or columns in another order.
            batch = batch.select(PARSED.names).cast(PARSED)
            kept = unique(_without_faults(batch, on_fault))
            if not len(kept):
                continue
            if wanted:
                present |= wanted.intersection(kept["passage_id"].to_pylist())
            statistics.add(kept)
            writer.write(kept.select(_WRITTEN))
    finally:
        writer.close()
    if not writer.shards:
        raise CollectionError(f"{' and '.join(files)}: no passage is there{left_out(on_fault)}")
    return {**statistics.facts(), "shards": writer.shards}, present


def _without_faults(batch: pa.Table, on_fault: OnFault) -> pa.Table:
    faults = batch["fault"]
    if faults.null_count == len(batch):
        return batch
    for told in faults.drop_null().to_pylist():
        fault = json.loads(told)
        on_fault(Fault(**{**fault, "kind": Kind(fault["kind"])}))
    return batch.filter(faults.is_null())


class _Unique:
    """Batches in id order without the passages whose id was there before."""

    def __init__(self, files: Sequence[str], on_fault: OnFault):
        self.files, self.on_fault = files, on_fault
        self.last: tuple[str, int, int] | None = None  # id, file and line of the last one kept

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not len(batch):
            return batch
        ids = batch["passage_id"].combine_chunks()
        same = np.zeros(len(ids), bool)
        same[1:] = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
        same[0] = self.last is not None and self.last[0] == ids[0].as_py()
        kept = np.flatnonzero(~same)
        for row in np.flatnonzero(same).tolist():
            before = int(np.searchsorted(kept, row))
            first = self._at(batch, int(kept[before - 1])) if before else self.last
            assert first is not None
            self._tell(batch, row, first)
        if len(kept):
            self.last = self._at(batch, int(kept[-1]))
        return batch.filter(pa.array(~same)) if same.any() else batch

    def _at(self, batch: pa.Table, row: int) -> tuple[str, int, int]:
        return tuple(batch[name][row].as_py() for name in SORT_KEY)  # type: ignore[return-value]

    def _tell(self, batch: pa.Table, row: int, first: tuple[str, int, int]) -> None:
        passage_id, file, line = self._at(batch, row)
        where = "" if file == first[1] else f" of {self.files[first[1]]}"
        record = {"_id": passage_id, **{k: batch[k][row].as_py() for k in ("title", "text")}}
        self.on_fault(
            Fault(
                Kind.DUPLICATE,
                self.files[file],
                line,
                f"duplicate passage id {passage_id!r} (first at line {first[2]}{where}); ids must be unique",
                json.dumps(record, ensure_ascii=False),
            )
        )
