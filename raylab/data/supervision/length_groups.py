"""Groups of like length: how the texts of a training step are encoded almost without padding.

The loss of a step needs the representations of all its texts and not which worker encoded them, nor beside
what. So queries and passages together are put in order of length and cut into a few groups, and every group is
padded to its own longest text. Order and cuts are a pure function of the lengths: what a step costs is known
before it is taken, and is the same on any number of workers, among whom each group is dealt like cards.

Legend: T texts of a step (its queries, then their listed passages), G groups, W workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PADDED = 1.04  # tokens with padding over those without, at which no further group is made
MOST_GROUPS = 20
# One more group is one more pass through the layers: what it must save, in tokens of the whole step.
WORTH_TOKENS = 64
# Groups hold a multiple of so many texts where the number of queries does: 2, 4 or 8 workers have as many each.
_DEALT = 8
_UNITS = 128  # places to cut at, at most


@dataclass(frozen=True)
class LengthGroups:
    """The texts of a step in order of length, cut into groups.

    Args:
        order_T: int64, places of the texts in the step, shortest first; equal ones in their own order.
        sorted_T: tokens of the texts in that order, int64 or (a plan's expected ones) float64, at least 1.
        ends_G: int64 ascending, where in that order each group ends.
    """

    order_T: np.ndarray
    sorted_T: np.ndarray
    ends_G: np.ndarray

    @cached_property
    def counts_G(self) -> np.ndarray:
        """Texts of each group, int64."""
        return np.diff(self.ends_G, prepend=0)

    @cached_property
    def lengths_G(self) -> np.ndarray:
        """Tokens that the texts of each group are padded to."""
        return self.sorted_T[self.ends_G - 1]

    @cached_property
    def real_G(self) -> np.ndarray:
        """Tokens of each group without padding."""
        return np.add.reduceat(self.sorted_T, self.ends_G - self.counts_G)

    @property
    def real_tokens(self) -> float:
        """Of the step, without padding."""
        return float(self.sorted_T.sum())

    @property
    def padded_tokens(self) -> float:
        """Of the step, with padding."""
        return float((self.counts_G * self.lengths_G).sum())

    def dealt(self, world: int) -> np.ndarray:
        """int64 [W, T / W]: places of each worker's texts, in the order in which it encodes them.

        Raises:
            ValueError: texts that the workers cannot share evenly.
        """
        if len(self.order_T) % world:
            raise ValueError(f"{len(self.order_T)} texts cannot be shared by {world} workers")
        return self.order_T.reshape(-1, world).T

    def share(self, rank: int, world: int) -> list[np.ndarray]:
        """Places of a worker's texts, group by group; none of a group that has fewer texts than workers."""
        mine = np.arange(rank, len(self.order_T), world)
        return np.split(self.order_T[mine], np.searchsorted(mine, self.ends_G[:-1]))


def length_groups(lengths_T: np.ndarray, queries: int) -> LengthGroups:
    """The fewest groups that pad little: at most `PADDED` of the real tokens, or as near as is worth a pass.

    For a number of groups the cuts are those with the fewest padded tokens (a dynamic programme over the places
    to cut at). The next group is made while it saves `WORTH_TOKENS`, up to `MOST_GROUPS`.

    Args:
        lengths_T: tokens of the texts of a step, queries first; 0 counts as the one pad token that is encoded.
        queries: how many of the texts are queries.
    """
    order_T = np.argsort(lengths_T, kind="stable")
    sorted_T = np.maximum(lengths_T[order_T], 1)
    count, unit = len(sorted_T), math.gcd(queries, _DEALT)
    while count > unit * _UNITS:
        unit *= 2
    ends_U = np.append(np.arange(unit, count, unit), count)
    starts_U = np.append(0, ends_U[:-1])
    # Padded tokens of a group of the units i to j: [i, j], infinite below the diagonal.
    texts_UU = ends_U - starts_U[:, None]
    tokens_UU = np.where(texts_UU > 0, texts_UU * sorted_T[ends_U - 1], np.inf)
    enough = PADDED * float(sorted_T.sum())
    fewest_U = tokens_UU[0]  # padded tokens of the units up to each, cut at best
    first_units: list[np.ndarray] = []  # for each number of groups, the first unit of the last one
    while fewest_U[-1] > enough and len(first_units) + 1 < MOST_GROUPS:
        with_last_UU = fewest_U[:-1, None] + tokens_UU[1:]
        if not len(with_last_UU) or fewest_U[-1] - with_last_UU[:, -1].min() < WORTH_TOKENS:
            break
        first_units.append(1 + with_last_UU.argmin(0))
        fewest_U = with_last_UU.min(0)
    last, ends = len(ends_U) - 1, [count]
    for firsts_U in reversed(first_units):
        last = int(firsts_U[last]) - 1
        ends.append(int(ends_U[last]))
    return LengthGroups(order_T, sorted_T, np.array(ends[::-1]))
