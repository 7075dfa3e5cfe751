"""What a reader must know to judge the figures, as far as the results themselves can tell."""

from __future__ import annotations

from collections.abc import Sequence

from raylab.evaluation.entropy import MEASURE as ENTROPY
from raylab.report.formats import count
from raylab.report.rows import TRAINED, Result, benchmarks

# L(N) = (A / N)^a + d has three (2403.18684).
_LAW_PARAMETERS = 3
# Fewer queries than this tell only large differences apart (TREC DL 2019 has 43).
_FEW_QUERIES = 100
_ENTROPY_NOTE = (
    f"{ENTROPY}: contrastive entropy in nats, the lower the better: -log of the softmax share of a "
    "query's positive among 256 passages drawn once for all systems, with scores divided by the "
    "cell's own training temperature (2403.18684). Compare it within one head and objective. "
    "log 257 = 5.55 tells nothing apart."
)


def notes(rows: Sequence[Result], fitted: bool = False) -> list[str]:
    """One paragraph a subject: intervals, contrastive entropy, seeds, selection, budget, scaling law, ledger.

    Args:
        fitted: the page has laws, so it need not say why it has none.
    """
    entropy = any(row.measure == ENTROPY for row in rows)
    return [
        _intervals(rows),
        *([_ENTROPY_NOTE] if entropy else []),
        _seeds(rows),
        "The best cell of a head is the best of several on the very split that reports it, so its "
        "value is biased upward. Overlapping or separate intervals are no significance test: "
        "raylab compare SYSTEM SYSTEM --storage STORAGE makes one of any systems.",
        "Budget: the FLOPs of fine-tuning a cell, counted by the laboratory's cost model "
        f"(backbone, vocabulary projection, LoRA backward, recomputation, padding). {_charged(rows)} "
        "Untrained rows are the backbone as it came, neither adapted nor fine-tuned.",
        *([] if fitted else [_law(rows)]),
        "Ledger: the seconds of artifacts that were made at the same time overlap, so their sum is "
        "not the time that passed.",
    ]


def _intervals(rows: Sequence[Result]) -> str:
    sizes = {b.name: b.queries for b in benchmarks(rows) if b.queries is not None}
    stated = "; ".join(f"{name}: n = {count(n)}" for name, n in sizes.items())
    text = (
        f"Intervals are 95 % percentile bootstrap intervals over queries ({stated or 'n unknown'})."
    )
    zeros = {
        f"{b.name} {row.measure}": row.without_relevant
        for b in benchmarks(rows)
        for row in rows
        if (row.collection, row.split) == (b.collection, b.split) and row.without_relevant
    }
    if zeros:
        counted = "; ".join(f"{where}: {count(n)}" for where, n in zeros.items())
        text += f" Queries without a relevant passage count 0, as in trec_eval ({counted})."
    few = [name for name, n in sizes.items() if n < _FEW_QUERIES]
    if few:
        text += f" With so few queries, {', '.join(few)} can tell only large differences apart."
    return text


def _seeds(rows: Sequence[Result]) -> str:
    by_cell: dict[str, set[int | None]] = {}
    for row in rows:
        if row.kind == TRAINED:
            by_cell.setdefault(row.system, set()).add(row.seed)
    counts = sorted({len(seeds) for seeds in by_cell.values()})
    if not counts:
        return "No cell is trained in these results."
    if counts == [1]:
        return (
            "Seeds: one a cell. How much a cell varies from seed to seed is not measured, and the "
            "intervals do not hold it."
        )
    stated = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"Seeds: {stated} a cell. A cell with several seeds shows their mean with the lowest and "
        "the highest seed, in the table and as error bars; this range is not a confidence "
        "interval. The full table has every seed with its own interval over queries."
    )


def _charged(rows: Sequence[Result]) -> str:
    trained = [row for row in rows if row.kind == TRAINED]
    charged = [row for row in trained if row.charged_flops]
    if not charged:
        return (
            "The adaptation by MNTP, shared by the cells of a size, is not charged to it; the ledger "
            "has it."
        )
    some = "" if len(charged) == len(trained) else "some "
    return f"The adaptation by MNTP is charged to {some}cells, in full, as if each stood alone."


def _law(rows: Sequence[Result]) -> str:
    sizes = len({row.size for row in rows if row.kind == TRAINED})
    left = sizes - _LAW_PARAMETERS
    freedom = "no degree of freedom" if left <= 0 else f"{left} degree(s) of freedom, of sizes"
    return (
        f"No law is fitted here: {sizes} size(s) leave a scaling law of {_LAW_PARAMETERS} "
        f"parameters, L(N) = (A/N)^a + d, {freedom}. The lines of the plot only join the measured "
        "points."
    )
