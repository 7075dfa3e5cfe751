"""How far an index that may err (compact, approximate) agrees with exact search."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from raylab.index.kernels.ids import MISSING_ID
from raylab.index.kernels.topk import check_k


@dataclass(frozen=True)
class Agreement:
    """Of Q queries, against the exact best k of each.

    ``recall``: share of the exact hits that were found, the mean over queries with a hit.
    ``worst_recall``: of the worst of them. ``score_error``: the largest difference of score, over
    the hits found by both, relative to the query's best exact score.
    """

    k: int
    queries: int
    recall: float
    worst_recall: float
    score_error: float


@dataclass(frozen=True)
class MeasuredAnswer:
    """``ids`` [Q, k] str, ``scores`` [Q, k] float32, and how far they agree with exact search."""

    ids: np.ndarray
    scores: np.ndarray
    agreement: Agreement


class Index(Protocol):
    """What is searched: ``ids`` are bytes [N], descending."""

    ids: np.ndarray

    def search(self, queries: Any, k: int, /) -> tuple[np.ndarray, np.ndarray]: ...


def measured_search(
    index: Index, exact: Index, queries: Any, k: int, sample: int = 100
) -> MeasuredAnswer:
    """``index.search``, with its agreement with ``exact`` on queries evenly spread among these.

    ``queries``: Q rows, an array or scipy CSR. ``sample``: at most so many are searched exactly.
    Raises ValueError as ``search``, for no queries, and for an exact index of other passages.
    """
    n_queries = queries.shape[0]
    if not n_queries or sample < 1:
        raise ValueError(f"{n_queries} queries, sample {sample}: nothing to measure on")
    if not np.array_equal(exact.ids, index.ids):
        raise ValueError("the exact index does not hold the same passages")
    ids, scores = index.search(queries, k)
    taken = evenly_spread(n_queries, sample)
    truth = exact.search(queries[taken], k)
    return MeasuredAnswer(ids, scores, agreement(truth, (ids[taken], scores[taken]), k))


def evenly_spread(n_rows: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of ``n_rows`` rows, evenly spread, ascending."""
    return np.unique(np.linspace(0, n_rows - 1, min(wanted, n_rows)).astype(np.int64))


def agreement(
    exact: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], k: int
) -> Agreement:
    """Compare two answers (ids [Q, >= k], scores [Q, >= k]) at depth k.

    Ids are compared: a tie at the k-th place that is broken otherwise counts as a miss. Raises
    ValueError for k < 1, answers of fewer than k hits, or to different numbers of queries.
    """
    k = check_k(k)
    for ids, scores in (exact, other):
        if ids.shape != scores.shape or ids.shape[1] < k or len(ids) != len(exact[0]):
            raise ValueError(
                f"answers of shapes {exact[0].shape} and {ids.shape} do not compare at depth {k}"
            )
    recalls, errors = [], []
    for q in range(len(exact[0])):
        truth = _hits(exact, q, k)
        if not truth:
            continue
        hits = _hits(other, q, k)
        both = truth.keys() & hits.keys()
        recalls.append(len(both) / len(truth))
        best = max(abs(score) for score in truth.values()) or 1.0
        errors.append(max((abs(truth[i] - hits[i]) / best for i in both), default=0.0))
    return Agreement(
        k,
        len(exact[0]),
        float(np.mean(recalls)) if recalls else 1.0,
        min(recalls, default=1.0),
        max(errors, default=0.0),
    )


def _hits(answer: tuple[np.ndarray, np.ndarray], q: int, k: int) -> dict[str, float]:
    ids, scores = answer[0][q, :k].tolist(), answer[1][q, :k].tolist()
    return {i: score for i, score in zip(ids, scores, strict=True) if i != MISSING_ID}
