"""Damaged input: a clear error or the quarantine file, never a library's traceback or a wrong row.

Two kinds of damage. Known damage: single records are made faulty in a known way, so the outcome is
known exactly, under both policies. Random damage: bytes of a file are changed at random, and the
outcome must be what an independent reader of a few lines, `reference` below, makes of those bytes.
"""

import ctypes
import gzip
import io
import json
import re
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from raylab.data.faults import CollectionError, Kind
from tests.data.damage import (
    JUDGED,
    PASSAGES,
    QUERIES,
    good_lines,
    known_damage,
    packed,
    paths,
    result,
    write_lines,
)

pytestmark = pytest.mark.long

EXAMPLES = 100  # of each of the twelve tests below
BLANKS = " \t\n\v\f\r"
STRTOD = ctypes.CDLL(None).strtod
STRTOD.restype, STRTOD.argtypes = ctypes.c_double, [ctypes.c_char_p, ctypes.c_void_p]
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "tsv", "tsv.gz", "parquet")


def fuzz(examples: int):
    """Deterministic, so that a failure is everybody's; no deadline, since writing files takes what it takes."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.long
@pytest.mark.parametrize("form", [f for f in FORMATS if f != "parquet"])
def test_known_damage_is_found_to_the_line_and_nothing_else_is_lost(form):
    examples = 0

    @fuzz(EXAMPLES)
    @given(known_damage(form))
    def check(damaged):
        nonlocal examples
        examples += 1
        records, faults = damaged
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "own")
            files = write_lines(folder, form, records)
            expected = {
                (str(files[kind]), line): str(why)
                for kind, places in faults.items()
                for line, why in places.items()
            }
            passages, qrels, told = result(folder, Path(name, "out"), "quarantine")
            titled = [(p, "" if form.startswith("tsv") else t, x) for p, t, x in PASSAGES]
            assert passages == titled
            assert sorted(qrels) == JUDGED
            assert {(f["file"], f["line"]): f["kind"] for f in told} == expected
            assert len(told) == len(expected)
            if expected:
                with pytest.raises(CollectionError) as refused:
                    result(folder, Path(name, "refused"), "error")
                where = str(refused.value)
                assert any(where.startswith(f"{f}:{n}: ") for f, n in expected), where
            else:
                assert result(folder, Path(name, "refused"), "error")[0] == titled

    check()
    assert examples >= EXAMPLES


# ------------------------------------------------------------------------------- Parquet


def parquet_tables(values: dict[str, list]) -> dict[str, pa.Table]:
    """Tables of tuples; text given as bytes goes in unchecked, as a careless writer's does."""

    def text(own):
        raw = [v.encode() if isinstance(v, str) else v for v in own]
        array = pa.array(raw, pa.binary())
        return pa.StringArray.from_buffers(len(array), *array.buffers()[1:], array.buffers()[0])

    columns = {k: list(zip(*v, strict=True)) for k, v in values.items()}
    names = {
        "passages": ("_id", "title", "text"),
        "queries": ("_id", "text"),
        "qrels": ("query-id", "corpus-id", "score"),
    }
    return {
        kind: pa.table(
            {
                name: pa.array(own, pa.int64()) if name == "score" else text(own)
                for name, own in zip(names[kind], columns[kind], strict=True)
            }
        )
        for kind in names
    }


PARQUET_FAULTS = {
    "passages": [
        (("x1", "t", None), Kind.FORMAT),
        ((None, "t", "text"), Kind.FORMAT),
        (("x1", "t", b"\xff\xfe"), Kind.ENCODING),
        ((b"\xff", "t", "text"), Kind.ENCODING),
        (("", "t", "text"), Kind.ID),
        (("a b", "t", "text"), Kind.ID),
        (("x1", "", " "), Kind.EMPTY),
        (("p00", "t", "again"), Kind.DUPLICATE),
    ],
    "queries": [
        (("x1", None), Kind.FORMAT),
        (("x1", b"\xff"), Kind.ENCODING),
        (("x1", ""), Kind.EMPTY),
        (("q0", "again"), Kind.DUPLICATE),
    ],
    "qrels": [
        (("q1", "p01", None), Kind.GRADE),
        (("q1", "p01", 2**40), Kind.GRADE),
        (("q9", "p01", 1), Kind.UNKNOWN),
        (("q1", None, 1), Kind.FORMAT),
        ((*JUDGED[0][:2], 2), Kind.DUPLICATE),
    ],
}


