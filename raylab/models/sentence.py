"""Published sentence-transformers models as retrievers, run by that library: its prompts, pooling and all.

A `SparseEncoder` is a sparse retriever, a `SentenceTransformer` a dense one. Scores are dot products here:
vectors of a model that is compared by cosine get length 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from raylab.experiment.config import ConfigError, Encoding
from raylab.experiment.heads import DENSE, SPARSE, Head
from raylab.index.embeddings import Matrix
from raylab.models.heads import prune_top_k
from raylab.models.retriever import in_input_order, length_batches, rows_of, token_budget

MODULES = "modules.json"
_LONGEST = 512  # tokens a text, of a model that says nothing
_SPARSE_BATCH_TOKENS = 2_048  # the library holds logits over the vocabulary for all of them


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def sentence_head(folder: Path) -> Head:
    """Sparse for a `SparseEncoder`, else dense."""
    about = _json(folder / "config_sentence_transformers.json")
    types = [module.get("type", "") for module in _json(folder / MODULES)]
    sparse = about.get("model_type") == "SparseEncoder" or any("sparse_encoder" in t for t in types)
    return SPARSE if sparse else DENSE


def sentence_encoding(folder: Path) -> Encoding:
    """The model's own lengths; no pruning."""
    settings = _json(folder / "sentence_bert_config.json")
    longest = settings.get("max_seq_length")
    if longest is None:
        limit = _json(folder / "tokenizer_config.json").get("model_max_length") or _LONGEST
        longest = limit if limit <= 2**17 else _LONGEST  # some say 10^30
    query, passage = (settings.get(f"{kind}_length") or longest for kind in ("query", "document"))
    return Encoding(int(query), int(passage), top_k_query=0, top_k_passage=0)


class SentenceRetriever:
    """Encodes queries and passages as `raylab.models.retriever.Retriever` does.

    Raises:
        ConfigError: sentence-transformers is not installed, the model cannot be loaded, or is compared
            by something else than dot product or cosine.
    """

    def __init__(
        self,
        folder: Path,
        encoding: Encoding,
        device: str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        try:
            import sentence_transformers as library
        except ImportError:
            raise ConfigError(
                f"{folder} is a sentence-transformers model: pip install sentence-transformers"
            ) from None
        self.head = sentence_head(folder)
        self.encoding = encoding
        sparse = self.head.is_sparse
        kind: Any = library.SparseEncoder if sparse else library.SentenceTransformer
        self.model = kind(str(folder), device=device, trust_remote_code=False).to(dtype)
        similarity = str(self.model.similarity_fn_name)
        if similarity not in ("dot", "cosine"):
            raise ConfigError(f"{folder}: similarity {similarity!r}; it must be dot or cosine")
        self._unit = similarity == "cosine"
        first = self.model[0]
        self.model.max_seq_length = max(encoding.query_limit, encoding.passage_limit)
        first.query_length, first.document_length = encoding.query_limit, encoding.passage_limit

    def encode_queries(self, texts: Sequence[str], batch_tokens: int | None = None) -> Matrix:
        """Representations of query texts, in input order."""
        encoding = self.encoding
        return self._encode(
            texts,
            self.model.encode_query,
            encoding.query_limit,
            encoding.top_k_query,
            batch_tokens,
        )

    def encode_passages(self, texts: Sequence[str], batch_tokens: int | None = None) -> Matrix:
        """Representations of passage texts, in input order."""
        encoding = self.encoding
        return self._encode(
            texts,
            self.model.encode_document,
            encoding.passage_limit,
            encoding.top_k_passage,
            batch_tokens,
        )

    def terms(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entries of `ids`."""
        known = self.model.tokenizer.convert_ids_to_tokens([int(i) for i in ids])
        return [entry or f"[{i}]" for i, entry in zip(ids, known, strict=True)]

    @torch.inference_mode()
    def _encode(
        self, texts: Sequence[str], encode: Any, limit: int, top_k: int, batch_tokens: int | None
    ) -> Matrix:
        sparse = self.head.is_sparse
        if not len(texts):
            width = int(self.model.get_embedding_dimension())
            empty = np.zeros((0, width), np.float32)
            return sp.csr_matrix(empty) if sparse else empty
        budget = batch_tokens or token_budget(self.model.device)
        options: dict[str, Any] = {"show_progress_bar": False, "convert_to_tensor": True}
        if sparse:
            options["convert_to_sparse_tensor"] = False
            budget = min(budget, _SPARSE_BATCH_TOKENS)
        lengths = [min(len(ids), limit) for ids in self.model.tokenizer(list(texts))["input_ids"]]
        parts, places = [], []
        for batch in length_batches(lengths, budget):
            reps = encode([texts[i] for i in batch], batch_size=len(batch), **options).float()
            reps = torch.nn.functional.normalize(reps, dim=1) if self._unit else reps
            parts.append(rows_of(prune_top_k(reps, top_k) if sparse else reps, self.head))
            places.append(batch)
        return in_input_order(parts, places)
