"""The charts of the grid tables: quality against size, FLOPs, sparsity and bytes of the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raylab.report.charts.chart import (
    UNTRAINED_LOOKS,
    Axis,
    Chart,
    Key,
    Look,
    Panel,
    Rule,
    Series,
    looks,
)
from raylab.report.formats import objective_label, quantity
from raylab.report.rows import (
    BASELINE,
    HEADS,
    OBJECTIVES,
    TRAINED,
    UNTRAINED,
    rank,
    variant_rank,
)
from raylab.report.tables import GridTable, Line
from raylab.scaling.points import is_budget

MOST_PANELS = 3
_MOST_SERIES = 12  # that a panel shows; more are split by objective
BARS_OF_QUERIES = "bars: 95 % bootstrap\ninterval over queries"
BARS_OF_SEEDS = "bars: lowest to highest\nseed (one seed: 95 %\ninterval over queries)"
_NARROW = 1.05  # a range within this is one place, where series are set apart
_LOG_FROM = 3.0  # a wider range than this is drawn on a logarithmic axis

Number = Callable[[Line], float | None]
Part = Callable[[Line], str]


def charts(tables: Sequence[GridTable]) -> list[Chart]:
    """The charts of the held-out tables; all but the first are left out where they have no data."""
    shown = drawn(tables)
    made = [scaling(shown), flops(shown), sparsity(shown), index_bytes(shown)]
    return made[:1] + [chart for chart in made[1:] if not chart.empty]


def drawn(tables: Sequence[GridTable]) -> list[GridTable]:
    """The tables that charts show: the first held-out ones, a panel each."""
    return [table for table in tables if table.benchmark.held_out][:MOST_PANELS]


def plain(lines: Sequence[Line]) -> list[Line]:
    """Trained lines of the plain recipe and of budgets; all where there are none."""
    trained = [line for line in lines if line.kind == TRAINED]
    return [line for line in trained if not line.variant or is_budget(line.variant)] or trained


def scaling(tables: Sequence[GridTable]) -> Chart:
    """Quality against the number of non-embedding parameters."""
    return _chart(
        "scaling",
        "Quality against size",
        tables,
        lambda line: line.parameters,
        lambda line: line.variant,
        "non-embedding parameters",
        note="Points of one size are set apart sideways, so that their bars can be told from each "
        "other. Hollow: untrained.",
        sizes=True,
        untrained=True,
    )


def flops(tables: Sequence[GridTable]) -> Chart:
    """Quality against the FLOPs that fine-tuning was measured to take."""
    lines = [line for table in tables for line in plain(table.lines)]
    budgets = len({line.variant for line in lines}) > 1
    return _chart(
        "flops",
        "Quality against measured compute",
        tables,
        lambda line: line.spent_flops,
        (lambda line: line.size or "") if budgets else (lambda line: line.variant),
        "FLOPs of fine-tuning, measured",
        note="A line joins the budgets of one size." if budgets else "A line joins the sizes.",
    )


def sparsity(tables: Sequence[GridTable]) -> Chart:
    """Quality of sparse cells against terms a passage, and against terms that scores multiply."""
    sparse = [
        GridTable(
            t.benchmark, tuple(x for x in t.lines if x.head == "sparse" and x.kind == TRAINED)
        )
        for t in tables
    ]
    varied = any(table.varied for table in sparse)
    parts = [
        _chart(
            "sparsity",
            "Quality against sparsity",
            sparse,
            number,
            (lambda line: line.size or "") if varied else (lambda line: ""),
            label,
            note="Sparse cells, as indexed (Top-K pruning included). "
            + ("A line joins the variants of one size." if varied else "A line joins the sizes."),
            every=True,
            where="head == 'sparse' and kind == 'trained'",
        )
        for number, label in (
            (lambda line: line.passage_postings, "terms a passage, mean"),
            (lambda line: line.retrieval_flops, "terms that a query and a passage share, mean"),
        )
    ]
    panels = tuple(
        panel
        for both in zip(*(part.panels for part in parts), strict=False)
        for panel in both
        if panel.series
    )
    return Chart(**(vars(parts[0]) | {"panels": panels, "columns": 2}))


def index_bytes(tables: Sequence[GridTable]) -> Chart:
    """Quality against the size of the index that the run was made with."""
    return _chart(
        "index-bytes",
        "Quality against bytes of the index",
        tables,
        lambda line: line.index_bytes,
        lambda line: line.variant,
        "bytes of the index",
        note="A line joins the sizes, smallest first.",
    )


# ---------------------------------------------------------------------------------- how they are made


def _chart(
    name: str,
    title: str,
    tables: Sequence[GridTable],
    number: Number,
    part: Part,
    label: str,
    note: str,
    *,
    sizes: bool = False,
    untrained: bool = False,
    every: bool = False,
    where: str = "",
) -> Chart:
    """A panel a table, a series a (head, objective, `part`), points where `number` is known."""
    used = [(t, [x for x in _of(t, every) if number(x) is not None]) for t in tables]
    others = list(dict.fromkeys(part(x) for _, own in used for x in own))  # in order of the lines
    keys = sorted({_key(x, part) for _, own in used for x in own}, key=lambda k: _order(k, others))
    objectives = list(dict.fromkeys(key[1] for key in keys))
    together = len(keys) <= _MOST_SERIES
    # A panel an objective needs no look an objective: the legend is as short as a panel's.
    own_keys = {key: key if together else (key[0], None, key[2]) for key in keys}
    shared = looks(list(dict.fromkeys(own_keys.values())))
    look = {key: (series_label(own), shared[own]) for key, own in own_keys.items()}
    if together:
        split = [(table, own, table.benchmark.name) for table, own in used]
    else:
        split = [
            (t, [x for x in own if x.objective == o], f"{t.benchmark.name}, {objective_label(o)}")
            for t, own in used
            for o in objectives
        ]
    xs = [x for _, own in used for line in own if (x := number(line)) is not None]
    if untrained:
        xs += [x for t in tables for line in t.of(UNTRAINED) if (x := number(line)) is not None]
    axis = Axis(label, sizes or (bool(xs) and min(xs) > 0 and max(xs) / min(xs) > _LOG_FROM))
    # Cells of one budget spent the same, nearly: set apart, or they cover each other.
    narrow = bool(xs) and max(xs) < _NARROW * min(xs)
    if narrow and not sizes:
        middle = sorted(xs)[len(xs) // 2]
        axis = Axis(label, False, ((middle, quantity(middle)),))
        note += f" All lie within {100 * (max(xs) / min(xs) - 1):.1f} % and are set apart sideways."
    panels = tuple(
        _panel(table, own, panel, axis, look, number, part, sizes, untrained, sizes or narrow)
        for table, own, panel in split
    )
    several = any(table.seeds > 1 for table in tables)
    return Chart(
        name,
        title,
        panels,
        BARS_OF_SEEDS if several else BARS_OF_QUERIES,
        note,
        tuple(_filter(table, own, where, untrained) for table, own in used),
        columns=MOST_PANELS if together else len(objectives),
    )


def _of(table: GridTable, every: bool) -> list[Line]:
    return list(table.of(TRAINED)) if every else plain(table.lines)


def _filter(table: GridTable, used: Sequence[Line], where: str, untrained: bool) -> str:
    """The rows that are drawn, those of baselines included."""
    parts = [table.benchmark.primary_filter, *([where] if where else [])]
    kinds = [] if untrained else [UNTRAINED]
    if kinds and not where:
        parts.append(f"kind != {UNTRAINED!r}")
    left_out = {line.variant for line in table.of(TRAINED)} - {line.variant for line in used}
    if left_out:
        parts.append(f"variant not in {sorted(left_out, key=variant_rank)!r}")
    return " and ".join(parts)


def _panel(
    table: GridTable,
    lines: Sequence[Line],
    title: str,
    axis: Axis,
    look: dict[Key, tuple[str, Look]],
    number: Number,
    part: Part,
    sizes: bool,
    untrained: bool,
    apart: bool,
) -> Panel:
    found = ((key, [line for line in lines if _key(line, part) == key]) for key in look)
    series = [points(own, number, *look[key]) for key, own in found if own]
    if untrained:
        for head in sorted({x.head for x in table.of(UNTRAINED)}, key=lambda h: rank(HEADS, h)):
            own = [x for x in table.of(UNTRAINED) if x.head == head and number(x) is not None]
            label = f"{head or ''} {UNTRAINED}".strip()
            known = UNTRAINED_LOOKS.get(head or "", Look("v", "none", hollow=True))
            series += [points(own, number, label, known, UNTRAINED)] if own else []
    if sizes:
        known_sizes = {
            x.parameters: x.size or ""
            for x in (*lines, *table.of(UNTRAINED))
            if x.parameters is not None
        }
        ticks = tuple((float(n), f"{quantity(n)}\n{known_sizes[n]}") for n in sorted(known_sizes))
        axis = Axis(axis.label, axis.log, ticks)
    rules = tuple(Rule(line.system, line.estimate.value) for line in table.of(BASELINE))
    return Panel(title, axis, Axis(table.benchmark.primary), tuple(series), rules, apart)


def points(
    lines: Sequence[Line], number: Number, label: str, look: Look, role: str = "measured"
) -> Series:
    """Lines of a grid table as a series, in their order."""
    estimates = [line.estimate for line in lines]
    return Series(
        label,
        tuple(float(number(line) or 0) for line in lines),
        tuple(e.value for e in estimates),
        tuple(e.low for e in estimates),
        tuple(e.high for e in estimates),
        look,
        role,  # pyright: ignore[reportArgumentType]
        names=tuple(line.system for line in lines),
    )


def series_label(key: Key) -> str:
    """`sparse CL 1.60 TFLOPs`."""
    head, objective, other = key
    named = quantity(float(other), "FLOPs") if is_budget(other) else other
    return " ".join(part for part in (head or "", objective_label(objective), named) if part)


def _key(line: Line, part: Part) -> Key:
    return line.head, line.objective, part(line)


def _order(key: Key, others: Sequence[str]) -> tuple:
    head, objective, other = key
    return rank(HEADS, head), rank(OBJECTIVES, objective), others.index(other)
