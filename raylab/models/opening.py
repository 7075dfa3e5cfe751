"""Any retriever checkpoint: what kind it is, as its files say, and how it is opened.

raylab's own (`retriever.json`), the paper's authors' (an adapter of their classes), and a published
sentence-transformers model (`modules.json`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from raylab.data.tokenizer import Tokenizer
from raylab.experiment.config import Backbone, ComputeDtype, ConfigError, Encoding
from raylab.experiment.heads import Head
from raylab.models.backbone import torch_dtype
from raylab.models.checkpoint import (
    CONTRACT,
    contract_head,
    contract_tokenizer,
    find_checkpoint,
    load_contract,
)
from raylab.models.identity import adapter_base, weights_fingerprint
from raylab.models.published import is_published, published_description
from raylab.models.retriever import Retriever
from raylab.models.sentence import MODULES, SentenceRetriever, sentence_encoding, sentence_head
from raylab.models.teachers import teacher_source
from raylab.models.whole import check_files
from raylab.storage.checksums import checksum

_WHAT_COUNTS = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")
_WEIGHTS = (".safetensors", ".bin")
AnyRetriever = Retriever | SentenceRetriever


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, before its model is loaded.

    ``source``: the address as given, so that other machines find it, too. ``fingerprint``: of the content of its
    files (and of its base model, when it is an adapter), wherever they are.
    """

    source: str
    folder: Path
    kind: Literal["raylab", "authors", "sentence-transformers"]
    head: Head
    encoding: Encoding
    fingerprint: str
    tokenizer: Tokenizer | None  # None: sentence-transformers keeps it to itself
    compute_dtype: ComputeDtype = "float32"  # that of its training, where the checkpoint says


def find_retriever(source: str, models_dir: str | None = None) -> Checkpoint:
    """A checkpoint's folder, `package:NAME/FOLDER`, hub id, or folder of a storage's artifact.

    Raises:
        ConfigError: none there, no retriever, or one without weights.
    """
    folder = _folder(source, models_dir)
    if not any(p.suffix in _WEIGHTS for p in folder.rglob("*")):
        raise ConfigError(f"{source}: the folder holds no weights (*.safetensors, *.bin)")
    check_files(folder, source)
    try:
        return _found(source, folder, models_dir)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{source}: its description cannot be read ({error!r})") from None


def _folder(source: str, models_dir: str | None) -> Path:
    folder = find_checkpoint(teacher_source(source, models_dir))
    manifest = folder / "manifest.json"
    if manifest.is_file() and not (folder / CONTRACT).exists():
        attempt = json.loads(manifest.read_text()).get("attempt")
        folder = folder / attempt if attempt else folder
    return folder


def _found(source: str, folder: Path, models_dir: str | None) -> Checkpoint:
    if Path(source).is_dir():
        source = str(Path(source).resolve())
    facts = source, folder
    if (folder / CONTRACT).exists():
        contract = load_contract(folder)
        head = contract_head(contract)
        dtype = contract["backbone"].get("compute_dtype", "float32")
        encoding, tokenizer = Encoding(**contract["encoding"]), contract_tokenizer(folder, contract)
        fingerprint = _fingerprint(folder, models_dir)
        return Checkpoint(*facts, "raylab", head, encoding, fingerprint, tokenizer, dtype)
    if is_published(folder):
        head, encoding, tokenizer = published_description(folder, models_dir)
        return Checkpoint(
            *facts, "authors", head, encoding, _fingerprint(folder, models_dir), tokenizer
        )
    if (folder / MODULES).exists():
        head, encoding = sentence_head(folder), sentence_encoding(folder)
        fingerprint = _fingerprint(folder, models_dir)
        return Checkpoint(*facts, "sentence-transformers", head, encoding, fingerprint, None)
    raise ConfigError(
        f"{source}: the folder holds no retriever checkpoint ({CONTRACT}, the authors' "
        f"adapter_config.json, or sentence-transformers' {MODULES})"
    )


def _fingerprint(folder: Path, models_dir: str | None) -> str:
    files = sorted(
        (str(p.relative_to(folder)), p) for p in folder.rglob("*") if p.suffix in _WHAT_COUNTS
    )
    content = "".join(name + checksum(path) for name, path in files)
    if (folder / "adapter_config.json").is_file():
        content += weights_fingerprint(Backbone("base", adapter_base(folder)), models_dir)
    return hashlib.sha256(content.encode()).hexdigest()


def open_retriever(
    source: str,
    encoding: Encoding,
    models_dir: str | None = None,
    device: str | None = None,
    compute_dtype: ComputeDtype = "float32",
) -> AnyRetriever:
    """Load a checkpoint's model, to encode under `encoding` in `compute_dtype`.

    Raises:
        ConfigError: it cannot be loaded.
    """
    folder = _folder(source, models_dir)
    try:
        if not (folder / CONTRACT).exists() and not is_published(folder):
            return SentenceRetriever(folder, encoding, device, torch_dtype(compute_dtype))
        retriever = Retriever.load(folder, models_dir, device, torch_dtype(compute_dtype))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source}: the model cannot be loaded ({error})") from None
    retriever.encoding = encoding
    return retriever
