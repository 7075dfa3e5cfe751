"""The ledger of the page: what each stage took, and whether the budget was kept as a contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from raylab.planning.flops import ALIKE, KEPT
from raylab.report.formats import NOTHING, count, quantity
from raylab.report.page.blocks import Block, columns
from raylab.report.rows import TRAINED, Result

# Amounts of the ledger by heading; ledgers of before a column was there lack it.
_AMOUNTS = {
    "planned_flops": "planned FLOPs",
    "spent_flops": "spent FLOPs",
    "flops": "measured FLOPs",
    "seconds": "seconds",
    "device_seconds": "device-seconds",
    "tokens": "tokens",
    "padded_tokens": "with padding",
    "retries": "retries",
    "lost_flops": "lost FLOPs",
    "lost_seconds": "lost seconds",
    "energy_j": "joules",
    "size_bytes": "bytes",
}
_SECONDS = ("seconds", "device_seconds", "lost_seconds")


def ledger(table: pd.DataFrame) -> Block:
    """The ledger summed by stage, in its own order, which is that of the chain."""
    known = [name for name in _AMOUNTS if name in table.columns]
    has_energy = "energy_j" in known and bool(table["energy_j"].notna().any())
    names = [name for name in known if name != "energy_j" or has_energy]
    by_stage: dict[str, list[tuple]] = {}
    for stage, *amounts in zip(table["stage"], *(table[a] for a in names), strict=True):
        by_stage.setdefault(stage, []).append(tuple(amounts))
    lines = [_line(stage, artifacts, names) for stage, artifacts in by_stage.items()]
    total = _line(
        "all", [amounts for artifacts in by_stage.values() for amounts in artifacts], names
    )
    return Block(
        "Compute by stage",
        columns(("stage", "artifacts", *(_AMOUNTS[name] for name in names))),
        (*lines, total),
        (*("" for _ in lines), "total"),
        note="Measured: what making the artifacts took, each once. Spent: what they stand for under their "
        "contract, parts that several share counted for each. A dash: not known, or meaningless. "
        + ("" if has_energy else "Energy: the devices do not tell it."),
    )


def _line(stage: str, artifacts: Sequence[tuple], names: Sequence[str]) -> tuple[str, ...]:
    texts = []
    for i, name in enumerate(names):
        values = [amounts[i] for amounts in artifacts if not pd.isna(amounts[i])]
        total = sum(values) if values else None
        texts.append(seconds(total) if name in _SECONDS else quantity(total))
    return (stage, count(len(artifacts)), *texts)


def seconds(amount: float | None) -> str:
    """Seconds to a tenth, thousands marked."""
    return NOTHING if amount is None else f"{amount:,.1f}"


def budget(rows: Sequence[Result]) -> Block:
    """Planned and spent FLOPs of every cell and seed."""
    names = ("system", "seed", "planned FLOPs", "spent FLOPs", "spent", "steps", "seconds")
    return Block(
        "Budget, planned and spent",
        columns(names),
        tuple(
            (
                row.system,
                NOTHING if row.seed is None else str(row.seed),
                quantity(row.budget_flops),
                quantity(row.spent_flops),
                _share(row.spent_flops, row.budget_flops),
                count(row.steps),
                seconds(row.seconds),
            )
            for row in _cells(rows)
        ),
        rows_filter=f"kind == {TRAINED!r}",
    )


def _cells(rows: Sequence[Result]) -> list[Result]:
    return list({(r.system, r.seed, r.fingerprint): r for r in rows if r.kind == TRAINED}.values())


def _share(spent: float | None, planned: float | None) -> str:
    return f"{spent / planned:.1%}" if spent is not None and planned else NOTHING


@dataclass(frozen=True)
class Kept:
    """How one budget was spent by its cells.

    `deviation`: the largest |spent - planned| / planned, and the cell it is of; `spread`: the most spent by
    a cell over the least, less 1.
    """

    budget_flops: float
    cells: int
    deviation: float
    worst: str
    spread: float


def contract(rows: Sequence[Result]) -> list[Kept]:
    """Every budget in FLOPs with its cells, smallest first."""
    by_budget: dict[float, list[tuple[float, str]]] = {}
    for row in _cells(rows):
        if row.budget_flops and row.spent_flops:
            name = row.system if row.seed is None else f"{row.system} seed {row.seed}"
            by_budget.setdefault(row.budget_flops, []).append((row.spent_flops, name))
    budgets = []
    for planned, cells in sorted(by_budget.items()):
        deviation, worst = max((abs(spent / planned - 1), name) for spent, name in cells)
        spent = [amount for amount, _ in cells]
        budgets.append(Kept(planned, len(cells), deviation, worst, max(spent) / min(spent) - 1))
    return budgets


def percent(share: float, digits: int = 2) -> str:
    """`0.97 %`."""
    return f"{100 * share:.{digits}f} %"


def verdicts(kept: Sequence[Kept]) -> list[str]:
    """The contract in two plain sentences: what was planned, and among cells of one budget."""
    if not kept:
        return ["No cell has a budget in FLOPs: there is nothing to keep it by."]
    worst = max(kept, key=lambda one: one.deviation)
    widest = max(kept, key=lambda one: one.spread)
    cells = sum(one.cells for one in kept)
    deviation = (
        f"{'All' if worst.deviation <= KEPT else 'NOT all'} {count(cells)} cells spent within "
        f"{percent(KEPT, 0)} of what was planned: the largest deviation is {percent(worst.deviation)} "
        f"({worst.worst})."
    )
    if all(one.cells == 1 for one in kept):
        return [deviation, "No two cells have the same budget."]
    return [
        deviation,
        f"Cells of one budget spent {'' if widest.spread <= ALIKE else 'NOT '}within {percent(ALIKE, 0)} of "
        f"each other: the largest spread, most over least, is {percent(widest.spread)} (budget "
        f"{quantity(widest.budget_flops, 'FLOPs')}, {count(widest.cells)} cells).",
    ]


def by_budget(kept: Sequence[Kept]) -> Block:
    """The contract, a line a budget."""
    return Block(
        "The contract, by budget",
        columns(("budget", "cells", "largest deviation", "of", "spread between cells")),
        tuple(
            (
                quantity(one.budget_flops, "FLOPs"),
                count(one.cells),
                percent(one.deviation),
                one.worst,
                percent(one.spread),
            )
            for one in kept
        ),
    )
