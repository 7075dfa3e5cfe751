"""Backbones and what training makes of them: load a base, save and load an adapter or full weights.

adapter_config.json, adapter_model.safetensors     (LoRA)
config.json, model.safetensors                     (full fine-tuning)
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Backbone, ConfigError
from raylab.models.backbone import gguf_file, load_backbone, resolve_source


def is_adapted(model: Any) -> bool:
    """Whether a model has an adapter of peft's on it."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def state_to_save(model: Any) -> dict[str, torch.Tensor]:
    """What differs from the backbone: the adapter's tensors, or all of them without LoRA."""
    if is_adapted(model):
        from peft import get_peft_model_state_dict

        # peft wants tied embeddings under both of their names, and safetensors refuses aliases.
        state = get_peft_model_state_dict(model)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = model.state_dict()
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if name not in tied
    }


def save_weights(model: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the adapter (with its configuration) or the full model into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_adapted(model):
        save_adapter(model.peft_config["default"], state, folder)
    else:
        model.config.save_pretrained(str(folder))
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def save_adapter(config: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write an adapter's configuration and tensors as peft reads them."""
    config.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_weights(model: Any, folder: Path, trainable: bool = False) -> Any:
    """The backbone `model` with the adapter or the full weights of `folder` on it.

    Raises:
        ConfigError: tensors that are missing or do not belong to this model.
    """
    if (folder / "adapter_config.json").exists():
        return with_adapter(model, folder, trainable)
    missing, unexpected = model.load_state_dict(
        load_file(folder / "model.safetensors"), strict=False
    )
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise ConfigError(
            f"{folder}: the weights do not fit {type(model).__name__}: missing {sorted(set(missing) - tied)[:3]}, "
            f"unexpected {sorted(unexpected)[:3]}"
        )
    model.requires_grad_(trainable)
    return model


def with_adapter(model: Any, folder: Path, trainable: bool = False) -> Any:
    """A model with the adapter of a folder on it.

    Raises:
        ConfigError: the adapter lacks tensors, which would begin at random.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        except UserWarning as missing:
            reason = str(missing).partition(". ")[0]
            raise ConfigError(f"{folder}: the adapter is not whole ({reason[:300]})") from None


def load_base(
    backbone: Backbone,
    models_dir: str | None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> tuple[Any, Tokenizer]:
    """A backbone, in its own `compute_dtype` by default, and its tokenizer, from wherever its source is."""
    source = resolve_source(backbone, models_dir)
    model, tokenizer = (
        load_backbone(backbone, source, dtype, device),
        load_tokenizer(backbone, models_dir),
    )
    check_vocabulary(backbone, source, tokenizer, model.config.vocab_size)
    # A GGUF file's tokenizer may come with more special tokens than there are embeddings.
    tokenizer.vocabulary = min(tokenizer.vocabulary, model.config.vocab_size)
    return model, tokenizer


def check_vocabulary(
    backbone: Backbone, source: str, tokenizer: Tokenizer, embeddings: int
) -> None:
    """Refuse a tokenizer that gives ids for which the model has no embedding.

    Tokens that no file holds are let pass: reading a GGUF file, or a tokenizer of some class, adds special tokens
    that no text becomes.

    Raises:
        ConfigError: names both counts and the remedy.
    """
    if gguf_file(source) is not None:
        return
    tokens = min(tokenizer.vocabulary, _tokens_in_file(source, tokenizer.vocabulary))
    if tokens > embeddings:
        raise ConfigError(
            f"size {backbone.name!r}: the tokenizer has {tokens} tokens, the model "
            f"{embeddings} embeddings; resize them (model.resize_token_embeddings) and save the model again"
        )


def _tokens_in_file(source: str, otherwise: int) -> int:
    """How many tokens `tokenizer.json` of a folder holds, up to the largest id; `otherwise` where there is none."""
    path = Path(source, "tokenizer.json")
    if not path.is_file():
        return otherwise
    state = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = state["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return 1 + max([*ids, *(token["id"] for token in state.get("added_tokens") or ())], default=-1)


def load_tokenizer(backbone: Backbone, models_dir: str | None) -> Tokenizer:
    """A backbone's tokenizer under its contract."""
    source = resolve_source(backbone, models_dir)
    return Tokenizer(source, gguf_file(source), backbone.tokenization)
