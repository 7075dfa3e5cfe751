"""Teachers score pairs as their own library does one by one; a missing one is one clear error."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
)

from raylab.experiment.config import ConfigError
from raylab.models.retriever import Retriever
from raylab.models.teachers import MAX_TOKENS, Teacher, check_teacher, teacher_fingerprint

WORDS = [
    "cell",
    "protein",
    "gene",
    "tumour",
    "virus",
    "mouse",
    "patient",
    "drug",
    "dose",
    "heart",
    "liver",
    "brain",
    "bone",
    "blood",
]
_RNG = np.random.default_rng(5)
QUERIES = [" ".join(_RNG.choice(WORDS, n)) for n in (3, 1, 6, 6, 12, 2)]
# The last one is longer than a teacher reads.
PASSAGES = [" ".join(_RNG.choice(WORDS, n)) for n in (30, 7, 51, 2, 40, MAX_TOKENS + 40)]


@pytest.fixture(scope="module")
def bi_encoder_folder(tmp_path_factory, model_folder):
    """A random BERT encoder with a tokenizer, as a local hub folder."""
    folder = tmp_path_factory.mktemp("bi") / "tiny-encoder"
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("batch_tokens", [1, 100, 8_192])
def test_a_cross_encoder_scores_each_pair_as_alone(teacher_folder, batch_tokens):
    teacher = Teacher(str(teacher_folder))
    assert teacher.is_cross_encoder
    scores = teacher.score(QUERIES, PASSAGES, batch_tokens)
    tokenizer = AutoTokenizer.from_pretrained(str(teacher_folder))
    model = AutoModelForSequenceClassification.from_pretrained(str(teacher_folder)).eval()
    expected = []
    for query, passage in zip(QUERIES, PASSAGES, strict=True):
        pair = tokenizer(query, passage, return_tensors="pt")
        pair = {name: ids[:, :MAX_TOKENS] for name, ids in pair.items()}  # the passage's end is cut
        with torch.no_grad():
            expected.append(float(model(**pair).logits[0, 0]))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert len(set(expected)) == len(expected)


def test_a_cross_encoder_takes_queries_longer_than_it_reads(teacher_folder):
    """Titles used as pseudo-queries, or ArguAna's arguments, may fill the whole window."""
    long = " ".join(["gene"] * (MAX_TOKENS + 20))
    scores = Teacher(str(teacher_folder)).score([long, "gene"], ["cell virus", "cell virus"])
    alone = Teacher(str(teacher_folder)).score(["gene"], ["cell virus"])
    assert np.isfinite(scores).all()
    assert scores[1] == pytest.approx(alone[0], abs=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 8_192])
def test_a_bi_encoder_scores_by_the_cosine_of_mean_states(bi_encoder_folder, batch_tokens):
    teacher = Teacher(str(bi_encoder_folder))
    assert not teacher.is_cross_encoder
    scores = teacher.score(QUERIES, PASSAGES, batch_tokens)
    tokenizer = AutoTokenizer.from_pretrained(str(bi_encoder_folder))
    model = AutoModel.from_pretrained(str(bi_encoder_folder)).double().eval()

    def embed(text: str) -> np.ndarray:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :MAX_TOKENS]
        with torch.no_grad():
            return model(input_ids=ids).last_hidden_state[0].mean(0).numpy()

    for score, query, passage in zip(scores, QUERIES, PASSAGES, strict=True):
        a, b = embed(query), embed(passage)
        assert score == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert teacher.score(["gene"], ["gene"])[0] == pytest.approx(1.0, abs=1e-6)


def test_scores_do_not_depend_on_what_was_scored_before(bi_encoder_folder):
    """To the bit: a run that is killed and goes on must end with the same scores."""
    first, second = Teacher(str(bi_encoder_folder)), Teacher(str(bi_encoder_folder))
    second.score(QUERIES[::-1], PASSAGES)
    assert first.score(QUERIES, PASSAGES).tolist() == second.score(QUERIES, PASSAGES).tolist()


@pytest.fixture(scope="module")
def sparse_encoder_folder(tmp_path_factory, model_folder):
    """A random BERT with a masked language model's head, as SPLADE models are published."""
    folder = tmp_path_factory.mktemp("sparse") / "tiny-splade"
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        pad_token_id=0,
    )
    model = BertForMaskedLM(config)
    torch.nn.init.normal_(model.cls.predictions.bias, std=0.5)
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("batch_tokens", [1, 100, 8_192])
def test_a_sparse_encoder_scores_by_the_product_of_term_weights(
    sparse_encoder_folder, batch_tokens
):
    teacher = Teacher(str(sparse_encoder_folder))
    assert teacher.kind == "sparse encoder"
    scores = teacher.score(QUERIES, PASSAGES, batch_tokens)
    tokenizer = AutoTokenizer.from_pretrained(str(sparse_encoder_folder))
    model = BertForMaskedLM.from_pretrained(str(sparse_encoder_folder)).double().eval()

    def weights(text: str) -> np.ndarray:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :MAX_TOKENS]
        with torch.no_grad():
            return np.log1p(np.maximum(model(input_ids=ids).logits[0].numpy(), 0).max(0))

    expected = [weights(q) @ weights(p) for q, p in zip(QUERIES, PASSAGES, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert len(set(np.round(expected, 6))) == len(expected)


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_a_retriever_scores_as_it_retrieves(retriever_folders, head):
    folder = str(retriever_folders[head])
    check_teacher(folder)
    teacher, retriever = Teacher(folder), Retriever.load(folder)
    assert teacher.kind == "retriever"
    for query, passage, score in zip(
        QUERIES, PASSAGES, teacher.score(QUERIES, PASSAGES), strict=True
    ):
        product = retriever.encode_queries([query]) @ retriever.encode_passages([passage]).T
        product = product.toarray() if head == "sparse" else product
        assert score == pytest.approx(product.item(), rel=1e-5)


def test_nothing_to_score_is_no_score(bi_encoder_folder):
    assert Teacher(str(bi_encoder_folder)).score([], []).shape == (0,)


def test_a_missing_teacher_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="teacher: no model at "):
        Teacher(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="needs the Python package 'no_such_teacher'"):
        Teacher("package:no_such_teacher/model")


def test_a_folder_without_weights_is_no_teacher(tmp_path, teacher_folder):
    shutil.copytree(teacher_folder, tmp_path / "t", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match="teacher: no model at "):
        Teacher(str(tmp_path / "t"))


def test_a_teacher_is_looked_for_before_anything_else(tmp_path, teacher_folder):
    """Scoring comes late: what is missing must be found out before passages are moved."""
    check_teacher(str(teacher_folder))
    shutil.copytree(teacher_folder, tmp_path / "models" / "BERT")
    check_teacher("org/BERT", str(tmp_path / "models"))
    scores = {"query_id": ["q"], "passage_id": ["p"], "score": [1.0]}
    pq.write_table(pa.table(scores), tmp_path / "scores.parquet")
    check_teacher(str(tmp_path / "scores.parquet"))
    (tmp_path / "empty").mkdir()
    for missing in ("nowhere", "nowhere.parquet", "empty"):
        with pytest.raises(ConfigError, match=f"teacher {tmp_path / missing}: "):
            check_teacher(str(tmp_path / missing))


def test_the_fingerprint_is_of_the_model_not_of_its_place(tmp_path, teacher_folder):
    shutil.copytree(teacher_folder, tmp_path / "copy")
    own = teacher_fingerprint(str(teacher_folder))
    assert teacher_fingerprint(str(tmp_path / "copy")) == own
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert teacher_fingerprint(str(tmp_path / "copy")) != own
