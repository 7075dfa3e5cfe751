"""Artifacts of a storage, looked at without ever changing it: what is damaged is left where it is, and said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from raylab.storage.artifacts import Artifact, path_of
from raylab.storage.store import Store


class NotThere(LookupError):
    """What somebody asked for is not in the storage; one line says what and why."""


def artifact_at(store: Store, path: str) -> Artifact:
    """The artifact at a path below the root.

    Raises:
        NotThere: none is committed there, or its manifest is no manifest.
    """
    try:
        manifest = json.loads(store.files.read(f"{path}/manifest.json"))
    except FileNotFoundError:
        raise NotThere(f"{path}: it is not stored, or was cleaned away") from None
    except (ValueError, RecursionError):
        raise NotThere(f"{path}: its manifest is damaged") from None
    if not _is_manifest(manifest):
        raise NotThere(f"{path}: its manifest is damaged")
    return Artifact(path, manifest)


def artifact_of(store: Store, stage: str, name: str, fingerprint: str) -> Artifact:
    """The artifact that a table or a manifest names.

    Raises:
        NotThere: as `artifact_at`.
    """
    return artifact_at(store, path_of(stage, name, fingerprint))


def is_plain(path: str) -> bool:
    """Whether a path stays below where it starts."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not path.startswith("/")
        and "\\" not in path
        and "\0" not in path
        and not any(part in ("..", ".") for part in path.split("/"))
    )


def _is_manifest(manifest: object) -> bool:
    if not isinstance(manifest, Mapping):
        return False
    files, attempt = manifest.get("files"), manifest.get("attempt")
    texts = (manifest.get(name) for name in ("stage", "name", "fingerprint"))
    return (
        isinstance(files, Mapping)
        and isinstance(attempt, str)
        and is_plain(attempt)
        and all(isinstance(name, str) and is_plain(name) for name in files)
        and all(isinstance(fact, Mapping) for fact in files.values())
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(manifest.get(name), Mapping) for name in ("inputs", "meta"))
    )
