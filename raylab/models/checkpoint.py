"""A retriever checkpoint: one folder that raylab, peft and sentence-transformers each load as their own.

retriever.json       the contract: head, backbone, tokenisation, lengths, pruning, recipe, provenance
tokenizer*.json      the tokenizer
README.md            the model card
modules.json, ...    sentence-transformers' description of the same model (`raylab.models.interop`)
and the weights, as
    adapter_config.json, adapter_model.safetensors   a LoRA adapter of a base model on a hub, or
    config.json, model.safetensors                   the whole model, adapter merged, for any other base

The sparse head's factor on the logits is folded into the final norm's weight, which an adapter carries
for that: whoever loads the folder gets the scaled logits. No path of the machine that wrote it is in it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import (
    Backbone,
    ConfigError,
    Encoding,
    Tokenization,
    identity,
)
from raylab.experiment.heads import Head, find_head
from raylab.models.backbone import (
    final_norm,
    load_backbone,
    output_weight,
    resolve_source,
    scaled_norm_weight,
)
from raylab.models.card import licence_of, write_card
from raylab.models.heads import logit_scale
from raylab.models.hub import (
    is_adapted,
    load_base,
    save_adapter,
    save_weights,
    state_to_save,
    with_adapter,
)
from raylab.models.interop import describe_modules
from raylab.models.published import is_published, load_published
from raylab.storage.artifacts import DamagedArtifact

CONTRACT = "retriever.json"
_NORM_KEY = "base_model.model.model.norm.weight"  # of the final norm, in a peft state


def on_a_hub(backbone: Backbone) -> bool:
    """Whether others find this backbone, whole and as it is, under its source's name."""
    local = backbone.source.startswith("package:") or Path(backbone.source).exists()
    whole = backbone.layers is None and backbone.start == "pretrained"
    return whole and not local and backbone.source.count("/") == 1


