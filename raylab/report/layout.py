"""The grid in the paper's layout: a row a size and head, a group of columns an objective, in Markdown and LaTeX.

Values are shares of 1 times 100, as in the paper; marks as in the grid tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from raylab.report import published
from raylab.report.formats import (
    BEATS_NOTE,
    BEST_NOTE,
    NOTHING,
    escaped,
    markdown_table,
    objective_label,
    variant_label,
)
from raylab.report.published import PUBLISHED, Published
from raylab.report.rows import BASELINE, OBJECTIVES, TRAINED, Variation, rank
from raylab.report.tables import GridTable, Line

_FEW_SETS = 3  # of BEIR, that stand in the layout each for itself
_TEXT = ("size", "head", "budget", "variant")
_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2020": r"\dag{}",
    "\u2264": r"$\leq$",
}
_NOTE = "Values x 100. [low, high]: 95 % bootstrap interval over queries; (low..high): lowest to highest seed."


@dataclass(frozen=True)
class Entry:
    """A value of the layout: `18.3`, its interval or range, and its marks."""

    value: float
    spread: str = ""
    best: bool = False
    beats_twin: bool = False

    @property
    def marked(self) -> str:
        marks = f"{'*' if self.best else ''}{chr(0x2020) if self.beats_twin else ''}"
        return f"{100 * self.value:.1f}{marks}"


@dataclass(frozen=True)
class Layout:
    """Rows under `names` (size, head and, if any, budget or variant), entries under `groups` x `columns`."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    columns: tuple[str, ...]
    measures: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Entry | None, ...]], ...]
    references: tuple[tuple[str, tuple[Entry | None, ...]], ...]
    note: str

    @property
    def empty(self) -> bool:
        return not self.rows


def layout(tables: Sequence[GridTable]) -> Layout:
    """The trained cells of every held-out table, and of MS MARCO dev, side by side.

    More than three of BEIR's 13 sets stand as their mean, in one column that says of how many it is; the
    table of each is behind it.
    """
    candidates = [t for t in tables if t.benchmark.held_out or _published(t) is not None]
    beir = [t for t in candidates if published.is_beir(*_where(t))]
    if len(beir) <= _FEW_SETS:
        beir = []
    shown = [t for t in candidates if t not in beir]
    mean = (_mean_name(len(beir)),) if beir else ()
    trained = [line for table in candidates for line in table.of(TRAINED)]
    varied = next((table.varied for table in candidates if table.varied), "")
    if any(table.varied == "variant" for table in candidates):
        varied = "variant"
    objectives = sorted({line.objective for line in trained}, key=lambda o: rank(OBJECTIVES, o))
    cells = list(dict.fromkeys(_cell(line) for line in trained))
    by_cell, of_beir = (
        [{(_cell(x), x.objective): x for x in table.of(TRAINED)} for table in some]
        for some in (shown, beir)
    )
    rows = []
    for cell in cells:
        entries: list[Entry | None] = []
        for objective in objectives:
            entries += [_entry(lines_of.get((cell, objective))) for lines_of in by_cell]
            if beir:
                entries.append(_mean([lines_of.get((cell, objective)) for lines_of in of_beir]))
        size, head, variant = cell
        names = (size, head, *((variant_label(variant),) if varied else ()))
        rows.append((names, tuple(entries)))
    baselines = {x.system: None for table in candidates for x in table.of(BASELINE)}
    columns = [*(table.benchmark.name for table in shown), *mean]
    references = [(name, _baseline(name, shown, beir, len(objectives))) for name in baselines]
    same = [*map(_published, shown), *mean]
    if any(same):
        references += [
            (f"{one.system} ({one.source})", _reference(one, same, objectives)) for one in PUBLISHED
        ]
    return Layout(
        ("size", "head", *((varied,) if varied else ())),
        tuple(objective_label(o) or NOTHING for o in objectives),
        tuple(columns),
        tuple(t.benchmark.primary for t in shown) + (("nDCG@10",) if beir else ()),
        tuple(rows),
        tuple(references),
        _notes(trained, any(same)),
    )


def _where(table: GridTable) -> tuple[str, str]:
    return table.benchmark.collection, table.benchmark.split


def _published(table: GridTable) -> str | None:
    """The published column of the same benchmark and measure."""
    column = published.same_benchmark(*_where(table))
    return column if column and published.MEASURES[column] == table.benchmark.primary else None


def _cell(line: Line) -> tuple[str, str, Variation]:
    return line.size or NOTHING, line.head or NOTHING, line.variant


def _entry(line: Line | None) -> Entry | None:
    if line is None:
        return None
    e, spread = line.estimate, ""
    if e.low is not None and e.high is not None:
        low, high = f"{100 * e.low:.1f}", f"{100 * e.high:.1f}"
        spread = f"({low}..{high})" if e.seeds > 1 else f"[{low}, {high}]"
    return Entry(e.value, spread, line.best, line.beats_twin)


def _mean(lines: Sequence[Line | None]) -> Entry | None:
    values = [line.estimate.value for line in lines if line is not None]
    return Entry(fmean(values)) if len(values) == len(lines) else None


def _mean_name(sets: int) -> str:
    """What the mean over so many of BEIR's sets is called: over all of them, what is published."""
    every = len(published.BEIR_SETS)
    return published.BEIR if sets == every else f"BEIR, {sets} of {every} sets"


