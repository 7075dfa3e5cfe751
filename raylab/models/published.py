"""Retrievers in the format the paper's authors publish: a peft adapter of their own base classes.

`adapter_config.json` names the class under `auto_mapping.base_model_class`: `...BiForMNTP` has an LM
head and makes a sparse retriever, `...BiModel` has none and makes a dense one. Their keys differ in one
level (`base_model.model.model.layers...` and `base_model.model.layers...`, as their converter writes
them), and both are those of the stock decoder from `layers` on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Backbone, ConfigError, Encoding, Tokenization
from raylab.experiment.heads import DENSE, SPARSE, Head
from raylab.models.backbone import load_backbone, resolve_source
from raylab.models.identity import adapter_base

_SPARSE, _DENSE = "BiForMNTP", "BiModel"
# Their tokenizers' own special tokens, lengths by collection as in their scripts, no pruning.
_TOKENIZATION = Tokenization(special_tokens=True)
_ENCODING = Encoding(top_k_query=0, top_k_passage=0)


def _base_class(folder: Path) -> str:
    path = folder / "adapter_config.json"
    if not path.is_file():
        return ""
    mapping = json.loads(path.read_text()).get("auto_mapping") or {}
    return str(mapping.get("base_model_class", ""))


def is_published(folder: Path) -> bool:
    """Whether the folder holds an adapter of the authors' classes."""
    return _base_class(folder).endswith((_SPARSE, _DENSE))


def published_description(folder: Path, models_dir: str | None) -> tuple[Head, Encoding, Tokenizer]:
    """What can be said of such a folder without loading its model.

    Raises:
        ConfigError: a base model's folder that is not on this machine, or no tokenizer.
    """
    head = DENSE if _base_class(folder).endswith(_DENSE) else SPARSE
    base = adapter_base(folder)
    source = resolve_source(Backbone(folder.resolve().name, base), models_dir)
    if source.startswith(("/", ".")) and not Path(source).is_dir():
        raise ConfigError(
            f"{folder}/adapter_config.json: base_model_name_or_path = {base!r} is a folder of another "
            f"machine; put the base model's folder {Path(base).name!r} into the folder of models"
        )
    place = str(folder) if (folder / "tokenizer_config.json").exists() else source
    return head, _ENCODING, Tokenizer(place, tokenization=_TOKENIZATION)


def load_published(
    folder: Path,
    models_dir: str | None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> tuple[Any, Tokenizer, Head, Encoding]:
    """(model with the adapter merged, tokenizer, head, encoding).

    Raises:
        ConfigError: a base model that is not to be found, or tensors that do not fit it.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    head, encoding, tokenizer = published_description(folder, models_dir)
    config = LoraConfig.from_pretrained(str(folder))
    base = str(config.base_model_name_or_path)
    backbone = Backbone(folder.resolve().name, base, tokenization=_TOKENIZATION)
    source = resolve_source(backbone, models_dir)
    model = load_backbone(backbone, source, dtype, device)
    config.auto_mapping, config.task_type = None, None
    config.base_model_name_or_path = model.name_or_path
    wrapped = get_peft_model(model, config)
    state = {_stock_key(key): tensor for key, tensor in _tensors(folder).items()}
    result = set_peft_model_state_dict(wrapped, state)
    missing = [key for key in result.missing_keys if ".lora_" in key]
    if result.unexpected_keys or missing:
        wrong = (list(result.unexpected_keys) + missing)[0]
        raise ConfigError(f"{folder}: the adapter does not fit {base!r} (tensor {wrong!r})")
    return wrapped.merge_and_unload(), tokenizer, head, encoding


def _stock_key(key: str) -> str:
    _, separator, rest = key.partition("layers.")
    return f"base_model.model.model.layers.{rest}" if separator else key


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / "adapter_model.safetensors").is_file():
        return load_file(folder / "adapter_model.safetensors")
    path = folder / "adapter_model.bin"
    if not path.is_file():
        raise ConfigError(f"{folder}: no adapter_model.safetensors nor adapter_model.bin")
    return torch.load(path, map_location="cpu", weights_only=True)
