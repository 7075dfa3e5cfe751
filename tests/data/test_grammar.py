"""One grammar for every reader of text: blanks, numbers, ids, blank lines, headers, and what a line seems to be."""

import ctypes
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylab.data.collections import read_passages, read_qrels, read_queries
from raylab.data.faults import CollectionError
from raylab.data.grammar import fields, number
from raylab.data.supervision.published import form_of, text_lines
from raylab.data.supervision.scores import read_scores
from raylab.evaluation.runs import read_run

STRTOD = ctypes.CDLL(None).strtod
STRTOD.restype, STRTOD.argtypes = ctypes.c_double, [ctypes.c_char_p, ctypes.c_void_p]


def scores(path) -> list:
    return [r for table in read_scores(path) for r in table.to_pylist()]


def run_ids(path):
    return {(q, p) for q, ranking in read_run(path).items() for p, _ in ranking}


def score_ids(path):
    return {(row["query_id"], row["passage_id"]) for row in scores(path)}


def qrel_ids(path):
    return {(q, p) for q, grades in read_qrels(path).items() for p in grades}


def passage_ids(path):
    return {("q", passage.passage_id) for passage in read_passages(path)}


# How each reader is given one (query, passage) pair, and what it makes of it.
READERS = {
    "a run": ("r.trec", "{q} Q0 {p} 1 2.5 t\n", run_ids),
    "a run that teaches": ("r.trec", "{q} Q0 {p} 1 2.5 t\n", score_ids),
    "TREC qrels": ("q.txt", "{q} 0 {p} 1\n", qrel_ids),
    "BEIR qrels": ("q.tsv", "query-id\tcorpus-id\tscore\n{q}\t{p}\t1\n", qrel_ids),
    "passages": ("collection.tsv", "{p}\ttext\n", passage_ids),
}
NOT_BLANKS = ["\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\x1f", "\u200b"]
BLANKS = [" ", "\t", "\v", "\f"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("character", NOT_BLANKS)
def test_only_blanks_of_ascii_part_a_line(tmp_path, reader, character):
    name, line, ids = READERS[reader]
    passage = f"a{character}b"
    path = tmp_path / name
    path.write_bytes(line.format(q="q", p=passage).encode())
    assert ids(path) == {("q", passage)}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("blank", ["\n", "  \n", "\t\n", " \v\f \r\n"])
def test_blank_lines_are_passed_over_and_counted(tmp_path, reader, blank):
    name, line, ids = READERS[reader]
    path = tmp_path / name
    good, bad = line.format(q="q", p="a"), "one\n"
    path.write_bytes((blank + good + blank).encode())
    assert ids(path) == {("q", "a")}
    path.write_bytes((blank + good + blank + bad).encode())
    with pytest.raises(CollectionError, match=rf"{name}:{good.count(chr(10)) + 3}: "):
        ids(path)


@pytest.mark.parametrize("reader", ["a run", "a run that teaches", "TREC qrels", "BEIR qrels"])
@pytest.mark.parametrize("blank", BLANKS)
def test_any_blank_of_ascii_parts_a_line(tmp_path, reader, blank):
    name, line, ids = READERS[reader]
    path = tmp_path / name
    *header, last = line.format(q="q", p="a").splitlines(keepends=True)
    last = last.rstrip("\n").replace("\t", " ").replace(" ", blank) + blank + "\n"
    path.write_bytes("".join([*header, last]).encode())
    assert ids(path) == {("q", "a")}


TEXTS = ["1", "-2.5", "+3", ".5", "5.", "1e3", "1E-3", "0x1p4", "0x.8", "007", "1e", "1_0", "nan", "inf",
         "-Infinity", "NAN(1)", "1,5", "", "+", ".", "e5", "0x", "१", "1f",
         "1.2.3", "--1", "1e400", "12abc"]  # fmt: skip


def strtod(text: str) -> float | None:
    raw, end = text.encode(), ctypes.c_char_p()
    value = STRTOD(raw, ctypes.byref(end))
    whole = raw and not end.value and b"\0" not in raw
    return value if whole and abs(value) < float("inf") else None


@pytest.mark.parametrize("text", TEXTS)
def test_a_number_is_what_strtod_reads_whole(text):
    assert number(text) == strtod(text)


@given(st.text("0123456789+-.eExXpPabfn_ ", max_size=8).filter(lambda t: not t.startswith(" ")))
def test_numbers_of_any_spelling(text):
    assert number(text) == strtod(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_fields_are_those_of_bytes(line):
    assert fields(line) == [part.decode() for part in line.encode().split()]


NO_SCORES = ["nan", "inf", "1_0", "1e39", "high", "१"]


@pytest.mark.parametrize("read", [read_run, scores])
@pytest.mark.parametrize("score", NO_SCORES)
def test_scores_that_are_none_are_named_alike(tmp_path, read, score):
    path = tmp_path / "r.trec"
    path.write_text(f"q Q0 a 1 2 t\nq Q0 b 1 {score} t\n")
    with pytest.raises(CollectionError) as refused:
        read(path)
    expected = f"{path}:2: score {score!r}; a score is a finite float32 number such as 12.5"
    assert str(refused.value) == expected


# ----------------------------------------------------------------------------------- headers

BEIR = "query-id<tab>corpus-id<tab>score"


@pytest.mark.parametrize(
    "header",
    ["query-id\tcorpus-id\tscore", "query_id\tpassage_id\tgrade", "query-id corpus-id score"],
)
@pytest.mark.parametrize("name", ["q.tsv", "q.tsv.gz"])
def test_headers_of_judgements_that_are_known(tmp_path, header, name):
    data = f"\n{header}\nq\ta\t1\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_qrels(tmp_path / name) == {"q": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q1\td1\t1\nq1\td3\t2\n", [":1: 3 fields, not 4; a line is QUERY 0 PASSAGE GRADE", BEIR]),
        ("q1 d1 1\n", [":1: 3 fields", BEIR]),
        ("Query-ID\tCorpus-ID\tScore\nq\ta\t1\n", [":1: 3 fields", BEIR, "not Query-ID<tab>"]),
        ("qid\tpid\tlabel\nq\ta\t1\n", [BEIR, "not qid<tab>pid<tab>label"]),
        ("query iter doc grade\nq 0 a 1\n", [":1: grade 'grade'", BEIR]),
        ("query-id\tcorpus-id\tscore\nq 0 a 1\n", [":2: 4 fields, not 3", "TREC qrels"]),
        ("q Q0 a 1 2.5 t\n", [":1: 6 fields, not 4", "looks like a run"]),
        ('{"query-id": "q"}\n', ["looks like JSON lines"]),
        ("query-id,corpus-id,score\nq,a,1\n", ["comma-separated"]),
    ],
)
def test_judgements_in_another_form_are_told_which(tmp_path, text, words):
    path = tmp_path / "q.tsv"
    path.write_text(text)
    with pytest.raises(CollectionError) as refused:
        read_qrels(path)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q 0 a 1\n", "looks like TREC qrels"),
        ("q\ta\t1\n", "BEIR's qrels, or a run of QUERY PASSAGE RANK"),
        ("query-id\tcorpus-id\tscore\nq\ta\t1\n", "header of BEIR's qrels"),
        ('{"query": "q"}\n', "looks like JSON lines"),
    ],
)
def test_a_run_in_another_form_is_told_which(tmp_path, text, words):
    path = tmp_path / "r.trec"
    path.write_text(text)
    for read in (read_run, scores):
        with pytest.raises(CollectionError, match=f":1: [0-9]+ columns; a run has 6.*{words}"):
            read(path)


def test_a_header_of_texts_is_no_text(tmp_path):
    (tmp_path / "collection.tsv").write_text("passage_id\ttext\na\tone\n")
    (tmp_path / "queries.tsv").write_text("query_id\ttext\nq\twhat\n")
    assert [p.passage_id for p in read_passages(tmp_path / "collection.tsv")] == ["a"]
    assert list(read_queries(tmp_path / "queries.tsv")) == ["q"]


def test_a_teacher_file_begins_after_its_blank_lines(tmp_path):
    path = tmp_path / "t"
    path.write_text(f"\n \t\n{json.dumps({'question': 'q', 'pos_pid': 'a', 'neg_pids': ['b']})}\n")
    assert form_of(path) == "groups"
    assert [n for n, _ in text_lines(path)] == [3]
    path.write_text("q\ta\t1\n")
    with pytest.raises(
        CollectionError, match=r":1: no teacher file begins like this.*BEIR's qrels"
    ):
        form_of(path)
