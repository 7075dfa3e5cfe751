"""Encoding does not depend on batching, pruning keeps the largest terms, collapse is noticed, contracts hold."""

import itertools
import logging

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylab.data.collections import read_passages
from raylab.data.sources import open_collection
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.heads import DENSE, HEADS, SPARSE
from raylab.models.hub import load_tokenizer
from raylab.models.retriever import Retriever, collapse, length_batches

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
_RNG = np.random.default_rng(3)
TEXTS = [" ".join(_RNG.choice(WORDS, n)) for n in (3, 17, 1, 9, 9, 30, 2, 24, 5, 12)]


@pytest.fixture
def backbone(model_folder) -> Backbone:
    return Backbone("tiny", str(model_folder))


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else matrix


# ------------------------------------------------------------------------------------ batches


@given(
    lengths=st.lists(st.integers(0, 60), max_size=50),
    batch_tokens=st.integers(1, 200),
)
def test_batches_keep_the_token_budget_and_hold_every_text_once(lengths, batch_tokens):
    batches = length_batches(lengths, batch_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    padded = [len(batch) * max(1, *(lengths[i] for i in batch)) for batch in batches]
    for batch, tokens in zip(batches, padded, strict=True):
        assert tokens <= batch_tokens or len(batch) == 1  # a text longer than the budget goes alone
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest)  # texts of like length pad little
    # None is closed early: the next text would not have fitted, or would have padded a batch of fair size.
    for batch, following in itertools.pairwise(batches):
        real = [max(1, lengths[i]) for i in [*batch, following[0]]]
        padded = len(real) * real[-1]
        fair = 8 * sum(real[:-1]) >= batch_tokens
        assert padded > batch_tokens or (padded > 1.02 * sum(real) and fair)


@pytest.mark.long
def test_padding_stays_within_two_percent_on_ms_marco(shared_data):
    """Random batches of these passages pad to 1.68 times the real tokens."""
    source = open_collection(str(shared_data / "msmarco-slice"))
    texts = [p.text for p in itertools.islice(read_passages(source.passages), 10_000)]
    tokenizer = load_tokenizer(Backbone("pico", "package:raylab/assets/ladder/pico-1x96"), None)
    lengths = [len(t) for t in tokenizer.encode_framed(texts, "passage", 512)]
    for shard in (2_048, len(lengths)):  # as small as a shard is, and all at once
        shards = [lengths[start : start + shard] for start in range(0, len(lengths), shard)]
        padded = sum(
            len(batch) * max(own[i] for i in batch)
            for own in shards
            for batch in length_batches(own, 16_384)
        )
        assert padded / sum(lengths) <= 1.02


# ----------------------------------------------------------------------------------- encoding


@pytest.fixture(scope="module")
def stock(model_folder):
    """The library's own tokenizer and bidirectional model, in float64."""
    model = AutoModelForCausalLM.from_pretrained(str(model_folder), is_causal=False)
    return AutoTokenizer.from_pretrained(str(model_folder)), model.double().eval()


def naive(stock, head: str, text: str, limit: int) -> np.ndarray:
    """One text through the stock model with the formulas of 2502.15526, without padding."""
    tokenizer, model = stock
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][:, :limit]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        if head == "dense":
            return (states / states.norm(dim=1, keepdim=True)).mean(0).numpy()
        logits = states @ model.lm_head.weight.T * states.shape[1] ** -0.25
        return torch.log1p(torch.relu(logits.max(0).values)).numpy()


