"""Groups of like length: every text once, few tokens of padding, and cuts that no other cuts better."""

import gzip
import itertools
import math

import numpy as np
import pytest

from raylab.data.supervision.length_groups import (
    MOST_GROUPS,
    PADDED,
    WORTH_TOKENS,
    LengthGroups,
    length_groups,
)
from raylab.experiment.config import FineTuning
from raylab.experiment.known_models import KNOWN_MODELS

RNG = np.random.default_rng(0)


def padded_tokens(lengths, ends) -> int:
    """By hand: every group as wide as its longest text."""
    ordered, starts = sorted(lengths), [0, *ends[:-1]]
    return sum(
        (end - start) * max(ordered[start:end]) for start, end in zip(starts, ends, strict=True)
    )


def check(groups: LengthGroups, lengths) -> None:
    lengths = np.maximum(lengths, 1)
    assert sorted(groups.order_T.tolist()) == list(range(len(lengths)))
    assert groups.counts_G.min() > 0
    assert groups.counts_G.sum() == len(lengths)
    assert groups.real_G.sum() == groups.real_tokens == lengths.sum()
    assert groups.padded_tokens == padded_tokens(lengths, groups.ends_G.tolist())
    for places, longest in zip(
        np.split(groups.order_T, groups.ends_G[:-1]), groups.lengths_G, strict=True
    ):
        assert lengths[places].max() == longest


@pytest.mark.parametrize("queries", [1, 2, 3, 7, 8, 12, 64, 100])
@pytest.mark.parametrize("listed", [1, 2, 5])
def test_every_text_is_in_one_group_and_on_one_worker(queries, listed):
    lengths = RNG.integers(0, 60, queries * (1 + listed))
    groups = length_groups(lengths, queries)
    check(groups, lengths)
    for world in (w for w in range(1, queries + 1) if queries % w == 0):
        shares = [groups.share(rank, world) for rank in range(world)]
        for rank, share in enumerate(shares):
            assert np.concatenate(share).tolist() == groups.dealt(world)[rank].tolist()
        for group, of_workers in enumerate(zip(*shares, strict=True)):
            counts = [len(texts) for texts in of_workers]
            assert sum(counts) == groups.counts_G[group]
            # Dealt like cards; and evenly among the usual numbers of workers.
            assert max(counts) - min(counts) <= (0 if world in (1, 2, 4, 8) else 1)
    with pytest.raises(ValueError, match="cannot be shared by"):
        groups.dealt(queries * (1 + listed) + 1)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cuts_of_as_many_groups_pad_less(seed):
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([rng.integers(1, 30, 16), rng.integers(20, 200, 32)])
    groups = length_groups(lengths, 8)  # cut at multiples of 8
    check(groups, lengths)
    few = []
    for number in range(1, len(groups.ends_G) + 1):
        cuts = itertools.combinations(range(8, 48, 8), number - 1)
        few.append(min(padded_tokens(lengths, [*cut, 48]) for cut in cuts))
    assert groups.padded_tokens == few[-1]
    # And fewer groups are neither enough nor without worth.
    assert all(tokens > PADDED * lengths.sum() for tokens in few[:-1])
    assert all(a - b >= WORTH_TOKENS for a, b in itertools.pairwise(few))


def test_one_group_where_more_are_of_no_use():
    for lengths in (np.full(90, 31), np.zeros(24, int), np.array([5]), np.array([2, 9, 9])):
        groups = length_groups(lengths, 1)
        check(groups, lengths)
        assert len(groups.ends_G) == 1
    assert (
        length_groups(np.zeros(24, int), 8).real_tokens == 24
    )  # of an empty text a pad token is encoded


def test_groups_do_not_depend_on_the_order_of_the_texts():
    lengths = RNG.integers(1, 129, 900)
    groups, shuffled = length_groups(lengths, 100), length_groups(RNG.permutation(lengths), 100)
    assert groups.lengths_G.tolist() == shuffled.lengths_G.tolist()
    assert groups.counts_G.tolist() == shuffled.counts_G.tolist()


def test_equal_texts_keep_their_order():
    assert length_groups(np.array([3, 1, 3, 1, 2]), 1).order_T.tolist() == [1, 3, 4, 0, 2]


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.2-1B", None])
@pytest.mark.parametrize(("queries", "listed"), [(112, 17), (128, 17), (512, 2), (1024, 2)])
def test_a_step_of_ms_marco_is_padded_by_a_twentieth_at_most(shared_data, model, queries, listed):
    """The batches of 2502.15526, of Llama's tokens a word, and of twice as many (all passages near the limit)."""
    tuning = FineTuning()
    slice_ = shared_data / "msmarco-slice"
    with gzip.open(slice_ / "collection.tsv.gz", "rt") as file:
        passages = np.array([len(line.split("\t", 1)[1].split()) for line in file])
    with (slice_ / "queries.train.tsv").open() as file:
        queries_words = np.array([len(line.split("\t", 1)[1].split()) for line in file])
    a_word = KNOWN_MODELS[model].tokens.passage_tokens_a_word if model else 2.0
    ratios, before = [], []
    for _ in range(5):
        kinds = (
            (queries_words, queries, tuning.query_length),
            (passages, queries * listed, tuning.passage_length),
        )
        drawn = [
            np.minimum(np.rint(RNG.choice(words, count) * a_word), limit).astype(int)
            for words, count, limit in kinds
        ]
        groups = length_groups(np.concatenate(drawn), queries)
        ratios.append(groups.padded_tokens / groups.real_tokens)
        before.append(sum(len(texts) * texts.max() for texts in drawn) / groups.real_tokens)
        assert len(groups.ends_G) <= MOST_GROUPS
    assert max(ratios) <= 1.05
    assert math.prod(before) ** 0.2 > 1.2  # what it was, padded by kind
