"""What search must find: rankings by a plain loop in float64, and what a command printed."""

import re

import numpy as np
import scipy.sparse as sp


def ranked(query, passages, ids: list[str], k: int) -> list[tuple[str, float]]:
    """The best k of [1, D] against [N, D] by float64 dot products, none of 0 (sparse), ties by id."""

    def full(matrix):
        return np.asarray(matrix.todense() if sp.issparse(matrix) else matrix, np.float64)

    scores = (full(passages) @ full(query)[0]).tolist()
    order = sorted(
        zip(ids, scores, strict=True), key=lambda hit: (np.float32(hit[1]), hit[0]), reverse=True
    )
    return [hit for hit in order if hit[1] > 0 or not sp.issparse(query)][:k]


def half(matrix):
    """What is left of it in storage."""
    matrix = matrix.copy()
    values = matrix.data if sp.issparse(matrix) else matrix
    values[:] = values.astype(np.float16).astype(np.float32)
    return matrix


def printed(output: str) -> list[tuple[str, float]]:
    found = re.findall(r"^ *\d+  (\S+)  (-?[\d.]+)  ", output, re.MULTILINE)
    return [(passage_id, float(score)) for passage_id, score in found]


def assert_ranked(found, expected, tolerance=1e-4):
    """Equal scores by rank, and the same ids wherever the next score is not the same."""
    assert len(found) == len(expected)
    scores = np.array([score for _, score in expected])
    np.testing.assert_allclose([score for _, score in found], scores, atol=tolerance)
    apart = np.abs(np.diff(scores, prepend=np.inf, append=-np.inf)) > 2 * tolerance
    for rank, (one, other) in enumerate(zip(found, expected, strict=True)):
        if apart[rank] and apart[rank + 1]:
            assert one[0] == other[0]
