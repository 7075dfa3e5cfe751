"""TREC runs in the form that tools write them, parsed by columns instead of line by line.

That form is: one record a line, its six fields parted by single spaces, scores in decimal digits. A file of any
other form, or with anything wrong in it, is not read here: `raylab.evaluation.runs.read_run` goes through it line
by line then, and names the line.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from raylab.data.grammar import FLOAT32_MAX

_BLOCK_BYTES = 2**24
_LONGEST_LINE_BYTES = 2**16
_QUERY, _PASSAGE, _SCORE = "query", "passage", "score"
_COLUMNS = (_QUERY, "Q0", _PASSAGE, "rank", _SCORE, "tag")
# Other blanks, what some tools take for the end of a text, a byte order mark, and fields that are empty.
_OTHER = (b"\t", b"\v", b"\f", b"\r", b"\0", b"\xef\xbb\xbf", b"  ", b"\n ", b" \n")
_READ = csv.ReadOptions(use_threads=False, column_names=_COLUMNS, block_size=2 * _BLOCK_BYTES)
_PARSE = csv.ParseOptions(delimiter=" ", quote_char=False, double_quote=False)
_CONVERT = csv.ConvertOptions(
    column_types={name: pa.float64() if name == _SCORE else pa.string() for name in _COLUMNS},
    include_columns=[_QUERY, _PASSAGE, _SCORE],
    null_values=[],
    strings_can_be_null=False,
)

Hits = list[tuple[pa.Array, np.ndarray]]
"""Passage ids and scores (float64) of pieces of a query's hits, in the order of the file."""


def plain_hits(path: str | Path) -> dict[str, Hits] | None:
    """The hits of a run by query id; None where the file is not plain and whole."""
    hits: dict[str, Hits] = {}
    try:
        for block in _blocks(Path(path)):
            if any(other in block for other in _OTHER) or block.startswith(b" "):
                return None
            if block.strip(b"\n"):
                table = csv.read_csv(io.BytesIO(block), _READ, _PARSE, _CONVERT)
                if not _add(hits, table.combine_chunks()):
                    return None
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeError):
        return None
    return hits


def _blocks(path: Path) -> Iterator[bytes]:
    """The file in pieces of whole lines; raises EOFError for a line that is longer than any of a run."""
    if path.suffix == ".zst":
        raise EOFError
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            rest = file.readline(_LONGEST_LINE_BYTES)
            if len(rest) == _LONGEST_LINE_BYTES:
                raise EOFError
            yield block + rest


def _add(hits: dict[str, Hits], table: pa.Table) -> bool:
    """Add the hits of a block; whether its scores are finite float32 numbers."""
    scores = table[_SCORE].to_numpy()
    if table[_SCORE].null_count or not (np.abs(scores) <= FLOAT32_MAX).all():
        return False
    named = table[_QUERY].combine_chunks().dictionary_encode()
    places = named.indices.to_numpy()
    passages = table[_PASSAGE].combine_chunks()
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    ends = [*starts[1:].tolist(), len(places)]
    names = named.dictionary.to_pylist()
    for start, end in zip(starts.tolist(), ends, strict=True):
        own = passages.slice(start, end - start), scores[start:end]
        hits.setdefault(names[places[start]], []).append(own)
    return True
