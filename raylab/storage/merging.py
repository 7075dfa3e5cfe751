"""The tables of a storage as several commands, and several drivers at once, add to them.

    tables/RESULTS/TIME-HASH.parquet    a part: the rows of one command; never changed
    results.parquet                     all parts as one table: a row that is there again stands where it was last

A driver writes its part first, then the whole table, and looks for parts again: whoever writes the table last
has seen every part, so that none is lost, whatever the order in which drivers come.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.storage.store import Store
from raylab.storage.tables import CURVES, LEDGER, PER_QUERY, RESULTS, read_table, table_of

_FOLDER = "tables"
# What makes two rows of a table the same row.
_KEYS = {
    RESULTS: ("system", "seed", "collection", "split", "measure", "fingerprint", "run"),
    PER_QUERY: ("fingerprint", "system", "seed", "collection", "split", "measure", "query_id"),
    LEDGER: ("stage", "name", "fingerprint"),
    CURVES: ("fingerprint", "system", "seed", "step"),
}
# What a row of the results, or the values per query, is about; a later one takes an earlier one's place.
_SUBJECT = ("system", "seed", "collection", "split", "measure")


def add_rows(
    store: Store,
    name: str,
    rows: Iterable[Any] | pa.Table,
    row: type,
    instead_of: Collection[str] = (),
) -> pd.DataFrame:
    """As `write_rows`; returns the whole table."""
    return write_rows(store, name, rows, row, instead_of).to_pandas()


def write_rows(
    store: Store,
    name: str,
    rows: Iterable[Any] | pa.Table,
    row: type,
    instead_of: Collection[str] = (),
) -> pa.Table:
    """Add rows (of dataclass `row`, or in columns of its schema) to a table of the storage; returns the whole table.

    ``instead_of``: parts (of `add_part`) whose rows are among these.
    """
    add_part(store, name, rows, row)
    for part in instead_of:
        with suppress(FileNotFoundError):
            store.files.remove(part)
    return merge(store, name)


def add_part(store: Store, name: str, rows: Iterable[Any] | pa.Table, row: type) -> str:
    """Add rows as a part, which `merge` puts into the table; returns its path below the root."""
    buffer = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else table_of(rows, row), buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()[:16]
    before = parts_of(store, name)
    path = f"{_folder(name)}/{time.time_ns():020d}-{digest}.parquet"
    store.put_bytes(path, data)
    for part in before:
        if part.endswith(f"-{digest}.parquet"):  # the same rows stand in the new part
            store.files.remove(part)
    return path


def merge(store: Store, name: str) -> pa.Table:
    """Write the whole table from its parts, and return it."""
    while True:
        parts = parts_of(store, name)
        try:
            whole = _merged(store, name, parts)
        except FileNotFoundError:  # another driver has put its rows into a new part
            continue
        buffer = io.BytesIO()
        pq.write_table(whole, buffer)
        store.put_bytes(name, buffer.getvalue())
        if parts_of(store, name) == parts:
            return whole


def rows_without(store: Store, name: str, parts: Collection[str]) -> pd.DataFrame:
    """The table as it would be without some of its parts.

    Raises:
        FileNotFoundError: it has no others.
    """
    others = [part for part in parts_of(store, name) if part not in parts]
    if not others:
        raise FileNotFoundError(name)
    return _merged(store, name, others).to_pandas()


def _folder(name: str) -> str:
    return f"{_FOLDER}/{name.partition('.')[0]}"


def parts_of(store: Store, name: str) -> list[str]:
    """The parts of a table, oldest first, by their paths below the root."""
    names = store.files.names(_folder(name))
    return [f"{_folder(name)}/{part}" for part in names if part.endswith(".parquet")]


def _merged(store: Store, name: str, parts: list[str]) -> pa.Table:
    """All parts as one table; of rows that are the same, the last."""
    tables = []
    for data in store.files.in_parallel(store.files.read, parts):
        tables.append(pq.read_table(io.BytesIO(data)))
    whole = pa.concat_tables(tables, promote_options="default")  # older parts may lack columns
    keys = whole.select(list(_KEYS[name])).to_pandas()
    last = ~keys.duplicated(keep="last")
    return whole.filter(pa.array(last.to_numpy()))


def current(table: pd.DataFrame) -> pd.DataFrame:
    """Of results or values per query, those of the last run of every system and seed.

    A storage may hold a cell several times: with another budget, recipe or encoding under the same name.
    """
    run = "run" if "run" in table.columns else "fingerprint"
    last = table.drop_duplicates([*_SUBJECT], keep="last")[[*_SUBJECT, run]]
    merged = table.merge(last, on=[*_SUBJECT, run], how="left", indicator=True)
    return table.loc[(merged["_merge"] == "both").to_numpy()].reset_index(drop=True)


def read_current(store: Store, name: str) -> pd.DataFrame:
    """A table of the storage; of results and values per query those of `current`.

    Raises:
        FileNotFoundError: nothing was written there yet.
    """
    table = read_table(store, name)
    return table if name in (LEDGER, CURVES) else current(table)


def of_cells(results: pd.DataFrame, cells: str) -> pd.DataFrame:
    """Results of the trained systems that a filter names, of the untrained ones beside them, and of baselines.

    ``cells``: patterns by commas, such as `sparse-*-cl`, as they choose the cells of a grid.
    """
    patterns = [pattern.strip() for pattern in cells.split(",")]
    trained = results["kind"] == "trained"
    named = [any(fnmatchcase(system, p) for p in patterns) for system in results["system"]]
    chosen = trained & np.array(named, bool)
    beside = set(zip(results["size"][chosen], results["head"][chosen], strict=True))
    pairs = zip(results["size"], results["head"], strict=True)
    untrained = (results["kind"] == "untrained") & np.array(
        [pair in beside for pair in pairs], bool
    )
    return results.loc[chosen | untrained | (results["kind"] == "baseline")].reset_index(drop=True)
