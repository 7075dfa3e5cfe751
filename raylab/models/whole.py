"""Whether a model's files are whole, from their first bytes and sizes: before any data are read, and in seconds.

What is told: a file that Git LFS did not fetch, weights that were cut short, a shard or tensor that an index names and
is not there, embeddings that are not as many as the configuration says, and an adapter whose base is not to be had.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

from raylab.data.hub_fault import HubError, check_hub
from raylab.experiment.config import Backbone, ConfigError
from raylab.models.backbone import resolve_source
from raylab.models.identity import ADAPTER, ADAPTER_WEIGHTS, TOKENIZER, adapter_base, weight_files

_POINTER = b"version https://git-lfs"
_LONGEST_HEADER = 100 * 2**20  # as safetensors has it
_EMBEDDINGS = "embed_tokens.weight"
_CHECKED = (".safetensors", ".bin", ".gguf", ".json")
_AGAIN = "fetch or copy it again"
_JSON = ("config.json", *(name for name in TOKENIZER if name.endswith(".json")))


def check_model(
    folder: Path, owner: str, weights: bool = True, models_dir: str | None = None
) -> None:
    """Refuse a local model folder whose files cannot be what they are named.

    Args:
        owner: whose model it is, for messages.
        weights: whether its weights will be read.

    Raises:
        ConfigError: names the file, and what to do.
    """
    for name in (*_JSON, *TOKENIZER):
        if (folder / name).is_file():
            check_file(folder / name, owner)
    if not weights:
        return
    names = {path.name for path in folder.iterdir()}
    is_adapter = ADAPTER in names
    if is_adapter:
        _check_adapter(folder, owner, names, models_dir)
    files = weight_files(folder, names, str(folder), owner)
    headers = {name: check_file(folder / name, owner) for name in files}
    index = next((name for name in files if name.endswith(".index.json")), None)
    if index is not None:
        _check_index(folder / index, headers, owner)
    _check_embeddings(folder, headers, owner)


def check_files(folder: Path, owner: str) -> None:
    """`check_file` of all below a folder that a model may be read from.

    Raises:
        ConfigError: as `check_model`.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix in _CHECKED and path.is_file():
            check_file(path, owner)


def check_file(path: Path, owner: str) -> dict[str, Any]:
    """Refuse a file that is cut short or was never fetched; of safetensors the header, by name of a tensor.

    Raises:
        ConfigError: as `check_model`.
    """
    with open(path, "rb") as file:
        start = file.read(1024)
    if start.startswith(_POINTER):
        raise ConfigError(
            f"{owner}: {path} is a pointer of Git LFS and not the file itself: run 'git lfs pull' in its folder"
        )
    size = path.stat().st_size
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{owner}: {path} is no JSON ({error}); {_AGAIN}") from None
    elif path.suffix == ".safetensors":
        return _header(path, size, owner)
    elif path.suffix == ".bin" and start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise ConfigError(f"{owner}: {path} is cut short ({size:,} bytes); {_AGAIN}")
    elif path.suffix == ".gguf" and not start.startswith(b"GGUF"):
        raise ConfigError(f"{owner}: {path} is no GGUF file; {_AGAIN}")
    return {}


def _header(path: Path, size: int, owner: str) -> dict[str, Any]:
    """What safetensors says of itself: its length, then JSON of where each tensor is."""
    with open(path, "rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else _LONGEST_HEADER + 1
        if length > min(_LONGEST_HEADER, size):
            raise ConfigError(f"{owner}: {path} is no safetensors file ({size:,} bytes); {_AGAIN}")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = (
                8 + length + max((facts["data_offsets"][1] for facts in header.values()), default=0)
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{owner}: the header of {path} cannot be read; {_AGAIN}") from None
    if end != size:
        raise ConfigError(
            f"{owner}: {path} has {size:,} bytes, and its header tells of {end:,}; {_AGAIN}"
        )
    return header


def _check_index(path: Path, headers: dict[str, dict[str, Any]], owner: str) -> None:
    for tensor, shard in json.loads(path.read_text())["weight_map"].items():
        if shard.endswith(".safetensors") and tensor not in headers[shard]:
            raise ConfigError(
                f"{owner}: {path.parent / shard} lacks the tensor {tensor!r}, which {path.name} says it holds; {_AGAIN}"
            )


def _check_embeddings(folder: Path, headers: dict[str, dict[str, Any]], owner: str) -> None:
    """Their rows are as many as the configuration says."""
    config = folder / "config.json"
    if not config.is_file():
        return
    facts = json.loads(config.read_text())
    wanted = facts.get("vocab_size") if isinstance(facts, dict) else None
    for name, header in headers.items():
        for tensor, told in header.items():
            if wanted and tensor.endswith(_EMBEDDINGS) and told["shape"][0] != wanted:
                raise ConfigError(
                    f"{owner}: {folder / name} has {told['shape'][0]} embeddings, and config.json says vocab_size = "
                    f"{wanted}; save the model again after model.resize_token_embeddings"
                )


def _check_adapter(folder: Path, owner: str, names: set[str], models_dir: str | None) -> None:
    base = adapter_base(folder)
    if not any(name in names for name in ADAPTER_WEIGHTS):
        raise ConfigError(f"{owner}: {folder} lacks the adapter's weights ({ADAPTER_WEIGHTS[0]})")
    for name in ADAPTER_WEIGHTS:
        if name in names:
            check_file(folder / name, owner)
    place = resolve_source(Backbone("base", base), models_dir)
    what = f"{owner}: {folder / ADAPTER} names the base {base!r}"
    if Path(place).is_dir():
        check_model(Path(place), f"{owner}, the base of its adapter", models_dir=models_dir)
    elif place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise ConfigError(
            f"{what}, and there is no such folder: put it there, or name a folder that holds it by --models"
        )
    else:
        try:
            check_hub(place)
        except HubError as error:
            raise ConfigError(f"{what}: {error}") from None
