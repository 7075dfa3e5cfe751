"""Teachers: real models that score (query, passage) pairs.

A folder or hub id whose architecture classifies sequences is a cross-encoder; any other encoder is
used as a bi-encoder (mean pooling, cosine), for where no cross-encoder is at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from raylab.artifacts import sha256_of
from raylab.config import Backbone, ConfigError
from raylab.data.batches import pad
from raylab.models.backbone import resolve_source
from raylab.models.retriever import length_batches

MAX_TOKENS = 160  # of a pair (cross-encoder) or a text (bi-encoder)


def teacher_fingerprint(source: str, models_dir: str | None = None) -> str:
    """Hash of a local teacher's configuration and weights, or of the hub id's name.

    Raises:
        ConfigError: a package that is not installed.
    """
    folder = Path(resolve_source(Backbone("teacher", source), models_dir))
    if not folder.is_dir():
        return hashlib.sha256(source.encode()).hexdigest()
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".bin"))
    return hashlib.sha256("".join(p.name + sha256_of(p) for p in files).encode()).hexdigest()


def check_teacher(source: str, models_dir: str | None = None) -> None:
    """Find a teacher (a model, or a Parquet file of scores) before anything is done that needs it.

    Raises:
        ConfigError: there is none.
    """
    if source.endswith(".parquet"):
        if not Path(source).is_file():
            raise ConfigError(f"--teacher {source}: no such file")
        return
    path = Path(resolve_source(Backbone("teacher", source), models_dir))
    if path.is_dir() and not any(p.suffix in (".safetensors", ".bin") for p in path.iterdir()):
        raise ConfigError(f"--teacher {source}: the folder holds no weights (*.safetensors, *.bin)")
    try:
        AutoConfig.from_pretrained(str(path) if path.is_dir() else source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--teacher {source}: it must be a model folder, a hub id, package:NAME/FOLDER "
            f"or a Parquet file of scores ({error})"
        ) from None


class Teacher:
    """Scores pairs of texts.

    Args:
        source: local folder, hub id or `package:NAME/FOLDER`.

    Raises:
        ConfigError: no model there.
    """

    def __init__(self, source: str, models_dir: str | None = None):
        path = resolve_source(Backbone("teacher", source), models_dir)
        try:
            config = AutoConfig.from_pretrained(path)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            architectures = config.architectures or []
            self.is_cross_encoder = any("SequenceClassification" in a for a in architectures)
            kind = AutoModelForSequenceClassification if self.is_cross_encoder else AutoModel
            self.model = kind.from_pretrained(path).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"teacher: no model at {source!r} ({error})") from None
        if torch.cuda.is_available():
            self.model = self.model.half().cuda()
        self._embeddings: dict[str, np.ndarray] = {}

    def score(
        self, queries: Sequence[str], passages: Sequence[str], batch_tokens: int = 8_192
    ) -> np.ndarray:
        """float32 [N]: relevance logit (cross-encoder) or cosine (bi-encoder) of each pair."""
        if self.is_cross_encoder:
            return self._cross(queries, passages, batch_tokens)
        self._embed(dict.fromkeys([*queries, *passages]), batch_tokens)
        pairs = zip(queries, passages, strict=True)
        return np.array([self._embeddings[q] @ self._embeddings[p] for q, p in pairs], np.float32)

    @torch.inference_mode()
    def _cross(
        self, queries: Sequence[str], passages: Sequence[str], batch_tokens: int
    ) -> np.ndarray:
        # Cuts the passage while it is the longer one; "only_second" fails on a query that fills the window.
        encoded = self.tokenizer(
            list(queries), list(passages), truncation="longest_first", max_length=MAX_TOKENS
        )
        scores = np.empty(len(queries), np.float32)
        for batch in length_batches([len(ids) for ids in encoded["input_ids"]], batch_tokens):
            rows = {key: [values[i] for i in batch] for key, values in encoded.items()}
            inputs = self.tokenizer.pad(rows, return_tensors="pt").to(self.model.device)
            scores[batch] = self.model(**inputs).logits[:, -1].float().cpu().numpy()
        return scores

    @torch.inference_mode()
    def _embed(self, texts: dict[str, None], batch_tokens: int) -> None:
        """Embed what was not seen before; a bi-encoder sees each text once, not once a pair."""
        fresh = [t for t in texts if t not in self._embeddings]
        if not fresh:
            return
        encoded = self.tokenizer(fresh, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        arrays = [np.asarray(ids) for ids in encoded]
        pad_id = self.tokenizer.pad_token_id or 0
        for batch in length_batches([len(a) for a in arrays], batch_tokens):
            ids, mask = pad([arrays[i] for i in batch], max(len(arrays[i]) for i in batch), pad_id)
            mask_BL = torch.from_numpy(mask).to(self.model.device)
            states = self.model(
                input_ids=torch.from_numpy(ids).to(self.model.device), attention_mask=mask_BL.long()
            ).last_hidden_state
            weights = mask_BL.unsqueeze(-1).to(states.dtype)
            means = (states * weights).sum(1) / weights.sum(1)
            units = torch.nn.functional.normalize(means.float(), dim=-1).cpu().numpy()
            self._embeddings.update(zip((fresh[i] for i in batch), units, strict=True))
