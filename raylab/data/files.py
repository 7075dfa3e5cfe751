"""Files of a collection, wherever they are: addresses, decompression, lines, rows, checksums.

An address is a local path or anything fsspec opens (`s3://bucket/nfcorpus/corpus.jsonl.gz`,
`zip://nfcorpus/corpus.jsonl::nfcorpus.zip`); its name ends in `.gz`, in `.zst`, or in neither.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from raylab.data.faults import CollectionError, OnFault, refuse, undecodable
from raylab.data.grammar import is_blank
from raylab.storage.checksums import checksum

_BLOCK_BYTES = 1024**2
# A line that is longer is no record: a damaged file must not be read into memory whole.
LONGEST_LINE_BYTES = 64 * 1024**2
_ROWS = 1_024
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# What the libraries below raise of bytes that are not what the name says.
_DAMAGE = (EOFError, zlib.error, zipfile.BadZipFile, pa.ArrowException, OSError)


def name_of(address: str | Path) -> str:
    """The file name within an address."""
    return str(address).partition("::")[0].rstrip("/").rpartition("/")[2]


def below(folder: str, *names: str) -> str:
    """The address of a file in a folder; in a chained address the first link is the folder."""
    first, chain, rest = folder.partition("::")
    root = first if first.endswith("://") else first.rstrip("/") + "/"
    return root + "/".join(names) + chain + rest


def is_local(address: str | Path) -> bool:
    return "://" not in str(address) and "::" not in str(address)


@contextlib.contextmanager
def opened(address: str | Path) -> Iterator[Any]:
    """The bytes of a file as they are stored.

    Raises:
        CollectionError: there is no such file, or it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            # The archive that a member is read from closes with its filesystem: `fs` is held.
            fs, path = fsspec.core.url_to_fs(str(address))
            plain = is_local(address)
            stream = open(address, "rb") if plain else fs.open(path)  # noqa: SIM115
            file = stack.enter_context(stream)
        except (*_DAMAGE, ValueError, ImportError, KeyError) as error:
            raise CollectionError(f"{address}: cannot be opened ({_said(error)})") from None
        yield file


def _said(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def digest(address: str | Path, algorithm: str = "sha256") -> str:
    """Checksum (hex) of a file as it is stored; a local one is read once, until it changes."""
    if is_local(address):
        try:
            return checksum(address, algorithm)
        except OSError as error:
            raise CollectionError(f"{address}: cannot be opened ({error.strerror})") from None
    total = hashlib.new(algorithm, usedforsecurity=False)
    with opened(address) as file:
        try:
            while block := file.read(_BLOCK_BYTES):
                total.update(block)
        except _DAMAGE as error:
            raise CollectionError(f"{address}: cannot be read ({_said(error)})") from None
    return total.hexdigest()


def _compression(file: Any) -> str | None:
    first = file.read(4)
    file.seek(0)
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), None)


def _decompressed(file: Any, compression: str | None) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=file)
    if compression == "zstd":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
    return file


def lines(
    address: str | Path, on_fault: OnFault = refuse, by_name: bool = True
) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of a plain, gzip or zstd UTF-8 file; blank lines are skipped.

    ``by_name``: compression is what the suffix says; else it is recognised by the first bytes.

    Raises:
        CollectionError: a file that cannot be read or a damaged compressed stream, by line, whatever
            the policy: what follows it is unknown. Bytes that are not UTF-8 are `on_fault`'s.
    """
    number, compression = 0, _COMPRESSIONS.get(Path(name_of(address)).suffix)
    with opened(address) as stored:
        try:
            if not by_name:
                compression = _compression(stored)
            file = _decompressed(stored, compression)
            while raw := file.readline(LONGEST_LINE_BYTES):
                number += 1
                if len(raw) == LONGEST_LINE_BYTES:
                    raise CollectionError(
                        f"{address}:{number}: a line of {LONGEST_LINE_BYTES >> 20} MiB or more; "
                        "one record a line"
                    )
                try:
                    # A byte order mark would become part of the first identifier.
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    on_fault(undecodable(str(address), number, raw, error))
                    continue
                if not is_blank(text):
                    yield number, text
        except _DAMAGE as error:
            reason = f"the {compression} stream is damaged" if compression else "cannot be read"
            raise CollectionError(f"{address}:{number + 1}: {reason} ({_said(error)})") from None


def rows(
    address: str | Path, columns: dict[str, tuple[str, ...]], on_fault: OnFault = refuse
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, values) of a Parquet file, batch by batch.

    ``columns``: for every value, the names that its column may have; the first that is there is
    read, and a value without a column is left out. Text is checked to be UTF-8, which Parquet is not.

    Raises:
        CollectionError: not a Parquet file, or a damaged one.
    """
    number = 0
    with opened(address) as stored:
        try:
            file = pq.ParquetFile(stored)
            known = set(file.schema_arrow.names)
            wanted = {
                key: next((n for n in names if n in known), None) for key, names in columns.items()
            }
            chosen = {key: name for key, name in wanted.items() if name}
            for batch in file.iter_batches(_ROWS, columns=list(chosen.values())):
                values = {key: _bytes_or_values(batch.column(name)) for key, name in chosen.items()}
                for at in range(batch.num_rows):
                    number += 1
                    record = _decoded(str(address), number, values, at, on_fault)
                    if record is not None:
                        yield number, record
        except _DAMAGE as error:
            raise CollectionError(
                f"{address}:{number + 1}: not a whole Parquet file ({_said(error)[:200]})"
            ) from None


def _bytes_or_values(column: pa.Array) -> list[Any]:
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # Decoded one by one, since one undecodable value would fail the whole column.
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _decoded(
    file: str, number: int, values: dict[str, list[Any]], at: int, on_fault: OnFault
) -> dict[str, Any] | None:
    record = {}
    for key, column in values.items():
        value = column[at]
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError as error:
                on_fault(undecodable(file, number, value, error))
                return None
        record[key] = value
    return record
