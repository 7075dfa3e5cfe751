"""Excerpts of documents: the texts that a teacher embeds once and that every rung of a ladder is taught on.

Of each document some short excerpts, which look like queries, and some long ones, which look like passages.
They follow from the seed and the document's place alone, so that all rungs see the same texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raylab.data.records import Passage
from raylab.experiment.config import check


@dataclass(frozen=True)
class Excerpts:
    """How documents are cut, in words.

    A document gives its title and `short` crops of `shortest` to `longest` words; `long` crops of
    `long_shortest` to `long_longest` words, and its beginning of as many, title included, as an encoder sees it.
    """

    short: int = 5
    shortest: int = 8
    longest: int = 24
    long: int = 2
    long_shortest: int = 40
    long_longest: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("short", "long", "shortest", "long_shortest"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.longest >= self.shortest, "longest", self.longest, "at least `shortest`")
        right = "at least `long_shortest`"
        check(self.long_longest >= self.long_shortest, "long_longest", self.long_longest, right)


@dataclass(frozen=True)
class Texts:
    """Excerpts of N documents: `texts`, and whose they are: `short_NS` and `long_NL` are int64 places in `texts`."""

    texts: list[str]
    short_NS: np.ndarray
    long_NL: np.ndarray

    def __len__(self) -> int:
        return len(self.short_NS)


def cut(passages: Sequence[Passage], config: Excerpts) -> Texts:
    """The excerpts of all passages that are long enough for a long one."""
    texts: list[str] = []
    short, long = [], []

    def keep(text: str) -> int:
        texts.append(text)
        return len(texts) - 1

    for place, passage in enumerate(passages):
        words = passage.text.split()
        if len(words) < config.long_shortest:
            continue
        rng = np.random.default_rng([config.seed, 5, place])
        crops = [_crop(words, config.shortest, config.longest, rng) for _ in range(config.short)]
        title = passage.title or crops[0]
        short.append([keep(text) for text in (title, *crops)])
        length = int(rng.integers(config.long_shortest, config.long_longest + 1))
        start = " ".join(f"{passage.title} {passage.text}".split()[:length])
        crops = [
            _crop(words, config.long_shortest, config.long_longest, rng) for _ in range(config.long)
        ]
        long.append([keep(text) for text in (start, *crops)])
    return Texts(texts, np.array(short, np.int64), np.array(long, np.int64))


def _crop(words: list[str], shortest: int, longest: int, rng: np.random.Generator) -> str:
    length = int(rng.integers(shortest, longest + 1))
    start = int(rng.integers(0, max(1, len(words) - length + 1)))
    return " ".join(words[start : start + length])
