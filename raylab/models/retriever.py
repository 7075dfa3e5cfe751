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

from raylab.config import Backbone, ConfigError, Encoding, HeadKind, identity
from raylab.data.batches import pad
from raylab.data.tokenizer import Tokenizer
from raylab.models.backbone import hidden_states, output_weight
from raylab.models.heads import prune_top_k, represent
from raylab.models.hub import load_base, load_contract, load_weights, save_contract

log = logging.getLogger("raylab")

Matrix = np.ndarray | sp.csr_matrix


class Retriever:
    """Encodes queries and passages; float32 [N, D] for dense, scipy CSR [N, V] for sparse."""

    def __init__(self, model: Any, tokenizer: Tokenizer, head: HeadKind, encoding: Encoding):
        self.model, self.tokenizer, self.encoding = model.eval(), tokenizer, encoding
        self.head: HeadKind = head

    @classmethod
    def load(cls, folder: str | Path, models_dir: str | None = None) -> Retriever:
        """From a checkpoint folder that training wrote.

        Raises:
            ConfigError: the tokenizer at hand is not the one the checkpoint was trained with.
        """
        folder = Path(folder)
        facts = load_contract(folder)
        model, tokenizer = load_base(Backbone(**facts["backbone"]), models_dir)
        if tokenizer.fingerprint != facts["tokenizer"]:
            raise ConfigError(
                f"{folder}: trained with another tokenizer than that of {tokenizer.source!r}"
            )
        return cls(
            load_weights(model, folder), tokenizer, facts["head"], Encoding(**facts["encoding"])
        )

    @classmethod
    def untrained(
        cls, backbone: Backbone, head: HeadKind, encoding: Encoding, models_dir: str | None = None
    ) -> Retriever:
        """The backbone as it starts, under a head."""
        model, tokenizer = load_base(backbone, models_dir)
        return cls(model, tokenizer, head, encoding)

    def encode_queries(self, texts: Sequence[str], batch_tokens: int = 16_384) -> Matrix:
        """Representations of query texts, in input order."""
        tokens = self.tokenizer.encode(texts, self.encoding.query_length)
        return self.encode_tokens(tokens, self.encoding.top_k_query, batch_tokens)

    def encode_passages(self, texts: Sequence[str], batch_tokens: int = 16_384) -> Matrix:
        """Representations of passage texts, in input order."""
        tokens = self.tokenizer.encode(texts, self.encoding.passage_length)
        return self.encode_tokens(tokens, self.encoding.top_k_passage, batch_tokens)

    @torch.inference_mode()
    def encode_tokens(
        self, texts: Sequence[np.ndarray], top_k: int, batch_tokens: int = 16_384
    ) -> Matrix:
        """Representations of tokenised texts, in input order, batched by length under a token budget."""
        device = output_weight(self.model).device
        parts: list[Matrix] = []
        places: list[np.ndarray] = []
        for batch in length_batches([len(t) for t in texts], batch_tokens):
            length = max(max(len(texts[i]) for i in batch), 1)
            ids, mask = pad([texts[i] for i in batch], length, self.tokenizer.pad_id)
            ids_BL, mask_BL = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
            hidden_BLD = hidden_states(self.model, ids_BL, mask_BL)
            reps = represent(self.head, hidden_BLD, output_weight(self.model), mask_BL).float()
            if self.head == "sparse":
                parts.append(sp.csr_matrix(prune_top_k(reps, top_k).cpu().numpy()))
            else:
                parts.append(reps.cpu().numpy())
            places.append(batch)
        return _in_input_order(parts, places)

    def save_contract(self, folder: Path, backbone: Backbone, **provenance: Any) -> None:
        """Write the contract beside the weights, for `load`."""
        save_contract(
            folder,
            {
                "backbone": identity(backbone),
                "head": self.head,
                "encoding": identity(self.encoding),
                "tokenizer": self.tokenizer.fingerprint,
                **provenance,
            },
        )


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[np.ndarray]:
    """Indices sorted by length and cut into batches of at most `batch_tokens` padded tokens (one text at least)."""
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        full = end < len(order) and max(lengths[order[end]], 1) * (end + 1 - start) > batch_tokens
        if full or end == len(order):
            batches.append(order[start:end])
            start = end
    return batches


def _in_input_order(parts: list[Matrix], places: list[np.ndarray]) -> Matrix:
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
