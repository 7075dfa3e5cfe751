"""A small collection in every format, and records of it that are faulty in a known way."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from raylab.data.faults import QUARANTINE, Kind
from raylab.data.ingest import write_collection
from raylab.data.sources import open_collection

PASSAGES = [(f"p{i:02d}", f"Title {i}", f"text of passage {i}, naïve") for i in range(12)]
QUERIES = [(f"q{i}", f"question {i}?") for i in range(5)]
JUDGED = [(f"q{i}", f"p{i * 2:02d}", i % 3) for i in range(5)]


# ------------------------------------------------------------------------------ good records


def passage_line(form: str, passage) -> bytes:
    passage_id, title, text = passage
    if form.startswith("tsv"):
        return f"{passage_id}\t{text}".encode()
    return json.dumps({"_id": passage_id, "title": title, "text": text}).encode()


def query_line(form: str, query) -> bytes:
    if form.startswith("tsv"):
        return "\t".join(query).encode()
    return json.dumps({"_id": query[0], "text": query[1]}).encode()


def judgement_line(form: str, judged) -> bytes:
    query_id, passage_id, grade = judged
    own = (query_id, "0", passage_id) if form.startswith("tsv") else (query_id, passage_id)
    return "\t".join((*own, str(grade))).encode()


def packed(form: str, data: bytes) -> bytes:
    if form.endswith(".gz"):
        return gzip.compress(data, 1)
    return pa.compress(data, "zstd", asbytes=True) if form.endswith(".zst") else data


def paths(folder: Path, form: str) -> dict[str, Path]:
    if form.startswith("tsv"):
        names = (f"collection.{form}", f"queries.test.{form}", f"qrels.test.{form}")
    elif form == "parquet":
        names = ("corpus.parquet", "queries.parquet", "qrels/test.parquet")
    else:
        names = (f"corpus.{form}", f"queries.{form}", "qrels/test.tsv")
    return {k: folder / n for k, n in zip(("passages", "queries", "qrels"), names, strict=True)}


def write_lines(folder: Path, form: str, records: dict[str, list[bytes]]) -> dict[str, Path]:
    """A collection of these lines; the header of BEIR's qrels is added."""
    files = paths(folder, form)
    for kind, path in files.items():
        own = list(records[kind])
        if kind == "qrels" and not form.startswith("tsv"):
            own.insert(0, b"query-id\tcorpus-id\tscore")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = b"".join(line + b"\n" for line in own)
        path.write_bytes(data if path.suffix == ".tsv" else packed(form, data))
    return files


def good_lines(form: str) -> dict[str, list[bytes]]:
    return {
        "passages": [passage_line(form, p) for p in PASSAGES],
        "queries": [query_line(form, q) for q in QUERIES],
        "qrels": [judgement_line(form, j) for j in JUDGED],
    }


def result(folder: Path, out: Path, on_fault: str):
    """(passages, judgements, quarantined records, counts) of a collection written to `out`."""
    out.mkdir()
    meta = write_collection(out, open_collection(str(folder)), on_fault)
    shards = sorted((out / "passages").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(s) for s in shards]).to_pylist()
    passages = [(r["passage_id"], r["title"], r["text"]) for r in table]
    qrels = [
        (r["query_id"], r["passage_id"], r["grade"])
        for r in pq.read_table(out / "qrels.parquet").to_pylist()
    ]
    told = out / QUARANTINE
    faults = [json.loads(line) for line in told.open()] if told.exists() else []
    assert meta["quarantined"] == dict(sorted(Counter(f["kind"] for f in faults).items()))
    assert meta["passages"] == len(passages)
    return passages, qrels, faults


# ----------------------------------------------------------------------------- known damage

