"""In domain and out of it side by side: slopes on size and exponents of laws, and whether they are the same."""

from __future__ import annotations

from collections.abc import Sequence

from raylab.report.formats import NOTHING, escaped, markdown_table, objective_label
from raylab.report.page.blocks import Block, columns
from raylab.report.page.law_texts import freedom_text, interval_text
from raylab.scaling import DomainDifference, Study
from raylab.scaling.claims import MARGIN
from raylab.scaling.domain_differences import EXPONENT_MARGIN

_TITLE = "In domain and out of domain"
_NAMES = (
    "head", "objective", "measure", "of", "part", "in domain", "out of domain", "value in domain",
    "value out of domain", "out less in", "verdict", "df", "runs / designs / seeds",
)  # fmt: skip


def block(study: Study) -> Block:
    """A line a slope or exponent and pair of benchmarks; means over collections first."""
    found = study.domains
    first = [one for one in found if one.split == "out of domain"]
    rows = [_line(one) for one in (*first, *(one for one in found if one not in first))]
    return Block(_TITLE, columns(_NAMES), tuple(rows), note=_note(found))


def to_markdown(study: Study) -> str:
    """The block as a section of Markdown; empty where nothing is compared."""
    if not study.domains:
        return ""
    made = block(study)
    names = [column.name for column in made.columns]
    body = [[escaped(text) for text in row] for row in made.rows]
    table = markdown_table(names, [not column.numeric for column in made.columns], body)
    return f"### {_TITLE}\n\n{table}\n\n{escaped(made.note)}\n"


def _line(one: DomainDifference) -> tuple[str, ...]:
    return (
        one.head,
        objective_label(one.objective),
        one.measure,
        f"{one.quantity}{f' of {one.law}' if one.law else ''}",
        one.where or "all",
        one.against,
        f"{one.collection} {one.split}",
        interval_text(one.inside),
        interval_text(one.outside),
        interval_text(one.difference),
        one.verdict,
        freedom_text(one),
        f"{one.n_runs} / {one.points} / {len(one.seeds)}",
    )


def _note(found: Sequence[DomainDifference]) -> str:
    if not found:
        return NOTHING
    return (
        "Slope: of the measure per decade of N (without head), within budgets. Exponents: of the fitted laws. The same "
        "runs are measured in both domains, so a difference has the noise of runs that differs between them "
        "alone; the queries of each collection are drawn among themselves. Brackets: 95 %. Same: the 90 % interval "
        f"of the difference lies within the margin ({MARGIN:g} of a slope, {EXPONENT_MARGIN:g} of an exponent); "
        "differs: the 95 % interval excludes 0. N collections out of domain: the mean of their means. df: of the "
        "difference."
    )
