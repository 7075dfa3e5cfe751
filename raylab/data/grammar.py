"""What every reader of text files agrees on: blanks, numbers, ids, and what a line seems to be.

Blanks are those of C's `isspace` in the C locale, as trec_eval and awk part a line: a no-break space, an
ideographic space or a file separator is part of an id. A number is what C's `strtod` reads whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from raylab.data.faults import Kind, RecordError

BLANKS = " \t\n\v\f\r"
FLOAT32_MAX = float(np.finfo(np.float32).max)
LARGEST_GRADE = 32_767
BEIR_HEADER = "query-id<tab>corpus-id<tab>score"
JUDGEMENT_COLUMNS = {
    "query-id": ("query-id", "query_id"),
    "corpus-id": ("corpus-id", "corpus_id", "passage_id"),
    "score": ("score", "grade"),
}
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_HEXADECIMAL = re.compile(
    r"[+-]?0[xX]([0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)([pP][+-]?[0-9]+)?"
)
_SHOWN = 80


def fields(line: str) -> list[str]:
    """The parts of a line between blanks."""
    return [part.decode() for part in line.encode().split()]  # of bytes, `split` knows ASCII alone


def is_blank(line: str) -> bool:
    """Whether there is nothing on a line but blanks."""
    return not line.strip(BLANKS)


def number(text: str) -> float | None:
    """The finite number that `strtod` reads of a whole text; None for any other text."""
    try:
        if _DECIMAL.fullmatch(text):
            value = float(text)
        elif _HEXADECIMAL.fullmatch(text):
            value = float.fromhex(text)
        else:
            return None
    except (ValueError, OverflowError):  # thousands of digits
        return None
    return value if math.isfinite(value) else None


def score_of(text: str) -> float:
    """A score of a run.

    Raises:
        RecordError: no finite float32 number.
    """
    value = number(text)
    if value is None or abs(value) > FLOAT32_MAX:
        raise RecordError(
            Kind.SCORE,
            f"score {shortened(text)!r}; a score is a finite float32 number such as 12.5",
        )
    return value


def grade_of(text: str) -> int:
    """A grade of a judgement.

    Raises:
        RecordError: no whole number, or one that is too large.
    """
    value = number(text)
    if value is None or not value.is_integer() or abs(value) > LARGEST_GRADE:
        raise RecordError(
            Kind.GRADE,
            f"grade {shortened(text)!r}; it must be a whole number between -{LARGEST_GRADE} and "
            f"{LARGEST_GRADE}",
        )
    return int(value)


def check_id(kind: str, value: str) -> None:
    """Raise `RecordError` for an id that no run file could hold."""
    if is_blank(value):
        raise RecordError(Kind.ID, f"the {kind} id is empty")
    if "\0" in value or fields(value) != [value]:
        raise RecordError(
            Kind.ID, f"{kind} id {value!r} holds white space or NUL; run files cannot"
        )


def run_line(line: str) -> tuple[str, str, float]:
    """(query id, passage id, score) of a line of a TREC run.

    Raises:
        RecordError: it is none; the message says what it seems to be.
    """
    parts = fields(line)
    if len(parts) != 6:
        raise RecordError(
            Kind.FIELDS,
            f"{len(parts)} columns; a run has 6: query Q0 passage rank score tag{seems(line)}",
        )
    return parts[0], parts[2], score_of(parts[4])


def is_beir_header(line: str) -> bool:
    """Whether a line names the columns of BEIR's judgements."""
    parts = fields(line)
    known = JUDGEMENT_COLUMNS.values()
    return len(parts) == 3 and all(part in names for part, names in zip(parts, known, strict=True))


def is_header(line: str, columns: Mapping[str, Sequence[str]]) -> bool:
    """Whether a line of ID<tab>TEXT names its columns, as a Parquet file of the same would."""
    parts = line.split("\t")
    names = (columns["_id"], columns["text"])
    return len(parts) == 2 and all(part in known for part, known in zip(parts, names, strict=True))


def judgement_line(line: str, beir: bool) -> tuple[str, str, str]:
    """(query id, passage id, grade as text) of a line of judgements.

    Args:
        beir: three columns, below their header line; else TREC's four.

    Raises:
        RecordError: another count of columns; the message says what the line seems to be.
    """
    parts = fields(line)
    if beir:
        if len(parts) != 3:
            raise RecordError(
                Kind.FIELDS,
                f"{len(parts)} fields, not 3; a line is QUERY<tab>PASSAGE<tab>GRADE{seems(line)}",
            )
        return parts[0], parts[1], parts[2]
    if len(parts) != 4:
        raise RecordError(
            Kind.FIELDS,
            f"{len(parts)} fields, not 4; a line is QUERY 0 PASSAGE GRADE{_of_judgements(line, parts)}",
        )
    return parts[0], parts[2], parts[3]


def _of_judgements(line: str, parts: Sequence[str]) -> str:
    """What three columns may be; else as `seems`."""
    if len(parts) != 3:
        return seems(line)
    if number(parts[2]) is None:
        return (
            f", or the file begins with BEIR's header line, which reads {BEIR_HEADER} and not "
            f"{shortened('<tab>'.join(parts))}"
        )
    return f"; three fields are BEIR's form, which begins with the header line {BEIR_HEADER}"


def seems(line: str) -> str:
    """What a line that is none of the wanted form looks like, as the end of a sentence; or nothing."""
    parts = fields(line)
    if line.lstrip(BLANKS).startswith("{"):
        return "; this looks like JSON lines"
    if len(parts) == 6 and number(parts[4]) is not None:
        return "; this looks like a run (query Q0 passage rank score tag)"
    if len(parts) == 4 and number(parts[3]) is not None:
        return "; this looks like TREC qrels (QUERY 0 PASSAGE GRADE)"
    if is_beir_header(line):
        return "; this looks like the header of BEIR's qrels"
    if len(parts) == 3 and number(parts[2]) is not None:
        return "; this looks like BEIR's qrels, or a run of QUERY PASSAGE RANK"
    if "," in line and len(parts) < 3 and line.count(",") >= 2:
        return "; this looks like comma-separated values"
    return ""


def shortened(text: str) -> str:
    """A text as messages show it."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
