"""The texts of a training step, read from what its workers encode."""

import numpy as np

from raylab.data.supervision.batches import Batch


def texts_of(*workers: Batch) -> list[np.ndarray]:
    """Tokens of the queries, then of the passages; of an empty text the pad token that is encoded."""
    texts = {}
    for batch in workers:
        for group in batch.groups:
            for place, ids, mask in zip(
                group.places_B.tolist(), group.ids_BL, group.mask_BL, strict=False
            ):
                assert place not in texts
                texts[place] = ids[mask]
    assert sorted(texts) == list(range(len(texts)))
    return [texts[place] for place in range(len(texts))]


def padded(texts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [N, L], mask bool [N, L]) of texts, all as wide as the longest."""
    lengths = np.array([len(text) for text in texts])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(texts)
    return ids, mask