def test_known_damage_in_parquet():
    good = {"passages": PASSAGES, "queries": QUERIES, "qrels": JUDGED}
    examples = 0

    @fuzz(EXAMPLES)
    @given(
        st.fixed_dictionaries(
            {
                kind: st.lists(st.tuples(st.integers(1, 5), st.sampled_from(cases)), max_size=2)
                for kind, cases in PARQUET_FAULTS.items()
            }
        )
    )
    def check(damage):
        nonlocal examples
        examples += 1
        rows, faults = {}, {}
        for kind, cases in damage.items():
            own = list(good[kind])
            inserted = sorted(dict(cases).items(), key=lambda case: case[0])
            for shift, (at, (row, _)) in enumerate(inserted):
                own.insert(at + shift, row)
            rows[kind] = own
            faults[kind] = [(at + i + 1, str(why)) for i, (at, (_, why)) in enumerate(inserted)]
            if len({row for _, (row, _) in inserted}) < len(inserted):
                return  # the same faulty row twice: then the second one is also a duplicate
        with tempfile.TemporaryDirectory() as name:
            files = paths(Path(name, "own"), "parquet")
            for kind, table in parquet_tables(rows).items():
                files[kind].parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, files[kind])
            expected = {(str(files[k]), n): why for k, own in faults.items() for n, why in own}
            passages, qrels, told = result(Path(name, "own"), Path(name, "out"), "quarantine")
            assert passages == PASSAGES
            assert sorted(qrels) == JUDGED
            assert {(f["file"], f["line"]): f["kind"] for f in told} == expected
            if expected:
                with pytest.raises(CollectionError) as refused:
                    result(Path(name, "own"), Path(name, "refused"), "error")
                where = str(refused.value)
                assert any(where.startswith(f"{f}:{n}: ") for f, n in expected), where

    check()
    assert examples >= EXAMPLES


# --------------------------------------------------------------------------- random damage


@st.composite
def mutation(draw):
    """How to change bytes: a function of the bytes."""
    kind = draw(st.sampled_from(["flip", "insert", "delete", "cut", "repeat"]))
    where, byte = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 255))
    length = draw(st.integers(1, 40))

    def change(data: bytes) -> bytes:
        at = int(where * len(data))
        return {
            "flip": data[:at] + bytes([data[at] ^ (byte or 1)]) + data[at + 1 :],
            "insert": data[:at] + bytes([byte]) * length + data[at:],
            "delete": data[:at] + data[at + length :],
            "cut": data[:at],
            "repeat": data[: at + length] + data[at:],
        }[kind]

    return change


def strtod(text: str) -> float | None:
    """What C makes of a whole text; None for what is no finite number."""
    raw, end = text.encode(), ctypes.c_char_p()
    value = STRTOD(raw, ctypes.byref(end))
    whole = raw and not (end.value or b"") and b"\0" not in raw
    return value if whole and abs(value) < float("inf") else None


