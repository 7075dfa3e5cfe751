"""A checkpoint as sentence-transformers sees it: JSON files beside the weights, no remote code.

Dense:  Transformer -> Normalize(token_embeddings) -> Pooling(mean)
Sparse: Transformer with all logits as token embeddings -> SpladePooling(max)

An adapter's base comes with its own configuration, which is causal. `attribute_map` is transformers'
table of attributes that are read under another name: `is_causal` read from `is_encoder_decoder`, which
is false in every decoder, makes it bidirectional.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Encoding
from raylab.experiment.heads import DENSE, SPARSE, Head

_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"
_POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
_SPLADE = "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"


def is_described(head: Head) -> bool:
    """Whether sentence-transformers has modules that pool as this head does."""
    return head.pooling in (SPARSE.pooling, DENSE.pooling)


def describe_modules(
    folder: Path,
    head: Head,
    encoding: Encoding,
    tokenizer: Tokenizer,
    model_config: Any,
    is_adapter: bool,
) -> None:
    """Write the files that make `folder` a `SparseEncoder` or a `SentenceTransformer`.

    Nothing is written for a head of which `is_described` is false.
    """
    if not is_described(head):
        return
    tokenization = tokenizer.tokenization
    transformer: dict[str, Any] = {
        "model_kwargs": {"dtype": "float32"},
        "processing_kwargs": {"text": {"add_special_tokens": tokenization.special_tokens}},
        "query_length": encoding.query_limit,
        "document_length": encoding.passage_limit,
        "max_seq_length": encoding.passage_limit,
        "module_output_name": "token_embeddings",
    }
    if is_adapter:
        names = dict(model_config.attribute_map)
        if not model_config.is_causal:
            names["is_causal"] = "is_encoder_decoder"
        changes: dict[str, Any] = {"attribute_map": names}
        if hasattr(model_config, "final_logit_softcapping"):
            changes["final_logit_softcapping"] = None
        transformer["config_kwargs"] = changes
    modules = [("", _TRANSFORMER)]
    if head.is_sparse:
        transformer["transformer_task"] = "text-generation"
        transformer["processing_kwargs"]["text"]["logits_to_keep"] = 0
        output = "logits"
        modules += [("1_SpladePooling", _SPLADE)]
        configs = {
            "1_SpladePooling": {
                "pooling_strategy": "max",
                "activation_function": "relu",
                "embedding_dimension": model_config.vocab_size,
            }
        }
    else:
        transformer["transformer_task"] = "feature-extraction"
        output = "last_hidden_state"
        modules += [("1_Normalize", _NORMALIZE), ("2_Pooling", _POOLING)]
        configs = {
            "1_Normalize": {
                "module_input_name": "token_embeddings",
                "module_output_name": "token_embeddings",
            },
            "2_Pooling": {
                "embedding_dimension": model_config.hidden_size,
                "pooling_mode": "mean",
                "include_prompt": True,
            },
        }
    transformer["modality_config"] = {"text": {"method": "forward", "method_output_name": output}}
    _write(folder / "sentence_bert_config.json", transformer)
    for name, config in configs.items():
        (folder / name).mkdir(exist_ok=True)
        _write(folder / name / "config.json", config)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)
    kind = "SparseEncoder" if head.is_sparse else "SentenceTransformer"
    prompts = {"query": tokenization.query_prompt, "document": tokenization.passage_prompt}
    about = {"model_type": kind, "similarity_fn_name": "dot"}
    _write(
        folder / "config_sentence_transformers.json",
        {**about, "prompts": prompts, "default_prompt_name": None},
    )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
