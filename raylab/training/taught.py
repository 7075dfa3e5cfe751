"""A teacher's embeddings of many texts, computed once and kept in a folder, piece by piece.

A piece is named by what it holds: the teacher's files and the texts. A run that was stopped goes on with the
next piece; another teacher or another text never meets an old one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

_PIECE = 1_024  # texts


class Embedder(Protocol):
    """A teacher that embeds texts on the unit sphere."""

    def embed(self, texts: Sequence[str], batch_tokens: int = ...) -> np.ndarray:
        """float32 [N, D], in input order."""
        ...


def teacher_embeddings(
    open_teacher: Callable[[], Embedder],
    fingerprint: str,
    texts: Sequence[str],
    cache: Path,
    say: Callable[[str], None] = print,
) -> np.ndarray:
    """float16 [N, D]: the teacher's embedding of every text; the teacher is opened only for what is not kept.

    Args:
        fingerprint: what the teacher is.
        cache: a folder, made where it is not there.
    """
    cache.mkdir(parents=True, exist_ok=True)
    teacher: Embedder | None = None
    pieces = []
    for start in range(0, len(texts), _PIECE):
        part = list(texts[start : start + _PIECE])
        digest = hashlib.sha256("\0".join([fingerprint, *part]).encode()).hexdigest()[:20]
        path = cache / f"embeddings-{digest}.npy"
        if not path.exists():
            teacher = teacher or open_teacher()
            aside = path.with_suffix(f".{os.getpid()}.npy")
            np.save(aside, teacher.embed(part).astype(np.float16))
            aside.replace(path)
            say(f"embedded {start + len(part)} of {len(texts)} texts")
        pieces.append(np.load(path))
    return np.concatenate(pieces)
