"""What a report showed, so that a command that changes no table need not make it again.

report/shown.json    the tables' parts that it was made from, its command, its files, and what a terminal shows
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version

from pydantic import TypeAdapter, ValidationError

from raylab.report.layout import Layout
from raylab.report.tables import GridTable
from raylab.storage.merging import parts_of
from raylab.storage.store import Store
from raylab.storage.tables import LEDGER, PER_QUERY, RESULTS

SHOWN = "report/shown.json"


@dataclass(frozen=True)
class Shown:
    """``source``: what it was made from. ``files``: of the report, by label."""

    source: tuple[str, ...]
    files: dict[str, str]
    tables: tuple[GridTable, ...]
    layout: Layout


def source_of(store: Store, command: str | None) -> tuple[str, ...]:
    """What decides a report: the tables' parts, the command that it tells, this version."""
    parts = [part for table in (RESULTS, PER_QUERY, LEDGER) for part in parts_of(store, table)]
    return (version("raylab"), command or "", *parts)


def keep(store: Store, shown: Shown) -> None:
    """Keep it beside the report."""
    store.put_bytes(SHOWN, TypeAdapter(Shown).dump_json(shown))


def kept(store: Store) -> Shown | None:
    """What was kept; None where nothing was, or in another form."""
    try:
        return TypeAdapter(Shown).validate_json(store.files.read(SHOWN))
    except (FileNotFoundError, ValidationError):
        return None


def forget(store: Store) -> None:
    """Keep nothing: the report is about to change."""
    with suppress(FileNotFoundError):
        store.files.remove(SHOWN)
