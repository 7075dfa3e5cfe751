"""Imperfect supervision on purpose: which training queries learn from a wrong positive or wrong scores.

Which queries are corrupted follows from the seed alone, and those of a smaller share are among those of
a larger one, so that a curve over shares changes one thing at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raylab.data.supervision.groups import Groups

_POSITIVES, _SCORES = 23, 29  # streams of random numbers


@dataclass(frozen=True)
class Corruption:
    """What the training groups say once a share of them is corrupted.

    Args:
        positives: share of the groups whose positive is another group's, for the whole training.
        teacher_scores: share of the groups whose teacher scores are put to the wrong passages.
    """

    groups: Groups
    positives: float
    teacher_scores: float
    seed: int

    def positive(self, group: int) -> int:
        """The store row that stands as the group's positive."""
        wrong = self._wrong_positives
        return int(self.groups.positives[group if wrong is None else wrong[group]])

    def scores(self, group: int, scores_K: np.ndarray) -> np.ndarray:
        """The teacher's scores of the group's listed passages, positive first.

        Corrupted ones are reversed in rank: the best passage gets the lowest score, and so on. Their
        values, and so the teacher's confidence, stay what they were.
        """
        drawn = self._drawn_scores
        if drawn is None or drawn[group] >= self.teacher_scores:
            return scores_K
        ascending = np.sort(scores_K)
        wrong = np.empty_like(scores_K)
        wrong[np.argsort(-scores_K, kind="stable")] = ascending
        return wrong

    @cached_property
    def _wrong_positives(self) -> np.ndarray | None:
        """Of every group, whose positive it has."""
        if not self.positives:
            return None
        rng = np.random.default_rng([self.seed, _POSITIVES])
        drawn, other = rng.random(len(self.groups)), rng.permutation(len(self.groups))
        return np.where(drawn < self.positives, other, np.arange(len(self.groups)))

    @cached_property
    def _drawn_scores(self) -> np.ndarray | None:
        if not self.teacher_scores:
            return None
        return np.random.default_rng([self.seed, _SCORES]).random(len(self.groups))
