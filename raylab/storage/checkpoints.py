"""Checkpoints of one run, kept in storage: the newest that is whole, and no other.

Workers write files of distinct names, as their state is sharded, into one folder:

    train/RUN/step-00000123/..., complete
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from raylab.storage.store import Store

COMPLETE = "complete"  # written last: what stands beside it is whole
_STEP = "step-"


class Checkpoints:
    """Of the run whose folder below the storage's root this is; every worker of the run has one.

    Args:
        writes: whether this worker is the one that completes a checkpoint.
        barrier: waits until all workers have called it.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        writes: bool = True,
        barrier: Callable[[], None] = lambda: None,
    ):
        self.files, self.folder, self.writes, self.barrier = store.files, folder, writes, barrier

    def newest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return max(
            (step for step, names in self._listed().items() if COMPLETE in names), default=None
        )

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
        """Keep what `write` puts into a folder, and remove older checkpoints. Call on all workers."""
        home = self._home(step)
        if self.files.is_local:
            folder = Path(self.files.full(home))
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)
        else:
            self._send(write, home)
        self.barrier()
        if self.writes:
            self.files.write(f"{home}/{COMPLETE}", b"")
            for older in self._listed().keys() - {step}:
                with contextlib.suppress(FileNotFoundError):
                    self.files.remove_tree(self._home(older))

    def _send(self, write: Callable[[Path], None], home: str) -> None:
        with tempfile.TemporaryDirectory(prefix="raylab-checkpoint-") as scratch:
            folder = Path(scratch)
            write(folder)
            paths = [path for path in folder.rglob("*") if path.is_file()]
            self.files.in_parallel(
                lambda path: self.files.upload(
                    path, f"{home}/{path.relative_to(folder).as_posix()}"
                ),
                paths,
            )

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
