"""Terms of sparse representations by their names: what a text is expanded to, and what two texts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import scipy.sparse as sp

Names = Callable[[Sequence[int]], list[str]]
"""Vocabulary entries of term ids."""


def shared_terms(query: sp.csr_matrix, passage: sp.csr_matrix, names: Names, most: int) -> list:
    """[term, query's weight, passage's weight] of what both have, the largest product first."""
    ours, theirs = _weights(query), _weights(passage)
    both = sorted(
        ((term, ours[term], theirs[term]) for term in ours.keys() & theirs.keys()),
        key=lambda one: (-one[1] * one[2], one[0]),
    )[:most]
    entries = names([term for term, _, _ in both])
    return [[name, own, other] for name, (_, own, other) in zip(entries, both, strict=True)]


def top_terms(text: sp.csr_matrix, names: Names, most: int) -> list:
    """[term, weight] of a text's heaviest terms."""
    heaviest = sorted(_weights(text).items(), key=lambda one: (-one[1], one[0]))[:most]
    entries = names([term for term, _ in heaviest])
    return [[name, weight] for name, (_, weight) in zip(entries, heaviest, strict=True)]


def numbered(terms: Sequence[int]) -> list[str]:
    """Names of terms whose vocabulary is not known."""
    return [f"term {term}" for term in terms]


def _weights(row: Any) -> dict[int, float]:
    return dict(zip(row.indices.tolist(), map(float, row.data.tolist()), strict=True))
