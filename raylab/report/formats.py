"""The tables as text: cells, Markdown, CSV and rich, from the same strings."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from raylab.evaluation.domains import OUT_OF_DOMAIN
from raylab.experiment.objectives import OBJECTIVES
from raylab.report.rows import TRAINED, UNTRAINED, Benchmark, Result, Variation, benchmarks
from raylab.report.tables import GridTable, Line

NOTHING = "-"
BEST_NOTE = "*: the best trained cell of its head on this split."
BELOW = "below untrained"
BEATS, BEATS_NOTE = (
    "\u2020",
    "\u2020: better than its twin of the other head, otherwise alike (paired t-test over queries, Holm "
    "over a family, p \u2264 0.05: in domain all such pairs of this split and measure, out of domain those of all "
    "collections by this measure).",
)
_TEXT = ("size", "head", "objective", "variant", "budget")
_GAIN = "vs untrained"
_UNTRAINED_WIDTH = len("untrained")  # a column that breaks between words, not within one
EFFICIENCY = ("passage_postings", "query_postings", "retrieval_flops", "index_bytes", "query_ms")
_FACTS = (
    "collection",
    "split",
    "kind",
    "system",
    "size",
    "parameters",
    "head",
    "objective",
    "seed",
    "queries",
    "budget_flops",
    "spent_flops",
    "steps",
    "seconds",
    *EFFICIENCY,
    "fingerprint",
    "variant",
    "tokens",
    "examples",
    "head_parameters",
    "epochs",
    "charged_flops",
)


def quantity(value: float | None, unit: str = "") -> str:
    """Three digits and an SI prefix (`1.23 M`); powers of ten beyond 1e15 (`4.10e+19`)."""
    if value is None:
        return NOTHING
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if 0.9995 * 10**power <= abs(value) < 0.9995e15:  # what rounds to 1000 is 1.00 of the next
            return f"{_three_digits(value / 10**power)} {prefix}{unit}"
    if abs(value) >= 0.9995e15:
        return f"{value:.2e} {unit}".rstrip()
    return f"{value:.0f} {unit}".rstrip()


def _three_digits(value: float) -> str:
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def count(value: float | None) -> str:
    """A whole number with thousands marked: `12,345`."""
    return NOTHING if value is None else f"{value:,.0f}"


def objective_label(objective: str | None) -> str:
    """`CL+KD` for `cl+kd`."""
    known = OBJECTIVES.get(objective or "")
    return known.label if known is not None else objective or ""


def variant_label(variant: Variation) -> str:
    """A budget as FLOPs (`1.60 T`), another variant by its name."""
    if variant.budget_flops is not None:
        return quantity(variant.budget_flops)
    return variant.name or NOTHING


def header(table: GridTable) -> tuple[str, ...]:
    """The names of the columns of a grid table; one of variants only where cells have any."""
    varied = (table.varied,) if table.varied else ()
    measured = (table.benchmark.primary, _GAIN, "steps", "FLOPs")
    return ("size", "head", "objective", *varied, *measured)


def cells(line: Line, varied: str = "") -> tuple[str, ...]:
    """The strings of a line, as many as `header` names; `varied` is that of its table."""
    blank = ("",) if varied else ()
    if line.kind not in (TRAINED, UNTRAINED):
        return (line.system, "", "", *blank, str(line.estimate), "", "", "")
    identity = (line.size or NOTHING, line.head or NOTHING)
    if line.kind == UNTRAINED:
        return (*identity, UNTRAINED, *blank, str(line.estimate), "", "", "")
    return (
        *identity,
        objective_label(line.objective) or NOTHING,
        *((variant_label(line.variant),) if varied else ()),
        f"{'* ' if line.best else ''}{line.estimate}{f' {BEATS}' if line.beats_twin else ''}",
        gain_text(line),
        count(line.steps),
        quantity(line.spent_flops),
    )


def gain_text(line: Line) -> str:
    """A cell's gain over its untrained line; says how many of several seeds end below it."""
    if line.gain is None:
        return NOTHING
    seeds = line.estimate.seeds
    text = f"{line.gain:+.3f}"
    if line.below_untrained:
        text += f" {BELOW}"
    if line.seeds_below and seeds > 1:
        counted = f"{line.seeds_below} of {seeds} seeds"
        text += f" ({counted})" if line.below_untrained else f" ({counted} {BELOW})"
    return text


