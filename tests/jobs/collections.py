"""A collection in a store, without Ray: what ingest commits, from a BEIR or MS MARCO folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raylab.artifacts import Artifact, Store
from raylab.data.collections import open_collection, read_passages, read_topics
from raylab.jobs.ingest import PASSAGES, TRAIN_PASSAGES, collection_address


def committed(store: Store, folder: Path, rows_a_file: int = 50) -> Artifact:
    """The collection artifact of a folder; its passages in several files."""
    source = open_collection(str(folder))
    topics = read_topics(source)
    with store.draft(collection_address(source)) as draft:
        counts = {}
        for part, path in ((PASSAGES, source.passages), (TRAIN_PASSAGES, source.train_passages)):
            if path is None:
                continue
            passages = sorted(read_passages(path), key=lambda p: p.passage_id)
            (draft.path / part).mkdir()
            for number, start in enumerate(range(0, len(passages), rows_a_file)):
                own = passages[start : start + rows_a_file]
                columns = {
                    "passage_id": [p.passage_id for p in own],
                    "title": [p.title for p in own],
                    "text": [p.text for p in own],
                }
                name = draft.path / part / f"{number:05d}.parquet"
                pq.write_table(pa.table(columns), name, row_group_size=20)
            counts[part] = len(passages)
        queries = [(t.split, q, text) for t in topics.values() for q, text in t.queries.items()]
        grades = [
            (t.split, q, p, grade)
            for t in topics.values()
            for q, judged in t.qrels.items()
            for p, grade in judged.items()
        ]
        for name, rows, columns in (
            ("topics", queries, ("split", "query_id", "text")),
            ("qrels", grades, ("split", "query_id", "passage_id", "grade")),
        ):
            table = pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])
            pq.write_table(table, draft.path / f"{name}.parquet")
        draft.meta.update(
            name=source.name,
            passages=counts[PASSAGES],
            train_passages=counts.get(TRAIN_PASSAGES),
            splits={split: len(t.queries) for split, t in topics.items()},
        )
    return store.committed(collection_address(source))
