"""merge_topk: the union's best hits, whatever the shards; the running selection behind search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.index.kernels.topk import Selection, merge_topk, offer, sort_key, unpack_keys


def naive_topk(hits, k):
    """Best k (id, score) pairs of one query by sorting Python tuples, padded with ('', -inf)."""
    best = sorted(hits, key=lambda hit: (hit[1], hit[0]), reverse=True)[:k]
    return best + [("", -np.inf)] * (k - len(best))


def as_part(rankings, k):
    padded = [naive_topk(hits, k) for hits in rankings]
    ids = np.array([[hit[0] for hit in hits] for hits in padded]).reshape(len(padded), k)
    scores = np.array([[hit[1] for hit in hits] for hits in padded], np.float32)
    return ids, scores.reshape(len(padded), k)


SCORES = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1.0, 3.0])
COLLECTIONS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(SCORES, min_size=2, max_size=2)), max_size=25
)


@settings(deadline=None)
@given(COLLECTIONS, st.integers(1, 12))
def test_merge_equals_sorting_the_union_for_any_sharding(collection, k):
    ids = [str(number) for number in range(len(collection))]
    rows = [(shard, i, scores) for i, (shard, scores) in zip(ids, collection, strict=True)]
    parts = [
        as_part([[(i, s[q]) for own, i, s in rows if own == shard] for q in range(2)], k)
        for shard in range(4)
    ]
    merged_ids, merged_scores = merge_topk(parts, k)
    assert merged_ids.shape == merged_scores.shape == (2, k)
    assert merged_scores.dtype == np.float32
    for q in range(2):
        expected = naive_topk([(i, s[q]) for _, i, s in rows], k)
        assert list(zip(merged_ids[q], merged_scores[q], strict=True)) == expected


def test_merge_is_associative_and_pads():
    rng = np.random.default_rng(0)
    parts = [
        as_part(
            [
                [(f"{shard}-{j}", float(s)) for j, s in enumerate(rng.integers(0, 4, 5))]
                for _ in range(300)
            ],
            10,
        )
        for shard in range(3)
    ]
    at_once = merge_topk(parts, 20)
    in_turn = merge_topk([merge_topk(parts[1:], 20), parts[0]], 20)
    assert (at_once[0] == in_turn[0]).all()
    assert (at_once[1] == in_turn[1]).all()
    assert (at_once[0][:, 15:] == "").all()
    assert np.isneginf(at_once[1][:, 15:]).all()


def test_ids_are_compared_as_strings_not_numbers():
    merged, _ = merge_topk([(np.array([["9"]]), np.ones((1, 1))), (np.array([["10"]]), [[1]])], 2)
    assert merged.tolist() == [["9", "10"]]


@pytest.mark.parametrize(
    ("parts", "k", "message"),
    [
        ([], 1, "parts is empty"),
        ([([["a"]], [[1.0]])], 0, "k is 0"),
        ([([["a"]], [[np.nan]])], 1, "part 0, query 0, rank 0"),
        ([([["a"]], [[-np.inf]])], 1, "'a' with score -inf"),
        ([([[""]], [[1.0]])], 1, "'' with score 1.0"),
        ([([["a", "b"]], [[1.0]])], 1, "shape"),
        ([([["a"]], [[1.0]]), ([["b"], ["c"]], [[1.0], [1.0]])], 1, "part 1 has 2 queries"),
    ],
)
def test_bad_parts_are_named(parts, k, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        merge_topk(parts, k)


@settings(deadline=None)
@given(st.lists(SCORES, max_size=200), st.integers(1, 6), st.integers(1, 90), st.randoms())
def test_selection_keeps_the_best_and_of_ties_the_lowest_ranks(scores, k, block, random):
    best = Selection(1, k)
    values = np.array(scores, np.float32)
    ranks = np.array(random.sample(range(len(scores)), len(scores)), np.int32)
    for start in range(0, len(values), block):
        best.sizes[0], best.floors[0], best.worst[0] = offer(
            values[start : start + block],
            ranks[start : start + block],
            best.keys[0],
            best.sizes[0],
            best.floors[0],
            best.worst[0],
            k,
        )
    found, kept = best.ranked()
    expected = sorted(zip(-values, ranks, strict=True))[:k]
    assert found[0].tolist() == [rank for _, rank in expected] + [-1] * (k - len(expected))
    assert kept[0].tolist() == [-s for s, _ in expected] + [-np.inf] * (k - len(expected))


@given(st.floats(width=32, allow_nan=False), st.integers(0, 2**31 - 1))
def test_sort_keys_can_be_read_back(score, rank):
    ranks, scores = unpack_keys(np.array([sort_key(np.float32(score), rank)], np.uint64))
    assert (ranks[0], scores[0]) == (rank, np.float32(score))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2))
def test_sort_keys_order_by_score_then_rank(scores):
    one, other = np.array(scores, np.float32)
    assert (sort_key(one, 7) < sort_key(other, 8)) == (one >= other)
