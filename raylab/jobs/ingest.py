"""Ingest on Ray Data: raw files -> validated Parquet shards -> the tokenised passage store.

collection artifact   passages/*.parquet (and train_passages/), sorted by id;
                      topics.parquet, qrels.parquet
tokens artifact       passages/ (and train_passages/): a passage store each
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made at run time)

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import ray

from raylab.artifacts import Address, Artifact, Draft, Store
from raylab.config import Backbone
from raylab.data.collections import (
    TRAIN,
    CollectionError,
    Source,
    Topics,
    read_judgements,
    read_passages,
    read_topics,
)
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import write_store
from raylab.jobs.cluster import arrow_filesystem, unwrapped
from raylab.models.hub import load_tokenizer

PASSAGES, TRAIN_PASSAGES = "passages", "train_passages"
_PARSE_ROWS = 4_096
STORE_LIMIT = 512  # tokens of a passage that are kept: the longest length any protocol reads


# ------------------------------------------------------------------------------- collection


def collection_address(source: Source) -> Address:
    return Address("collection", source.name, source.identity())


def ingest(store: Store, source: Source) -> Artifact:
    """Validate a collection and commit it as Parquet.

    Raises:
        CollectionError: the first fault, by file and line; nothing is left behind.
    """
    address = collection_address(source)
    topics = read_topics(
        source
    )  # small files first: most faults are found before Ray moves a passage
    with store.draft(address) as draft:
        counts = {PASSAGES: _ingest_passages(store, draft, source.passages, PASSAGES)}
        if source.train_passages:
            counts[TRAIN_PASSAGES] = _ingest_passages(
                store, draft, source.train_passages, TRAIN_PASSAGES
            )
        _check_judged(store, draft, source)
        _write_topics(draft.path, topics)
        draft.meta.update(
            name=source.name,
            passages=counts[PASSAGES],
            train_passages=counts.get(TRAIN_PASSAGES),
            splits={split: len(t.queries) for split, t in topics.items()},
        )
    return store.committed(address)


def _ingest_passages(store: Store, draft: Draft, path: Path, part: str) -> int:
    dataset = (
        ray.data.from_items([{"path": str(path)}])
        .map_batches(_parse, batch_size=1)  # type: ignore[arg-type]
        .sort("passage_id")
    )
    unwrapped(dataset.write_parquet, f"{draft.target}/{part}", filesystem=arrow_filesystem(store))
    table = _column_table(store, draft, part, ["passage_id", "line"])
    ids, numbers = table["passage_id"], table["line"]
    if len(table) == 0:
        raise CollectionError(f"{path}: the file holds no passage")
    same = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    if pc.any(same).as_py():
        at = int(np.flatnonzero(same.to_numpy(zero_copy_only=False))[0])
        first, second = sorted((numbers[at].as_py(), numbers[at + 1].as_py()))
        raise CollectionError(
            f"{path}:{second}: duplicate passage id {ids[at].as_py()!r} (first at line {first}); ids must be unique"
        )
    return len(table)


def _parse(batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    columns: dict[str, list] = {"passage_id": [], "title": [], "text": [], "line": []}
    for path in batch["path"]:
        for passage in read_passages(Path(str(path))):
            columns["passage_id"].append(passage.passage_id)
            columns["title"].append(passage.title)
            columns["text"].append(passage.text)
            columns["line"].append(passage.line)
            if len(columns["line"]) == _PARSE_ROWS:
                yield _typed(columns)
                columns = {name: [] for name in columns}
    if columns["line"]:
        yield _typed(columns)


def _typed(columns: dict[str, list]) -> dict[str, Any]:
    texts = {
        name: np.array(columns[name], dtype=object) for name in ("passage_id", "title", "text")
    }
    return texts | {"line": np.array(columns["line"], dtype=np.int64)}


def _column_table(store: Store, draft: Draft, part: str, columns: list[str]) -> pa.Table:
    files = sorted(f for f in store.fs.find(f"{draft.target}/{part}") if f.endswith(".parquet"))
    dataset = pads.dataset(files, filesystem=arrow_filesystem(store), format="parquet")
    return dataset.to_table(columns=columns)


def _check_judged(store: Store, draft: Draft, source: Source) -> None:
    """Every judgement must name a passage that is there; training ones may name training passages."""
    known = {
        PASSAGES: _column_table(store, draft, PASSAGES, ["passage_id"])[
            "passage_id"
        ].combine_chunks()
    }
    if source.train_passages:
        known[TRAIN] = _column_table(store, draft, TRAIN_PASSAGES, ["passage_id"])[
            "passage_id"
        ].combine_chunks()
    for split, path in source.qrels.items():
        judgements = read_judgements(path)
        wanted = pa.array([j.passage_id for j in judgements])
        found = pc.is_in(wanted, known[PASSAGES])
        if split == TRAIN and TRAIN in known:
            found = pc.or_(found, pc.is_in(wanted, known[TRAIN]))
        if not pc.all(found).as_py():
            fault = judgements[int(np.flatnonzero(~found.to_numpy(zero_copy_only=False))[0])]
            raise CollectionError(
                f"{path}:{fault.line}: unknown passage {fault.passage_id!r}; it must be in {source.passages.name}"
            )


def _write_topics(folder: Path, topics: dict[str, Topics]) -> None:
    queries = [(t.split, q, text) for t in topics.values() for q, text in t.queries.items()]
    grades = [
        (t.split, q, p, grade)
        for t in topics.values()
        for q, judged in t.qrels.items()
        for p, grade in judged.items()
    ]
    pq.write_table(
        pa.table(
            dict(
                zip(
                    ("split", "query_id", "text"),
                    map(list, zip(*queries, strict=True)),
                    strict=True,
                )
            )
        ),
        folder / "topics.parquet",
    )
    pq.write_table(
        pa.table(
            dict(
                zip(
                    ("split", "query_id", "passage_id", "grade"),
                    map(list, zip(*grades, strict=True)),
                    strict=True,
                )
            )
        ),
        folder / "qrels.parquet",
    )


def load_topics(folder: Path) -> dict[str, Topics]:
    """The topics of a collection artifact, by split."""
    topics: dict[str, Topics] = {}
    for row in pq.read_table(folder / "topics.parquet").to_pylist():
        topics.setdefault(row["split"], Topics(row["split"], {}, {})).queries[row["query_id"]] = (
            row["text"]
        )
    for row in pq.read_table(folder / "qrels.parquet").to_pylist():
        topics[row["split"]].qrels.setdefault(row["query_id"], {})[row["passage_id"]] = row["grade"]
    return topics


def load_passages(folder: Path, part: str = PASSAGES) -> Iterator[dict[str, list]]:
    """Columns of a collection artifact's passages, batch by batch, in id order."""
    for file in sorted((folder / part).glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["passage_id", "title", "text"]):
            yield batch.to_pydict()


