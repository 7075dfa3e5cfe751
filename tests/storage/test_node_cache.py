"""A node's copies: within their limit, those go first that were not used for longest, none is fetched twice."""

import os
import threading
import time
from pathlib import Path

import pytest

from raylab.storage import node_cache
from raylab.storage.node_cache import NodeCache

KB = 1_000


def put(cache: NodeCache, name: str, size: int = 10 * KB) -> Path:
    def fetch(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "data").write_bytes(b"x" * size)

    return cache.fetched(f"stage/{name}/attempt-1", fetch)


def held(cache: NodeCache) -> set[str]:
    return {path.parent.name for path in cache.folder.glob("[!.]*/*/*")}


def used(copy: Path, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(copy, (then, then))


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    cache = NodeCache(tmp_path, limit_bytes=50 * KB, grace_s=1.0)
    for age, name in enumerate("abcde"):
        used(put(cache, name), 100 - age)
    assert held(cache) == set("abcde")
    put(cache, "a")  # asked for again
    put(cache, "f")
    assert held(cache) == set("adef")  # down to four fifths of the limit
    assert int((tmp_path / ".usage").read_text()) == 40 * KB
    assert not list((tmp_path / ".aside").iterdir())


def test_what_was_asked_for_just_now_stays_and_a_warning_says_so(tmp_path, caplog):
    cache = NodeCache(tmp_path, limit_bytes=25 * KB)
    for name in "abc":
        put(cache, name)
    assert held(cache) == set("abc")
    assert "are held and in use" in caplog.text


def test_a_file_that_is_open_stays_readable(tmp_path):
    cache = NodeCache(tmp_path, limit_bytes=25 * KB, grace_s=0.0)
    copy = put(cache, "a")
    with open(copy / "sub" / "data", "rb") as file:
        used(copy, 100)
        put(cache, "b")
        put(cache, "c")
        assert "a" not in held(cache)
        assert len(file.read()) == 10 * KB


def test_a_disk_that_is_nearly_full_counts_as_a_limit(tmp_path, monkeypatch):
    cache = NodeCache(tmp_path, grace_s=0.0)
    used(put(cache, "a"), 100)
    full = type("Usage", (), {"total": 100 * KB, "free": 5 * KB})
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda folder: full)
    put(cache, "b")  # 20 KB held, 5 free: 5 KB too much
    assert held(cache) == {"b"}


def test_several_that_want_one_copy_fetch_it_once(tmp_path):
    fetched, start = [], threading.Barrier(6)

    def fetch(folder: Path) -> None:
        fetched.append(1)
        time.sleep(0.05)
        (folder / "data").write_bytes(b"x")

    def want() -> None:
        start.wait()
        assert (NodeCache(tmp_path).fetched("stage/a/attempt-1", fetch) / "data").exists()

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_a_fetch_that_fails_leaves_nothing_and_is_tried_again(tmp_path):
    cache = NodeCache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.fetched("stage/a/attempt-1", fail)
    assert held(cache) == set()
    assert put(cache, "a").is_dir()


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    cache = NodeCache(tmp_path, limit_bytes=15 * KB, grace_s=0.0)
    for name, hours in (("old", 30), ("new", 1)):
        debris = tmp_path / ".aside" / name
        debris.mkdir(parents=True)
        used(debris, hours * 3600)
    put(cache, "a")
    put(cache, "b")
    assert [path.name for path in (tmp_path / ".aside").iterdir()] == ["new"]
