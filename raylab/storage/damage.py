"""What a listing tells of an artifact's files: whole, or what is damaged.

Sizes are compared, and tags that tell a change. A file of another tag (copied from another storage, or changed) is
read and compared with its checksum, once: that is kept (`raylab.storage.checksums`).
"""

from __future__ import annotations

from collections.abc import Mapping

from raylab.storage.artifacts import Artifact, DamagedArtifact, sha256_of
from raylab.storage.checksums import checksum, remembered
from raylab.storage.files import FileFacts, Files


def attempt_of(artifact: Artifact) -> str:
    """The folder of an artifact's files, below the root."""
    return f"{artifact.path}/{artifact.manifest['attempt']}"


def files_of_attempt(artifact: Artifact, listed: Mapping[str, FileFacts]) -> dict[str, FileFacts]:
    """Of what is listed below an artifact the files of its attempt, by their names in the manifest."""
    prefix = f"{artifact.manifest['attempt']}/"
    return {n.removeprefix(prefix): facts for n, facts in listed.items() if n.startswith(prefix)}


def damage_of(
    files: Files, artifact: Artifact, found: Mapping[str, FileFacts], again: bool = False
) -> DamagedArtifact | None:
    """The first file that is missing, cut short or changed; None where all are whole.

    Args:
        found: what is there, by names in the manifest.
        again: read every file, even one that nothing tells a change of.
    """
    for name, noted in artifact.manifest["files"].items():
        facts = found.get(name)
        if facts is None:
            return DamagedArtifact(artifact.path, f"{name} is missing")
        if facts.bytes != noted["bytes"]:
            text = f"{name} has {facts.bytes} bytes, not {noted['bytes']}"
            return DamagedArtifact(artifact.path, text)
        if not again and facts.tag in (None, noted.get("tag")):
            continue
        if _sha256(files, f"{attempt_of(artifact)}/{name}", facts, again) != noted["sha256"]:
            return DamagedArtifact(artifact.path, f"{name} does not match its checksum")
    return None


def _sha256(files: Files, path: str, facts: FileFacts, again: bool) -> str:
    if files.is_local:
        return sha256_of(files.full(path)) if again else checksum(files.full(path))
    if again:
        return files.sha256(path)
    told = {"bytes": facts.bytes, "tag": facts.tag}
    return remembered(f"{files.uri}/{path}", told, lambda: files.sha256(path))
