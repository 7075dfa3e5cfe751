"""What a model is: the content of the files that are really loaded, wherever they are.

The same folder by another path, moved, or a hub id and its local copy have one fingerprint; other weights
under the same path have another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from raylab.data.hub_fault import check_hub, hub_fault
from raylab.experiment.config import Backbone, ConfigError
from raylab.models.backbone import resolve_source
from raylab.storage.checksums import checksum

_CONFIG = ("config.json", "retriever.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
ADAPTER = "adapter_config.json"
# In the order in which transformers looks for them: an index that names shards, or one file.
_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SMALL = ["*.json", "*.txt", "tokenizer.model"]  # fetched to read what else there is


def weights_fingerprint(backbone: Backbone, models_dir: str | None = None) -> str:
    """sha256 (hex) over configuration, weights and tokenizer of what a backbone starts from.

    A random start has no weights: its configuration and tokenizer count.

    Raises:
        ConfigError: no model there, or one without weights that can be loaded.
    """
    source = resolve_source(backbone, models_dir)
    with_weights = backbone.start == "pretrained"
    sums = model_checksums(source, with_weights, f"size {backbone.name!r}", models_dir)
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def model_checksums(
    source: str, with_weights: bool, owner: str, models_dir: str | None = None
) -> dict[str, str]:
    """sha256 (hex) by file name, of the files that loading a model reads.

    Args:
        source: a local folder or a hub id.
        owner: whose source it is, for messages.

    Raises:
        ConfigError: as `weights_fingerprint`.
    """
    folder = Path(source)
    weights: Mapping[str, str] | None = None
    if not folder.is_dir():
        folder, weights = _on_hub(source, owner)
    names = {path.name for path in folder.iterdir()}
    wanted = [name for name in (*_CONFIG, *TOKENIZER) if name in names]
    sums = {name: checksum(folder / name) for name in wanted}
    if with_weights:
        for name in weight_files(folder, names | set(weights or {}), source, owner):
            hub_sum = (weights or {}).get(name)
            sums[name] = hub_sum if hub_sum and name not in names else checksum(folder / name)
        if ADAPTER in names:
            sums |= _adapter(folder, names, owner, models_dir)
    return sums


def adapter_base(folder: Path) -> str:
    """The base model that an adapter names.

    Raises:
        ConfigError: it names none.
    """
    path = folder / ADAPTER
    try:
        base = json.loads(path.read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: it cannot be read ({error})") from None
    if not isinstance(base, str) or not base.strip():
        raise ConfigError(
            f"{path}: base_model_name_or_path is {base!r}; it must name the adapter's base model"
        )
    return base


def weight_files(folder: Path, names: set[str], source: str, owner: str) -> list[str]:
    """The files of weights that loading reads, an index first; none of an adapter alone.

    Args:
        names: of the files that the folder has, or its repository.

    Raises:
        ConfigError: none there, or a shard that the index names is not.
    """
    for name in _WEIGHTS:
        if name in names and name.endswith(".index.json"):
            try:
                index = json.loads((folder / name).read_text())
                shards = sorted(set(index["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{owner}: {source}/{name}: no index of weights ({error!r})"
                ) from None
            if missing := [shard for shard in shards if shard not in names]:
                raise ConfigError(f"{owner}: {source} lacks {missing[0]}, which {name} names")
            return [name, *shards]
        if name in names:
            return [name]
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if gguf:
        return gguf[:1]
    if ADAPTER in names:
        return []
    raise ConfigError(f"{owner}: {source} holds no weights ({', '.join(_WEIGHTS)} or *.gguf)")


def _adapter(folder: Path, names: set[str], owner: str, models_dir: str | None) -> dict[str, str]:
    """An adapter's own files, and those of the base that it names."""
    files = [ADAPTER, *(name for name in ADAPTER_WEIGHTS if name in names)]
    sums = {name: checksum(folder / name) for name in files}
    if not (names & set(_WEIGHTS)):
        place = resolve_source(Backbone("base", adapter_base(folder)), models_dir)
        below = model_checksums(place, True, f"{owner}, the base of its adapter", models_dir)
        sums |= {f"base/{name}": value for name, value in below.items()}
    return sums


def _on_hub(repository: str, owner: str) -> tuple[Path, Mapping[str, str]]:
    """A hub repository's small files as a local folder, and the sums of its large ones.

    What is in the local cache is not looked up on the hub; its weights are read there.
    """
    try:
        cached = Path(snapshot_download(repository, local_files_only=True))
        names = {path.name for path in cached.iterdir()}
        if names & set(_WEIGHTS) or any(name.endswith(".gguf") for name in names):
            return cached, {}
    except Exception:  # not in the cache: it is looked up on the hub
        cached = None
    try:
        check_hub(repository)
        revision = HfApi().model_info(repository, files_metadata=True)
        folder = Path(snapshot_download(repository, revision=revision.sha, allow_patterns=_SMALL))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = hub_fault(repository, error) or type(error).__name__
        raise ConfigError(f"{owner}: no model at {repository!r} ({reason})") from None
    large = {f.rfilename: f.lfs.sha256 for f in revision.siblings or [] if f.lfs is not None}
    return folder, large
