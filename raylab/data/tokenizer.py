"""The tokenisation contract: which tokens a text becomes, the same in training and encoding.

The passage store holds the tokens of texts alone; `framed` puts the contract's prompt and special
tokens around them, so that one store serves all models of a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from raylab.data.hub_fault import check_hub, hub_fault
from raylab.data.tokenise import TextTokenizer
from raylab.experiment.config import ConfigError, Tokenization

MASK_TOKEN = "_"  # the literal token that MNTP masks with (2502.15526, Backbone)
TextKind = Literal["query", "passage"]
_PROBES = ("What is it?", "12 cells", "(a) b", "été")  # texts that a prompt may stand before


class Tokenizer:
    """A Hugging Face tokenizer under a contract.

    Args:
        source: local folder or hub id.
        gguf_file: name of the GGUF file inside `source`, when it carries the tokenizer.

    Raises:
        ConfigError: no tokenizer there, one without the mask token, or a prompt whose last token
            would merge with the text's first.
    """

    def __init__(
        self,
        source: str,
        gguf_file: str | None = None,
        tokenization: Tokenization | None = None,
    ):
        from transformers import (
            AutoTokenizer,  # takes seconds, and workers that tokenise need it not
        )

        try:
            check_hub(source)
            self._hf = AutoTokenizer.from_pretrained(
                source, **({"gguf_file": gguf_file} if gguf_file else {})
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"no tokenizer at {source!r}: {hub_fault(source, error)}") from None
        mask = self._hf.convert_tokens_to_ids(MASK_TOKEN)
        if mask is None or mask == self._hf.unk_token_id:
            raise ConfigError(
                f"tokenizer {source!r} has no token {MASK_TOKEN!r}, which MNTP masks with"
            )
        self.source = source
        self.tokenization = tokenization or Tokenization()
        self.mask_id = int(mask)
        pad = self._hf.pad_token_id if self._hf.pad_token_id is not None else self._hf.eos_token_id
        self.pad_id = int(pad if pad is not None else 0)
        # Ids may have holes: what counts is the largest.
        self.vocabulary = max(self._hf.get_vocab().values(), default=-1) + 1
        self._frames: dict[TextKind, tuple[np.ndarray, np.ndarray]] = {
            "query": self._frame("query_prompt", self.tokenization.query_prompt),
            "passage": self._frame("passage_prompt", self.tokenization.passage_prompt),
        }

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return self._hf(text, add_special_tokens=special)["input_ids"]

    def _frame(self, field: str, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """(token ids before a text, after it)."""
        starts = {tuple(self._before(field, prompt, text)) for text in _PROBES} if prompt else {()}
        if len(starts) > 1:
            raise self._merges(field, prompt)
        before, after = list(starts.pop()), []
        if self.tokenization.special_tokens:
            text = self._ids(_PROBES[0])
            whole = self._ids(_PROBES[0], special=True)
            start = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
            before, after = whole[:start] + before, whole[start + len(text) :]
        return np.array(before, self.dtype), np.array(after, self.dtype)

    def _before(self, field: str, prompt: str, text: str) -> list[int]:
        """The tokens of a prompt that stands before a text, whose own tokens it must leave alone."""
        joined, alone = self._ids(prompt + text), self._ids(text)
        if joined[-len(alone) :] != alone:
            raise self._merges(field, prompt)
        return joined[: -len(alone)]

    def _merges(self, field: str, prompt: str) -> ConfigError:
        return ConfigError(
            f"tokenization.{field} = {prompt!r}: its end merges with the text that follows under "
            f"tokenizer {self.source!r}; end it with a space, a line break or a special token"
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, merges and normalisation, not of the folder it came from."""
        return hashlib.sha256(json.dumps(self._state(), sort_keys=True).encode()).hexdigest()

    def _state(self) -> dict[str, Any]:
        """The tokenizers library's own description, without what depends on the last call."""
        state = json.loads(self._hf.backend_tokenizer.to_str())
        return {key: state[key] for key in state if key not in ("truncation", "padding")}

    @cached_property
    def text(self) -> TextTokenizer:
        """The tokenizer of texts alone, which workers take along."""
        return TextTokenizer(json.dumps(self._state()), self.dtype)

    @property
    def contract(self) -> dict[str, Any]:
        """What a checkpoint must be used with, for its manifest."""
        return {
            "fingerprint": self.fingerprint,
            "special_tokens": self.tokenization.special_tokens,
            "query_prompt": self.tokenization.query_prompt,
            "passage_prompt": self.tokenization.passage_prompt,
            "padding_side": "right",
            "pad_id": self.pad_id,
            "mask_token": MASK_TOKEN,
        }

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint16 if self.vocabulary <= 2**16 else np.uint32

    def encode(self, texts: Sequence[str], limit: int | None = None) -> list[np.ndarray]:
        """Token ids (1-d arrays) of each text alone, cut to `limit` tokens."""
        return self.text.encode(texts, limit)

    @cached_property
    def special(self) -> tuple[np.ndarray, np.ndarray]:
        """Special tokens (before a text, after it), without a prompt; empty where the contract has none."""
        return self._frame("", "")

    def overhead(self, kind: TextKind) -> int:
        """How many tokens of a length limit the contract takes for itself."""
        return sum(map(len, self._frames[kind]))

    def framed(self, tokens: np.ndarray, kind: TextKind, limit: int) -> np.ndarray:
        """A text's tokens as the model sees them: prompt and special tokens around, `limit` in all.

        Raises:
            ConfigError: a limit that leaves no room for the text.
        """
        before, after = self._frames[kind]
        room = limit - len(before) - len(after)
        if room < 1:
            raise ConfigError(
                f"{kind}_length = {limit}: prompt and special tokens alone are {limit - room} tokens"
            )
        if not len(before) and not len(after):
            return tokens[:room]
        return np.concatenate([before, tokens[:room], after])

    def encode_framed(self, texts: Sequence[str], kind: TextKind, limit: int) -> list[np.ndarray]:
        """Token ids of each text as the model sees it."""
        return [self.framed(tokens, kind, limit) for tokens in self.encode(texts)]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entries of `ids`; `[id]` for those that only fill it up to a round size."""
        known = self._hf.convert_ids_to_tokens([int(i) for i in ids])
        return [entry or f"[{i}]" for i, entry in zip(ids, known, strict=True)]

    def save(self, folder: str) -> None:
        """Write it as a hub folder that pads as the contract does, wherever it is loaded."""
        if self._hf.pad_token_id is None:
            self._hf.pad_token = self._hf.convert_ids_to_tokens(self.pad_id)
        self._hf.padding_side = "right"
        self._hf.save_pretrained(folder)
