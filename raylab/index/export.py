"""An index in other engines' formats: CIFF and Anserini's JSON vectors (sparse), faiss (dense).

CIFF, the Common Index File Format (Lin et al. 2020, 2003.08276; schema in osirrc/ciff), is a stream
of protobuf messages, each after its length as a varint: a Header, its postings lists by term, its
document records by number. Frequencies are whole numbers, so impacts are quantised, as these engines
do for learned sparse retrieval: rint(impact * ``quantum``), at least 1; scores there are those of
the whole numbers. Document numbers ascend by passage id.

Shapes: N passages, V terms, P postings.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import faiss
import numpy as np
from numba import njit

from raylab.index.dense import DenseIndex
from raylab.index.files import made_files
from raylab.index.kernels.exact import PASSAGE_BLOCK
from raylab.index.postings import WINDOW
from raylab.index.sparse import SparseIndex

CIFF_VERSION = 1
_VARINT, _DOUBLE, _MESSAGE = 0, 1, 2
_MOST_POSTING_BYTES = 24


def write_ciff(
    index: SparseIndex, path: Path, terms: Sequence[str], quantum: float = 100.0
) -> None:
    """Write `index` as CIFF; gzip if the name ends with .gz. `terms`: the name of each term [V].

    Terms without postings are left out; lists are in the order of their names. Memory: the postings
    of a window or of a term, and one number a passage. Raises ValueError for names that are too
    few, not strings or equal, and a
    quantum that is not above 0; no file is left then.
    """
    _check(index, terms, quantum)
    lengths = np.diff(index.offsets, axis=1).sum(axis=0)
    used = [int(term) for term in sorted(np.flatnonzero(lengths), key=lambda t: terms[int(t)])]
    weights = np.zeros(len(index), dtype=np.int64)  # of a passage, all terms together
    with made_files(path.parent, [path.name]), _opened(path) as stream:
        # The header comes first and holds the sum of all weights: one more pass over the postings.
        for window in range(len(index.offsets)):
            part = slice(int(index.offsets[window, 0]), int(index.offsets[window, -1]))
            rows = window * WINDOW + index.positions[part].astype(np.int64)
            counts = np.bincount(rows, _quantised(index, part, quantum), minlength=len(index))
            weights[index.ranks] += counts.astype(np.int64)
        _write_message(stream, _header(index, used, weights, quantum))
        for term in used:
            _write_message(stream, _postings_list(terms[term], *_list(index, term, quantum)))
        for number, passage_id in enumerate(index.ids):
            record = _number(1, number) + _text(2, passage_id) + _number(3, int(weights[number]))
            _write_message(stream, record)


def write_json_vectors(
    index: SparseIndex, path: Path, terms: Sequence[str], quantum: float = 100.0
) -> None:
    """Write `index` as Anserini's JsonVectorCollection: a line a passage; gzip for .gz.

    ``{"id": ..., "contents": "", "vector": {term: whole number}}``, weights as in CIFF, passages in
    the order they came. Memory: a window of passages. Raises ValueError as `write_ciff`.
    """
    _check(index, terms, quantum)
    with made_files(path.parent, [path.name]), _opened(path) as stream:
        for window, first_row in enumerate(range(0, len(index), WINDOW)):
            offsets = index.offsets[window]
            part = slice(int(offsets[0]), int(offsets[-1]))
            positions = np.asarray(index.positions[part])
            by_row = np.argsort(positions, kind="stable")  # terms stay in order
            own_terms = np.repeat(np.arange(index.vocabulary_size), np.diff(offsets))[by_row]
            weights = _quantised(index, part, quantum)[by_row]
            rows = min(WINDOW, len(index) - first_row)
            ends = np.cumsum(np.bincount(positions, minlength=rows))
            start = 0
            for row in range(rows):
                stop = int(ends[row])
                terms_of_row = zip(own_terms[start:stop], weights[start:stop], strict=True)
                passage = {
                    "id": bytes(index.ids[index.ranks[first_row + row]]).decode(),
                    "contents": "",
                    "vector": {terms[term]: int(weight) for term, weight in terms_of_row},
                }
                stream.write(json.dumps(passage, ensure_ascii=False).encode() + b"\n")
                start = stop


def write_faiss(index: DenseIndex, directory: Path) -> None:
    """Write ``index``, a faiss IndexFlatIP, and ``docid``, an id a line, as pyserini reads them.

    Vectors are float32, in the order they came. Memory: the faiss index, 4 N D bytes.
    """
    with made_files(directory, ["index", "docid"]):
        flat = faiss.IndexFlatIP(index.dimension)
        for start in range(0, len(index), PASSAGE_BLOCK):
            flat.add(np.ascontiguousarray(index.vectors[start : start + PASSAGE_BLOCK], np.float32))
        faiss.write_index(flat, str(directory / "index"))
        with open(directory / "docid", "wb") as stream:
            for rank in index.ranks:
                stream.write(bytes(index.ids[rank]) + b"\n")


def _check(index: SparseIndex, terms: Sequence[str], quantum: float) -> None:
    if len(terms) != index.vocabulary_size:
        raise ValueError(f"{len(terms)} names for the {index.vocabulary_size} terms of the index")
    for term, name in enumerate(terms):
        if not isinstance(name, str) or not name:
            raise ValueError(f"term {term}: name {name!r} is not a string, or empty")
    if len(set(terms)) < len(terms):
        raise ValueError(f"{len(terms) - len(set(terms))} terms share a name with another")
    if not (np.isfinite(quantum) and quantum > 0):
        raise ValueError(f"quantum is {quantum}; it must be finite and above 0")


def _quantised(index: SparseIndex, part: slice, quantum: float) -> np.ndarray:
    impacts = index.impacts[part].astype(np.float64) * (index.scale * quantum)
    return np.maximum(np.rint(impacts), 1).astype(np.int64)


def _list(index: SparseIndex, term: int, quantum: float) -> tuple[np.ndarray, np.ndarray]:
    """(document numbers ascending, weights) of a term."""
    numbers, weights = [], []
    for window in range(len(index.offsets)):
        start, stop = (int(place) for place in index.offsets[window, term : term + 2])
        if start < stop:
            rows = window * WINDOW + index.positions[start:stop].astype(np.int64)
            numbers.append(index.ranks[rows].astype(np.int64))
            weights.append(_quantised(index, slice(start, stop), quantum))
    number, weight = np.concatenate(numbers), np.concatenate(weights)
    order = np.argsort(number)
    return number[order], weight[order]


def _header(index: SparseIndex, used: list[int], weights: np.ndarray, quantum: float) -> bytes:
    total = int(weights.sum())
    return b"".join(
        [
            _number(1, CIFF_VERSION),
            _number(2, len(used)),
            _number(3, len(index)),
            _number(4, len(used)),
            _number(5, len(index)),
            _number(6, total),
            _varint(7 << 3 | _DOUBLE) + np.float64(total / len(index)).tobytes(),
            _text(8, f"raylab: impacts times {quantum:g}, rounded".encode()),
        ]
    )


def _postings_list(term: str, numbers: np.ndarray, weights: np.ndarray) -> bytes:
    """A PostingsList: document numbers as gaps."""
    buffer = np.empty(_MOST_POSTING_BYTES * len(numbers), dtype=np.uint8)
    size = _encode_postings(np.diff(numbers, prepend=0), weights, buffer)
    counts = _number(2, len(numbers)) + _number(3, int(weights.sum()))
    return _text(1, term.encode()) + counts + buffer[:size].tobytes()


@njit(cache=True)
def _encode_postings(gaps, weights, buffer):
    """Posting messages (field 4 of their list: gap, weight) into `buffer`; the bytes written."""
    size = 0
    for i in range(len(gaps)):
        buffer[size] = 4 << 3 | 2
        body = size + 2  # a posting is shorter than 128 bytes: its length is one
        end = body
        if gaps[i]:
            buffer[end] = 1 << 3
            end = _put_varint(gaps[i], buffer, end + 1)
        buffer[end] = 2 << 3
        end = _put_varint(weights[i], buffer, end + 1)
        buffer[size + 1] = end - body
        size = end
    return size


@njit(cache=True)
def _put_varint(value, buffer, place):
    while value > 127:
        buffer[place] = value & 127 | 128
        value >>= 7
        place += 1
    buffer[place] = value
    return place + 1


def _write_message(stream: IO[bytes], message: bytes) -> None:
    stream.write(_varint(len(message)) + message)


def _number(field: int, value: int) -> bytes:
    """An int32 or int64 field; proto3 leaves zeros out."""
    return _varint(field << 3 | _VARINT) + _varint(value) if value else b""


def _text(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _MESSAGE) + _varint(len(value)) + bytes(value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        # No time and no name in the file: the same index gives the same bytes.
        return cast(IO[bytes], gzip.GzipFile(path, "wb", mtime=0))
    return open(path, "wb")
