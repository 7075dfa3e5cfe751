"""The charts of the grid tables: quality against size, FLOPs, sparsity and bytes of the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raylab.report.charts.chart import MOST_PANELS, Chart
from raylab.report.charts.drawing import Panel, Row, draw
from raylab.report.charts.theme import REFERENCE_STYLE, Key, Other, labels, styles, untrained_style
from raylab.report.formats import objective_label, quantity
from raylab.report.rows import BASELINE, HEADS, OBJECTIVES, TRAINED, UNTRAINED, rank
from raylab.report.tables import GridTable, Line

_MOST_SERIES = 12  # that a panel shows; more are split by objective
_BARS_OF_QUERIES = "bars: 95 % bootstrap\ninterval over queries"
_BARS_OF_SEEDS = "bars: lowest to highest\nseed (one seed: 95 %\ninterval over queries)"
_NARROW = 1.05  # a range within this is one place, where series are set apart
_LOG_FROM = 3.0  # a wider range than this is drawn on a logarithmic axis

Number = Callable[[Line], float | None]
Part = Callable[[Line], Other]
Selected = Sequence[tuple[GridTable, Sequence[Line]]]
"""Tables, each with the trained lines of it that a chart shows."""


@dataclass(frozen=True)
class _View:
    """What quality is shown against. `sizes`: of the model, where untrained lines are shown too."""

    number: Number
    label: str
    sizes: bool = False


def charts(tables: Sequence[GridTable]) -> list[Chart]:
    """The charts of these tables, a panel each; all but the first are left out where they have no data."""
    drawn = (scaling(tables), flops(tables), sparsity(tables), index_bytes(tables))
    return [chart for chart in drawn if chart is not None]


def scaling(tables: Sequence[GridTable]) -> Chart | None:
    """Quality against the number of non-embedding parameters."""
    return _chart(
        "scaling",
        "Quality against size",
        [(table, _plain(table)) for table in tables],
        [_View(lambda line: line.parameters, "non-embedding parameters", sizes=True)],
        lambda line: line.variant,
        "Points of one size are set apart sideways, so that their bars can be told from each other. "
        "Hollow: untrained.",
    )


def flops(tables: Sequence[GridTable]) -> Chart | None:
    """Quality against the FLOPs that fine-tuning was measured to take."""
    selected = [(table, _plain(table)) for table in tables]
    budgets = len({line.variant for _, lines in selected for line in lines}) > 1
    return _chart(
        "flops",
        "Quality against measured compute",
        selected,
        [_View(lambda line: line.spent_flops, "FLOPs of fine-tuning, measured")],
        (lambda line: line.size or "") if budgets else (lambda line: line.variant),
        "A line joins the budgets of one size." if budgets else "A line joins the sizes.",
        f"kind != {UNTRAINED!r}",
    )


def sparsity(tables: Sequence[GridTable]) -> Chart | None:
    """Quality of sparse cells against terms a passage, and against terms that scores multiply."""
    selected = []
    for table in tables:
        lines = tuple(line for line in table.of(TRAINED) if line.passage_postings is not None)
        selected.append((GridTable(table.benchmark, lines), lines))
    varied = any(table.varied for table, _ in selected)
    return _chart(
        "sparsity",
        "Quality against sparsity",
        selected,
        [
            _View(lambda line: line.passage_postings, "terms a passage, mean"),
            _View(
                lambda line: line.retrieval_flops, "terms that a query and a passage share, mean"
            ),
        ],
        (lambda line: line.size or "") if varied else (lambda line: ""),
        "Sparse cells, as indexed (Top-K pruning included). "
        + ("A line joins the variants of one size." if varied else "A line joins the sizes."),
        "head == 'sparse' and kind == 'trained'",
        columns=2,
    )


def index_bytes(tables: Sequence[GridTable]) -> Chart | None:
    """Quality against the size of the index that the run was made with."""
    return _chart(
        "index-bytes",
        "Quality against bytes of the index",
        [(table, _plain(table)) for table in tables],
        [_View(lambda line: line.index_bytes, "bytes of the index")],
        lambda line: line.variant,
        "A line joins the sizes, smallest first.",
        f"kind != {UNTRAINED!r}",
    )


def _plain(table: GridTable) -> Sequence[Line]:
    """Trained lines of the plain recipe and of budgets; all where there are none."""
    trained = table.of(TRAINED)
    return [
        line for line in trained if not line.variant or line.variant.budget_flops is not None
    ] or trained


# ---------------------------------------------------------------------------------- how they are made


def _chart(
    name: str,
    title: str,
    selected: Selected,
    views: Sequence[_View],
    part: Part,
    note: str,
    where: str = "",
    columns: int = MOST_PANELS,
) -> Chart | None:
    """A panel a table and view, a series a (head, objective, `part`).

    None where there is nothing to show; of sizes there is always a chart.
    """

    def key_of(line: Line) -> Key:
        return line.head, line.objective, part(line)

    selected = [
        (table, [x for x in lines if any(view.number(x) is not None for view in views)])
        for table, lines in selected
    ]
    trained = [line for _, lines in selected for line in lines]
    others = list(dict.fromkeys(map(part, trained)))  # in the order of the lines
    keys = sorted({key_of(line) for line in trained}, key=lambda key: _order(key, others))
    split = [(table.benchmark.name, table, lines) for table, lines in selected]
    shown_key = {key: key for key in keys}
    if len(keys) > _MOST_SERIES:
        # A panel an objective needs no style an objective: the legend is as short as a panel's.
        shown_key = {key: (key[0], None, key[2]) for key in keys}
        objectives = list(dict.fromkeys(key[1] for key in keys))
        columns = len(objectives)
        split = [
            (f"{about}, {objective_label(o)}", table, [x for x in lines if x.objective == o])
            for about, table, lines in split
            for o in objectives
        ]
    label_of = labels(shown_key.values())
    style_of = {label_of[key]: style for key, style in styles(list(label_of)).items()}
    untrained = [x for table, _ in selected for x in table.of(UNTRAINED) if views[0].sizes]
    heads = sorted({line.head for line in untrained}, key=lambda head: rank(HEADS, head))
    style_of |= {_untrained_label(head): untrained_style(head) for head in heads}
    axes = [_axis(view, [*trained, *untrained]) for view in views]
    panels = []
    for about, table, lines in split:
        ordered = sorted(lines, key=lambda line: keys.index(key_of(line)))
        for view, (axis, _) in zip(views, axes, strict=True):
            rows = [point(x, view.number(x), label_of[shown_key[key_of(x)]]) for x in ordered]
            if view.sizes:
                rows += [
                    point(x, view.number(x), _untrained_label(x.head)) for x in table.of(UNTRAINED)
                ]
            rows = [row for row in rows if row["x"] is not None] + references(table)
            style_of |= {row["series"]: REFERENCE_STYLE for row in references(table)}
            panels.append(Panel(about, view.label, table.benchmark.primary, rows, **axis))
    panels = [panel for panel in panels if panel.rows] or panels[:1]
    if not views[0].sizes and not any(panel.points for panel in panels):
        return None
    return Chart(
        name,
        title,
        draw(panels, style_of, bars_of(trained), columns),
        " ".join(sentence for sentence in (note, *(about for _, about in axes)) if sentence),
        tuple(_filter(table, lines, where) for table, lines in selected),
    )


def _order(key: Key, others: Sequence[Other]) -> tuple:
    head, objective, other = key
    return rank(HEADS, head), rank(OBJECTIVES, objective), others.index(other)


def _untrained_label(head: str | None) -> str:
    return f"{head or ''} {UNTRAINED}".strip()


def _axis(view: _View, lines: Sequence[Line]) -> tuple[dict[str, Any], str]:
    """Scale and ticks of a panel, and a note where all that was measured is one place, nearly."""
    values = sorted({x for line in lines if (x := view.number(line)) is not None})
    if view.sizes:
        size_of = {line.parameters: line.size or "" for line in lines}
        ticks = tuple((float(n), f"{quantity(n)}\n{size_of[int(n)]}") for n in values)
        return {"log": True, "apart": True, "ticks": ticks}, ""
    if values and values[-1] < _NARROW * values[0]:
        middle = values[len(values) // 2]
        within = f"{100 * (values[-1] / values[0] - 1):.1f} %"
        note = f"All {view.label}: within {within} of each other, and set apart sideways."
        return {"apart": True, "ticks": ((middle, quantity(middle)),)}, note
    return {"log": bool(values) and 0 < values[0] * _LOG_FROM < values[-1]}, ""


def _filter(table: GridTable, lines: Sequence[Line], where: str) -> str:
    """The rows that are drawn, those of baselines included."""
    parts = [table.benchmark.primary_filter, *([where] if where else [])]
    left_out = {line.variant for line in table.of(TRAINED)} - {line.variant for line in lines}
    if left_out:
        names = [v.name for v in sorted(left_out, key=lambda variant: variant.rank)]
        parts.append(f"variant not in {names!r}")
    return " and ".join(parts)


def bars_of(lines: Sequence[Line]) -> str:
    """What the bars of these lines are: the legend's heading."""
    seeds = max((line.estimate.seeds for line in lines), default=1)
    return _BARS_OF_SEEDS if seeds > 1 else _BARS_OF_QUERIES


def point(line: Line, x: float | None, label: str) -> Row:
    """A line of a grid table as a row of a panel, in its own role."""
    estimate = line.estimate
    return {
        "series": label,
        "mark": label,
        "role": line.kind,
        "system": line.system,
        "x": x,
        "y": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
    }


def references(table: GridTable) -> list[Row]:
    """The systems that are not of the grid, each a horizontal line."""
    return [
        {"series": line.system, "role": BASELINE, "system": line.system, "y": line.estimate.value}
        for line in table.of(BASELINE)
    ]
