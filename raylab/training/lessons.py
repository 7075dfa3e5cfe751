"""What a ladder is taught with: the tokens of the excerpts, and the teacher's embeddings of them.

Legend: N excerpts, T dimensions of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from raylab.experiment.config import check
from raylab.training.excerpts import Texts


@dataclass(frozen=True)
class Lessons:
    """The tokens of all excerpts, whose they are (`Texts`), and the teacher's embeddings of them."""

    ids: Sequence[np.ndarray]
    texts: Texts
    taught_NT: np.ndarray

    @classmethod
    def of(
        cls, texts: Texts, taught_NT: np.ndarray, tokenizer: PreTrainedTokenizerFast, limit: int
    ) -> Lessons:
        """Excerpts as the rungs' tokenizer sees them."""
        encoded = tokenizer(texts.texts, add_special_tokens=False)["input_ids"]
        return cls([np.asarray(ids[:limit], np.int64) for ids in encoded], texts, taught_NT)

    def split(self, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(documents to train on, documents held out), disjoint, the same for every rung.

        Raises:
            ConfigError: nothing is left to train on.
        """
        check(held_out < len(self.texts), "held_out", held_out, f"below {len(self.texts)}")
        order = np.random.default_rng([seed, 4]).permutation(len(self.texts))
        return np.sort(order[: len(order) - held_out]), order[len(order) - held_out :]

    def excerpts_of(self, documents: np.ndarray) -> np.ndarray:
        """Places in `ids` of every excerpt of some documents."""
        return np.concatenate(
            [self.texts.short_NS[documents].ravel(), self.texts.long_NL[documents].ravel()]
        )
