"""The grid in the paper's layout: a row a size and head, a group of columns an objective, in Markdown and LaTeX.

Values are shares of 1 times 100, as in the paper; marks as in the grid tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich import box
from rich.table import Table
from rich.text import Text

from raylab.evaluation.domains import IN_DOMAIN, OUT_OF_DOMAIN, Domain
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
_MEASURES = {"RR@10": "MRR@10"}  # as means over queries are called
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
    """Rows under `names` (size, head and, if any, budget or variant), entries under `groups` x `columns`.

    `measures`, `domains`: of each column; those in domain stand before those out of it.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    columns: tuple[str, ...]
    measures: tuple[str, ...]
    domains: tuple[Domain, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Entry | None, ...]], ...]
    references: tuple[tuple[str, tuple[Entry | None, ...]], ...]
    note: str

    @property
    def empty(self) -> bool:
        return not self.rows

    @property
    def both_domains(self) -> bool:
        """Whether a column is out of domain, so that headings say which are."""
        return OUT_OF_DOMAIN in self.domains

    @property
    def headings(self) -> tuple[str, ...]:
        """Of each column: benchmark, measure, and where there are both its domain."""
        told = zip(self.columns, self.measures, self.domains, strict=True)
        return tuple(f"{c} {m}{f', {d}' if self.both_domains else ''}" for c, m, d in told)


@dataclass(frozen=True)
class _Column:
    """What a column is of: one table, or several of which it is the mean; its published column, if any."""

    name: str
    domain: Domain
    tables: tuple[GridTable, ...]
    published: str | None

    @property
    def measure(self) -> str:
        primary = self.tables[0].benchmark.primary
        return _MEASURES.get(primary, primary)

    def entry(self, lines: Sequence[Line | None]) -> Entry | None:
        """Of a line a table: its own, or the mean where every table has one."""
        if len(self.tables) == 1:
            return _entry(lines[0])
        values = [line.estimate.value for line in lines if line is not None]
        return Entry(fmean(values)) if len(values) == len(lines) else None


def layout(tables: Sequence[GridTable]) -> Layout:
    """The trained cells of every held-out table, and of MS MARCO dev, side by side.

    In domain before out of domain; in each MS MARCO dev, DL19, DL20, others by name, and more than three of
    BEIR's 13 sets as their mean, in one column that says of how many it is. The table of each is behind it.
    """
    columns = _columns(tables)
    candidates = [table for column in columns for table in column.tables]
    trained = [line for table in candidates for line in table.of(TRAINED)]
    varied = next((table.varied for table in candidates if table.varied), "")
    if any(table.varied == "variant" for table in candidates):
        varied = "variant"
    objectives = sorted({line.objective for line in trained}, key=lambda o: rank(OBJECTIVES, o))
    cells = list(dict.fromkeys(_cell(line) for line in trained))
    by_cell = {
        table.benchmark: {(_cell(x), x.objective): x for x in table.of(TRAINED)}
        for table in candidates
    }
    rows = []
    for cell in cells:
        entries = [
            column.entry([by_cell[t.benchmark].get((cell, objective)) for t in column.tables])
            for objective in objectives
            for column in columns
        ]
        size, head, variant = cell
        names = (size, head, *((variant_label(variant),) if varied else ()))
        rows.append((names, tuple(entries)))
    baselines = {x.system: None for table in candidates for x in table.of(BASELINE)}
    references = [(name, _baseline(name, columns, len(objectives))) for name in baselines]
    same = [column.published for column in columns]
    if any(same):
        references += [
            (f"{one.system} ({one.source})", _reference(one, same, objectives)) for one in PUBLISHED
        ]
    return Layout(
        ("size", "head", *((varied,) if varied else ())),
        tuple(objective_label(o) or NOTHING for o in objectives),
        tuple(column.name for column in columns),
        tuple(column.measure for column in columns),
        tuple(column.domain for column in columns),
        tuple(rows),
        tuple(references),
        _notes(trained, columns),
    )


def _columns(tables: Sequence[GridTable]) -> list[_Column]:
    columns = []
    for domain in (IN_DOMAIN, OUT_OF_DOMAIN):
        own = [
            t for t in tables
            if t.benchmark.domain == domain and (t.benchmark.held_out or _published(t))
        ]  # fmt: skip
        beir = [t for t in own if published.is_beir(*_where(t))]
        if len(beir) <= _FEW_SETS:
            beir = []
        alone = sorted((t for t in own if t not in beir), key=_published_first)
        for table in alone:
            known = _published(table)
            columns.append(_Column(known or table.benchmark.name, domain, (table,), known))
        if beir:
            name = _mean_name(len(beir))
            columns.append(_Column(name, domain, tuple(beir), name))
    return columns


