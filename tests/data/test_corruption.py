"""Imperfect supervision: which groups learn from what is wrong, and that a larger share only adds to it."""

import numpy as np
import pytest

from raylab.data.supervision.corruption import Corruption
from raylab.data.supervision.groups import Groups, Ragged

COUNT = 4_000


@pytest.fixture(scope="module")
def groups() -> Groups:
    return Groups(
        query_ids=[f"q{i}" for i in range(COUNT)],
        queries=[""] * COUNT,
        body_only=np.zeros(COUNT, bool),
        positives=np.arange(COUNT) + 10_000,
        negatives=Ragged.of([[0]] * COUNT, np.int64),
        mined=np.ones(COUNT, int),
        positive_scores=None,
        negative_scores=None,
    )


def wrong(corruption: Corruption) -> set[int]:
    return {g for g in range(COUNT) if corruption.positive(g) != g + 10_000}


def misled(corruption: Corruption) -> set[int]:
    scores = np.array([3.0, 1.0, 2.0])
    return {g for g in range(COUNT) if not np.array_equal(corruption.scores(g, scores), scores)}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_share_is_that_of_the_groups(groups, share):
    corruption = Corruption(groups, share, share, seed=3)
    margin = 4 * np.sqrt(share * (1 - share) / COUNT)
    assert len(wrong(corruption)) / COUNT == pytest.approx(share, abs=margin)
    assert len(misled(corruption)) / COUNT == pytest.approx(share, abs=margin)


def test_none_is_none_and_all_is_all(groups):
    none, whole = Corruption(groups, 0.0, 0.0, 0), Corruption(groups, 1.0, 1.0, 0)
    assert not wrong(none)
    assert not misled(none)
    assert len(misled(whole)) == COUNT
    assert len(wrong(whole)) >= COUNT - 10  # a permutation leaves about one where it was


def test_a_larger_share_holds_the_smaller_with_the_same_wrong_positives(groups):
    small, large = (Corruption(groups, share, share, seed=1) for share in (0.1, 0.5))
    assert wrong(small) < wrong(large)
    assert misled(small) < misled(large)
    assert all(small.positive(g) == large.positive(g) for g in wrong(small))


def test_seeds_differ_and_a_seed_is_the_same_again(groups):
    first, again, other = (Corruption(groups, 0.3, 0.3, seed) for seed in (1, 1, 2))
    assert wrong(first) == wrong(again) != wrong(other)


def test_wrong_scores_are_the_right_ones_in_reverse(groups):
    corruption = Corruption(groups, 0.0, 1.0, 0)
    scores = np.array([0.5, 4.0, -1.0, 2.0], np.float32)
    assert corruption.scores(0, scores).tolist() == [2.0, -1.0, 4.0, 0.5]
    assert corruption.scores(0, scores).dtype == np.float32
