"""Rows of the tables of a storage, of which a test says what it needs: the rest is null."""

import dataclasses
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa

from raylab.storage.tables import QueryValue, Result, schema_of

R = TypeVar("R")


def filled(row: type[R], **facts: Any) -> R:
    """A row of dataclass `row` with these facts."""
    empty = {f.name: "" if f.default == "" else None for f in dataclasses.fields(row)}  # type: ignore[arg-type]
    return row(**(empty | facts))


def result(**facts: Any) -> Result:
    return filled(Result, **facts)


def query_value(**facts: Any) -> QueryValue:
    return filled(QueryValue, **facts)


def as_table(rows: list[dict[str, Any]], row: type) -> pd.DataFrame:
    """A pandas table of dataclass `row`, of dicts that may lack columns."""
    full = [dataclasses.asdict(filled(row, **facts)) for facts in rows]
    return pa.Table.from_pylist(full, schema=schema_of(row)).to_pandas()
