"""Artifacts are whole or absent: atomic commits, damage found and named, remote storage alike."""

import json
import os
import pickle
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylab.cli.main import app
from raylab.storage import checksums
from raylab.storage import store as store_module
from raylab.storage.artifacts import Address, DamagedArtifact, fingerprint
from raylab.storage.store import Store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "lab"))
    return Store(f"memory://{tmp_path.name}/lab", cache=str(tmp_path / "cache"))


def on_another_node(store: Store) -> Store:
    """It has no copies."""
    return store if store.is_local else Store(store.uri, cache=f"{store.cache.folder}-other")


ADDRESS = Address("index", "a", {"x": 1}, {"in": "f" * 64})


def write(store: Store, address: Address = ADDRESS, text: str = "hello") -> None:
    with store.draft(address) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "file.txt").write_text(text)
        draft.meta["answer"] = 42


def data_file(store: Store) -> str:
    artifact = store.find(ADDRESS)
    assert artifact is not None
    return f"{store.root}/{artifact.path}/{artifact.manifest['attempt']}/sub/file.txt"


def test_written_artifacts_are_found_and_read(store):
    assert store.find(ADDRESS) is None
    write(store)
    artifact = store.find(ADDRESS)
    assert artifact is not None
    assert artifact.meta["answer"] == 42
    assert (store.local(artifact) / "sub" / "file.txt").read_text() == "hello"
    assert artifact.fingerprint == ADDRESS.fingerprint


def test_a_failing_writer_leaves_nothing(store):
    def write_half() -> None:
        with store.draft(ADDRESS) as draft:
            (draft.path / "file").write_text("half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        write_half()
    assert store.find(ADDRESS) is None
    assert not store.fs.find(store.root)


def test_empty_artifacts_are_refused(store):
    with pytest.raises(ValueError, match="without files"), store.draft(ADDRESS):
        pass


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest"])
def test_damage_is_found_named_and_redone(store, damage, caplog):
    write(store)
    file = data_file(store)
    if damage == "missing":
        store.fs.rm(file)
    elif damage == "manifest":
        store.fs.pipe_file(f"{store.root}/{ADDRESS.path}/manifest.json", b'{"files": ')
    else:
        store.fs.pipe_file(file, {"cut": b"hell", "changed": b"hallo"}[damage])
    if damage == "changed" and not store.is_local:  # a lookup reads no data there
        artifact = store.find(ADDRESS)
        assert artifact is not None
        with pytest.raises(DamagedArtifact, match="does not match its checksum"):
            on_another_node(store).local(artifact)
        store.discard(ADDRESS.path)
    else:
        assert store.find(ADDRESS) is None
        assert ADDRESS.path in caplog.text
        assert "made again" in caplog.text
    write(store, text="again")
    found = store.find(ADDRESS)
    assert found is not None
    assert (store.local(found) / "sub" / "file.txt").read_text() == "again"


def test_a_lookup_reads_no_data_that_it_has_seen(store, monkeypatch):
    """Locally sizes and times decide whether a file is read again; on object storage its reader checks it."""
    write(store)
    old = time.time() - 60
    if store.is_local:
        os.utime(data_file(store), (old, old))
    store.find(ADDRESS)

    def refuse(*_, **__):
        raise AssertionError("a file was read")

    monkeypatch.setattr(store_module, "sha256_of", refuse)
    monkeypatch.setattr(checksums.hashlib, "new", refuse)
    if not store.is_local:
        monkeypatch.setattr(store.fs, "open", refuse)
        monkeypatch.setattr(store.fs, "get_file", refuse)
    for _ in range(3):
        assert store.find(ADDRESS) is not None


def test_all_artifacts_are_listed_and_read_again_on_demand(store):
    other = Address("runs", "b", {"x": 2})
    write(store)
    write(store, other)
    store.put_text("stages.json", "[]")
    found = list(store.artifacts())
    assert [artifact.path for artifact in found] == [ADDRESS.path, other.path]
    for artifact in found:
        store.check(artifact, again=True)
    store.fs.pipe_file(data_file(store), b"hallo")
    with pytest.raises(DamagedArtifact, match="does not match its checksum"):
        store.check(found[0], again=True)


def test_readers_check_checksums_themselves(store):
    write(store)
    artifact = store.find(ADDRESS)
    assert artifact is not None
    store.fs.pipe_file(data_file(store), b"hallo")
    with pytest.raises(DamagedArtifact, match=r"index/a-.*file\.txt does not match its checksum"):
        on_another_node(store).local(artifact)


def test_an_attempt_without_a_manifest_does_not_count_and_is_swept(tmp_path):
    store = Store(str(tmp_path))
    folder = tmp_path / ADDRESS.path / "attempt-dead"
    folder.mkdir(parents=True)
    (folder / "file").write_text("half")
    assert store.find(ADDRESS) is None
    write(store)
    assert store.sweep(("index",)) == 1
    assert not folder.exists()
    assert store.find(ADDRESS) is not None


def test_fingerprints_follow_what_is_computed_and_nothing_else():
    base = fingerprint("run", {"a": 1, "b": [1, 2]}, {"x": "1"})
    assert base == fingerprint("run", {"b": [1, 2], "a": 1}, {"x": "1"})
    assert (
        len(
            {
                base,
                fingerprint("run", {"a": 2, "b": [1, 2]}, {"x": "1"}),
                fingerprint("run", {"a": 1, "b": [1, 2]}, {"x": "2"}),
                fingerprint("index", {"a": 1, "b": [1, 2]}, {"x": "1"}),
            }
        )
        == 4
    )


def test_stores_and_errors_travel_between_processes(tmp_path):
    store = pickle.loads(pickle.dumps(Store(str(tmp_path))))
    write(store)
    assert store.find(ADDRESS) is not None
    error = pickle.loads(pickle.dumps(DamagedArtifact("a/b", "cut")))
    assert (error.path, str(error)) == ("a/b", "damaged artifact a/b: cut")


def test_the_manifest_names_every_file_with_size_and_checksum(tmp_path):
    store = Store(str(tmp_path))
    write(store)
    manifest = json.loads(Path(tmp_path, ADDRESS.path, "manifest.json").read_text())
    assert manifest["files"]["sub/file.txt"]["bytes"] == 5
    assert len(manifest["files"]["sub/file.txt"]["sha256"]) == 64
    assert manifest["identity"] == {"x": 1}


def test_the_command_names_what_is_damaged(tmp_path):
    store = Store(str(tmp_path))
    write(store)
    command = ["check", "--storage", str(tmp_path)]
    whole = CliRunner().invoke(app, command)
    assert (whole.exit_code, whole.output) == (0, "1 artifacts, 0 of them damaged\n")
    store.fs.pipe_file(data_file(store), b"hallo")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert (
        f"damaged artifact {ADDRESS.path}: sub/file.txt does not match its checksum"
        in result.output
    )