def note(table: GridTable) -> str:
    """What stands behind the values of a grid table, and what its marks mean."""
    over_queries = "95 % percentile bootstrap interval over queries"
    if table.seeds <= 1:
        values = f"Mean over queries [{over_queries}]."
    else:
        values = (
            f"Mean over up to {table.seeds} seeds (lowest..highest seed); where there is one seed, "
            f"mean over queries [{over_queries}]."
        )
    marks = [BEST_NOTE] if table.of(TRAINED) else []
    if any(line.beats_twin for line in table.lines):
        marks.append(BEATS_NOTE)
    return " ".join((values, *marks))


def title(table: GridTable) -> str:
    """Benchmark, whether it is validation or out of domain, measure and number of queries."""
    benchmark = table.benchmark
    queries = "" if benchmark.queries is None else f", {count(benchmark.queries)} queries"
    return f"{benchmark.name}{kind_of(benchmark)}: {benchmark.primary}{queries}"


def kind_of(benchmark: Benchmark) -> str:
    """` (validation)`, ` (out of domain)`, or nothing: held out, in domain."""
    if benchmark.domain == OUT_OF_DOMAIN:
        return f" ({OUT_OF_DOMAIN})"
    return "" if benchmark.held_out else " (validation)"


def to_rich(table: GridTable) -> Table:
    """The grid table for a terminal or a log of 80 columns."""
    grid = Table(
        title=Text(title(table), style="bold"),
        caption=Text(note(table)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    for name in header(table):
        grid.add_column(
            Text(name),
            justify="left" if name in _TEXT else "right",
            no_wrap=name == table.benchmark.primary,
            overflow="fold",
            min_width=_UNTRAINED_WIDTH if name == _GAIN else None,
        )
    for line in table.lines:
        style = "bold" if line.best else "red" if line.below_untrained else None
        grid.add_row(*map(Text, cells(line, table.varied)), style=style)
    return grid


def to_markdown(tables: Sequence[GridTable]) -> str:
    """All grid tables, held-out splits first; the validation ones under a smaller heading."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: GridTable) -> str:
    names = header(table)
    body = [_markdown_cells(line, table.varied) for line in table.lines]
    heading = "###" if table.benchmark.held_out else "####"
    lined = markdown_table(names, [name in _TEXT for name in names], body)
    return f"{heading} {title(table)}\n\n{lined}\n\n{escaped(note(table))}\n"


def markdown_table(
    names: Sequence[str], is_text: Sequence[bool], body: Sequence[Sequence[str]]
) -> str:
    """A Markdown table, of cells that are escaped already; numbers to the right."""
    rule = [":--" if text else "--:" for text in is_text]
    return "\n".join("| " + " | ".join(line) + " |" for line in (names, rule, *body))


def _markdown_cells(line: Line, varied: str) -> list[str]:
    texts = [escaped(text) for text in cells(line, varied)]
    return [f"**{text}**" if line.best and text else text for text in texts]


def escaped(text: str) -> str:
    """A text as Markdown shows it, in a cell or outside."""
    return text.replace("|", "\\|").replace("*", "\\*")


def to_csv(rows: Sequence[Result]) -> str:
    """All measures in full precision, side by side: a line a (system, seed, split)."""
    measures = list(dict.fromkeys(m for benchmark in benchmarks(rows) for m in benchmark.measures))
    parts = ("", " low", " high")
    lines: dict[tuple, dict[str, object]] = {}
    for row in rows:
        facts = {name: getattr(row, name) for name in _FACTS}
        line = lines.setdefault((row.collection, row.split, row.kind, row.system, row.seed), facts)
        values = (row.value, row.ci_low, row.ci_high)
        line.update({row.measure + part: v for part, v in zip(parts, values, strict=True)})
    buffer = io.StringIO()
    columns = [*_FACTS, *(measure + part for measure in measures for part in parts)]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines.values())
    return buffer.getvalue()