def _where(table: GridTable) -> tuple[str, str]:
    return table.benchmark.collection, table.benchmark.split


def _published(table: GridTable) -> str | None:
    """The published column of the same benchmark and measure."""
    column = published.same_benchmark(*_where(table))
    return column if column and published.MEASURES[column] == table.benchmark.primary else None


def _published_first(table: GridTable) -> int:
    known = _published(table)
    return published.COLUMNS.index(known) if known else len(published.COLUMNS)


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


def _mean_name(sets: int) -> str:
    """What the mean over so many of BEIR's sets is called: over all of them, what is published."""
    every = len(published.BEIR_SETS)
    return published.BEIR if sets == every else f"BEIR, {sets} of {every} sets"


def _baseline(name: str, columns: Sequence[_Column], groups: int) -> tuple[Entry | None, ...]:
    """A system without an objective stands in the first group."""

    def line(table: GridTable) -> Line | None:
        return next((x for x in table.of(BASELINE) if x.system == name), None)

    entries = [column.entry([line(table) for table in column.tables]) for column in columns]
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


def _notes(trained: Sequence[Line], columns: Sequence[_Column]) -> str:
    parts = [_NOTE, *([BEST_NOTE] if trained else [])]
    if any(line.beats_twin for line in trained):
        parts.append(BEATS_NOTE)
    if any(column.domain == OUT_OF_DOMAIN for column in columns):
        parts.append("In domain: the collection whose queries trained the cells.")
    if any(len(column.tables) > 1 for column in columns):
        parts.append(
            "A mean is over the values of its sets; tests are of each set, none is of a mean."
        )
    if any(column.published for column in columns):
        parts.append(
            "Rows below the grid were not trained here; those without an objective of it stand in the first group."
        )
    return " ".join(parts)


# ----------------------------------------------------------------------------------------- as text


def to_markdown(grid: Layout) -> str:
    """The layout as a section of Markdown; empty without cells."""
    if grid.empty:
        return ""
    names = [*grid.names, *(f"{g} {heading}" for g in grid.groups for heading in grid.headings)]
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


def to_rich(grid: Layout) -> Table:
    """The layout for a terminal: a line a cell, a column a benchmark, without intervals."""
    table = Table(
        title=Text("The grid, x 100", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in (*grid.names, "objective"):
        table.add_column(Text(name), overflow="fold")
    for heading in grid.headings:
        table.add_column(Text(heading), justify="right", overflow="fold")
    width = len(grid.columns)
    for names, entries in grid.rows:
        for place, group in enumerate(grid.groups):
            _add_line(table, (*names, group), entries[place * width : (place + 1) * width])
    pad = ("",) * len(grid.names)
    for name, entries in grid.references:
        own = [entries[place::width] for place in range(width)]
        _add_line(table, (name, *pad), [next(filter(None, values), None) for values in own])
    return table


def _add_line(table: Table, names: Sequence[str], entries: Sequence[Entry | None]) -> None:
    if any(entries):
        texts = [NOTHING if entry is None else entry.marked for entry in entries]
        table.add_row(*map(Text, (*names, *texts)))


def latex(text: str) -> str:
    """A text as LaTeX sets it."""
    return re.sub(r"[&%$#_{}\\~^\u2020\u2264]", lambda match: _SPECIAL[match[0]], text)


def to_latex(grid: Layout) -> str:
    """A table (booktabs) to be set with `\\input`; each row's intervals stand small below its values."""
    if grid.empty:
        return "% No cell is trained in these results.\n"
    lead, width = len(grid.names), len(grid.columns)
    groups = [_latex_span(width, group) for group in grid.groups]
    rules = [
        rf"\cmidrule(lr){{{lead + 1 + i * width}-{lead + (i + 1) * width}}}"
        for i in range(len(groups))
    ]
    heads = [latex(f"{c} {m}") for c, m in zip(grid.columns, grid.measures, strict=True)]
    domains = [
        _latex_span(sum(own == domain for own in grid.domains), domain)
        for domain in dict.fromkeys(grid.domains)
    ]
    lines = [
        "% Made by raylab report; needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{'l' * lead}{'r' * (width * len(groups))}}}",
        r"\toprule",
        _row([""] * lead + groups),
        " ".join(rules),
        *([_row([""] * lead + domains * len(groups))] if grid.both_domains else []),
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


def _latex_span(columns: int, text: str) -> str:
    return rf"\multicolumn{{{columns}}}{{c}}{{{latex(text)}}}" if columns > 1 else latex(text)


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
