"""What a plan needs of a model: its shape, and how many tokens its tokenizer makes of texts.

Of a model that is on this machine both come from its files. A known one (`raylab.experiment.known_models`) that is
not here is planned from its table: nothing is asked of a hub, and neither torch nor transformers is imported.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from raylab.data.collections import read_passages, read_queries
from raylab.data.sources import open_collection
from raylab.data.tokenizer import TextKind, Tokenizer
from raylab.experiment.config import Backbone, ConfigError, Tokenization
from raylab.experiment.known_models import KNOWN_MODELS, KnownModel, TokenStatistics
from raylab.planning.flops import Shape

_SAMPLE_TEXTS = 500


class TokenCounts(Protocol):
    """How many tokens texts are, with what the contract puts around them."""

    @property
    def key(self) -> str:
        """Equal for those that count alike."""
        ...

    @property
    def family(self) -> str:
        """Equal for those that share a passage store: prompts and special tokens are not in it."""
        ...

    @property
    def token_bytes(self) -> int:
        """Of a token in the passage store."""
        ...

    @property
    def file_bytes(self) -> int:
        """Of the tokenizer's files, roughly."""
        ...

    def overhead(self, kind: TextKind) -> int:
        """Tokens around a text."""
        ...

    def of_texts(self, kind: TextKind, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text."""
        ...

    def of_words(self, kind: TextKind, words: np.ndarray) -> np.ndarray:
        """Tokens of texts of so many words."""
        ...


@dataclass(frozen=True)
class Counted:
    """By a tokenizer; of texts that are not here by the tokens a word that it makes of SciFact's."""

    tokenizer: Tokenizer

    @property
    def key(self) -> str:
        return f"{self.family} {self.tokenizer.tokenization}"

    @property
    def family(self) -> str:
        return self.tokenizer.fingerprint

    @property
    def token_bytes(self) -> int:
        return np.dtype(self.tokenizer.dtype).itemsize

    @property
    def file_bytes(self) -> int:
        folder = Path(self.tokenizer.source)
        if not folder.is_dir():
            return 0
        return sum(path.stat().st_size for path in folder.glob("tokenizer*"))

    def overhead(self, kind: TextKind) -> int:
        return self.tokenizer.overhead(kind)

    def of_texts(self, kind: TextKind, texts: Sequence[str]) -> np.ndarray:
        counts = [len(tokens) for tokens in self.tokenizer.encode(texts)]
        return np.array(counts) + self.overhead(kind)

    def of_words(self, kind: TextKind, words: np.ndarray) -> np.ndarray:
        texts = _scifact(kind)
        tokens = sum(map(len, self.tokenizer.encode(texts)))
        a_word = tokens / sum(len(text.split()) for text in texts)
        return np.maximum(np.rint(words * a_word), 1) + self.overhead(kind)


@dataclass(frozen=True)
class Estimated:
    """By a known tokenizer's tokens a word."""

    tokens: TokenStatistics
    tokenization: Tokenization
    vocabulary: int

    @property
    def key(self) -> str:
        return f"{self.family} {self.tokenization}"

    @property
    def family(self) -> str:
        return self.tokens.family

    @property
    def token_bytes(self) -> int:
        return 2 if self.vocabulary <= 2**16 else 4

    @property
    def file_bytes(self) -> int:
        return self.tokens.file_bytes

    def _a_word(self, kind: TextKind) -> float:
        return (
            self.tokens.query_tokens_a_word
            if kind == "query"
            else self.tokens.passage_tokens_a_word
        )

    def overhead(self, kind: TextKind) -> int:
        contract = self.tokenization
        prompt = contract.query_prompt if kind == "query" else contract.passage_prompt
        special = self.tokens.special if contract.special_tokens else 0
        return special + math.ceil(len(prompt.split()) * self._a_word(kind))

    def of_texts(self, kind: TextKind, texts: Sequence[str]) -> np.ndarray:
        return self.of_words(kind, np.array([len(text.split()) for text in texts]))

    def of_words(self, kind: TextKind, words: np.ndarray) -> np.ndarray:
        return np.maximum(np.rint(words * self._a_word(kind)), 1) + self.overhead(kind)


@dataclass(frozen=True)
class PlannedModel:
    """A size as a plan sees it.

    ``known``: it is not on this machine. ``stored_bytes``: of the files that a node fetches or reads.
    """

    shape: Shape
    counts: TokenCounts
    known: bool
    stored_bytes: float


@cache
def _scifact(kind: TextKind) -> tuple[str, ...]:
    """The first texts of the collection that is in the package."""
    source = open_collection("scifact")
    if kind == "query":
        return tuple(query.text for query in read_queries(source.queries["test"]).values())
    first = itertools.islice(read_passages(source.passages), _SAMPLE_TEXTS)
    return tuple(f"{passage.title} {passage.text}" for passage in first)


def plan_model(backbone: Backbone, models_dir: str | None, from_tables: bool) -> PlannedModel:
    """A size's shape and token counts: from its files where they are here, else from the table of known models.

    Args:
        from_tables: whether a model that is not here may be a known one; a run must have the model.

    Raises:
        ConfigError: no model there; files that are not the known model's; a tokenizer that does not fit it.
    """
    known = KNOWN_MODELS.get(backbone.source)
    if known is not None and from_tables and not _is_here(backbone, models_dir):
        counts = Estimated(known.tokens, backbone.tokenization, known.vocabulary)
        shape = known_shape(backbone, known)
        stored = known.stored_bytes * float(shape.parameters + shape.embedding_parameters)
        return PlannedModel(shape, counts, True, stored)
    # Here, since they take seconds and a plan of known models does without.
    from raylab.models.backbone import load_config, resolve_source
    from raylab.models.hub import check_vocabulary, load_tokenizer
    from raylab.models.whole import check_model

    source = resolve_source(backbone, models_dir)
    is_folder, owner = Path(source).is_dir(), f"size {backbone.name!r}"
    if is_folder:
        check_model(Path(source), owner, False, models_dir)
    shape = Shape.of(load_config(backbone, source))
    if known is not None:
        _check_shape(backbone, source, shape, known_shape(backbone, known))
    if is_folder and backbone.start == "pretrained" and not from_tables:
        check_model(Path(source), owner, True, models_dir)  # a plan does without the weights
    tokenizer = load_tokenizer(backbone, models_dir)
    check_vocabulary(backbone, source, tokenizer, shape.vocabulary)
    stored = _file_bytes(Path(source)) or 2.0 * (shape.parameters + shape.embedding_parameters)
    return PlannedModel(shape, Counted(tokenizer), False, stored)


def weight_bytes(backbone: Backbone) -> int:
    """Of one weight, as it is computed with."""
    return 4 if backbone.compute_dtype == "float32" else 2


def _is_here(backbone: Backbone, models_dir: str | None) -> bool:
    if models_dir is None and not backbone.source.startswith("package:"):
        return Path(backbone.source).is_dir()
    from raylab.models.backbone import resolve_source

    try:
        return Path(resolve_source(backbone, models_dir)).is_dir()
    except ConfigError:  # a package that is not installed
        return False


def known_shape(backbone: Backbone, known: KnownModel) -> Shape:
    """A known model's shape, cut to the size's layers.

    Raises:
        ConfigError: more layers wanted than it has.
    """
    layers = known.layers if backbone.layers is None else backbone.layers
    if layers > known.layers:
        raise ConfigError(
            f"size {backbone.name!r}: layers = {layers}, and the model has {known.layers}"
        )
    return Shape(
        layers=layers,
        hidden=known.hidden,
        intermediate=known.intermediate,
        heads=known.heads,
        kv_heads=known.kv_heads,
        head_dim=known.head_dim,
        vocabulary=known.vocabulary,
        tied=known.tied,
    )


def _check_shape(backbone: Backbone, source: str, found: Shape, expected: Shape) -> None:
    """Refuse files that are not those of the model that a ladder names.

    Raises:
        ConfigError: names the first field that differs.
    """
    for field in dataclasses.fields(Shape):
        ours, theirs = getattr(expected, field.name), getattr(found, field.name)
        if ours != theirs:
            raise ConfigError(
                f"size {backbone.name!r}: {source} has {field.name} = {theirs}, and {backbone.source} has {ours}; "
                "put the model that is named there, or name the folder itself in a ladder of your own"
            )


def _file_bytes(folder: Path) -> float:
    if not folder.is_dir():
        return 0.0
    return float(sum(path.stat().st_size for path in folder.iterdir() if path.is_file()))
