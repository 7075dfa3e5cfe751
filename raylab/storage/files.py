"""Files below the root of a storage: on a file system, or on an object storage by requests.

A request that fails for a while (a server that is busy or away, a body cut short) is sent again after a random wait
that doubles from try to try; what will not pass (no such file, no permission) is raised at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import tenacity

from raylab.experiment.config import ConfigError
from raylab.storage.artifacts import BLOCK_BYTES, StorageError

log = logging.getLogger("raylab")
T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 16  # requests; a connection pool of botocore holds 10 to 50
_TRIES = 10
_FIRST_TRIES = 3
_LONGEST_WAIT_S = 30.0
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_PERMANENT += (NotADirectoryError, StorageError)
# Of this package, by what an address begins with.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_NETWORK_LIBRARIES = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "s3fs", "adlfs", "azure"}


def is_passing(error: BaseException) -> bool:
    """Whether a failed request may succeed when it is sent again."""
    if isinstance(error, _PERMANENT) or not isinstance(error, Exception):
        return False
    library = type(error).__module__.partition(".")[0]
    if "Credentials" in type(error).__name__:
        return False
    return isinstance(error, OSError) or library in _NETWORK_LIBRARIES


def _tell(state: tenacity.RetryCallState) -> None:
    if state.attempt_number >= 3 and state.outcome is not None:
        reason = " ".join(str(state.outcome.exception()).split())
        log.warning("storage: request failed %d times (%s)", state.attempt_number, reason[:200])


_RETRYING = tenacity.Retrying(
    retry=tenacity.retry_if_exception(is_passing),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=_LONGEST_WAIT_S),
    before_sleep=_tell,
    reraise=True,
)


@dataclass(frozen=True)
class FileFacts:
    """What a storage tells of a file without reading it.

    `tag`: changes when the file does: its modification time in ns, an ETag; None where it has none.
    """

    bytes: int
    tag: int | str | None


class Files:
    """Paths are relative to the root; `/` parts them.

    Args:
        uri: a folder, or any fsspec address.

    Raises:
        ConfigError: no such kind of address, or one whose package is not installed.
    """

    def __init__(self, uri: str):
        self.fs, root = _opened(uri)
        protocols = self.fs.protocol
        protocols = protocols if isinstance(protocols, tuple) else (protocols,)
        self.is_local = "file" in protocols
        # s3fs asks for a file's size first, to read it in parts; small files are read at once.
        self._conditional = "s3" in protocols
        self._whole = {"max_concurrency": 1} if self._conditional else {}
        self.root = os.path.abspath(root) if self.is_local else root.rstrip("/")
        self.uri = self.root if self.is_local else uri.rstrip("/")

    def full(self, *parts: str) -> str:
        """The path on the file system."""
        return "/".join((self.root, *(part for part in parts if part)))

    def _request(
        self, call: Callable[..., R], *args: Any, tries: int = _TRIES, **options: Any
    ) -> R:
        if self.is_local:
            return call(*args, **options)
        try:
            retrying = _RETRYING.copy(stop=tenacity.stop_after_attempt(tries))
            return retrying(call, *args, **options)
        except Exception as error:
            if not is_passing(error):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(
                self.uri, f"{tries} requests failed, the last: {reason}", "reached"
            ) from error

    def in_parallel(self, call: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Results in order: several requests at once on object storage, one after the other on a file system."""
        items = list(items)
        if self.is_local or len(items) < 2:
            return [call(item) for item in items]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(call, items))

    # ---------------------------------------------------------------- reading

    def read(self, path: str) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: it is not there.
            StorageError: the storage cannot be reached.
        """
        return self._request(self.fs.cat_file, self.full(path), **self._whole)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self._request(self.fs.exists, self.full(path))

    def names(self, path: str) -> list[str]:
        """Names of what stands in a folder, sorted; none where there is no such folder."""
        try:
            entries = self._request(self.fs.ls, self.full(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(os.path.basename(entry.rstrip("/")) for entry in entries)

    def tree(self, path: str, prefix: str = "") -> dict[str, FileFacts]:
        """Every file below a folder, by its path from there: one listing of an object storage.

        ``prefix``: that the paths begin with; some storages list more.
        """
        home = self.full(path)
        entries = self._request(self.fs.find, home, detail=True, prefix=prefix)
        return {name[len(home) + 1 :]: _facts(entry) for name, entry in entries.items()}

    def facts(self, folder: str, names: Iterable[str]) -> dict[str, FileFacts]:
        """Of those of the named files of a folder that are there."""
        if not self.is_local:
            return self.tree(folder)
        found = {}
        for name in names:
            try:
                status = os.stat(self.full(folder, name))
            except (FileNotFoundError, NotADirectoryError):
                continue
            found[name] = FileFacts(status.st_size, status.st_mtime_ns)
        return found

    def sha256(self, path: str) -> str:
        """sha256 (hex) of a file, streamed."""

        def read() -> str:
            digest = hashlib.sha256()
            with self.fs.open(self.full(path), "rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    digest.update(block)
            return digest.hexdigest()

        return self._request(read)

    def download(self, path: str, target: Path) -> None:
        """Copy a file to this machine, streamed."""
        self._request(self.fs.get_file, self.full(path), str(target))

    # ---------------------------------------------------------------- writing

    def upload(self, source: Path, path: str) -> None:
        """Copy a file of this machine to the storage, streamed."""
        self._request(self.fs.put_file, str(source), self.full(path))

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, atomically."""
        target = self.full(path)
        if not self.is_local:
            self._request(self.fs.pipe_file, target, data)
            return
        with self._aside(target, data) as aside:
            os.replace(aside, target)

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file that is not there yet, atomically; False where it is.

        The first that a driver asks of a storage: what does not answer is told of sooner than elsewhere.
        """
        target = self.full(path)
        if not self.is_local:
            try:
                self._request(self.fs.pipe_file, target, data, tries=_FIRST_TRIES, mode="create")
            except FileExistsError:
                return False
            return True
        with self._aside(target, data) as aside:
            try:
                os.link(aside, target)
            except FileExistsError:
                return False
        return True

    def replace(self, path: str, data: bytes, found: bytes) -> bool | None:
        """Write a small file in the place of what was read there; False where it is another by now.

        None: written, and the storage cannot say whether another did so at the same time.
        """
        target = self.full(path)
        try:
            tag = self._request(self.fs.info, target).get("ETag") if self._conditional else None
            if self.read(path) != found:
                return False
            if tag is None:
                self.write(path, data)
                return None
            self._request(_put_if, self.fs, target, data, tag)
        except (FileNotFoundError, FileExistsError):
            return False
        return True

    @contextlib.contextmanager
    def _aside(self, target: str, data: bytes) -> Iterator[str]:
        """A whole file beside a local one, gone when the block ends unless it was renamed."""
        os.makedirs(os.path.dirname(target), exist_ok=True)
        aside = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield aside
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(aside)

    def move(self, path: str, target: str) -> None:
        """Rename a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        self._request(self.fs.mv, self.full(path), self.full(target))

    def remove(self, path: str) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: it is not there (on a file system).
        """
        self._request(self.fs.rm_file, self.full(path))

    def remove_tree(self, path: str) -> None:
        """Remove a folder with all that it holds.

        Raises:
            FileNotFoundError: it is not there.
        """
        self._request(self.fs.rm, self.full(path), recursive=True)


def _opened(uri: str) -> tuple[Any, str]:
    """The file system of an address, and the path there."""
    kind = uri.partition("://")[0]
    try:
        # A listing that was kept hides what other processes have written since.
        return fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(kind)
        what = f"pip install 'raylab[{extra}]'" if extra else " ".join(str(error).split())
        raise ConfigError(f"storage {uri}: {kind}:// needs a package: {what}") from None
    except ValueError as error:
        if "Protocol not known" in str(error):
            reason = f"no address begins with {kind}://; it must be a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER "
            error = ValueError(reason + "or another that fsspec knows")
        raise ConfigError(f"storage {uri}: {error}") from None


def _put_if(fs: Any, target: str, data: bytes, tag: str) -> None:
    """Put an object on S3 in the place of the one of an ETag.

    Raises:
        FileExistsError: another stands there.
    """
    try:
        fs.pipe_file(target, data, IfMatch=tag)
    except OSError as error:
        if "pre-conditions" in str(error):
            raise FileExistsError(target) from None
        raise


def _facts(entry: dict[str, Any]) -> FileFacts:
    return FileFacts(entry["size"], entry.get("ETag") or entry.get("etag"))
