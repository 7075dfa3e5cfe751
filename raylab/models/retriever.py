"""A retriever: backbone, adapter, head and contract; texts or tokens in, representations out.

Legend: N texts, D representation size (dense) or vocabulary (sparse).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from raylab.data.supervision.batches import pad
from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.heads import Head
from raylab.index.embeddings import Matrix
from raylab.models.backbone import hidden_states, output_weight
from raylab.models.checkpoint import find_checkpoint, load_checkpoint
from raylab.models.heads import prune_top_k, represent
from raylab.models.hub import load_base

log = logging.getLogger("raylab")
_MOST_PADDING = 0.02


class Retriever:
    """Encodes queries and passages; float32 [N, D] for dense, scipy CSR [N, V] for sparse.

    Args:
        scale: the sparse head's factor on the logits; None for that of the hidden size.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        head: Head,
        encoding: Encoding,
        scale: float | None = None,
    ):
        self.model, self.tokenizer, self.encoding = model.eval(), tokenizer, encoding
        self.head = head
        self.scale = scale
        self._checked = False

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        models_dir: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Retriever:
        """From a checkpoint folder (raylab's, or the paper's authors'), or a hub id of one.

        Args:
            models_dir: where bases are looked for by their hub ids before they are looked for on the hub.
            device: default CUDA where there is one, else CPU.
            dtype: default that of its training, on any device; float32 where the checkpoint does not say.

        Raises:
            ConfigError: no retriever there, or a tokenizer that is not the one it was trained with.
        """
        return cls(
            *load_checkpoint(find_checkpoint(path_or_id), models_dir, dtype, placement(device))
        )

    @classmethod
    def untrained(
        cls,
        backbone: Backbone,
        head: Head,
        encoding: Encoding,
        models_dir: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Retriever:
        """The backbone as it starts, under a head, in its `compute_dtype` by default."""
        model, tokenizer = load_base(backbone, models_dir, dtype, placement(device))
        return cls(model, tokenizer, head, encoding)

    def encode_queries(self, texts: Sequence[str], batch_tokens: int | None = None) -> Matrix:
        """Representations of query texts, in input order."""
        tokens = self.tokenizer.encode_framed(texts, "query", self.encoding.query_limit)
        return self.encode_tokens(tokens, self.encoding.top_k_query, batch_tokens)

    def encode_passages(self, texts: Sequence[str], batch_tokens: int | None = None) -> Matrix:
        """Representations of passage texts, in input order."""
        tokens = self.tokenizer.encode_framed(texts, "passage", self.encoding.passage_limit)
        return self.encode_tokens(tokens, self.encoding.top_k_passage, batch_tokens)

    def terms(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entries of `ids`."""
        return self.tokenizer.tokens(ids)

    @torch.inference_mode()
    def encode_tokens(
        self, texts: Sequence[np.ndarray], top_k: int, batch_tokens: int | None = None
    ) -> Matrix:
        """Representations of tokenised texts, in input order, batched by length under a token budget."""
        weight_VD = output_weight(self.model)
        device = weight_VD.device
        parts: list[Matrix] = []
        places: list[np.ndarray] = []
        budget = batch_tokens or token_budget(device)
        for batch in length_batches([len(t) for t in texts], budget):
            length = max(max(len(texts[i]) for i in batch), 1)
            ids, mask = pad([texts[i] for i in batch], length, self.tokenizer.pad_id)
            ids_BL, mask_BL = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
            hidden_BLD = hidden_states(self.model, ids_BL, mask_BL)
            reps = represent(self.head, hidden_BLD, weight_VD, mask_BL, self.scale).float()
            parts.append(
                rows_of(prune_top_k(reps, top_k) if self.head.is_sparse else reps, self.head)
            )
            places.append(batch)
        if not parts:
            return self._nothing(weight_VD)
        matrix = in_input_order(parts, places)
        if len(texts) > 1 and not self._checked:
            self._checked = True
            if warning := collapse(matrix):
                log.warning(
                    "%s retriever of %s: %s", self.head.name, self.tokenizer.source, warning
                )
        return matrix

    def _nothing(self, weight_VD: torch.Tensor) -> Matrix:
        if self.head.is_sparse:
            return sp.csr_matrix((0, weight_VD.shape[0]), dtype=np.float32)
        return np.zeros((0, weight_VD.shape[1]), np.float32)


def placement(device: str | None) -> torch.device:
    """Where to encode: on CUDA where there is one, else on the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def rows_of(reps: torch.Tensor, head: Head) -> Matrix:
    """Representations of a head, off the device: CSR [B, V] where it is sparse, else [B, D]."""
    return _csr(reps) if head.is_sparse else reps.cpu().numpy()


def _csr(reps_BV: torch.Tensor) -> sp.csr_matrix:
    """Only what is not zero leaves the device."""
    rows, terms = reps_BV.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(reps_BV)).cpu().numpy()
    starts = np.concatenate([[0], np.cumsum(counts)])
    values = reps_BV[rows, terms].cpu().numpy()
    return sp.csr_matrix((values, terms.cpu().numpy(), starts), shape=tuple(reps_BV.shape))


def token_budget(device: torch.device | str) -> int:
    """Padded tokens a batch: enough to keep a GPU busy; on a processor, activations that stay in its caches.

    There, batches of 16,384 tokens take 1.1 (sparse) to 1.4 (dense) times as long as those of 4,096
    (two layers of width 128): memory of their size goes back to the system after each operation.
    """
    return 4_096 if torch.device(device).type == "cpu" else 16_384


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[np.ndarray]:
    """Indices sorted by length and cut into batches of at most `batch_tokens` padded tokens (one text at least).

    A batch ends earlier where its padding would pass `_MOST_PADDING` of its tokens, once it has an eighth of
    the budget: of few texts, neighbours differ so much that full batches would be padding for several percent.
    """
    order = np.argsort(lengths, kind="stable")
    batches, start, tokens = [], 0, 0
    for end, longest in enumerate(np.maximum(lengths, 1)[order].tolist()):
        padded = longest * (end + 1 - start)
        wasted = padded > (1 + _MOST_PADDING) * (tokens + longest) and 8 * tokens >= batch_tokens
        if end > start and (padded > batch_tokens or wasted):
            batches.append(order[start:end])
            start, tokens = end, 0
        tokens += longest
    return [*batches, order[start:]] if len(order) else []


def in_input_order(parts: list[Matrix], places: list[np.ndarray]) -> Matrix:
    """Rows of batches, whose places among the texts are given, in the order of the texts."""
    order = np.argsort(np.concatenate(places), kind="stable")
    dense = [part for part in parts if isinstance(part, np.ndarray)]
    if dense:
        return np.concatenate(dense)[order].astype(np.float32)
    return sp.csr_matrix(sp.vstack(parts, format="csr"))[order]


def collapse(matrix: Matrix) -> str | None:
    """A warning when representations of different texts hardly differ, or are nearly all active."""
    sample = matrix[:256]
    if not isinstance(sample, np.ndarray):
        share = sample.nnz / (sample.shape[0] * sample.shape[1])
        if share > 0.5:
            return f"{share:.0%} of the vocabulary is active in a text: prune with Top-K, or regularise"
        if share == 0:
            return "every representation is empty: the regulariser has silenced the head"
        sample = sample.toarray()
    units = sample / np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-12)
    if len(units) > 1:
        cosine = float(
            (np.square(units.sum(0)).sum() - len(units)) / (len(units) * (len(units) - 1))
        )
        if cosine > 0.98:
            return f"representations are nearly equal (mean cosine {cosine:.3f}): they collapsed"
    return None