@pytest.mark.parametrize("head", ["sparse", "dense"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_representations_are_those_of_each_text_alone_in_input_order(
    backbone, stock, head, batch_tokens
):
    encoding = Encoding(query_length=8, passage_length=20, top_k_query=0, top_k_passage=0)
    retriever = Retriever.untrained(backbone, HEADS[head], encoding)
    passages = retriever.encode_passages(TEXTS, batch_tokens)
    queries = retriever.encode_queries(TEXTS, batch_tokens)
    assert sp.issparse(passages) == (head == "sparse")
    assert passages.dtype == np.float32
    for matrix, limit in ((passages, 20), (queries, 8)):
        expected = np.stack([naive(stock, head, text, limit) for text in TEXTS])
        np.testing.assert_allclose(dense(matrix), expected, atol=1e-6)
    assert not np.allclose(dense(passages), dense(queries))  # the limits do cut


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_a_text_without_tokens_hurts_no_other(backbone, head):
    retriever = Retriever.untrained(backbone, HEADS[head], Encoding())
    alone, among = (
        retriever.encode_passages(["cell gene"]),
        retriever.encode_passages(["", "cell gene"]),
    )
    assert np.isfinite(dense(among)).all()
    np.testing.assert_allclose(dense(among)[1], dense(alone)[0], atol=1e-6)


def test_pruning_keeps_the_largest_terms_at_their_values(backbone):
    """40 terms a query and 400 a passage in the paper's setting (SPLARE); here 4 and 9."""
    full = Retriever.untrained(
        backbone, SPARSE, Encoding(top_k_query=0, top_k_passage=0)
    ).encode_queries(TEXTS)
    pruned = Retriever.untrained(backbone, SPARSE, Encoding(top_k_query=4, top_k_passage=9))
    for matrix, kept in ((pruned.encode_queries(TEXTS), 4), (pruned.encode_passages(TEXTS), 9)):
        assert np.diff(matrix.indptr).tolist() == [kept] * len(TEXTS)  # all have more than that
        for row, reference in zip(matrix.toarray(), full.toarray(), strict=True):
            largest = sorted(range(len(reference)), key=lambda term: -reference[term])[:kept]
            assert set(np.flatnonzero(row)) == set(largest)
            np.testing.assert_allclose(row[largest], reference[largest], atol=1e-6)


def test_the_default_keeps_40_and_400_terms(backbone):
    retriever = Retriever.untrained(backbone, SPARSE, Encoding())
    full = Retriever.untrained(backbone, SPARSE, Encoding(top_k_query=0, top_k_passage=0))
    active = np.diff(full.encode_passages(TEXTS).indptr)
    assert active.min() > 40
    assert set(np.diff(retriever.encode_queries(TEXTS).indptr)) == {40}
    assert (
        np.diff(retriever.encode_passages(TEXTS).indptr).tolist()
        == np.minimum(active, 400).tolist()
    )


# ----------------------------------------------------------------------------------- collapse


def test_equal_representations_are_noticed():
    rng = np.random.default_rng(0)
    cone = np.ones(64) + 0.05 * rng.normal(size=(50, 64))
    assert "collapsed" in collapse(cone.astype(np.float32))
    assert "collapsed" in collapse(sp.csr_matrix(np.pad(cone, ((0, 0), (0, 100)))))


def test_healthy_representations_give_no_warning():
    rng = np.random.default_rng(0)
    assert collapse(rng.normal(size=(50, 64)).astype(np.float32)) is None
    assert collapse(sp.random(50, 400, density=0.1, format="csr", rng=rng)) is None
    assert collapse(rng.normal(size=(1, 8)).astype(np.float32)) is None  # one text equals itself


def test_the_mean_cosine_is_over_pairs_of_different_texts():
    """Two orthogonal texts have mean cosine 0, though each equals itself; 0.99 for all pairs warns."""
    pair = np.array([[1.0, 0.0], [0.99, np.sqrt(1 - 0.99**2)]], np.float32)
    assert "0.990" in collapse(pair)
    assert collapse(np.array([[1.0, 0.0], [0.97, np.sqrt(1 - 0.97**2)]], np.float32)) is None


def test_a_vocabulary_nearly_all_active_is_noticed():
    rng = np.random.default_rng(0)
    warning = collapse(sp.random(20, 300, density=0.75, format="csr", rng=rng))
    assert "75% of the vocabulary is active" in warning
    assert "Top-K" in warning


def test_a_silenced_head_is_noticed():
    assert "silenced" in collapse(sp.csr_matrix((5, 300)))


def test_a_collapsed_retriever_says_so_when_it_encodes(backbone, caplog):
    retriever = Retriever.untrained(backbone, DENSE, Encoding())
    with torch.no_grad():
        embeddings = retriever.model.get_input_embeddings().weight
        embeddings.copy_(embeddings[5].expand_as(embeddings))  # every token is the same one
    with caplog.at_level(logging.WARNING, "raylab"):
        retriever.encode_passages(TEXTS)
        retriever.encode_passages(TEXTS)
    assert [r.message for r in caplog.records if "collapsed" in r.message]
    assert len(caplog.records) == 1  # once, not for every shard


def test_nothing_to_encode_gives_nothing(backbone):
    assert Retriever.untrained(backbone, DENSE, Encoding()).encode_queries([]).shape == (0, 32)
    assert Retriever.untrained(backbone, SPARSE, Encoding()).encode_queries([]).shape == (0, 400)
