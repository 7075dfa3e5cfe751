"""`raylab encode | index | search` with every kind of checkpoint, against naive rankings in float64."""

import json
import shutil

import faiss
import numpy as np
import pytest
from typer.testing import CliRunner

from raylab.cli.main import app
from raylab.data.collections import read_passages
from raylab.data.sources import open_collection
from raylab.evaluation.runs import read_run
from raylab.experiment.config import Encoding
from raylab.experiment.execution import Execution
from raylab.experiment.heads import SPARSE
from raylab.models.opening import find_retriever
from raylab.models.retriever import Retriever
from raylab.pipeline.retrieval import Retrieval
from raylab.storage.store import Store
from tests.jobs.rankings import assert_ranked, half, printed, ranked
from tests.models.test_published import write as write_published

SLOW_SPARSE, SLOW_DENSE = (
    pytest.param(head, marks=pytest.mark.slow) for head in ("sparse", "dense")
)

QUERY = "virus infection of the lung"


def raylab(*arguments, expect=0):
    """(stdout, stderr) of the command, in this process."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == expect, (done.output, done.exception)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return tmp_path_factory.mktemp("search") / "lab"


@pytest.fixture(scope="module")
def texts(collection_folder) -> dict[str, str]:
    rows = map(json.loads, (collection_folder / "corpus.jsonl").open())
    return {row["_id"]: f"{row['title']} {row['text']}" for row in rows}


@pytest.mark.parametrize("head", ["dense", SLOW_SPARSE])
def test_a_text_finds_what_a_loop_finds_and_the_second_time_makes_nothing(
    ray_cluster, lab, collection_folder, retriever_folders, texts, head
):
    where = (retriever_folders[head], collection_folder, QUERY, "--k", 7, "--storage", lab)
    where += ("--encoders", 1)
    output, told = raylab("search", *where)
    assert "encoding 1 of 1 shard(s)" in told
    retriever = Retriever.load(retriever_folders[head])
    passages = half(retriever.encode_passages(list(texts.values())))
    query = half(retriever.encode_queries([QUERY]))
    expected = ranked(query, passages, list(texts), 7)
    assert_ranked(printed(output), expected)
    for passage_id, _ in printed(output):
        assert texts[passage_id][:100] in output
    before = {p: p.stat().st_mtime_ns for p in lab.rglob("*")}
    again, told = raylab("search", *where)
    assert again == output
    assert "encoding" not in told
    assert {p: p.stat().st_mtime_ns for p in lab.rglob("*")} == before
    stages = raylab("encode", *where[:2], "--storage", lab)[0]
    assert stages.startswith("120 passages in 1 shard(s)")
    assert "index/checkpoint-" in raylab("index", *where[:2], "--storage", lab)[0]
    assert {p: p.stat().st_mtime_ns for p in lab.rglob("*")} == before


def retrieval(lab, collection, checkpoint, encoding=None) -> Retrieval:
    found = find_retriever(str(checkpoint))
    return Retrieval(
        Store(str(lab)),
        Execution(storage=str(lab), shard_passages=50),
        open_collection(str(collection)),
        "error",
        found,
        encoding or found.encoding,
        lambda: None,
        lambda text: None,
    )


def test_the_terms_of_a_hit_are_those_of_both_and_make_up_its_score(
    in_this_process, tmp_path, collection_folder, retriever_folders, texts
):
    """Over several shards; every term by its own entry of the vocabulary, the largest product first."""
    made = retrieval(tmp_path / "lab", collection_folder, retriever_folders["sparse"])
    assert len(made.parts) == 3
    hits = made.search(QUERY, 120)
    retriever = Retriever.load(retriever_folders["sparse"])
    query = half(retriever.encode_queries([QUERY])).toarray()[0]
    alone = half(retriever.encode_passages([texts[hit.passage_id] for hit in hits])).toarray()
    names = retriever.tokenizer.tokens(range(len(query)))
    for hit, passage in zip(hits, alone, strict=True):
        assert hit.text == texts[hit.passage_id]
        both = np.flatnonzero(query * passage)
        weights = {names[t]: (query[t], passage[t]) for t in both}
        # Encoded alone or with others, a weight differs in its last bits, and so may where half
        # precision rounds it to.
        assert {name: (a, b) for name, a, b in hit.terms} == {
            name: pytest.approx(own, rel=2e-3) for name, own in weights.items()
        }
        assert sum(a * b for _, a, b in hit.terms) == pytest.approx(hit.score, rel=1e-5)
        products = [a * b for _, a, b in hit.terms]
        assert products == sorted(products, reverse=True)


@pytest.mark.parametrize("head", ["sparse", SLOW_DENSE])
def test_the_run_of_a_split(ray_cluster, lab, tmp_path, collection_folder, retriever_folders, head):
    out = tmp_path / "run.trec.gz"
    where = (retriever_folders[head], collection_folder, "--storage", lab, "--encoders", 1)
    other = tmp_path / "other.trec.gz"
    split = ("--split", "test", "--out")
    apart = (*where[:2], "--storage", tmp_path / "lab")
    if head == "dense":  # once is enough: an ingest, a pass and a search
        _, told = raylab("search", *apart, *split, other, "--no-index")
        assert "bytes of embeddings not stored" in told
        assert not (tmp_path / "lab" / "index").exists()
    output, _ = raylab("search", *where, *split, out)
    assert head != "dense" or other.read_bytes() == out.read_bytes()
    run = read_run(out)
    queries = map(json.loads, (collection_folder / "queries.jsonl").open())
    asked = {row["_id"]: row["text"] for row in queries if row["_id"] in run}
    assert list(asked) == [f"q{n:03d}" for n in range(60, 80)]
    made = retrieval(lab, collection_folder, retriever_folders[head])
    for query_id in ("q060", "q079"):
        hits = made.search(asked[query_id], 100)
        found = list(run[query_id])
        assert_ranked(found, [(hit.passage_id, hit.score) for hit in hits], 2e-3)
    # Query n asks for passage n alone, so that its reciprocal rank is that of p<n>.
    ranks = []
    for query_id, ranking in run.items():
        ids = [passage_id for passage_id, _ in ranking][:10]
        relevant = query_id.replace("q", "p")
        ranks.append(1 / (1 + ids.index(relevant)) if relevant in ids else 0.0)
    assert f"RR@10  {np.mean(ranks):.4f}" in output


def test_indexes_are_exported_whole(
    ray_cluster, lab, tmp_path, collection_folder, retriever_folders
):
    out = tmp_path / "out"
    where = (collection_folder, "--storage", lab)
    files = ("--ciff", out / "all.ciff.gz", "--json-vectors", out / "all.jsonl")
    output, _ = raylab("index", retriever_folders["sparse"], *where, *files)
    assert f"ciff  {out / 'all.ciff.gz'}" in output
    retriever = Retriever.load(retriever_folders["sparse"])
    rows = {p.passage_id: p for p in read_passages([str(collection_folder / "corpus.jsonl")])}
    for line in (out / "all.jsonl").read_text().splitlines():
        record = json.loads(line)
        passage = rows.pop(record["id"])
        impacts = half(retriever.encode_passages([f"{passage.title} {passage.text}"]))
        names = retriever.terms(impacts.indices)
        weights = np.maximum(np.rint(100 * impacts.data.astype(np.float64)), 1).astype(int)
        made, expected = record["vector"], dict(zip(names, weights.tolist(), strict=True))
        assert made.keys() == expected.keys()
        assert all(abs(made[name] - expected[name]) <= 1 for name in made)
    assert not rows
    raylab("index", retriever_folders["dense"], *where, "--faiss", out / "flat")
    flat = faiss.read_index(str(out / "flat" / "index"))
    assert flat.ntotal == 120 == len((out / "flat" / "docid").read_text().split())
    assert sorted(path.name for path in out.iterdir()) == ["all.ciff.gz", "all.jsonl", "flat"]


def test_an_export_of_the_other_head_is_refused(
    ray_cluster, lab, tmp_path, collection_folder, retriever_folders
):
    where = (collection_folder, "--storage", lab)
    wrong = (retriever_folders["dense"], *where, "--ciff", tmp_path / "all.ciff")
    _, told = raylab("index", *wrong, expect=2)
    assert "--ciff: it takes a sparse retriever" in told
    wrong = (retriever_folders["sparse"], *where, "--faiss", tmp_path / "flat")
    _, told = raylab("index", *wrong, expect=2)
    assert "--faiss: it takes a dense retriever" in told
    assert not list(tmp_path.iterdir())


def test_lengths_pruning_and_precision_are_asked_for_and_are_other_artifacts(
    in_this_process, lab, collection_folder, retriever_folders
):
    where = (retriever_folders["sparse"], collection_folder, "--storage", lab)
    own = raylab("encode", *where)[0].splitlines()[1]
    options = ("--top-k-passage", 5, "--precision", "float32", "--passage-length", 9)
    other = raylab("encode", *where, *options)[0].splitlines()[1]
    assert other != own
    (shard,) = (lab / other.split()[1]).glob("attempt-*")
    assert np.load(shard / "impacts.npy").dtype == np.float32
    retriever = Retriever.load(retriever_folders["sparse"])
    retriever.encoding = Encoding(passage_length=9, top_k_passage=5, precision="float32")
    assert np.diff(np.load(shard / "indptr.npy")).max() == 5
    assert raylab("encode", *where)[0].splitlines()[1] == own


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_an_adapter_of_the_authors(
    in_this_process, lab, tmp_path, collection_folder, model_folder, texts, head
):
    models = tmp_path / "models"
    shutil.copytree(model_folder, models / "Llama-3.2-1B")
    folder = tmp_path / "published"
    write_published(folder, head, model_folder)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    where = (folder, collection_folder, QUERY, "--storage", lab, "--models", models)
    output, _ = raylab("search", *where)
    retriever = Retriever.load(folder, str(models))
    passages = half(retriever.encode_passages(list(texts.values())))
    query = half(retriever.encode_queries([QUERY]))
    assert_ranked(printed(output), ranked(query, passages, list(texts), 10))


def test_a_sparse_encoder_of_sentence_transformers_is_the_same_retriever(
    in_this_process, lab, tmp_path, collection_folder, retriever_folders
):
    """raylab's own folder, read as the library reads it."""
    pytest.importorskip("sentence_transformers")
    folder = shutil.copytree(retriever_folders["sparse"], tmp_path / "splade")
    (folder / "retriever.json").unlink()
    found = find_retriever(str(folder))
    assert (found.kind, found.head) == ("sentence-transformers", SPARSE)
    own = Retriever.load(retriever_folders["sparse"]).encoding
    assert (found.encoding.query_length, found.encoding.passage_length) == (512, 48)
    assert (found.encoding.top_k_query, found.encoding.top_k_passage) == (0, 0)
    theirs = retrieval(lab, collection_folder, folder, own).search(QUERY, 20)
    ours = retrieval(lab, collection_folder, retriever_folders["sparse"]).search(QUERY, 20)
    assert_ranked(
        [(h.passage_id, h.score) for h in theirs], [(h.passage_id, h.score) for h in ours], 5e-3
    )
    assert theirs[0].terms[0][0] == ours[0].terms[0][0]