def save_retriever(
    folder: Path,
    model: Any,
    state: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    backbone: Backbone,
    head: Head,
    encoding: Encoding,
    facts: Mapping[str, Any],
    models_dir: str | None = None,
) -> None:
    """Write a trained model as a checkpoint folder.

    Args:
        model: the decoder, or its peft wrapper; its final norm must be whole in this process.
        state: `state_to_save(model)`, gathered.
        facts: provenance, JSON-ready, kept in the contract and shown on the card.
    """
    scale = logit_scale(model.config.hidden_size) if head.is_sparse else 1.0
    norm = scaled_norm_weight(final_norm(model), scale).detach().cpu().contiguous()
    is_adapter = is_adapted(model) and on_a_hub(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    if is_adapter:
        _save_adapter(folder, model, state, norm if head.is_sparse else None, backbone.source)
    else:
        _save_whole(folder, model, state, norm, backbone, models_dir)
    tokenizer.save(str(folder))
    contract = {
        "head": dataclasses.asdict(head),
        "backbone": _named(backbone),
        "encoding": identity(encoding),
        "tokenizer": tokenizer.contract,
        "weights": "adapter" if is_adapter else "whole",
        "license": licence_of(resolve_source(backbone, models_dir)),
        **facts,
    }
    save_contract(folder, contract)
    describe_modules(folder, head, encoding, tokenizer, model.config, is_adapter)
    write_card(folder, contract)


def _named(backbone: Backbone) -> dict[str, Any]:
    """A backbone's identity, without the folders of the machine it was loaded on.

    Its tokenisation stands in the tokenizer's contract, and there alone.
    """
    facts = dataclasses.asdict(backbone)
    del facts["tokenization"]
    if Path(backbone.source).is_dir():
        facts["source"] = Path(backbone.source).name
    return facts


def _save_adapter(
    folder: Path,
    model: Any,
    state: Mapping[str, torch.Tensor],
    norm: torch.Tensor | None,
    base: str,
) -> None:
    config: Any = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path = base
    config.inference_mode = True
    tensors = dict(state)
    if norm is not None:
        config.modules_to_save = [*(config.modules_to_save or []), "model.norm"]
        tensors[_NORM_KEY] = norm
    save_adapter(config, tensors, folder)


def _save_whole(
    folder: Path,
    model: Any,
    state: Mapping[str, torch.Tensor],
    norm: torch.Tensor,
    backbone: Backbone,
    models_dir: str | None,
) -> None:
    whole: Mapping[str, torch.Tensor] = state
    if is_adapted(model):
        from peft import PeftModel, set_peft_model_state_dict

        # The base anew: the trained one may be partitioned, and merging would spoil it for its owner.
        base, _ = load_base(backbone, models_dir, output_weight(model).dtype)
        merged = PeftModel(base, copy.deepcopy(model.peft_config["default"]))
        set_peft_model_state_dict(merged, dict(state))
        model = merged.merge_and_unload()
        whole = state_to_save(model)
    save_weights(model, {**whole, "model.norm.weight": norm}, folder)


# ----------------------------------------------------------------------------------------- load


def save_contract(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `retriever.json`."""
    (folder / CONTRACT).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def load_contract(folder: Path) -> dict[str, Any]:
    """Read `retriever.json`.

    Raises:
        DamagedArtifact: there is none: the folder was not written by raylab.
    """
    path = folder / CONTRACT
    if not path.exists():
        raise DamagedArtifact(str(folder), f"{CONTRACT} is missing")
    return json.loads(path.read_text())


def contract_head(contract: Mapping[str, Any]) -> Head:
    """The head that a contract describes, or names where it is one of the table's.

    Raises:
        ConfigError: a name that is not in the table.
    """
    head = contract["head"]
    return find_head(head) if isinstance(head, str) else Head(**head)


def find_checkpoint(path_or_id: str | Path) -> Path:
    """A local folder, or a hub repository fetched (or found in the hub's local cache).

    Raises:
        ConfigError: neither.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(path_or_id)))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"no retriever at {str(path_or_id)!r} ({reason})") from None


def contract_tokenizer(folder: Path, contract: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in a checkpoint's folder.

    Raises:
        ConfigError: it is not the one that the contract names.
    """
    tokenization = contract["tokenizer"]
    tokenizer = Tokenizer(
        str(folder),
        tokenization=Tokenization(
            tokenization["special_tokens"],
            tokenization["query_prompt"],
            tokenization["passage_prompt"],
        ),
    )
    if tokenizer.contract != tokenization:
        raise ConfigError(f"{folder}: its tokenizer is not the one the model was trained with")
    return tokenizer


def load_checkpoint(
    folder: Path,
    models_dir: str | None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> tuple[Any, Tokenizer, Head, Encoding, float]:
    """(model with its adapter merged, tokenizer, head, encoding, the sparse head's factor).

    Raises:
        ConfigError: the tokenizer in the folder is not the one the checkpoint was trained with.
        DamagedArtifact: no contract, and no adapter in the authors' format either.
    """
    if not (folder / CONTRACT).exists() and is_published(folder):
        model, tokenizer, head, encoding = load_published(folder, models_dir, dtype, device)
        return model, tokenizer, head, encoding, logit_scale(model.config.hidden_size)
    contract = load_contract(folder)
    tokenizer = contract_tokenizer(folder, contract)
    backbone = Backbone(**contract["backbone"], tokenization=tokenizer.tokenization)
    if contract["weights"] == "adapter":
        base = load_backbone(backbone, resolve_source(backbone, models_dir), dtype, device)
        model = with_adapter(base, folder).merge_and_unload()
    else:
        merged = dataclasses.replace(backbone, source=str(folder), layers=None, start="pretrained")
        model = load_backbone(merged, str(folder), dtype, device)
    return model, tokenizer, contract_head(contract), Encoding(**contract["encoding"]), 1.0
