"""The results table as typed rows in a fixed order, and the benchmarks it holds.

Everything in the report is computed from these rows, so a report does not depend on the order in
which the rows of the table were written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raylab.data.registry import protocol
from raylab.evaluation.domains import IN_DOMAIN, OUT_OF_DOMAIN, Domain, domain
from raylab.experiment import heads, objectives
from raylab.storage.tables import Result, column_types

TRAINED, UNTRAINED, BASELINE = "trained", "untrained", "baseline"
KINDS = (BASELINE, UNTRAINED, TRAINED)
HEADS, OBJECTIVES = tuple(heads.HEADS), tuple(objectives.OBJECTIVES)

# Splits that choices may have been made on; what is measured there is not held out.
VALIDATION_SPLITS = frozenset({"valid", "dev"})
_KEY = ("kind", "system", "seed", "collection", "split", "measure")


_FIELDS = dataclasses.fields(Result)
_WHOLE = frozenset(name for name, kind in column_types(Result).items() if kind is int)


@dataclass(frozen=True)
class Variation:
    """What an experiment varied in a cell: nothing, its budget, or its recipe under a name."""

    name: str = ""
    budget_flops: float | None = None

    def __bool__(self) -> bool:
        return bool(self.name)

    @property
    def rank(self) -> tuple:
        """A sort key: the plain recipe, budgets by FLOPs, then others by name."""
        if not self.name:
            return 0, "", 0.0
        if self.budget_flops is not None:
            return 1, "", self.budget_flops
        return 2, self.name, 0.0

    @classmethod
    def of(cls, row: Result) -> Variation:
        return cls(row.variant, row.budget_flops if row.varied == "budget" else None)


@dataclass(frozen=True)
class Benchmark:
    """One split of one collection: what it is measured by and on how many queries.

    `measures`: those the results hold, the primary one first. `held_out` is false for a validation
    split (`valid`, `dev`) of a collection that has another split and that trained the cells. `domain`: out
    of domain where every trained cell was trained on another collection.
    """

    collection: str
    split: str
    measures: tuple[str, ...]
    queries: int | None
    held_out: bool
    domain: Domain = IN_DOMAIN

    @property
    def primary(self) -> str:
        return self.measures[0]

    @property
    def name(self) -> str:
        return f"{self.collection} {self.split}"

    @property
    def rows_filter(self) -> str:
        """The rows behind its figures, as an argument of `DataFrame.query` on the results."""
        return f"collection == {self.collection!r} and split == {self.split!r}"

    @property
    def primary_filter(self) -> str:
        """`rows_filter` for the primary measure alone."""
        return f"{self.rows_filter} and measure == {self.primary!r}"


def read_rows(results: pd.DataFrame) -> list[Result]:
    """The rows of a results table: baselines, then by parameters, head, objective and seed.

    Raises:
        ValueError: no rows, a missing column that has no default, an unknown kind, or two rows for the same
            (system, seed, collection, split, measure).
    """
    known = set(results.columns)
    missing = [f.name for f in _FIELDS if f.default is dataclasses.MISSING and f.name not in known]
    if missing:
        raise ValueError(f"the results table lacks the column(s) {', '.join(missing)}")
    if results.empty:
        raise ValueError("the results table has no rows: there is nothing to report")
    columns = [field.name for field in _FIELDS if field.name in known]
    cells = zip(*(results[name] for name in columns), strict=True)
    rows = [_row(dict(zip(columns, values, strict=True))) for values in cells]
    seen = set()
    for row in rows:
        if row.kind not in KINDS:
            raise ValueError(f"kind = {row.kind!r} ({row.system}): it must be one of {KINDS}")
        key = tuple(getattr(row, name) for name in _KEY)
        if key in seen:
            raise ValueError(f"two rows of the results table are about {key}")
        seen.add(key)
    return sorted(rows, key=_order)


def _row(cells: dict[str, Any]) -> Result:
    values: dict[str, Any] = {n: None if pd.isna(cell) else cell for n, cell in cells.items()}
    values |= {name: int(values[name]) for name in _WHOLE if values.get(name) is not None}
    values |= {"variant": values["variant"] or "", "varied": values["varied"] or ""}
    return Result(**values)


def _order(row: Result) -> tuple:
    return (
        row.kind != BASELINE,
        row.parameters is None,
        row.parameters or 0,
        row.size or "",
        rank(HEADS, row.head),
        row.kind == TRAINED,
        rank(OBJECTIVES, row.objective),
        Variation.of(row).rank,
        row.system,
        -1 if row.seed is None else row.seed,
        row.collection,
        row.split,
        row.measure,
    )


def rank(known: Sequence[str], name: str | None) -> tuple[int, str]:
    """A sort key: the known names in their order, then others by name."""
    return (known.index(name) if name in known else len(known), name or "")


def benchmarks(rows: Sequence[Result]) -> list[Benchmark]:
    """The benchmarks the rows speak of: held-out splits first, in domain first, then by collection and split."""
    by_place: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        by_place.setdefault((row.collection, row.split), []).append(row)
    trained_on = {row.trained_on or row.collection for row in rows if row.kind == TRAINED}
    known = []
    for (collection, split), selected in sorted(by_place.items()):
        splits = {other for name, other in by_place if name == collection}
        queries = {row.queries for row in selected if row.queries is not None}
        own = {row.trained_on for row in selected if row.kind == TRAINED} or trained_on
        inside = not own or any(domain(collection, one) == IN_DOMAIN for one in own)
        known.append(
            Benchmark(
                collection,
                split,
                _measures(collection, split, {row.measure for row in selected}),
                max(queries, default=None),
                split not in VALIDATION_SPLITS or splits <= VALIDATION_SPLITS or not inside,
                IN_DOMAIN if inside else OUT_OF_DOMAIN,
            )
        )
    return sorted(known, key=lambda one: (not one.held_out, one.domain != IN_DOMAIN))


def _measures(collection: str, split: str, present: set[str]) -> tuple[str, ...]:
    known = protocol(collection, split)
    order = (known.primary, *(m for m in known.measures if m != known.primary))
    return tuple(sorted(present, key=lambda measure: rank(order, measure)))