JUNK = st.sampled_from(
    [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"]
)


@st.composite
def faulty_passage(draw, form: str, before: tuple[str, str, str]):
    """(line, kind) of a record that cannot be used, `before` being one that comes before it."""
    if form.startswith("tsv"):
        line, kind = draw(
            st.sampled_from(
                [
                    (b"no tab at all", Kind.FIELDS),
                    (b"\tno id", Kind.ID),
                    (b"two words\ttext", Kind.ID),
                    (b"nul\0\ttext", Kind.ID),
                    (b"x1\t   ", Kind.EMPTY),
                    (b"x1\t", Kind.EMPTY),
                    (f"{before[0]}\tagain".encode(), Kind.DUPLICATE),
                    (b"x1\tbad ", Kind.ENCODING),
                ]
            )
        )
        return (line + draw(JUNK) if kind is Kind.ENCODING else line), kind
    good = b'{"_id": "x1", "text": "some text"}'
    line, kind = draw(
        st.sampled_from(
            [
                (good[: draw(st.integers(1, len(good) - 1))], Kind.FORMAT),
                (b"[1, 2]", Kind.FORMAT),
                (b'"text"', Kind.FORMAT),
                (b"NaN", Kind.FORMAT),
                (b"[" * 100_000, Kind.FORMAT),
                (b"1" * 5_000, Kind.FORMAT),
                (b'{"_id": 7, "text": "t"}', Kind.FORMAT),
                (b'{"_id": "x1", "text": null}', Kind.FORMAT),
                (b'{"_id": "x1"}', Kind.FORMAT),
                (b'{"_id": "x1", "title": ["t"], "text": "t"}', Kind.FORMAT),
                (b'{"text": "t"}', Kind.FORMAT),
                (b'{"_id": "", "text": "t"}', Kind.ID),
                (b'{"_id": "a b", "text": "t"}', Kind.ID),
                (b'{"_id": "a\\u0000", "text": "t"}', Kind.ID),
                (b'{"_id": "x1", "title": " ", "text": "\\n"}', Kind.EMPTY),
                (b'{"_id": "x1", "text": "half \\ud800"}', Kind.ENCODING),
                (b'{"_id": "\\udfff", "text": "half"}', Kind.ENCODING),
                (json.dumps({"_id": before[0], "text": "again"}).encode(), Kind.DUPLICATE),
                (b'{"_id": "x1", "text": "bad ', Kind.ENCODING),
            ]
        )
    )
    junk = kind is Kind.ENCODING and line.endswith(b"bad ")
    return (line + draw(JUNK) + b'"}' if junk else line), kind


@st.composite
def faulty_query(draw, form: str):
    if form.startswith("tsv"):
        cases = [(b"only", Kind.FIELDS), (b"x1\t ", Kind.EMPTY), (b"a b\tc", Kind.ID)]
        cases += [(b"q0\tagain", Kind.DUPLICATE), (b"x1\t" + draw(JUNK), Kind.ENCODING)]
    else:
        cases = [(b'{"_id": "x1"', Kind.FORMAT), (b'{"_id": "x1", "text": 3}', Kind.FORMAT)]
        cases += [(b'{"_id": "x1", "text": ""}', Kind.EMPTY), (b"{}", Kind.FORMAT)]
        cases += [(b'{"_id": "q0", "text": "again"}', Kind.DUPLICATE)]
        cases += [(b'{"_id": "x1", "text": "' + draw(JUNK) + b'"}', Kind.ENCODING)]
    return draw(st.sampled_from(cases))


@st.composite
def faulty_judgement(draw, form: str):
    def line(query_id="q1", passage_id="p01", grade="1"):
        return judgement_line(form, (query_id, passage_id, grade))

    grade = draw(
        st.sampled_from(["high", "0.5", "nan", "inf", "1e400", "1_0", "१", "99999", "1" * 400, "-"])
    )
    cases = [
        (line(grade=grade), Kind.GRADE),
        (line() + b"\textra", Kind.FIELDS),
        (b"q1\tp01" if form.startswith("tsv") else b"q1", Kind.FIELDS),
        (line(query_id="q9"), Kind.UNKNOWN),
        (judgement_line(form, JUDGED[0]), Kind.DUPLICATE),
        (line() + draw(JUNK), Kind.ENCODING),
    ]
    return draw(st.sampled_from(cases))


@st.composite
def known_damage(draw, form: str):
    """(lines by file, faults by file and line number)."""
    records, faults = good_lines(form), {}
    header = 0 if form.startswith("tsv") else 1
    for kind, faulty in (
        ("passages", faulty_passage(form, PASSAGES[0])),
        ("queries", faulty_query(form)),
        ("qrels", faulty_judgement(form)),
    ):
        own, places = [], {}
        count = draw(st.integers(0, 2))
        # After the first record, so that a duplicate is the second of the two.
        at = sorted(
            draw(st.lists(st.integers(1, len(records[kind])), min_size=count, max_size=count))
        )
        seen = set()
        for index, line in enumerate(records[kind] + [None]):
            while at and at[0] == index:
                at.pop(0)
                bad, why = draw(faulty)
                if bad not in seen:
                    seen.add(bad)
                    own.append(bad)
                    places[len(own) + (header if kind == "qrels" else 0)] = why
            if line is not None:
                own.append(line)
        records[kind] = own
        faults[kind] = places
    return records, faults