def _baseline(
    name: str, shown: Sequence[GridTable], beir: Sequence[GridTable], groups: int
) -> tuple[Entry | None, ...]:
    """A system without an objective stands in the first group."""

    def lines(tables: Sequence[GridTable]) -> list[Line | None]:
        return [next((x for x in t.of(BASELINE) if x.system == name), None) for t in tables]

    entries = [_entry(line) for line in lines(shown)] + ([_mean(lines(beir))] if beir else [])
    return tuple(entries + [None] * (len(entries) * (groups - 1)))


def _reference(
    one: Published, same: Sequence[str | None], objectives: Sequence[str | None]
) -> tuple[Entry | None, ...]:
    """In the group of its objective, where the grid has it, else in the first."""
    values = [one.values.get(name) if name else None for name in same]
    entries = [None if value is None else Entry(value) for value in values]
    place = objectives.index(one.objective) if one.objective in objectives else 0
    blank: list[Entry | None] = [None] * len(entries)
    return tuple(e for i in range(len(objectives)) for e in (entries if i == place else blank))


def _notes(trained: Sequence[Line], references: bool) -> str:
    parts = [_NOTE, *([BEST_NOTE] if trained else [])]
    if any(line.beats_twin for line in trained):
        parts.append(BEATS_NOTE)
    if references:
        parts.append(
            "Rows below the grid were not trained here; those without an objective of it stand in the first group."
        )
    return " ".join(parts)


# ----------------------------------------------------------------------------------------- as text


def to_markdown(grid: Layout) -> str:
    """The layout as a section of Markdown; empty without cells."""
    if grid.empty:
        return ""
    names = [*grid.names, *(f"{g} {c}" for g in grid.groups for c in grid.columns)]
    body = [
        [*map(escaped, row_names), *map(_markdown, entries)] for row_names, entries in grid.rows
    ]
    pad = [""] * (len(grid.names) - 1)
    body += [[escaped(name), *pad, *map(_markdown, entries)] for name, entries in grid.references]
    table = markdown_table(names, [name in _TEXT for name in names], body)
    return f"### The grid\n\n{table}\n\n{escaped(grid.note)}\n"


def _markdown(entry: Entry | None) -> str:
    if entry is None:
        return NOTHING
    text = escaped(f"{entry.marked} {entry.spread}".strip())
    return f"**{text}**" if entry.best else text


def published_markdown() -> str:
    """What others published, as a section of Markdown."""
    names = ("system", *published.COLUMNS, "source")
    body = [
        [
            f"{one.system} ({one.about})",
            *(f"{100 * v:.1f}" if (v := one.values.get(c)) else NOTHING for c in published.COLUMNS),
            one.source,
        ]
        for one in PUBLISHED
    ]
    table = markdown_table(names, [name in ("system", "source") for name in names], body)
    measures = "MS MARCO dev: MRR@10, others nDCG@10; values x 100."
    return f"### Published, not measured here\n\n{table}\n\n{measures}\n"


def latex(text: str) -> str:
    """A text as LaTeX sets it."""
    return re.sub(r"[&%$#_{}\\~^\u2020\u2264]", lambda match: _SPECIAL[match[0]], text)


def to_latex(grid: Layout) -> str:
    """A table (booktabs) to be set with `\\input`; each row's intervals stand small below its values."""
    if grid.empty:
        return "% No cell is trained in these results.\n"
    lead, width = len(grid.names), len(grid.columns)
    groups = [
        rf"\multicolumn{{{width}}}{{c}}{{{latex(group)}}}" if width > 1 else latex(group)
        for group in grid.groups
    ]
    rules = [
        rf"\cmidrule(lr){{{lead + 1 + i * width}-{lead + (i + 1) * width}}}"
        for i in range(len(groups))
    ]
    heads = [latex(f"{c} {m}") for c, m in zip(grid.columns, grid.measures, strict=True)]
    lines = [
        "% Made by raylab report; needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{'l' * lead}{'r' * (width * len(groups))}}}",
        r"\toprule",
        _row([""] * lead + groups),
        " ".join(rules),
        _row([*map(latex, grid.names), *heads * len(groups)]),
        r"\midrule",
    ]
    before = ""
    for names, entries in grid.rows:
        if before and names[0] != before:
            lines.append(r"\addlinespace")
        before = names[0]
        lines += _latex_rows([latex(name) for name in names], entries)
    if grid.references:
        lines.append(r"\midrule")
    for name, entries in grid.references:
        lines += _latex_rows([latex(name), *[""] * (lead - 1)], entries)
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{latex(grid.note)}}}",
        r"\end{table}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _latex_rows(names: Sequence[str], entries: Sequence[Entry | None]) -> list[str]:
    values = ["--" if entry is None else _latex(entry) for entry in entries]
    spreads = [rf"{{\scriptsize {e.spread}}}" if e and e.spread else "" for e in entries]
    rows = [_row([*names, *values])]
    return rows + ([_row([*[""] * len(names), *spreads])] if any(spreads) else [])


def _latex(entry: Entry) -> str:
    text = latex(entry.marked.replace("*", ""))
    return rf"\textbf{{{text}}}\textsuperscript{{*}}" if entry.best else text


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
