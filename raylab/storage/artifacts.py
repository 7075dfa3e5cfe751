"""Artifacts: whole or absent, addressed by what was asked for.

An address is `STAGE/NAME-FINGERPRINT`, the fingerprint being the hash of the stage, its
configuration and the fingerprints of its inputs. A writer puts its files into an attempt folder of
its own, then puts the manifest, by one atomic rename (local) or one last put (object storage). It lists every
file with size, sha256, and a tag that tells a change: modification time (ns), or ETag. Readers
trust manifests only, and check them.

    lab/
      retriever/sparse-pico-1x192-cl-seed0-1f0c.../
        manifest.json                 <- commits the attempt named in it
        attempt-7d3e.../...           <- the files; attempts no manifest names are debris
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1024**2
SHARDS = "-shards"


class DamagedArtifact(RuntimeError):
    """An artifact whose files do not match its manifest. It is never read; it must be redone."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"damaged artifact {self.path}: {self.reason}"


class StorageError(RuntimeError):
    """The storage cannot be written to (full, read-only) or reached. Nothing half-written is left."""

    def __init__(self, path: str, reason: str, wanted: str = "written"):
        super().__init__(path, reason, wanted)
        self.path, self.reason, self.wanted = path, reason, wanted

    def __str__(self) -> str:
        return f"{self.path} cannot be {self.wanted}: {self.reason}; what is finished is kept, run it again"


# Of how fingerprints are made: with another one nothing that was stored before is found.
FINGERPRINT_VERSION = 2


def fingerprint(stage: str, identity: Any, inputs: Mapping[str, str] | None = None) -> str:
    """sha256 (hex) of the canonical JSON of what a stage computes and from which inputs."""
    payload = {
        "version": FINGERPRINT_VERSION,
        "stage": stage,
        "identity": identity,
        "inputs": dict(inputs or {}),
    }
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def path_of(stage: str, name: str, fingerprint: str) -> str:
    """Where an artifact stands below the storage's root."""
    return f"{stage}/{name}-{fingerprint[:16]}"


def sha256_of(path: str | Path) -> str:
    """sha256 (hex) of a local file, streamed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Address:
    """Where an artifact will stand, known before it is made."""

    stage: str
    name: str
    identity: Any
    inputs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.stage, self.identity, self.inputs)

    @cached_property
    def path(self) -> str:
        return path_of(self.stage, self.name, self.fingerprint)

    def shard(self, number: int, facts: Mapping[str, Any]) -> Address:
        """Where a part of the work stands until this artifact has taken it over (`Store.sweep`)."""
        return Address(
            self.stage + SHARDS,
            f"{self.name}-{number:05d}",
            {"of": self.path, **facts},
            {"of": self.fingerprint},
        )


@dataclass(frozen=True)
class Artifact:
    """A committed artifact: its manifest, and the store that holds it."""

    path: str
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def address(self) -> Address:
        """Where it stands."""
        facts = self.manifest
        return Address(facts["stage"], facts["name"], facts["identity"], facts["inputs"])

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.manifest["meta"]

    @property
    def size_bytes(self) -> int:
        return sum(f["bytes"] for f in self.manifest["files"].values())


class Draft:
    """An artifact being written: put files under `path`, facts into `meta`."""

    def __init__(self, path: Path):
        self.path = path
        self.meta: dict[str, Any] = {}
