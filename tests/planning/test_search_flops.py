"""What search and a teacher's scores cost, against what torch counts."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from raylab.evaluation.efficiency import TermCounts, retrieval_flops
from raylab.experiment.config import (
    Lora,
)
from raylab.planning.flops import (
    Rows,
    Shape,
    bi_encoder_flops,
    cross_encoder_flops,
    dense_search_flops,
    sparse_search_flops,
)
from raylab.training.pretraining import Rung

CONFIG = Rung("t", 3, 64, 4, 160).config(500)
# The eager form spells its attention products out, so that the counter sees them.
CONFIG._attn_implementation = "eager"
SHAPE = Shape.of(CONFIG)
ROWS = Rows(6, 40)
FREED = Lora(rank=4, dropout=0.0, train_embeddings=True)


def test_sparse_search_touches_the_postings_that_queries_share_with_passages():
    rng = np.random.default_rng(0)
    queries, passages = (sp.random_array((n, 50), density=0.2, rng=rng) for n in (7, 30))
    shared = ((queries != 0).astype(int) @ (passages != 0).astype(int).T).sum()
    counts = TermCounts.of(queries), TermCounts.of(passages)
    assert sparse_search_flops(7, 30, retrieval_flops(*counts)) == pytest.approx(2 * shared)


def test_dense_search_is_one_product():
    with FlopCounterMode(display=False) as counter:
        _ = torch.randn(7, 64) @ torch.randn(64, 30)
    assert dense_search_flops(7, 30, 64) == counter.get_total_flops()


BERT = BertConfig(
    vocab_size=500,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=256,
    attn_implementation="eager",
)


def test_teaching_costs_what_torch_counts():
    pairs, texts = torch.zeros(6, 40).long(), torch.zeros(5, 30).long()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        BertForSequenceClassification(BERT)(input_ids=pairs)
    shape = Shape.of(BERT)
    assert cross_encoder_flops(shape, Rows(6, 40)) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )
    encoder = BertModel(BERT, add_pooling_layer=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        queries, passages = (
            encoder(input_ids=own).last_hidden_state.mean(1) for own in (pairs, texts)
        )
        _ = queries @ passages.T
    assert bi_encoder_flops(shape, [Rows(6, 40), Rows(5, 30)], 30) == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )
