"""What is wrong with a record, and what becomes of it: refused, or set aside in a quarantine file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from raylab.experiment.faults import quarantined_kinds

QUARANTINE = "quarantine.jsonl"


class CollectionError(ValueError):
    """Bad input; the message names file, line and what would be right."""


class Kind(StrEnum):
    """What can be wrong with one record. `--on-fault quarantine:KIND` takes the names in small letters."""

    ENCODING = "not UTF-8"
    FORMAT = "not a record"
    FIELDS = "wrong field count"
    EMPTY = "empty text"
    ID = "bad id"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown id"
    GRADE = "bad grade"
    SCORE = "bad score"


class Fault(NamedTuple):
    """One record that cannot be used; ``line`` counts lines (of Parquet: rows) from 1."""

    kind: Kind
    file: str
    line: int
    reason: str
    record: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def undecodable(file: str, number: int, raw: bytes, error: UnicodeDecodeError) -> Fault:
    """The fault of bytes that are not UTF-8."""
    return Fault(
        Kind.ENCODING,
        file,
        number,
        f"byte {error.start + 1} is not UTF-8; re-encode the file",
        raw.rstrip(b"\r\n").decode("utf-8", "backslashreplace"),
    )


class RecordError(ValueError):
    """A record that cannot be used: its kind and reason; the reader adds file, line and record."""

    def __init__(self, kind: Kind, reason: str):
        super().__init__(reason)
        self.kind, self.reason = kind, reason


OnFault = Callable[[Fault], None]


def refuse(fault: Fault) -> None:
    """The policy `error`: the first fault ends the reading."""
    raise CollectionError(str(fault))


def tell(on_fault: OnFault, file: str | Path, line: int, wrong: RecordError, record: Any) -> None:
    """Tell of a record that cannot be used."""
    text = record if isinstance(record, str) else json.dumps(record, default=str)
    # Half a surrogate pair can be in JSON, and in no file.
    text = text.encode("utf-8", "backslashreplace").decode()
    on_fault(Fault(wrong.kind, str(file), line, wrong.reason, text))


class LeavingOut:
    """A policy (`raylab.experiment.faults.quarantined_kinds`) under which faults of some kinds are passed over.

    They are counted; a fault of another kind ends the reading.
    """

    def __init__(self, on_fault: str):
        self.kinds = quarantined_kinds(on_fault)
        self.counts: Counter[str] = Counter()
        self.first: dict[str, Fault] = {}

    def __call__(self, fault: Fault) -> None:
        if fault.kind.name.lower() not in self.kinds:
            refuse(fault)
        self.counts[str(fault.kind)] += 1
        self.first.setdefault(str(fault.kind), fault)

    def facts(self) -> dict[str, int]:
        """How many records of each kind were left out."""
        return dict(sorted(self.counts.items()))


def left_out(on_fault: OnFault) -> str:
    """What a policy has left out so far, to end the message that nothing is left; else nothing."""
    policy: Any = getattr(on_fault, "policy", on_fault)
    if not isinstance(policy, LeavingOut) or not policy.counts:
        return ""
    kinds = [
        f"{count:,} x {kind} ({policy.first[kind]})" for kind, count in policy.counts.most_common()
    ]
    return f"; left out: {'; '.join(kinds)}"


class Quarantine(LeavingOut):
    """Also a file of the records that were left out, with reasons.

    One JSON object a line: `kind`, `file`, `line`, `reason`, `record`. The file is made with the first
    fault.
    """

    def __init__(self, folder: Path, on_fault: str):
        super().__init__(on_fault)
        self.path = folder / QUARANTINE
        self._file: Any = None

    def __call__(self, fault: Fault) -> None:
        super().__call__(fault)
        if self._file is None:
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115
        self._file.write(json.dumps(fault._asdict(), ensure_ascii=False) + "\n")

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
