"""The store: a folder or an object storage that holds artifacts (`raylab.storage.artifacts`).

A lookup reads manifests and lists files: sizes and what tells a change (modification time, ETag) are compared there,
and checksums once, by whoever reads the data. `Store.check` with ``again`` reads everything.
"""

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
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raylab.storage.artifacts import (
    SHARDS,
    Address,
    Artifact,
    DamagedArtifact,
    Draft,
    StorageError,
    path_of,
    sha256_of,
)
from raylab.storage.damage import attempt_of, damage_of, files_of_attempt
from raylab.storage.files import FileFacts, Files
from raylab.storage.node_cache import NodeCache

log = logging.getLogger("raylab")

MANIFEST = "manifest.json"
_WHOLE_STAGE = 32  # of lookups in a stage from which on it is listed as a whole
_DOWNLOADS = 3  # of a file that does not arrive as its manifest says, before it counts as damaged
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
        cache_bytes: of those copies at most (`raylab.storage.node_cache`).
    """

    def __init__(self, uri: str, cache: str | None = None, cache_bytes: int | None = None):
        self.files = Files(uri)
        self.fs, self.root, self.uri = self.files.fs, self.files.root, self.files.uri
        self.is_local = self.files.is_local
        self._arguments = uri, cache, cache_bytes
        key = hashlib.sha256(self.uri.encode()).hexdigest()[:12]
        folder = cache or os.path.join(tempfile.gettempdir(), f"raylab-cache-{key}")
        self.cache = NodeCache(Path(folder), cache_bytes)

    def __reduce__(self):
        uri, cache, cache_bytes = self._arguments
        return Store, (self.root if self.is_local else uri, cache, cache_bytes)

    # ---------------------------------------------------------------- reading

    def find(self, address: Address) -> Artifact | None:
        """The artifact at `address`, or None when it is absent or damaged.

        A damaged one is named in a warning and its manifest set aside, so that it is redone.
        """
        return self.find_all([address])[0]

    def find_all(self, places: Iterable[Address | str]) -> list[Artifact | None]:
        """As `find`, of addresses or paths below the root, in order; many at once cost few requests."""
        paths = [place if isinstance(place, str) else place.path for place in places]
        listed = {} if self.is_local else self._listed(set(paths))
        unique = list(dict.fromkeys(paths))

        def look(path: str) -> Artifact | None:
            stage = path.partition("/")[0]
            known = listed[stage].get(path, {}) if stage in listed else None
            if known is not None and MANIFEST not in known:
                return None
            artifact = self._read_manifest(path)
            if artifact is None:
                return None
            if known is not None:
                listed_files = files_of_attempt(artifact, known)
                if damage_of(self.files, artifact, listed_files) is None:
                    return artifact
            try:
                self.check(artifact)
            except DamagedArtifact as damage:
                log.warning("%s; it will be made again", damage)
                self.discard(artifact.path)
                return None
            return artifact

        found = dict(zip(unique, self.files.in_parallel(look, unique), strict=True))
        return [found[path] for path in paths]

    def _listed(self, paths: set[str]) -> dict[str, dict[str, dict[str, FileFacts]]]:
        """Files by stage and path of an artifact, of the stages of which so much is asked that one listing is less."""
        asked: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            stage, _, home = path.partition("/")
            asked[stage].append(home)
        listed = {}
        for stage, wanted in asked.items():
            if len(wanted) >= _WHOLE_STAGE:
                homes: dict[str, dict[str, FileFacts]] = defaultdict(dict)
                prefix = os.path.commonprefix(wanted)  # noqa: RUF071 (by characters, as keys are)
                for file, facts in self.files.tree(stage, prefix).items():
                    home, _, name = file.partition("/")
                    homes[f"{stage}/{home}"][name] = facts
                listed[stage] = homes
        return listed

    def committed(self, address: Address | Artifact) -> Artifact:
        """The artifact that its stage has committed; an artifact itself is what it is.

        Raises:
            DamagedArtifact: it is not there.
        """
        if isinstance(address, Artifact):
            return address
        return self.all_committed([address])[0]

    def all_committed(self, addresses: Iterable[Address]) -> list[Artifact]:
        """As `committed`, in order; many at once cost few requests."""
        addresses = list(addresses)
        artifacts = []
        for address, artifact in zip(addresses, self.find_all(addresses), strict=True):
            if artifact is None:
                raise DamagedArtifact(address.path, "it is not there after its stage ended")
            artifacts.append(artifact)
        return artifacts

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

    def present(self, paths: Iterable[str]) -> list[bool]:
        """Whether artifacts are committed at paths below the root, in order; none of their files is looked at."""
        paths = list(paths)
        listed = {} if self.is_local else self._listed(set(paths))

        def there(path: str) -> bool:
            stage = path.partition("/")[0]
            if stage in listed:
                return MANIFEST in listed[stage].get(path, {})
            return self.files.exists(f"{path}/{MANIFEST}")

        return self.files.in_parallel(there, paths)

    def _read_manifest(self, path: str) -> Artifact | None:
        try:
            manifest = json.loads(self.files.read(f"{path}/{MANIFEST}"))
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

    def check(self, artifact: Artifact, again: bool = False) -> None:
        """Raise `DamagedArtifact` naming the first file that is missing, cut short or changed.

        ``again``: read every file, even one that nothing tells a change of.
        """
        facts = self.files.facts(attempt_of(artifact), artifact.manifest["files"])
        if (damage := damage_of(self.files, artifact, facts, again)) is not None:
            raise damage

    def local(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, checked against the manifest.

        Local storage is read in place; remote storage is copied once a node. A copy that was not asked for
        for some minutes may be removed: ask again rather than keep the path.

        Raises:
            DamagedArtifact: a file is missing, cut short or changed.
        """
        if self.is_local:
            self.check(artifact)
            return Path(self.files.full(attempt_of(artifact)))

        def fetch(folder: Path) -> None:
            def download(name: str) -> None:
                self._download(artifact, name, folder / name)

            self.files.in_parallel(download, artifact.manifest["files"])

        return self.cache.fetched(attempt_of(artifact), fetch)

    def read(self, artifact: Artifact, name: str) -> bytes:
        """One file of an artifact, checked against the manifest, without a copy on this node.

        Raises:
            DamagedArtifact: it is missing, cut short or changed.
        """
        for _ in range(1 if self.is_local else _DOWNLOADS):
            try:
                data = self.files.read(f"{attempt_of(artifact)}/{name}")
            except FileNotFoundError:
                raise DamagedArtifact(artifact.path, f"{name} is missing") from None
            if hashlib.sha256(data).hexdigest() == artifact.manifest["files"][name]["sha256"]:
                return data
        raise DamagedArtifact(artifact.path, f"{name} does not match its checksum")

    def _download(self, artifact: Artifact, name: str, target: Path) -> None:
        """One file, until it has arrived as its manifest says."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_DOWNLOADS):
            try:
                self.files.download(f"{attempt_of(artifact)}/{name}", target)
            except FileNotFoundError:
                raise DamagedArtifact(artifact.path, f"{name} is missing") from None
            if sha256_of(target) == artifact.manifest["files"][name]["sha256"]:
                return
        raise DamagedArtifact(artifact.path, f"{name} does not match its checksum")

    def artifacts(self) -> Iterator[Artifact]:
        """Every committed artifact of the storage, in order of paths."""
        for stage in self.files.names(""):
            homes = [f"{stage}/{home}" for home in self.files.names(stage)]
            there = self.present(homes)
            homes = [home for home, is_there in zip(homes, there, strict=True) if is_there]
            for artifact in self.files.in_parallel(self._read_manifest, homes):
                if artifact is not None:
                    yield artifact

    # ---------------------------------------------------------------- writing

    @contextlib.contextmanager
    def draft(self, address: Address) -> Iterator[Draft]:
        """Write an artifact: commits when the block ends, leaves nothing when it raises.

        Empty drafts are refused: an artifact holds at least one file. On object storage the files are written
        to this node's disk, sent several at once, and stay there as the node's copy.

        Raises:
            StorageError: the storage is full or cannot be written to.
        """
        attempt = f"attempt-{uuid.uuid4().hex[:12]}"
        started = time.time()
        final = f"{address.path}/{attempt}"
        with contextlib.ExitStack() as stack:
            if self.is_local:
                folder = Path(self.files.full(final))
                try:
                    folder.mkdir(parents=True)
                except OSError as error:
                    raise StorageError(str(folder), _said(error)) from error
            else:
                folder = stack.enter_context(self.cache.aside())
            draft = Draft(folder)
            try:
                yield draft
                files = self._sent(folder, final)
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
                text = json.dumps(manifest, indent=1, sort_keys=True)
                self.put_text(f"{address.path}/{MANIFEST}", text)
            except BaseException as error:
                self._forget(folder, final, error)
                if isinstance(error, OSError) and _is_of_writing(error):
                    place = self.files.full(address.path)
                    raise StorageError(place, _said(error)) from error
                raise
            if not self.is_local:
                with contextlib.suppress(OSError):  # a copy saves a download, and no more
                    self.cache.adopt(final, folder)

    def _forget(self, folder: Path, final: str, error: BaseException) -> None:
        """Remove what a failed writer left."""
        if self.is_local:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the address itself, when it is empty
                folder.parent.rmdir()
        elif isinstance(error, Exception) and not isinstance(error, StorageError):
            with contextlib.suppress(OSError, StorageError):
                self.files.remove_tree(final)

    def _sent(self, folder: Path, final: str) -> dict[str, dict[str, Any]]:
        """What a manifest says of each file of a draft; on object storage they are there when it returns."""
        written = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        names = [str(file.relative_to(folder)) for file in written]

        def send(name: str) -> str:
            if not self.is_local:
                self.files.upload(folder / name, f"{final}/{name}")
            return sha256_of(folder / name)

        sums = self.files.in_parallel(send, names)
        facts = self.files.facts(final, names) if names else {}
        return {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            | ({} if name not in facts else {"tag": facts[name].tag})
            for name, digest in zip(names, sums, strict=True)
        }

    def put_text(self, path: str, text: str) -> None:
        """Write a small file at `path` below the root, atomically."""
        self.files.write(path, text.encode())

    def put_bytes(self, path: str, data: bytes) -> None:
        """Write a small file at `path` below the root, atomically."""
        self.files.write(path, data)

    def discard(self, path: str) -> None:
        """Set an artifact's manifest aside, so that it counts as absent."""
        with contextlib.suppress(FileNotFoundError):
            self.files.move(f"{path}/{MANIFEST}", f"{path}/damaged-{int(time.time())}.json")

    def sweep(self, stages: tuple[str, ...]) -> int:
        """Remove what killed writers left, and say of how many artifacts.

        Attempts that no manifest names, and shards of artifacts that are whole. Only for a driver that
        knows no writer is alive.
        """
        return sum(
            self._sweep_home(f"{stage}/{home}")
            for one in stages
            for stage in (one, one + SHARDS)
            for home in self.files.names(stage)
        )

    def _sweep_home(self, path: str) -> int:
        names = self.files.names(path)
        attempts = {name for name in names if name.startswith("attempt-")}
        if not attempts:
            return 0
        stage = path.partition("/")[0]
        if len(attempts) == 1 and MANIFEST in names and not stage.endswith(SHARDS):
            return 0  # the one that the manifest names; of many artifacts it is not read
        artifact = self._read_manifest(path)
        if artifact is not None:
            attempts.discard(artifact.manifest["attempt"])
            whole = artifact.manifest["inputs"].get("of") and artifact.manifest["identity"]["of"]
            if whole and self._read_manifest(whole) is not None:
                self.remove(artifact)
                return 1
        for attempt in attempts:
            self.files.remove_tree(f"{path}/{attempt}")
        return len(attempts)

    def remove(self, artifact: Artifact) -> None:
        """Remove an artifact, its manifest first: of a killed removal only debris is left."""
        with contextlib.suppress(FileNotFoundError):
            self.files.remove(f"{artifact.path}/{MANIFEST}")
            self.files.remove_tree(artifact.path)
