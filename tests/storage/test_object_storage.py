"""The store on an S3 server: what lookups cost, what faults and damage do, what a node keeps."""

import os
from pathlib import Path

import pytest

from benchmarks.s3_server import Server
from raylab.storage import files
from raylab.storage.artifacts import Address, Artifact, DamagedArtifact, StorageError
from raylab.storage.store import Store

SIZE = 50_000


def addresses(count: int) -> list[Address]:
    return [Address("index", f"a{n}", {"n": n}) for n in range(count)]


def write(store: Store, address: Address) -> None:
    with store.draft(address) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "data.bin").write_bytes(content(address))
        (draft.path / "empty").write_bytes(b"")


def content(address: Address) -> bytes:
    return (address.fingerprint.encode() * SIZE)[:SIZE]


def another_node(store: Store, tmp_path: Path) -> Store:
    return Store(store.uri, cache=str(tmp_path / "another-node"))


def found(store: Store, address: Address) -> Artifact:
    artifact = store.find(address)
    assert artifact is not None
    return artifact


@pytest.fixture
def impatient(monkeypatch):
    """Waits between requests are short."""
    monkeypatch.setattr(files._RETRYING, "wait", lambda state: 0.01)


def test_many_lookups_are_one_listing_and_their_manifests(s3, s3_server: Server, tmp_path):
    places = addresses(60)
    s3.files.in_parallel(lambda place: write(s3, place), places)
    s3_server.asked()
    assert all(another_node(s3, tmp_path).find_all([*places, Address("index", "none", {})])[:-1])
    asked = s3_server.asked()
    assert asked["LIST"] == 1
    assert asked["GET"] == 60
    assert asked["HEAD"] == 0
    assert asked["bytes fetched"] < 60 * 2_000
    assert another_node(s3, tmp_path).present([place.path for place in places]) == [True] * 60
    assert s3_server.asked()["GET"] == 0


def test_a_node_fetches_an_artifact_once_and_the_one_that_wrote_it_never(s3, s3_server, tmp_path):
    (place,) = addresses(1)
    write(s3, place)
    s3_server.asked()
    assert (s3.local(found(s3, place)) / "sub/data.bin").read_bytes() == content(place)
    assert s3_server.asked()["bytes fetched"] < 2_000
    other = another_node(s3, tmp_path)
    artifact = found(other, place)
    for _ in range(3):
        assert (other.local(artifact) / "sub/data.bin").read_bytes() == content(place)
        assert (other.local(artifact) / "empty").read_bytes() == b""
    assert SIZE < s3_server.asked()["bytes fetched"] < SIZE + 4_000


@pytest.mark.usefixtures("impatient")
def test_requests_that_fail_and_bodies_cut_short_lose_nothing(s3, s3_server: Server, tmp_path):
    s3_server.disturb(faults=0.2)
    places = addresses(40)
    s3.files.in_parallel(lambda place: write(s3, place), places)
    other = another_node(s3, tmp_path)
    artifacts = other.find_all(places)
    folders = [other.local(artifact) for artifact in artifacts]
    assert s3_server.asked()["faults"] > 30
    for place, folder in zip(places, folders, strict=True):
        assert (folder / "sub/data.bin").read_bytes() == content(place)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest"])
@pytest.mark.parametrize("others", [0, 40], ids=["alone", "among many"])
def test_damage_is_found_by_listing_named_and_redone(
    s3, s3_server, tmp_path, caplog, damage, others
):
    """An ETag tells a change that keeps the size; the file is then read once."""
    places = addresses(others + 1)
    s3.files.in_parallel(lambda place: write(s3, place), places)
    artifact = found(s3, places[0])
    file = f"{s3.root}/{artifact.path}/{artifact.manifest['attempt']}/sub/data.bin"
    if damage == "missing":
        s3.fs.rm(file)
    elif damage == "manifest":
        s3.fs.pipe_file(f"{s3.root}/{artifact.path}/manifest.json", b'{"files": ')
    else:
        s3.fs.pipe_file(file, content(places[0])[: SIZE // 2] if damage == "cut" else b"x" * SIZE)
    results = another_node(s3, tmp_path).find_all(places)
    assert [result is None for result in results] == [True] + [False] * others
    assert artifact.path in caplog.text
    write(s3, places[0])
    folder = another_node(s3, tmp_path).local(found(s3, places[0]))
    assert (folder / "sub/data.bin").read_bytes() == content(places[0])


def test_a_copied_laboratory_is_read_once_and_found(s3, s3_server, tmp_path, monkeypatch):
    """Another storage gives other tags: data are compared with their checksums, and that is kept."""
    monkeypatch.setenv("RAYLAB_CACHE", str(tmp_path / "user"))
    (place,) = addresses(1)
    here = Store(str(tmp_path / "lab"))
    write(here, place)
    s3.fs.put(f"{here.root}/", f"{s3.root}/", recursive=True)
    s3_server.asked()
    for bytes_fetched in (SIZE, 0):
        assert another_node(s3, tmp_path).find(place) is not None
        assert bytes_fetched <= s3_server.asked()["bytes fetched"] < bytes_fetched + 5_000


def test_a_file_that_changed_after_the_lookup_is_named_by_its_reader(s3, tmp_path):
    (place,) = addresses(1)
    write(s3, place)
    artifact = found(s3, place)
    s3.fs.pipe_file(
        f"{s3.root}/{artifact.path}/{artifact.manifest['attempt']}/sub/data.bin", b"x" * SIZE
    )
    with pytest.raises(DamagedArtifact, match=r"data\.bin does not match its checksum"):
        another_node(s3, tmp_path).local(artifact)
    assert not list((tmp_path / "another-node" / ".aside").iterdir())


def test_a_writer_that_fails_leaves_nothing(s3, tmp_path):
    def fail() -> None:
        with s3.draft(addresses(1)[0]) as draft:
            (draft.path / "file").write_text("half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert not s3.fs.find(s3.root)
    assert not list((tmp_path / "node" / ".aside").iterdir())


@pytest.mark.usefixtures("impatient")
def test_a_storage_that_cannot_be_reached_is_one_error(s3_server, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store("s3://nobody/lab", cache=str(tmp_path))
    store.fs = store.files.fs = type(store.fs)(skip_instance_cache=True)
    with pytest.raises(
        StorageError, match=r"s3://nobody/lab cannot be reached: 10 requests failed"
    ):
        store.find(addresses(1)[0])


def test_what_has_no_permission_is_not_asked_again(s3, monkeypatch):
    asked = []

    def refuse(*_, **__):
        asked.append(1)
        raise PermissionError("denied")

    monkeypatch.setattr(s3.fs, "cat_file", refuse)
    with pytest.raises(PermissionError):
        s3.files.read("results.parquet")
    assert len(asked) == 1


def test_programming_errors_are_not_sent_again():
    assert not files.is_passing(ValueError("a bug"))
    assert not files.is_passing(KeyError("a bug"))
    assert files.is_passing(ConnectionResetError())
    assert files.is_passing(TimeoutError())
    assert files.is_passing(OSError(5, "Input/output error"))


def test_a_killed_driver_does_not_hold_the_nodes_copies(s3, tmp_path):
    """Whoever fetches a copy holds a lock of the operating system, which ends with its process."""
    (place,) = addresses(1)
    write(s3, place)
    other = another_node(s3, tmp_path)
    artifact = found(other, place)
    reader = os.fork()
    if reader == 0:
        with other.cache._locked(f"{artifact.path}/{artifact.manifest['attempt']}"):
            os.kill(os.getpid(), 9)
    os.waitpid(reader, 0)
    assert other.local(artifact).is_dir()
