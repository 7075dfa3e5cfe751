"""Texts to tokens with the tokenizers library alone: what a worker that tokenises a shard has to load.

transformers and torch, which a `Tokenizer` is read with, take a worker seconds to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tokenizers

STORE_LIMIT = 512  # tokens of a passage that are kept: the longest length any protocol reads
_BATCH_PASSAGES = 1_024


@lru_cache(maxsize=4)
def _library(state: str) -> tokenizers.Tokenizer:
    """One a process, not one a task: it remembers the words that it has met."""
    return tokenizers.Tokenizer.from_str(state)


class TextTokenizer:
    """A tokenizer of texts alone, without special tokens, padding or truncation; picklable.

    Args:
        state: JSON of the tokenizers library, without its padding and truncation.
        dtype: of the token ids.
    """

    def __init__(self, state: str, dtype: type[np.unsignedinteger]):
        self.state, self.dtype = state, dtype

    def __reduce__(self):
        return TextTokenizer, (self.state, self.dtype)

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The tokenizers library's own object."""
        return _library(self.state)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        encodings = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode(self, texts: Sequence[str], limit: int | None = None) -> list[np.ndarray]:
        """Token ids (1-d arrays) of each text, cut to `limit` tokens."""
        return [np.asarray(ids[:limit], self.dtype) for ids in self.ids(texts)]


def tokenised(
    tokenizer: TextTokenizer, file: Path
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
    """What `write_flat_store` takes, of a Parquet shard's passages: ids, tokens, token and title token counts."""
    columns = ["passage_id", "title", "text"]
    for batch in pq.ParquetFile(file).iter_batches(_BATCH_PASSAGES, columns=columns):
        passage_ids, titles, texts = (batch[name].to_pylist() for name in columns)
        yield passage_ids, *_flat(tokenizer, [title.strip() for title in titles], texts)


def _flat(
    tokenizer: TextTokenizer, titles: list[str], texts: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens in a row, token counts and title token counts of passages cut to the store's limit."""
    if any(titles):
        heads = [ids[:STORE_LIMIT] for ids in tokenizer.ids(titles)]
        bodies = [f" {text}" if title else text for title, text in zip(titles, texts, strict=True)]
        tails = tokenizer.ids(bodies)
        tokens = [(head + tail)[:STORE_LIMIT] for head, tail in zip(heads, tails, strict=True)]
        title_lengths = np.fromiter(map(len, heads), np.int64, len(texts))
    else:
        tokens = [ids[:STORE_LIMIT] for ids in tokenizer.ids(texts)]
        title_lengths = np.zeros(len(texts), np.int64)
    lengths = np.fromiter(map(len, tokens), np.int64, len(texts))
    flat = np.fromiter(chain.from_iterable(tokens), tokenizer.dtype, int(lengths.sum()))
    return flat, lengths, title_lengths
