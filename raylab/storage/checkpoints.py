"""Checkpoints of one run, kept in storage while the run goes on: the newest that is whole, and what is on its way.

Workers write files of distinct names, as their state is sharded, into one folder, and a mark each when theirs are
there:

    train/RUN/step-00000123/..., complete-0-of-2, complete-1-of-2
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from raylab.storage.store import Store

_STEP = "step-"
# A worker writes its mark last: what it wrote beside it is whole.
_MARK = re.compile(r"complete-(\d+)-of-(\d+)")


class Checkpoints:
    """Of the run whose folder below the storage's root this is; every one of its `world` workers has one."""

    def __init__(self, store: Store, folder: str, rank: int = 0, world: int = 1):
        self.files, self.folder, self.rank, self.world = store.files, folder, rank, world
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._sending: Future[None] | None = None

    def newest(self) -> int | None:
        """The step of the newest checkpoint of which all workers' parts are there."""
        return _newest(self._listed())

    @contextlib.contextmanager
    def opened(self, step: int) -> Iterator[Path]:
        """What `keep` was given at that step, of all workers, in one folder that is readable inside."""
        if self.files.is_local:
            yield Path(self.files.full(self._home(step)))
            return
        with tempfile.TemporaryDirectory(prefix="raylab-checkpoint-") as scratch:

            def download(name: str) -> None:
                target = Path(scratch, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.files.download(f"{self._home(step)}/{name}", target)

            self.files.in_parallel(download, self._listed()[step])
            yield Path(scratch)

    def keep(self, write: Callable[[Path], None], step: int) -> None:
        """Keep what `write` puts into a folder of this machine; it is on its way to the storage when this returns.

        Raises:
            OSError: this checkpoint cannot be written, or the one before it could not be stored.
        """
        self.wait()
        scratch = Path(tempfile.mkdtemp(prefix="raylab-checkpoint-"))
        try:
            write(scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self._sending = self._thread.submit(self._send, scratch, step)

    def wait(self) -> None:
        """Until this worker's part of the last checkpoint is stored.

        Raises:
            OSError: it could not be.
        """
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.result()

    def remove_unfinished(self) -> int | None:
        """Remove what workers that are gone left of checkpoints later than the newest whole one; the step of that."""
        listed = self._listed()
        newest = _newest(listed)
        self._remove(step for step in listed if newest is None or step > newest)
        return newest

    def _send(self, scratch: Path, step: int) -> None:
        home = self._home(step)
        try:
            if self.files.is_local:
                shutil.copytree(scratch, self.files.full(home), dirs_exist_ok=True)
            else:
                paths = [path for path in scratch.rglob("*") if path.is_file()]
                self.files.in_parallel(
                    lambda path: self.files.upload(
                        path, f"{home}/{path.relative_to(scratch).as_posix()}"
                    ),
                    paths,
                )
            self.files.write(f"{home}/complete-{self.rank}-of-{self.world}", b"")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if self.rank == 0:  # others may not be as far: then the one before stays until the next
            listed = self._listed()
            newest = _newest(listed)
            self._remove(older for older in listed if newest is not None and older < newest)

    def _remove(self, steps: Iterable[int]) -> None:
        for step in steps:
            with contextlib.suppress(FileNotFoundError):
                self.files.remove_tree(self._home(step))

    def _home(self, step: int) -> str:
        return f"{self.folder}/{_STEP}{step:08d}"

    def _listed(self) -> dict[int, list[str]]:
        """The files of every checkpoint, whole or not, by its step."""
        found: dict[int, list[str]] = {}
        for path in self.files.tree(self.folder):
            home, _, name = path.partition("/")
            if home.startswith(_STEP) and name:
                found.setdefault(int(home.removeprefix(_STEP)), []).append(name)
        return found


def _newest(listed: Mapping[int, Iterable[str]]) -> int | None:
    """The last step whose checkpoint is whole, of those listed."""
    return max((step for step, names in listed.items() if _is_whole(names)), default=None)


def _is_whole(names: Iterable[str]) -> bool:
    """Whether the marks of all workers are among the files of a checkpoint."""
    marks = [found for name in names if (found := _MARK.fullmatch(name))]
    return bool(marks) and len(marks) == int(marks[0][2])
