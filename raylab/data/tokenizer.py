"""The tokenisation contract: which tokens a text becomes, the same in training and encoding.

No special token is ever added: a BOS token can act as an attention sink and collapse a max-pooled
decoder (stack of users' pains: nDCG 0.02 with BOS, 0.65 without).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from transformers import AutoTokenizer

from raylab.config import ConfigError

MASK_TOKEN = "_"  # the literal token that MNTP masks with (paper.md, Backbone)


class Tokenizer:
    """A Hugging Face tokenizer under the contract.

    Args:
        source: local folder or hub id.
        gguf_file: name of the GGUF file inside `source`, when it carries the tokenizer.

    Raises:
        ConfigError: no tokenizer there, or one without the mask token.
    """

    def __init__(self, source: str, gguf_file: str | None = None):
        try:
            self._hf = AutoTokenizer.from_pretrained(
                source, **({"gguf_file": gguf_file} if gguf_file else {})
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"no tokenizer at {source!r}: {error}") from None
        mask = self._hf.convert_tokens_to_ids(MASK_TOKEN)
        if mask is None or mask == self._hf.unk_token_id:
            raise ConfigError(
                f"tokenizer {source!r} has no token {MASK_TOKEN!r}, which MNTP masks with"
            )
        self.source = source
        self.mask_id = int(mask)
        pad = self._hf.pad_token_id if self._hf.pad_token_id is not None else self._hf.eos_token_id
        self.pad_id = int(pad if pad is not None else 0)
        self.vocabulary = len(self._hf)

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, merges and normalisation, not of the folder it came from."""
        state = json.loads(self._hf.backend_tokenizer.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint16 if self.vocabulary <= 2**16 else np.uint32

    def encode(self, texts: Sequence[str], limit: int | None = None) -> list[np.ndarray]:
        """Token ids (1-d arrays) of each text, cut to `limit` tokens; no special tokens."""
        encodings = self._hf(list(texts), add_special_tokens=False, return_attention_mask=False)
        return [np.asarray(ids[:limit], dtype=self.dtype) for ids in encodings["input_ids"]]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entries of `ids`."""
        return self._hf.convert_ids_to_tokens([int(i) for i in ids])

    def save(self, folder: str) -> None:
        self._hf.save_pretrained(folder)
