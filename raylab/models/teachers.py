"""Teachers: real models that score (query, passage) pairs.

A folder or hub id is taken for what its files say it is:
    a retriever checkpoint's folder, raylab's or the authors'   its own encoding, dot product
    sequence classification                                     cross-encoder: the (last) logit
    masked language model                                       sparse encoder (SPLADE): dot product
    any other encoder                                           bi-encoder: mean pooling, cosine
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from raylab.data.hub_fault import check_hub, hub_fault
from raylab.data.supervision.batches import pad
from raylab.data.supervision.published import form_of
from raylab.experiment.config import Backbone, ComputeDtype, ConfigError
from raylab.index.embeddings import Matrix
from raylab.models.backbone import resolve_source, torch_dtype
from raylab.models.checkpoint import CONTRACT, find_checkpoint
from raylab.models.identity import weights_fingerprint
from raylab.models.published import is_published
from raylab.models.retriever import Retriever, length_batches
from raylab.models.whole import check_files

MAX_TOKENS = 160  # of a pair (cross-encoder) or a text (encoders; a retriever has its own lengths)
Kind = Literal["cross-encoder", "sparse encoder", "bi-encoder", "retriever"]
_FILES = (".parquet", ".jsonl", ".json", ".trec", ".tsv", ".gz")
_SPARSE_BATCH_TOKENS = 2_048  # logits over the vocabulary are held for all of them
_PRODUCT_PAIRS = 4_096


def teacher_source(source: str, models_dir: str | None = None) -> str:
    """The folder of a teacher, or its hub id.

    Raises:
        ConfigError: a package that is not installed.
    """
    return resolve_source(Backbone("teacher", source), models_dir)


def teacher_fingerprint(source: str, models_dir: str | None = None) -> str:
    """What a teacher is: the content of its configuration, weights and tokenizer.

    Raises:
        ConfigError: no model there.
    """
    return weights_fingerprint(Backbone("teacher", source), models_dir)


def is_retriever(folder: Path) -> bool:
    """Whether a folder is a retriever checkpoint."""
    return (folder / CONTRACT).exists() or is_published(folder)


def check_teacher(source: str, models_dir: str | None = None) -> None:
    """Find a teacher (a model, or a file of scores or groups) before anything is done that needs it.

    Raises:
        ConfigError: there is none.
        CollectionError: a file that is neither scores nor training groups.
    """
    if Path(source).is_file():
        form_of(Path(source))
        return
    if source.endswith(_FILES):
        raise ConfigError(f"teacher {source}: no such file")
    path = Path(teacher_source(source, models_dir))
    if path.is_dir() and not any(p.suffix in (".safetensors", ".bin") for p in path.iterdir()):
        raise ConfigError(f"teacher {source}: the folder holds no weights (*.safetensors, *.bin)")
    if path.is_dir():
        check_files(path, f"teacher {source}")
    if is_retriever(path):
        return
    try:
        if not path.is_dir():
            check_hub(source)
        AutoConfig.from_pretrained(str(path) if path.is_dir() else source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"teacher {source}: it must be a model folder, a hub id, package:NAME/FOLDER, "
            f"or a file of teacher scores or training groups ({hub_fault(source, error)})"
        ) from None


def check_retriever(option: str, source: str, models_dir: str | None = None) -> None:
    """Find a retriever checkpoint before anything is done that needs it.

    Raises:
        ConfigError: there is none.
    """
    folder = find_checkpoint(teacher_source(source, models_dir))
    if not is_retriever(folder):
        raise ConfigError(f"{option} {source}: the folder holds no retriever checkpoint")


class Teacher:
    """Scores pairs of texts. The scores of a call depend on its texts alone, not on calls before it.

    Args:
        source: local folder, hub id or `package:NAME/FOLDER`.
        compute_dtype: what it computes in, on any device; a retriever checkpoint has its own.

    Raises:
        ConfigError: no model there.
    """

    def __init__(
        self,
        source: str,
        models_dir: str | None = None,
        compute_dtype: ComputeDtype = "float32",
    ):
        path = teacher_source(source, models_dir)
        self.kind: Kind
        if is_retriever(Path(path)):
            self.kind, self.retriever = "retriever", Retriever.load(path, models_dir)
            return
        try:
            config = AutoConfig.from_pretrained(path)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.kind, auto = _kind_of(config.architectures or [])
            self.model = auto.from_pretrained(path, dtype=torch_dtype(compute_dtype)).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"teacher: no model at {source!r} ({error})") from None
        if torch.cuda.is_available():
            self.model = self.model.cuda()

    @property
    def is_cross_encoder(self) -> bool:
        return self.kind == "cross-encoder"

    def score(
        self, queries: Sequence[str], passages: Sequence[str], batch_tokens: int = 8_192
    ) -> np.ndarray:
        """float32 [N]: how relevant each passage is to its query, on the model's own scale.

        Texts are batched by length; encoders see each text once, however many pairs it is in.
        """
        if not len(queries):
            return np.zeros(0, np.float32)
        if self.kind == "cross-encoder":
            return self._cross(queries, passages, batch_tokens)
        asked, given = list(dict.fromkeys(queries)), list(dict.fromkeys(passages))
        if self.kind == "retriever":
            query_reps = self.retriever.encode_queries(asked, batch_tokens)
            passage_reps = self.retriever.encode_passages(given, batch_tokens)
        else:
            embed = self._sparse if self.kind == "sparse encoder" else self._dense
            query_reps, passage_reps = embed(asked, batch_tokens), embed(given, batch_tokens)
        return _pair_products(
            query_reps, _places(asked, queries), passage_reps, _places(given, passages)
        )

    def embed(self, texts: Sequence[str], batch_tokens: int = 8_192) -> np.ndarray:
        """float32 [N, D]: the embeddings of a bi-encoder, of length 1.

        Raises:
            ConfigError: another kind of teacher.
        """
        if self.kind != "bi-encoder":
            raise ConfigError(f"teacher: a {self.kind} has no dense embeddings; take a bi-encoder")
        return self._dense(texts, batch_tokens)

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
    def _dense(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        """float32 [N, D]: means of the last states over the tokens, of length 1."""
        parts, places = [], []
        for batch, inputs in self._batches(texts, batch_tokens):
            states = self.model(**inputs).last_hidden_state
            weights = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
            means = (states * weights).sum(1) / weights.sum(1)
            parts.append(torch.nn.functional.normalize(means.float(), dim=-1).cpu().numpy())
            places.append(batch)
        return np.concatenate(parts)[np.argsort(np.concatenate(places))]

    @torch.inference_mode()
    def _sparse(self, texts: Sequence[str], batch_tokens: int) -> sp.csr_matrix:
        """float32 CSR [N, V]: log(1 + relu(max over positions of logits)) (SPLADE, 2109.10086)."""
        parts, places = [], []
        for batch, inputs in self._batches(texts, min(batch_tokens, _SPARSE_BATCH_TOKENS)):
            logits = self.model(**inputs).logits.float()
            padding = inputs["attention_mask"].unsqueeze(-1) == 0
            maxima = logits.masked_fill(padding, 0.0).amax(1)
            parts.append(sp.csr_matrix(torch.log1p(torch.relu(maxima)).cpu().numpy()))
            places.append(batch)
        return sp.csr_matrix(sp.vstack(parts, format="csr"))[np.argsort(np.concatenate(places))]

    def _batches(
        self, texts: Sequence[str], batch_tokens: int
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        encoded = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        arrays = [np.asarray(ids) for ids in encoded]
        pad_id = self.tokenizer.pad_token_id or 0
        for batch in length_batches([len(a) for a in arrays], batch_tokens):
            longest = max(max(len(arrays[i]) for i in batch), 1)
            ids, mask = pad([arrays[i] for i in batch], longest, pad_id)
            device = self.model.device
            yield (
                batch,
                {
                    "input_ids": torch.from_numpy(ids).to(device),
                    "attention_mask": torch.from_numpy(mask).to(device).long(),
                },
            )


def _kind_of(architectures: Sequence[str]) -> tuple[Kind, Any]:
    if any("SequenceClassification" in a for a in architectures):
        return "cross-encoder", AutoModelForSequenceClassification
    if any("MaskedLM" in a for a in architectures):
        return "sparse encoder", AutoModelForMaskedLM
    return "bi-encoder", AutoModel


def _places(texts: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    place = {text: i for i, text in enumerate(texts)}
    return np.array([place[text] for text in wanted], np.int64)


def _pair_products(
    query_reps: Matrix, queries: np.ndarray, passage_reps: Matrix, passages: np.ndarray
) -> np.ndarray:
    """float32 [N]: the dot product of each pair of rows, some thousands of pairs at a time."""
    scores = np.empty(len(queries), np.float32)
    for start in range(0, len(queries), _PRODUCT_PAIRS):
        part = slice(start, start + _PRODUCT_PAIRS)
        a, b = query_reps[queries[part]], passage_reps[passages[part]]
        if isinstance(a, np.ndarray):
            scores[part] = np.einsum("nd,nd->n", a, b)
        else:
            scores[part] = np.asarray(a.multiply(b).sum(1)).ravel()
    return scores
