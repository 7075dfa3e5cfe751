"""Agreement of an answer with the exact one: counted by hand."""

import numpy as np
import pytest

from raylab.index.agreement import agreement

NONE = -np.inf
EXACT = (
    np.array([["a", "b", "c"], ["a", "b", ""], ["", "", ""]]),
    np.array([[4.0, 2, 1], [3, 1, NONE], [NONE, NONE, NONE]]),
)
OTHER = (
    np.array([["a", "c", "d"], ["b", "a", ""], ["a", "", ""]]),
    np.array([[3.0, 1, 0], [3, 3, NONE], [1, NONE, NONE]]),
)


def test_recall_and_error_are_over_the_exact_hits():
    """Query 1 finds 2 of 3 and a's score is 1 of 4 off; query 2 both, b's 2 of 3; query 3 has none."""
    found = agreement(EXACT, OTHER, 3)
    assert (found.k, found.queries) == (3, 3)
    assert found.recall == pytest.approx((2 / 3 + 1) / 2)
    assert found.worst_recall == pytest.approx(2 / 3)
    assert found.score_error == pytest.approx(2 / 3)


def test_depth_cuts_both_answers():
    found = agreement(EXACT, OTHER, 1)
    assert (found.recall, found.worst_recall, found.score_error) == (0.5, 0.0, 0.25)


def test_answers_that_do_not_compare_are_refused():
    with pytest.raises(ValueError, match="depth 4"):
        agreement(EXACT, OTHER, 4)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 3\)"):
        agreement(EXACT, (OTHER[0][:2], OTHER[1][:2]), 1)