def training_part(collection: Artifact) -> str:
    """Which passages training reads: the training passages where the collection keeps them apart."""
    return TRAIN_PASSAGES if collection.meta["train_passages"] else PASSAGES


# ------------------------------------------------------------------------------------ tokens


@dataclass(frozen=True)
class _Tokenise:
    """Ray Data function: passages -> their tokens; the tokenizer is loaded once a process."""

    backbone: Backbone
    models_dir: str | None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        tokenizer = _tokenizer(self.backbone, self.models_dir)
        titles = [str(t).strip() for t in batch["title"]]
        heads = tokenizer.encode(titles, STORE_LIMIT)
        bodies = [
            f" {text}" if title else str(text)
            for title, text in zip(titles, batch["text"], strict=True)
        ]
        tails = tokenizer.encode(bodies, STORE_LIMIT)
        tokens = [np.concatenate([h, t])[:STORE_LIMIT] for h, t in zip(heads, tails, strict=True)]
        return {
            "passage_id": batch["passage_id"],
            "tokens": np.array([t.tobytes() for t in tokens], dtype=object),
            "title_tokens": np.array([min(len(h), STORE_LIMIT) for h in heads], dtype=np.int32),
        }


_TOKENIZERS: dict[tuple[Backbone, str | None], Tokenizer] = {}


def _tokenizer(backbone: Backbone, models_dir: str | None) -> Tokenizer:
    if (backbone, models_dir) not in _TOKENIZERS:
        _TOKENIZERS[backbone, models_dir] = load_tokenizer(backbone, models_dir)
    return _TOKENIZERS[backbone, models_dir]


def tokens_address(collection: Artifact, tokenizer: Tokenizer) -> Address:
    identity = {"tokenizer": tokenizer.fingerprint, "limit": STORE_LIMIT}
    return Address(
        "tokens", collection.manifest["name"], identity, {"collection": collection.fingerprint}
    )


def tokenise(
    store: Store, collection: Artifact, backbone: Backbone, models_dir: str | None
) -> Artifact:
    """Commit the passage store(s) of a collection under a backbone's tokenizer."""
    tokenizer = load_tokenizer(backbone, models_dir)
    address = tokens_address(collection, tokenizer)
    folder = store.local(collection)
    with store.draft(address) as draft:
        for part in (PASSAGES, TRAIN_PASSAGES):
            files = sorted(str(f) for f in (folder / part).glob("*.parquet"))
            if not files:
                continue
            dataset = ray.data.read_parquet(files).map_batches(
                _Tokenise(backbone, models_dir),  # type: ignore[arg-type]
                batch_size=1_024,
                zero_copy_batch=False,
            )
            draft.meta[part] = unwrapped(
                write_store,
                draft.path / part,
                _token_shards(dataset, tokenizer.dtype),
                tokenizer.dtype,
            )
        statistics = {**draft.meta, "vocabulary": tokenizer.vocabulary}
        (draft.path / "statistics.json").write_text(json.dumps(statistics, indent=1))
    return store.committed(address)


def _token_shards(
    dataset: ray.data.Dataset, dtype: type
) -> Iterator[tuple[list[str], list[np.ndarray], list[int]]]:
    for batch in dataset.iter_batches(batch_size=4_096, batch_format="numpy"):
        tokens = [np.frombuffer(t, dtype=dtype) for t in batch["tokens"]]
        yield [str(i) for i in batch["passage_id"]], tokens, batch["title_tokens"].tolist()
