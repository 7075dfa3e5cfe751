"""The store: a folder or an object storage that holds artifacts (`raylab.storage.artifacts`)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import fsspec

from raylab.storage.artifacts import (
    BLOCK_BYTES,
    SHARDS,
    Address,
    Artifact,
    DamagedArtifact,
    Draft,
    StorageError,
    path_of,
    sha256_of,
)
from raylab.storage.checksums import checksum

log = logging.getLogger("raylab")

# What a write to a storage fails with; a file that is read and not there is another matter.
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


def _is_of_writing(error: OSError) -> bool:
    # numpy tells of a short write without an error number.
    return error.errno in _WRITING or (error.errno is None and " requested and " in str(error))


def _said(error: OSError) -> str:
    return error.strerror or f"a short write ({error})"


class Store:
    """A folder or any fsspec address (`s3://bucket/lab`) that holds artifacts. Picklable.

    Args:
        uri: root of the storage; a plain path is a local folder, made when first written.
        cache: local folder for copies of remote artifacts (default: one under the system's
            temporary folder, shared by the processes of a node).
    """

    def __init__(self, uri: str, cache: str | None = None):
        self.fs, root = fsspec.core.url_to_fs(uri)
        self.is_local = "file" in (
            self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        )
        self.root = os.path.abspath(root) if self.is_local else root.rstrip("/")
        self.uri = self.root if self.is_local else uri.rstrip("/")
        key = hashlib.sha256(self.uri.encode()).hexdigest()[:12]
        self.cache = Path(cache or os.path.join(tempfile.gettempdir(), f"raylab-cache-{key}"))

    def __reduce__(self):
        return Store, (self.uri, str(self.cache))

    def _join(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    # ---------------------------------------------------------------- reading

    def find(self, address: Address) -> Artifact | None:
        """The artifact at `address`, or None when it is absent or damaged.

        A damaged one is named in a warning and its manifest set aside, so that it is redone. On object storage
        a lookup compares sizes, and whoever reads the data checks its checksums; of a local file these are
        computed once, until its size or times change.
        """
        artifact = self._read_manifest(address.path)
        return None if artifact is None else self._sound(artifact)

    def _sound(self, artifact: Artifact) -> Artifact | None:
        try:
            self.check(artifact, checksums=self.is_local)
        except DamagedArtifact as damage:
            log.warning("%s; it will be made again", damage)
            self.discard(artifact.path)
            return None
        return artifact

    def committed(self, address: Address | Artifact) -> Artifact:
        """The artifact that its stage has committed; an artifact itself is what it is.

        Raises:
            DamagedArtifact: it is not there.
        """
        if isinstance(address, Artifact):
            return address
        artifact = self.find(address)
        if artifact is None:
            raise DamagedArtifact(address.path, "it is not there after its stage ended")
        return artifact

    def known(self, stage: str, name: str, fingerprint: str) -> Artifact:
        """The artifact that a table names by stage, name and fingerprint.

        Raises:
            DamagedArtifact: there is none.
        """
        path = path_of(stage, name, fingerprint)
        artifact = self._read_manifest(path)
        if artifact is None:
            raise DamagedArtifact(path, "no manifest")
        return artifact

    def has(self, path: str) -> bool:
        """Whether an artifact is committed at a path below the root; none of its files is looked at."""
        return self.fs.exists(self._join(path, "manifest.json"))

    def at(self, path: str) -> Artifact | None:
        """The artifact at a path below the root that another artifact names; None where it is absent or damaged."""
        artifact = self._read_manifest(path)
        return None if artifact is None else self._sound(artifact)

    def _read_manifest(self, path: str) -> Artifact | None:
        try:
            manifest = json.loads(self.fs.cat_file(self._join(path, "manifest.json")))
            files, attempt = manifest["files"], manifest["attempt"]
            assert isinstance(files, dict)
            assert isinstance(attempt, str)
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AssertionError):
            log.warning(
                "%s",
                DamagedArtifact(path, "manifest.json is not a manifest; it will be made again"),
            )
            self.discard(path)
            return None
        return Artifact(path, manifest)

    def check(self, artifact: Artifact, checksums: bool = True, again: bool = False) -> None:
        """Raise `DamagedArtifact` naming the first file that is missing, cut short or changed.

        ``again``: read every file, even one whose checksum is known.
        """
        for name, facts in artifact.manifest["files"].items():
            file = self._join(artifact.path, artifact.manifest["attempt"], name)
            try:
                size = self.fs.size(file)
            except FileNotFoundError:
                raise DamagedArtifact(artifact.path, f"{name} is missing") from None
            if size != facts["bytes"]:
                raise DamagedArtifact(
                    artifact.path, f"{name} has {size} bytes, not {facts['bytes']}"
                )
            if checksums and self._sha256(file, again) != facts["sha256"]:
                raise DamagedArtifact(artifact.path, f"{name} does not match its checksum")

    def _sha256(self, file: str, again: bool = True) -> str:
        if self.is_local:
            return sha256_of(file) if again else checksum(file)
        digest = hashlib.sha256()
        with self.fs.open(file, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def local(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, checked against the manifest.

        Local storage is read in place; remote storage is copied once a node.

        Raises:
            DamagedArtifact: a file is missing, cut short or changed.
        """
        attempt = artifact.manifest["attempt"]
        if self.is_local:
            self.check(artifact)
            return Path(self.root, artifact.path, attempt)
        target = self.cache / artifact.path / attempt
        if target.exists():
            return target
        aside = target.with_name(f".{attempt}-{uuid.uuid4().hex}")
        try:
            for name, facts in artifact.manifest["files"].items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.fs.get_file(self._join(artifact.path, attempt, name), str(aside / name))
                except FileNotFoundError:
                    raise DamagedArtifact(artifact.path, f"{name} is missing") from None
                if sha256_of(aside / name) != facts["sha256"]:
                    raise DamagedArtifact(artifact.path, f"{name} does not match its checksum")
            with contextlib.suppress(OSError):  # another process of this node was first
                aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return target

    def artifacts(self) -> Iterator[Artifact]:
        """Every committed artifact of the storage, in order of paths."""
        for stage in sorted(self._names("")):
            for home in sorted(self._names(stage)):
                if self.has(f"{stage}/{home}"):
                    artifact = self._read_manifest(f"{stage}/{home}")
                    if artifact is not None:
                        yield artifact

    # ---------------------------------------------------------------- writing

    @contextlib.contextmanager
    def draft(self, address: Address) -> Iterator[Draft]:
        """Write an artifact: commits when the block ends, leaves nothing when it raises.

        Empty drafts are refused: an artifact holds at least one file.

        Raises:
            StorageError: the storage is full or cannot be written to.
        """
        attempt = f"attempt-{uuid.uuid4().hex[:12]}"
        started = time.time()
        final = self._join(address.path, attempt)
        if self.is_local:
            folder = Path(final)
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise StorageError(final, _said(error)) from error
        else:
            folder = Path(tempfile.mkdtemp(prefix="raylab-draft-"))
        draft = Draft(folder, final)
        try:
            yield draft
            files = {
                str(file.relative_to(folder)): {
                    "bytes": file.stat().st_size,
                    "sha256": sha256_of(file),
                }
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
            if not self.is_local:
                for file in self.fs.find(final):  # what distributed writers put there
                    facts = {"bytes": self.fs.size(file), "sha256": self._sha256(file)}
                    files[file.split(f"{attempt}/", 1)[1]] = facts
                for name in files:
                    if (folder / name).exists():
                        self.fs.put_file(str(folder / name), f"{final}/{name}")
            if not files:
                raise ValueError(f"{address.path}: an artifact without files")
            manifest = {
                "stage": address.stage,
                "name": address.name,
                "fingerprint": address.fingerprint,
                "identity": address.identity,
                "inputs": dict(address.inputs),
                "files": files,
                "attempt": attempt,
                "started": started,
                "seconds": time.time() - started,
                "raylab": version("raylab"),
                "meta": draft.meta,
            }
            self.put_text(
                f"{address.path}/manifest.json", json.dumps(manifest, indent=1, sort_keys=True)
            )
        except BaseException as error:
            if self.is_local:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # the address itself, when nothing else is there
                    folder.parent.rmdir()
            if isinstance(error, OSError) and _is_of_writing(error):
                raise StorageError(self._join(address.path), _said(error)) from error
            raise
        finally:
            if not self.is_local:
                shutil.rmtree(folder, ignore_errors=True)

    def put_text(self, path: str, text: str) -> None:
        """Write a small file at `path` below the root, atomically."""
        self.put_bytes(path, text.encode())

    def put_bytes(self, path: str, data: bytes) -> None:
        """Write a small file at `path` below the root, atomically."""
        target = self._join(path)
        if not self.is_local:
            self.fs.pipe_file(target, data)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        aside = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)

    def discard(self, path: str) -> None:
        """Set an artifact's manifest aside, so that it counts as absent."""
        manifest = self._join(path, "manifest.json")
        with contextlib.suppress(FileNotFoundError):
            self.fs.mv(manifest, self._join(path, f"damaged-{int(time.time())}.json"))

    def sweep(self, stages: tuple[str, ...]) -> int:
        """Remove what killed writers left, and say of how many artifacts.

        Attempts that no manifest names, and shards of artifacts that are whole. Only for a driver that
        knows no writer is alive.
        """
        return sum(
            self._sweep_home(f"{stage}/{home}")
            for one in stages
            for stage in (one, one + SHARDS)
            for home in self._names(stage)
        )

    def _names(self, path: str) -> list[str]:
        try:
            entries = self.fs.ls(self._join(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [os.path.basename(entry.rstrip("/")) for entry in entries]

    def _sweep_home(self, path: str) -> int:
        attempts = {name for name in self._names(path) if name.startswith("attempt-")}
        if not attempts:
            return 0
        artifact = self._read_manifest(path)
        if artifact is not None:
            attempts.discard(artifact.manifest["attempt"])
            whole = artifact.manifest["inputs"].get("of") and artifact.manifest["identity"]["of"]
            if whole and self._read_manifest(whole) is not None:
                self.remove(artifact)
                return 1
        for attempt in attempts:
            self.fs.rm(self._join(path, attempt), recursive=True)
        return len(attempts)

    def remove(self, artifact: Artifact) -> None:
        """Remove an artifact, its manifest first: of a killed removal only debris is left."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._join(artifact.path, "manifest.json"))
            self.fs.rm(self._join(artifact.path), recursive=True)
