"""Checkpoints of a run: the newest that is whole, sent while the run goes on, to a folder and to object storage."""

import threading
from pathlib import Path

import pytest

from raylab.storage.checkpoints import Checkpoints
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
            if path.is_file() and not path.name.startswith("complete")
        }


def keep(checkpoints: Checkpoints, write, step: int) -> None:
    """And wait until it is stored."""
    checkpoints.keep(write, step)
    checkpoints.wait()


def test_the_newest_is_kept_alone(store):
    checkpoints = Checkpoints(store, RUN)
    assert checkpoints.newest() is None
    for step in (3, 12):
        keep(checkpoints, state_of(0, f"at {step}"), step)
        assert checkpoints.newest() == step
    assert read(checkpoints, 12) == {"engine/rank0.pt": "at 12"}
    assert not [path for path in store.files.tree(RUN) if "step-00000003" in path]


def test_the_run_does_not_wait_for_the_storage(store, monkeypatch):
    """What was written goes on its way; until it is there the one before stays the newest, and is kept."""
    checkpoints, slow = Checkpoints(store, RUN), threading.Event()
    keep(checkpoints, state_of(0, "before"), 3)
    send = Checkpoints._send

    def late(self, scratch: Path, step: int) -> None:
        assert slow.wait(60)
        send(self, scratch, step)

    monkeypatch.setattr(Checkpoints, "_send", late)
    checkpoints.keep(state_of(0, "later"), 6)
    assert checkpoints.newest() == 3
    assert read(checkpoints, 3) == {"engine/rank0.pt": "before"}
    slow.set()
    checkpoints.wait()
    assert checkpoints.newest() == 6
    assert read(checkpoints, 6) == {"engine/rank0.pt": "later"}


def test_one_that_was_cut_short_does_not_count(store):
    checkpoints = Checkpoints(store, RUN)
    keep(checkpoints, state_of(0, "whole"), 3)
    store.put_text(f"{RUN}/step-00000009/engine/rank0.pt", "half of it")
    assert checkpoints.newest() == 3
    assert read(checkpoints, 3) == {"engine/rank0.pt": "whole"}
    keep(checkpoints, state_of(0, "later"), 12)
    assert {path.partition("/")[0] for path in store.files.tree(RUN)} == {"step-00000012"}


def test_what_is_left_of_lost_workers_is_no_part_of_a_later_checkpoint(store):
    """The second worker's part was stored, the first one's was not; both write that step again after the fault."""
    first, second = (Checkpoints(store, RUN, rank, 2) for rank in (0, 1))
    for one in (first, second):
        keep(one, state_of(one.rank, "whole"), 3)
    keep(second, state_of(1, "of the lost worker"), 6)
    again = Checkpoints(store, RUN, 0, 2)
    again.remove_unfinished()
    assert again.newest() == 3
    keep(again, state_of(0, "again"), 6)
    assert again.newest() == 3
    assert not [path for path in store.files.tree(RUN) if path.endswith("rank1.pt") and "6" in path]


@pytest.mark.parametrize("stored", [False, True])
def test_what_cannot_be_written_leaves_the_one_before(store, monkeypatch, stored):
    """Said at once where the copy on this machine fails, at the next one where the storage does."""
    checkpoints = Checkpoints(store, RUN)
    keep(checkpoints, state_of(0, "whole"), 3)

    def fail(*arguments) -> None:
        raise OSError("the disk is full")

    if stored:
        monkeypatch.setattr(Checkpoints, "_send", fail)
        checkpoints.keep(state_of(0, "later"), 6)
    with pytest.raises(OSError, match="full"):
        checkpoints.keep(state_of(0, "later") if stored else fail, 9)
    assert checkpoints.newest() == 3


def test_it_is_whole_when_all_workers_have_written(store):
    first, second = (Checkpoints(store, RUN, rank, 2) for rank in (0, 1))
    keep(first, state_of(0, "first"), 7)
    assert first.newest() is None
    keep(second, state_of(1, "second"), 7)
    assert first.newest() == 7
    assert read(second, 7) == {"engine/rank0.pt": "first", "engine/rank1.pt": "second"}


def test_nothing_stays_on_the_machine(store, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    keep(Checkpoints(store, RUN), state_of(0, "state"), 3)
    assert not list(tmp_path.glob("raylab-checkpoint-*"))