def reference(form: str, files: dict[str, Path]):
    """Passages and judgements that a naive reader keeps of these files; None when a stream is damaged."""

    def text_lines(path: Path) -> list[str] | None:
        data = path.read_bytes()
        if path.suffix == ".gz":
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError, zlib.error):
                return None
        found = []
        for number, raw in enumerate(data.split(b"\n")):
            if number == 0 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            try:
                line = raw.decode().rstrip("\r")
            except UnicodeDecodeError:
                continue
            if line.strip(BLANKS):
                found.append(line)
        return found

    def pairs(path: Path):
        for line in own[path]:
            if ".jsonl" in path.name:
                try:
                    record = json.loads(line)
                    title = record.get("title")
                    values = (record["_id"], "" if title is None else title, record["text"])
                    for value in values:
                        value.encode()
                except (ValueError, KeyError, AttributeError, UnicodeEncodeError):
                    continue
                yield values
            elif "\t" in line:
                first, second = line.split("\t", 1)
                yield first, "", second

    def usable(value: str) -> bool:
        return value != "" and not set(value) & set(BLANKS + "\0")

    def parts_of(line: str) -> list[str]:
        return [part for part in re.split(f"[{BLANKS}]+", line) if part]

    own = {path: text_lines(path) for path in files.values()}
    if None in own.values():
        return None
    passages, queries, qrels = {}, set(), {}
    for passage_id, title, text in pairs(files["passages"]):
        if usable(passage_id) and (title.strip() or text.strip()):
            passages.setdefault(passage_id, (passage_id, title, text))
    for query_id, _, text in pairs(files["queries"]):
        if usable(query_id) and text.strip():
            queries.add(query_id)
    beir = False
    for number, line in enumerate(own[files["qrels"]]):
        parts = parts_of(line)
        if number == 0 and parts == ["query-id", "corpus-id", "score"]:
            beir = True
            continue
        if len(parts) != (3 if beir else 4):
            continue
        query_id, passage_id, grade = parts[0], parts[-2], strtod(parts[-1])
        if grade is None or grade != grade // 1 or abs(grade) > 32_767:
            continue
        if usable(query_id) and usable(passage_id):
            # The first of two judgements is the one that counts, known ids or not.
            qrels.setdefault((query_id, passage_id), int(grade))
    kept = [(q, p, g) for (q, p), g in qrels.items() if q in queries]
    if not any(passage_id in passages for _, passage_id, _ in kept):
        kept = []
    return sorted(passages.values()), sorted(kept)


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "tsv", "tsv.gz"])
def test_random_damage_gives_what_a_naive_reader_keeps_or_a_clear_error(form):
    outcomes = Counter()

    @fuzz(EXAMPLES)
    @given(
        st.sampled_from(["passages", "queries", "qrels"]),
        st.lists(mutation(), min_size=1, max_size=3),
    )
    def check(kind, changes):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "own")
            files = write_lines(folder, form, good_lines(form))
            data = files[kind].read_bytes()
            for change in changes:
                data = change(data) if data else data
            files[kind].write_bytes(data)
            kept = reference(form, files)
            why = ""
            try:
                passages, qrels, _ = result(folder, Path(name, "out"), "quarantine")
            except CollectionError as error:
                # Only what no policy can mend: a damaged stream, or nothing left.
                outcomes["refused"] += 1
                why = str(error)
            if why:
                assert kept is None or not kept[0] or not kept[1], why
                elsewhere = ("no judgement is left", "and so is every other")
                assert str(files[kind]) in why or any(words in why for words in elsewhere)
            else:
                outcomes["kept"] += 1
                assert kept is not None
                assert (passages, sorted(qrels)) == kept

    check()
    assert sum(outcomes.values()) >= EXAMPLES
    assert outcomes["refused"] > 0
    assert outcomes["kept"] > 0 or form.endswith(".gz")  # gzip's own checksum lets little pass


@pytest.mark.parametrize("form", ["jsonl.zst", "parquet"])
def test_cut_and_garbled_binary_files_are_refused(form):
    """Neither format must carry checksums, so bytes are damaged where that cannot pass: ends and magic."""
    examples = 0

    @fuzz(EXAMPLES)
    @given(
        st.sampled_from(["passages", "queries"]),
        st.floats(0, 0.999),
        st.sampled_from(["cut", "magic", "noise"]),
        st.binary(min_size=16, max_size=64),
    )
    @example("passages", 0.0, "cut", b"0" * 16)
    def check(kind, share, how, noise):
        nonlocal examples
        examples += 1
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "own")
            if form == "parquet":
                files = paths(folder, form)
                good = {"passages": PASSAGES, "queries": QUERIES, "qrels": JUDGED}
                for own, table in parquet_tables(good).items():
                    files[own].parent.mkdir(parents=True, exist_ok=True)
                    pq.write_table(table, files[own])
            else:
                files = write_lines(folder, form, good_lines(form))
            data = files[kind].read_bytes()
            files[kind].write_bytes(
                {
                    "cut": data[: int(share * len(data))],
                    "magic": bytes(4) + data[4:-4] + bytes(4),
                    "noise": b"\0" + noise,
                }[how]
            )
            for on_fault in ("error", "quarantine"):
                with pytest.raises(CollectionError) as refused:
                    result(folder, Path(name, on_fault), on_fault)
                assert str(refused.value).startswith(str(files[kind]))

    check()
    assert examples >= EXAMPLES


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("raylab.data.files.LONGEST_LINE_BYTES", 4_096)
    files = write_lines(tmp_path / "own", "tsv", good_lines("tsv"))
    with files["passages"].open("ab") as file:
        file.write(b"x\t" + b"y" * 10_000)
    with pytest.raises(CollectionError, match=r"collection\.tsv:13: a line of .* MiB or more"):
        result(tmp_path / "own", tmp_path / "out", "quarantine")


def test_the_reference_reads_what_is_sound(tmp_path):
    """The oracle above is itself checked on input that nothing is wrong with."""
    for form in ("jsonl", "tsv.gz"):
        files = write_lines(tmp_path / form, form, good_lines(form))
        passages, qrels = reference(form, files)
        assert [p for p, _, _ in passages] == [p for p, _, _ in PASSAGES]
        assert qrels == JUDGED
    assert io.BytesIO(packed("x.gz", b"a")).read(2) == b"\x1f\x8b"
