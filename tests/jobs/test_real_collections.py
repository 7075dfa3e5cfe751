"""SciFact, NFCorpus and MS MARCO's slice through the whole data path on Ray, checked against the files themselves."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylab.data.collections import Passage, is_validation, read_passages, read_qrels, read_queries
from raylab.data.ingested import training_part
from raylab.data.sources import open_collection
from raylab.data.supervision.batches import TrainingBatches
from raylab.data.supervision.groups import open_groups
from raylab.data.tokens import PassageStore
from raylab.experiment.config import Backbone, FineTuning
from raylab.jobs.ingest import ingest
from raylab.jobs.pools import data_pool, ray_pool
from raylab.models.hub import load_tokenizer
from raylab.models.teachers import Teacher
from raylab.stages.arrays import make_arrays
from raylab.stages.mine import Mining
from raylab.stages.teach import make_groups
from raylab.stages.teaching import Teaching
from raylab.stages.tokenise import tokenise
from raylab.storage.store import Store
from tests import batch_texts

MINING = Mining(depth=6, random=2, pseudo_queries=False)


@pytest.mark.slow  # `.ci/run` trains on SciFact
@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("tiny", "cross"),
        ("scifact", "cross"),
        ("beir/nfcorpus", "dense"),
        ("msmarco-slice", "cross"),
    ],
)
def test_a_real_collection_becomes_batches(
    name,
    teacher,
    request,
    ray_cluster,
    tmp_path,
    collection_folder,
    model_folder,
    teacher_folder,
    retriever_folders,
):
    """In `make test` of a tiny one, made for the tests."""
    known = {"scifact": "scifact", "tiny": str(collection_folder)}
    place = known.get(name) or str(request.getfixturevalue("shared_data") / name)
    model = str({"cross": teacher_folder, "dense": retriever_folders["dense"]}[teacher])
    store, source = Store(str(tmp_path / "lab")), open_collection(place)
    tokenizer = load_tokenizer(Backbone("tiny", str(model_folder)), None)
    collection = ingest(store, source)
    tokens = tokenise(store, collection, tokenizer, data_pool)
    groups = make_groups(Teaching(store, collection, MINING, model, None, actors=2, pool=ray_pool))
    rows = pa.concat_tables(
        [pq.read_table(path) for path in sorted(store.local(groups).glob("*.parquet"))]
    ).to_pylist()

    check_groups(source, rows, carved=name in ("scifact", "tiny"))
    check_scores(source, rows, model)
    passages = PassageStore(store.local(tokens) / training_part(collection))
    arrays = make_arrays(store, collection, groups, tokens, training_part(collection), data_pool)
    check_batches(source, rows, open_groups(store.local(arrays)), passages, tokenizer)
    assert not list((tmp_path / "lab").glob("*-shards/*"))


def passages_of(source) -> dict[str, Passage]:
    """Training passages by id, read straight from the files."""
    return {p.passage_id: p for p in read_passages(source.train_passages or source.passages)}


def texts_of(source) -> dict[str, str]:
    return {i: f"{p.title} {p.text}".strip() for i, p in passages_of(source).items()}


def check_groups(source, rows, carved: bool) -> None:
    """One group a training query and relevant passage; negatives are neither relevant nor copies of such."""
    texts = texts_of(source)
    positives = defaultdict(set)
    for query_id, grades in read_qrels(source.qrels["train"]).items():
        if not (carved and is_validation(query_id)):
            positives[query_id] = {p for p, grade in grades.items() if grade > 0 and p in texts}
    expected = {(q, p) for q, own in positives.items() for p in own}
    assert {(r["query_id"], r["positive"]) for r in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        relevant = positives[row["query_id"]]
        copies = {texts[p] for p in relevant}
        assert len(row["negatives"]) == len(set(row["negatives"])) == 8
        assert row["mined"] == 6
        assert not relevant & set(row["negatives"])
        assert not copies & {texts[p] for p in row["negatives"]}


def check_scores(source, rows, model: str) -> None:
    """Scores are those of the teacher over the texts, called here pair by pair."""
    texts, judge = texts_of(source), Teacher(model, None)
    for row in (rows[i] for i in np.random.default_rng(0).choice(len(rows), 6)):
        listed = [row["positive"], *row["negatives"]]
        own = [judge.score([row["query"]], [texts[p]])[0] for p in listed]
        made = [row["positive_score"], *row["negative_scores"]]
        np.testing.assert_allclose(made, own, rtol=1e-4, atol=1e-4)


def check_batches(source, rows, groups, passages, tokenizer) -> None:
    """A step's texts are those of its groups, whatever the number of workers."""
    read, tuning = passages_of(source), FineTuning(batch_queries=8, passage_length=48)
    queries = {q.text for q in read_queries(source.queries["train"]).values()}
    batches = TrainingBatches(groups, passages, tokenizer, tuning, 4, 0, needs_teacher=True)
    for step in (0, 1, len(rows) // 8):  # the last one reaches into the second epoch
        whole = batches.collate(batches.draw(step))
        for world in (2, 4):
            parts = [batches.collate(batches.draw(step), rank, world) for rank in range(world)]
            for shared, text in zip(
                batch_texts.texts_of(*parts), batch_texts.texts_of(whole), strict=True
            ):
                np.testing.assert_array_equal(shared, text)
        drawn, texts = batches.draw(step).groups_Q, batch_texts.texts_of(whole)
        for place, group in enumerate(drawn.tolist()):
            row = rows[group]
            assert row["query"] in queries
            assert texts[place].tolist() == tokenizer.encode([row["query"]], 64)[0].tolist()
            assert texts[8 + 4 * place].tolist() == tokens_of(tokenizer, read[row["positive"]])[:48]


def tokens_of(tokenizer, passage: Passage) -> list[int]:
    """A passage's tokens as the store is said to hold them: those of the title, then of " text"."""
    title = passage.title.strip()
    parts = [title, f" {passage.text}"] if title else [passage.text]
    return [token for part in parts for token in tokenizer.encode([part])[0].tolist()]
