"""What `raylab/data/known_sizes.py` and `raylab/experiment/known_models.py` take as measured, from real collections.

python benchmarks/known_sizes.py DIR/msmarco DIR/nfcorpus scifact --tokenizer FOLDER_OR_FILE ...

Prints for each collection the mean words of passages and queries, the spread of their logarithm, bytes a word, and
for each tokenizer the tokens a word and the error of what a plan would say. A tokenizer is a
folder that transformers reads, a GGUF file, or a `tokenizer.model` of tiktoken ranks (Llama 3's, which needs tiktoken).
"""

from __future__ import annotations

import argparse
import base64
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from raylab.data.collections import read_passages, read_topics
from raylab.data.known_sizes import Words, known_collection
from raylab.data.sources import open_collection

# Of Llama 3's tokenizer: how text is cut before pairs are merged.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LIMITS = {"passage": 512, "query": 64}

Counter = Callable[[Sequence[str]], list[int]]


def counter(path: str) -> Counter:
    """How many tokens texts are under a tokenizer."""
    if path.endswith(".model"):
        import tiktoken  # pyright: ignore[reportMissingImports]

        lines = (line.split() for line in Path(path).read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        encoding = tiktoken.Encoding(
            "llama3", pat_str=_LLAMA3, mergeable_ranks=ranks, special_tokens={}
        )
        return lambda texts: [len(encoding.encode_ordinary(text)) for text in texts]
    from transformers import AutoTokenizer

    folder, file = Path(path), {}
    if folder.suffix == ".gguf":
        folder, file = folder.parent, {"gguf_file": folder.name}
    tokenizer = AutoTokenizer.from_pretrained(str(folder), **file)
    return lambda texts: [
        len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ]


def measure(collection: str, tokenizers: dict[str, Counter], most: int) -> None:
    """Print what there is to know of one collection."""
    source = open_collection(collection)
    passages = (f"{p.title} {p.text}" for p in read_passages(source.passages))
    queries = (text for topics in read_topics(source).values() for text in topics.queries.values())
    print(f"{source.name}")
    for kind, texts in (("passage", passages), ("query", queries)):
        texts = list(itertools.islice(texts, most))
        words = np.array([len(text.split()) for text in texts])
        spread = float(np.log(np.maximum(words, 1)).std())
        size = sum(len(text.encode()) + 1 for text in texts) / words.sum()
        print(
            f"  {kind:8} {len(texts):7,} texts  words {words.mean():6.2f}  spread {spread:.2f}  bytes a word {size:.2f}"
        )
        for name, count in tokenizers.items():
            tokens = np.array(count(texts))
            a_word, limit = tokens.sum() / words.sum(), _LIMITS[kind]
            real = np.minimum(tokens, limit).mean()
            fitted = _fitted(Words(float(words.mean()), spread), float(a_word), limit)
            told = f"    {name}: {a_word:.3f} tokens a word; cut to {limit}: {real:.1f}, as lognormal {fitted:.1f}"
            if (known := known_collection(source.name)) is not None:
                table = known.size.passage_words if kind == "passage" else known.size.query_words
                told += f", from the table {_fitted(table, float(a_word), limit):.1f}"
            print(told)


def _fitted(words: Words, a_word: float, limit: int) -> float:
    return float(np.minimum(np.maximum(np.rint(words.lengths() * a_word), 1), limit).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collections", nargs="+")
    parser.add_argument("--tokenizer", action="append", default=[])
    parser.add_argument(
        "--most", type=int, default=10_000, help="texts of a kind that are looked at"
    )
    options = parser.parse_args()
    tokenizers = {path: counter(path) for path in options.tokenizer}
    for collection in options.collections:
        measure(collection, tokenizers, options.most)


if __name__ == "__main__":
    main()
