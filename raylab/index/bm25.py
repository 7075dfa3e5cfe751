"""BM25: the lexical baseline, and the miner of hard negatives.

bm25s computes the impacts (Lucene's variant, k1 0.9, b 0.4, the usual setting for MS MARCO and
BEIR); the search is ``SparseIndex``, so that results are exact and ties deterministic.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import bm25s
import numpy as np
import scipy.sparse as sp
import Stemmer

from raylab.index.sparse import SparseIndex

_FORMAT = "raylab.bm25.1"
_K1 = 0.9
_B = 0.4
_BATCH = 65_536  # texts cut into words at once


class BM25Index:
    """A BM25 index of raw texts; make one with ``build`` or ``load``.

    Texts are lower-cased, cut into words of at least two characters, freed of English stop words
    and stemmed (Snowball English). ``vocabulary``: stem -> term of ``postings``, a ``SparseIndex``.
    Statistics are those of the texts it was built from: shards of one collection built apart have
    different scores and must not be merged.
    """

    def __init__(self, vocabulary: dict[str, int], postings: SparseIndex):
        self.vocabulary = vocabulary
        self.postings = postings

    def __len__(self) -> int:
        return len(self.postings)

    @classmethod
    def build(cls, ids: Sequence[str], texts: Iterable[str]) -> "BM25Index":
        """Index ``texts`` under ``ids``, both of length N.

        The texts are read once, some thousands at a time; of them 4 bytes a word stay in memory.

        Raises ValueError for unequal lengths, no texts, no word in any text, and ids that are
        duplicate, empty or not strings.
        """
        terms, vocabulary = _terms(texts)
        if len(ids) != len(terms):
            raise ValueError(f"{len(ids)} ids for {len(terms)} texts")
        if not vocabulary:
            raise ValueError(f"none of the {len(terms)} texts holds a word to index")
        model = bm25s.BM25(method="lucene", k1=_K1, b=_B)
        corpus = SimpleNamespace(ids=terms, vocab=dict(vocabulary))
        model.index(corpus, create_empty_token=False, show_progress=False)  # type: ignore[arg-type]
        impacts = sp.csc_array(
            (model.scores["data"], model.scores["indices"], model.scores["indptr"]),
            shape=(len(ids), len(vocabulary)),
        )
        return cls(vocabulary, SparseIndex.build([(ids, impacts)]))

    def save(self, directory: str | Path) -> None:
        """Write the postings (as ``SparseIndex.save``) and ``bm25.json`` into ``directory``."""
        directory = Path(directory)
        self.postings.save(directory)
        stems = sorted(self.vocabulary, key=self.vocabulary.__getitem__)
        description = {"format": _FORMAT, "k1": _K1, "b": _B, "stems": stems}
        (directory / "bm25.json").write_text(json.dumps(description) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "BM25Index":
        """Open a saved index, memory-mapped; FileNotFoundError or ValueError for a wrong file."""
        path = Path(directory) / "bm25.json"
        description = json.loads(path.read_text())
        if description.get("format") != _FORMAT:
            raise ValueError(
                f"{path}: format is {description.get('format')!r}; a BM25 index has {_FORMAT!r}"
            )
        vocabulary = {stem: term for term, stem in enumerate(description["stems"])}
        postings = SparseIndex.load(directory)
        if len(vocabulary) != postings.vocabulary_size:
            raise ValueError(
                f"{path}: {len(vocabulary)} stems for {postings.vocabulary_size} terms"
            )
        return cls(vocabulary, postings)

    def search(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k passages of each text: (ids [Q, k] str, scores [Q, k] float32).

        A word counts as often as the text repeats it. A passage without a common stem is no hit;
        order and padding are those of the package. Raises ValueError for k < 1.
        """
        counts = [
            Counter(self.vocabulary[stem] for stem in stems if stem in self.vocabulary)
            for stems in _stems(texts)
        ]
        starts = np.cumsum([0, *map(len, counts)])
        terms = np.array([term for count in counts for term in count], dtype=np.int64)
        weights = np.array([n for count in counts for n in count.values()], dtype=np.float32)
        queries = sp.csr_array(
            (weights, terms, starts), shape=(len(texts), self.postings.vocabulary_size)
        )
        return self.postings.search(queries, k)


def _check(texts: object) -> None:
    if isinstance(texts, str):
        raise ValueError("texts is one string; a sequence of strings is needed")


class _Terms(Sequence[list[int]]):
    """The terms of every text, in one flat array."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray):
        self.flat, self.offsets = flat, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.flat[self.offsets[row] : self.offsets[row + 1]].tolist()


def _terms(texts: Iterable[str]) -> tuple[_Terms, dict[str, int]]:
    """(terms of every text, stem -> term in the stems' order)."""
    _check(texts)
    found: dict[str, int] = {}  # stem -> number, in order of appearance
    flat, lengths, source = [np.zeros(0, np.int32)], [0], iter(texts)
    while batch := list(islice(source, _BATCH)):
        stems = _stems(batch)
        lengths += map(len, stems)
        numbers = (found.setdefault(stem, len(found)) for text in stems for stem in text)
        flat.append(np.fromiter(numbers, np.int32))
    vocabulary = {stem: term for term, stem in enumerate(sorted(found))}
    renumbered = np.zeros(len(found), np.int32)
    renumbered[[found[stem] for stem in vocabulary]] = np.arange(len(found))
    return _Terms(renumbered[np.concatenate(flat)], np.cumsum(lengths)), vocabulary


def _stems(texts: Sequence[str]) -> list[list[str]]:
    _check(texts)
    stems = bm25s.tokenize(
        list(texts),
        stopwords="en",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
    return cast(list[list[str]], stems)
