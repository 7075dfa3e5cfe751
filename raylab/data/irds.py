"""Collections through ir_datasets (the extra `raylab[irds]`): addresses are `irds:DATASET-ID`.

Its MS MARCO has the mis-decoded UTF-8 repaired that the published files, and so a folder, have.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import Any

from raylab.data.faults import CollectionError
from raylab.data.registry import BENCHMARKS

PREFIX = "irds:"


def installed() -> bool:
    return importlib.util.find_spec("ir_datasets") is not None


def is_irds(address: object) -> bool:
    return str(address).startswith(PREFIX)


def identity(address: str) -> str:
    """What stands for a checksum: ir_datasets checks its own downloads against published ones."""
    if not installed():
        raise _missing(address)
    return f"{address} of ir_datasets {importlib.metadata.version('ir_datasets')}"


def _missing(address: str) -> CollectionError:
    return CollectionError(
        f"{address}: ir_datasets is not installed; pip install 'raylab[irds]', or give a folder"
    )


@contextlib.contextmanager
def _clear_errors(address: str) -> Iterator[None]:
    try:
        yield
    except (GeneratorExit, CollectionError):
        raise
    except Exception as error:  # its loaders raise whatever their parsers and downloads raise
        message = " ".join(str(error).split())[:300]
        raise CollectionError(
            f"{address}: ir_datasets cannot give it ({type(error).__name__}: {message}); "
            "are the data there?"
        ) from None


def _dataset(address: str) -> Any:
    if not installed():
        raise _missing(address)
    import ir_datasets  # pyright: ignore[reportMissingImports]

    return ir_datasets.load(address.removeprefix(PREFIX))


def _fields(address: str) -> tuple[str, ...]:
    """The fields that make a passage's text, from the table of benchmarks."""
    dataset = address.removeprefix(PREFIX)
    return next((b.text for b in BENCHMARKS.values() if b.passages == dataset), ("title", "text"))


def documents(address: str) -> Iterator[tuple[int, str, str, str]]:
    """(number from 1, id, title, text) of every document, in ir_datasets' order."""
    with _clear_errors(address):
        with_title = "title" in _fields(address)
        for number, doc in enumerate(_dataset(address).docs_iter(), start=1):
            title = (getattr(doc, "title", "") or "") if with_title else ""
            text = doc.text if hasattr(doc, "text") else doc.default_text()
            yield number, doc.doc_id, title, text


def queries(address: str) -> Iterator[tuple[int, str, str]]:
    """(number from 1, id, text) of every query."""
    with _clear_errors(address):
        for number, query in enumerate(_dataset(address).queries_iter(), start=1):
            text = query.text if hasattr(query, "text") else query.default_text()
            yield number, query.query_id, text


def judgements(address: str) -> Iterator[tuple[int, str, str, str]]:
    """(number from 1, query id, document id, grade) of every judgement."""
    with _clear_errors(address):
        for number, qrel in enumerate(_dataset(address).qrels_iter(), start=1):
            yield number, qrel.query_id, qrel.doc_id, str(qrel.relevance)


def splits(dataset: str) -> dict[str, str]:
    """The address of each split's queries and judgements, for a benchmark's name or a dataset's id.

    A dataset's own id is one split, `train`, `dev` or `test` by its last part.
    """
    if dataset in BENCHMARKS:
        known_splits = BENCHMARKS[dataset].splits
        return {name: PREFIX + s.ir_datasets for name, s in known_splits.items() if s.ir_datasets}
    last = dataset.rpartition("/")[2]
    return {last if last in ("train", "dev") else "test": PREFIX + dataset}


def passages(dataset: str) -> str:
    """The address of the documents, for a benchmark's name or a dataset's id."""
    return PREFIX + (BENCHMARKS[dataset].passages if dataset in BENCHMARKS else dataset)
