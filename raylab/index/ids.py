"""Passage ids of one index: validated, sorted, stored as fixed-width UTF-8.

An index keeps its passages in ascending id order, so that "tie: lower id first" becomes "tie: lower
row first" inside every kernel. UTF-8 bytes sort as code points do, so this is the order of ``str``.
"""

from collections.abc import Iterator, Sequence

import numpy as np

MISSING_ID = ""
"""Id of a hit that does not exist; its score is -inf."""


def sort_ids(shards: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Sort the ids of all shards, as one collection.

    Returns ``ids`` (bytes, [N], ascending) and ``order`` (int64, [N]): ``order[i]`` is the row of
    ``ids[i]`` when the shards are laid end to end. Raises ValueError for an id that is empty, not a
    string, holds a NUL (numpy would drop it) or occurs twice.
    """
    encoded = np.concatenate([_encode(ids, shard) for shard, ids in enumerate(shards)])
    order = np.argsort(encoded, kind="stable")
    ordered = encoded[order]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    if repeated.size:
        example = bytes(ordered[repeated[0]]).decode()
        raise ValueError(
            f"{repeated.size} duplicate passage ids, the first is {example!r}; "
            "an id must occur once in the whole collection"
        )
    return ordered, order


def decode_rows(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Ids (str, the shape of ``rows``) of rows of ``ids`` (bytes, [N]); row -1 gives MISSING_ID."""
    if rows.size == 0:
        return np.empty(rows.shape, dtype="U1")
    found = np.strings.decode(ids[np.maximum(rows, 0)], "utf-8")
    return np.where(rows < 0, MISSING_ID, found)


def locate_rows(
    rows: np.ndarray, shard_sizes: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Find rows of the collection in its shards.

    Yields, for each shard that holds any of ``rows`` (int, [n], rows of the shards laid end to
    end): the shard's number, the positions in ``rows`` it answers, and its own rows for them.
    """
    starts = np.concatenate([[0], np.cumsum(shard_sizes, dtype=np.int64)])
    owner = np.searchsorted(starts, rows, side="right") - 1
    for shard in np.unique(owner):
        positions = np.flatnonzero(owner == shard)
        yield int(shard), positions, rows[positions] - starts[shard]


def _encode(ids: Sequence[str], shard: int) -> np.ndarray:
    for row, passage_id in enumerate(ids):
        if not isinstance(passage_id, str):
            raise ValueError(
                f"shard {shard}, row {row}: passage id {passage_id!r} is a "
                f"{type(passage_id).__name__}; ids are strings"
            )
        if not passage_id or "\0" in passage_id:
            raise ValueError(
                f"shard {shard}, row {row}: passage id {passage_id!r} is empty or holds a NUL"
            )
    return np.strings.encode(np.array(ids, dtype=np.str_), "utf-8")
