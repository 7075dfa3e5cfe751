"""Passage ids of one index: validated, sorted, each row with its rank, which breaks ties.

An index keeps its passages in the order they came, so that it can be built shard by shard, and its
ids in descending order: "tie: greater id first", which is trec_eval's rule, is "tie: lower rank
first" inside every kernel. Ids are fixed-width UTF-8, whose bytes sort as code points do, so the
order is that of ``str``.
"""

from collections.abc import Sequence

import numpy as np

MISSING_ID = ""
"""Id of a hit that does not exist; its score is -inf."""
_MOST_PASSAGES = 2**31 - 1


def encode_ids(ids: Sequence[str] | np.ndarray, owner: str) -> np.ndarray:
    """Ids as bytes [n], of strings or of UTF-8 bytes already; `what` names the shard in errors.

    Raises ValueError for an id that is empty, not a string, or holds a NUL (numpy would drop it).
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "S":
        empty = np.flatnonzero(ids == b"")
        if empty.size:
            raise ValueError(f"{owner}, row {empty[0]}: passage id '' is empty or holds a NUL")
        return ids
    for row, passage_id in enumerate(ids):
        if not isinstance(passage_id, str):
            raise ValueError(
                f"{owner}, row {row}: passage id {passage_id!r} is a "
                f"{type(passage_id).__name__}; ids are strings"
            )
        if not passage_id or "\0" in passage_id:
            raise ValueError(
                f"{owner}, row {row}: passage id {passage_id!r} is empty or holds a NUL"
            )
    return np.strings.encode(np.array(ids, dtype=np.str_), "utf-8")


def rank_ids(shards: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all shards (bytes), as one collection.

    Returns ``ids`` (bytes, [N], descending) and ``ranks`` (int32, [N]): row i of the shards laid
    end to end is the passage ``ids[ranks[i]]``. Raises ValueError for no ids, or one that occurs
    twice.
    """
    together = np.concatenate(shards) if shards else np.empty(0, "S1")
    if not len(together):
        raise ValueError("no passages to index")
    if len(together) > _MOST_PASSAGES:
        raise ValueError(
            f"{len(together)} passages to index; one index holds up to {_MOST_PASSAGES}"
        )
    order = np.argsort(together, kind="stable")[::-1]
    ids = together[order]
    repeated = np.flatnonzero(ids[1:] == ids[:-1])
    if repeated.size:
        example = bytes(ids[repeated[0]]).decode()
        raise ValueError(
            f"{repeated.size} duplicate passage ids, the first is {example!r}; "
            "an id must occur once in the whole collection"
        )
    ranks = np.empty(len(ids), dtype=np.int32)
    ranks[order] = np.arange(len(ids), dtype=np.int32)
    return ids, ranks


def decode_ranks(ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Ids (str, the shape of ``ranks``) of ranks in ``ids``; rank -1 gives MISSING_ID."""
    if ranks.size == 0:
        return np.empty(ranks.shape, dtype="U1")
    hits = ids[np.maximum(ranks, 0)]
    hits[ranks < 0] = MISSING_ID.encode()
    points = np.ascontiguousarray(hits).view(np.uint8).reshape(*ranks.shape, -1)
    if points.max() < 128:  # ASCII: a byte is a code point
        return points.astype(np.uint32).view(f"U{points.shape[-1]}")[..., 0]
    return np.strings.decode(hits, "utf-8")
