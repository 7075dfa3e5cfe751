"""One record of a collection: a passage, a query or a judgement from a line, a JSON object or a table's row."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from raylab.data.faults import Kind, RecordError
from raylab.data.grammar import check_id, grade_of, judgement_line, seems, shortened


class Passage(NamedTuple):
    line: int
    passage_id: str
    title: str
    text: str


class Query(NamedTuple):
    line: int
    query_id: str
    text: str


class Judgement(NamedTuple):
    line: int
    query_id: str
    passage_id: str
    grade: int


def passage_of(number: int, record: Any, jsonl: bool) -> Passage:
    """The passage of a record; `RecordError` if it is none."""
    if isinstance(record, tuple):
        record = dict(zip(("_id", "title", "text"), record[1:], strict=True))
    if jsonl:
        record = _object(record)
    if isinstance(record, dict):
        title = "" if record.get("title") is None else _string(record, "title")
        passage = Passage(number, _string(record, "_id"), title, _string(record, "text"))
    else:
        passage_id, text = _id_and_text(record)
        passage = Passage(number, passage_id, "", text)
    check_id("passage", passage.passage_id)
    if not (passage.title.strip() or passage.text.strip()):
        raise RecordError(
            Kind.EMPTY,
            f"passage {passage.passage_id!r} has no text; --on-fault quarantine:empty leaves such out",
        )
    return passage


def query_of(number: int, record: Any, jsonl: bool) -> Query:
    """The query of a record; `RecordError` if it is none."""
    if jsonl:
        record = _object(record)
    if isinstance(record, dict):
        query = Query(number, _string(record, "_id"), _string(record, "text"))
    else:
        query = Query(number, *_id_and_text(record))
    if not query.query_id or not query.text.strip():
        raise RecordError(Kind.EMPTY, f"query {query.query_id!r} has an empty id or text")
    check_id("query", query.query_id)
    return query


def judgement_of(number: int, record: Any, beir: bool) -> Judgement:
    """The judgement of a record; `RecordError` if it is none."""
    if isinstance(record, dict):
        query_id, passage_id = _string(record, "query-id"), _string(record, "corpus-id")
        grade = str(record.get("score"))
    elif isinstance(record, tuple):
        query_id, passage_id, grade = record
    else:
        query_id, passage_id, grade = judgement_line(record, beir)
    value = grade_of(grade)
    check_id("query", query_id)
    check_id("passage", passage_id)
    return Judgement(number, query_id, passage_id, value)


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(Kind.FORMAT, f"not JSON ({error.msg}); one object a line") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets by the thousand
        raise RecordError(Kind.FORMAT, "not JSON that can be read; one object a line") from None
    if not isinstance(record, dict):
        raise RecordError(Kind.FORMAT, "not a JSON object; one object a line")
    return record


def _string(record: dict[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise RecordError(Kind.FORMAT, f"{key!r} is {shortened(repr(value))}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            Kind.ENCODING, f"{key!r} holds half a surrogate pair at character {error.start + 1}"
        ) from None
    return value


def _id_and_text(line: str) -> tuple[str, str]:
    first, tab, rest = line.partition("\t")
    if not tab:
        raise RecordError(Kind.FIELDS, f"1 fields, not 2; a line is ID<tab>TEXT{seems(line)}")
    return first, rest
