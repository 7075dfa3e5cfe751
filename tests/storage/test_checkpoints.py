"""Checkpoints of a run: the newest that is whole, and no other, on a folder and on object storage."""

import threading
from pathlib import Path

import pytest

from raylab.storage.checkpoints import COMPLETE, Checkpoints
from raylab.storage.store import Store

RUN = "train/a-run"


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "lab"))
    server = request.getfixturevalue("s3_server")
    assert server is not None
    return Store(f"s3://laboratory/{tmp_path.name}", cache=str(tmp_path / "cache"))


def state_of(rank: int, text: str):
    def write(folder: Path) -> None:
        (folder / "engine").mkdir(exist_ok=True)
        (folder / "engine" / f"rank{rank}.pt").write_text(text)

    return write


def read(checkpoints: Checkpoints, step: int) -> dict[str, str]:
    with checkpoints.opened(step) as folder:
        return {
            path.relative_to(folder).as_posix(): path.read_text()
            for path in folder.rglob("*")
            if path.is_file() and path.name != COMPLETE
        }


def test_the_newest_is_kept_alone(store):
    checkpoints = Checkpoints(store, RUN)
    assert checkpoints.newest() is None
    for step in (3, 12):
        checkpoints.keep(state_of(0, f"at {step}"), step)
        assert checkpoints.newest() == step
    assert read(checkpoints, 12) == {"engine/rank0.pt": "at 12"}
    assert not [path for path in store.files.tree(RUN) if "step-00000003" in path]


def test_one_that_was_cut_short_does_not_count(store):
    checkpoints = Checkpoints(store, RUN)
    checkpoints.keep(state_of(0, "whole"), 3)
    store.put_text(f"{RUN}/step-00000009/engine/rank0.pt", "half of it")
    assert checkpoints.newest() == 3
    assert read(checkpoints, 3) == {"engine/rank0.pt": "whole"}
    checkpoints.keep(state_of(0, "later"), 12)
    assert {path.partition("/")[0] for path in store.files.tree(RUN)} == {"step-00000012"}


def test_what_cannot_be_written_leaves_the_one_before(store):
    checkpoints = Checkpoints(store, RUN)
    checkpoints.keep(state_of(0, "whole"), 3)

    def fail(folder: Path) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        checkpoints.keep(fail, 6)
    assert checkpoints.newest() == 3


def test_it_is_whole_when_all_workers_have_written(store):
    """Two workers; the second one is slow: until it is done there is no checkpoint."""
    both, slow = threading.Barrier(2), threading.Event()
    first, second = (Checkpoints(store, RUN, rank == 0, both.wait) for rank in (0, 1))

    def late(folder: Path) -> None:
        slow.wait(30)
        state_of(1, "second")(folder)

    threads = [
        threading.Thread(target=first.keep, args=(state_of(0, "first"), 7)),
        threading.Thread(target=second.keep, args=(late, 7)),
    ]
    for thread in threads:
        thread.start()
    assert first.newest() is None
    slow.set()
    for thread in threads:
        thread.join(60)
    assert first.newest() == 7
    assert read(second, 7) == {"engine/rank0.pt": "first", "engine/rank1.pt": "second"}