def test_a_bi_encoder_of_sentence_transformers_is_compared_by_its_cosine(
    in_this_process, lab, tmp_path, collection_folder, teacher_folder, texts
):
    """A random BERT under the library's pooling, with a prompt for queries, not normalised by itself."""
    st = pytest.importorskip("sentence_transformers")
    from transformers import AutoModel

    bert = tmp_path / "bert"
    shutil.copytree(teacher_folder, bert)
    AutoModel.from_pretrained(str(teacher_folder)).save_pretrained(str(bert))
    model = st.SentenceTransformer(str(bert), device="cpu")
    model.prompts = {"query": "risk of ", "document": ""}
    model.max_seq_length = 24
    folder = tmp_path / "bi-encoder"
    model.save(str(folder))
    output, _ = raylab("search", folder, collection_folder, QUERY, "--storage", lab)
    unit = {"normalize_embeddings": True, "show_progress_bar": False}
    passages = half(model.encode_document(list(texts.values()), **unit))
    query = half(model.encode_query([QUERY], **unit))
    assert_ranked(printed(output), ranked(query, passages, list(texts), 10), 1e-3)


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["CHECKPOINT", "COLLECTION"], "search needs the text of a query, or --split"),
        (["CHECKPOINT", "COLLECTION", "x", "--split", "test"], "one of them"),
        (["CHECKPOINT", "COLLECTION", "  "], "the query is empty"),
        (["CHECKPOINT", "COLLECTION", "x", "--k", "0"], "--k 0: it must be at least 1"),
        (["CHECKPOINT", "COLLECTION", "x", "--out", "a.gz"], "--out a.gz: it needs --split"),
        (["CHECKPOINT", "COLLECTION", "--split", "test", "--out", "run"], "must end in .gz"),
        (["CHECKPOINT", "COLLECTION", "x", "--no-index"], "--no-index: it needs --split"),
        (["CHECKPOINT", "nowhere", "x"], "no collection 'nowhere'"),
        (["NONE", "scifact", "x"], "error: no retriever at '"),
        (["EMPTY", "COLLECTION", "x"], "the folder holds no weights"),
        (["MODEL", "COLLECTION", "x"], "holds no retriever checkpoint (retriever.json"),
        (["BROKEN", "COLLECTION", "x"], "retriever.json is no JSON"),
        (["package:no_such_package/x", "COLLECTION", "x"], "needs the Python package"),
        (["CHECKPOINT", "COLLECTION", "x", "--top-k-query", "-1"], "--top-k-query = -1"),
        (["CHECKPOINT", "COLLECTION", "x", "--query-length", "0"], "--query-length = 0"),
        (["CHECKPOINT", "COLLECTION", "x", "--precision", "int8"], "--precision = 'int8'"),
        (["CHECKPOINT", "COLLECTION", "x", "--encoders", "-1"], "--encoders = -1"),
        (["CHECKPOINT", "COLLECTION", "x", "--shard-passages", "0"], "--shard-passages = 0"),
        (["CHECKPOINT", "COLLECTION", "x", "--on-fault", "ask"], "--on-fault = 'ask'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, collection_folder, retriever_folders, model_folder, arguments, words
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    broken = shutil.copytree(retriever_folders["dense"], tmp_path / "broken")
    (broken / "retriever.json").write_text('{"head": ')
    (tmp_path / "empty").mkdir()
    names = {
        "CHECKPOINT": retriever_folders["dense"],
        "COLLECTION": collection_folder,
        "EMPTY": tmp_path / "empty",
        "NONE": tmp_path / "none",
        "MODEL": model_folder,
        "BROKEN": broken,
    }
    lab = tmp_path / "lab"
    given = [str(names.get(one, one)) for one in arguments]
    output, told = raylab("search", *given, "--storage", lab, expect=2)
    assert output == ""
    assert told.startswith("error: ")
    assert words in told
    assert len(told.splitlines()) == 1
    assert not lab.exists()


def test_a_split_that_is_not_there_and_weights_cut_short(
    in_this_process, lab, tmp_path, collection_folder, retriever_folders
):
    """One is found once the collection has been read, the other before."""
    where = (retriever_folders["dense"], collection_folder, "--storage", lab)
    _, told = raylab("search", *where, "--split", "dev", expect=2)
    assert "--split dev: " in told
    assert "it has" in told
    cut = shutil.copytree(retriever_folders["dense"], tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    _, told = raylab("search", cut, collection_folder, "x", "--storage", lab, expect=2)
    last = told.splitlines()[-1]
    assert last.startswith(f"error: {cut}: {cut}/model.safetensors has")
    assert "and its header tells of" in last
