"""One driver a storage: a second is refused, a dead one is followed, a lost lease ends its driver."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from raylab.experiment.config import ConfigError
from raylab.storage import lease
from raylab.storage.files import Files
from raylab.storage.lease import LEASE, Lease, LeaseTaken, leased

pytestmark = pytest.mark.long

HOLD = "import sys, time\nfrom raylab.storage.files import Files\nfrom raylab.storage.lease import leased\n"
HOLD += "with leased(Files(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(300)\n"


@pytest.fixture(params=["folder", "s3"])
def files(request, tmp_path) -> Files:
    if request.param == "folder":
        return Files(str(tmp_path / "lab"))
    request.getfixturevalue("s3_server").disturb()
    return Files(f"s3://laboratory/{tmp_path.name}")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "EXPIRES_S", 2.0)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.1)


@pytest.fixture
def holder(files):
    """Another process that holds the lease."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, files.uri], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def elsewhere(files: Files) -> dict:
    """The lease that stands there, as if a driver of another machine had written it."""
    facts = json.loads(files.read(LEASE)) | {"machine": "another", "host": "far", "driver": "x"}
    files.write(LEASE, json.dumps(facts).encode())
    return facts


def test_it_is_released_at_the_end_and_after_an_error(files):
    with leased(files):
        assert files.exists(LEASE)
    assert not files.exists(LEASE)
    with pytest.raises(ZeroDivisionError), leased(files):
        raise ZeroDivisionError
    assert not files.exists(LEASE)
    assert files.names("") == []


def test_a_second_driver_is_refused_at_once(files, holder):
    started = time.monotonic()
    with pytest.raises(LeaseTaken, match=rf"another raylab driver .*process {holder.pid} on"):
        Lease(files).take()
    assert time.monotonic() - started < 5
    assert json.loads(files.read(LEASE))["pid"] == holder.pid


def test_a_killed_driver_of_this_machine_is_followed_at_once(files, holder):
    holder.kill()
    holder.wait()
    started = time.monotonic()
    with leased(files):
        assert time.monotonic() - started < 5
        assert json.loads(files.read(LEASE))["pid"] != holder.pid


def test_a_driver_elsewhere_that_renews_is_seen_to_live(files, quick):
    """By its renewals alone: its clock is an hour slow."""
    with leased(files):
        pass
    files.create(LEASE, b"{}")
    ended = threading.Event()

    def renew() -> None:
        beat = 0
        facts = {"driver": "x", "machine": "another", "host": "far", "pid": 1, "process": "1"}
        while not ended.wait(0.2):
            beat += 1
            facts |= {"beat": beat, "renewed": time.time() - 3_000}
            files.write(LEASE, json.dumps(facts).encode())

    other = threading.Thread(target=renew)
    other.start()
    try:
        time.sleep(0.5)
        with pytest.raises(LeaseTaken, match="process 1 on far"):
            Lease(files).take()
    finally:
        ended.set()
        other.join()


def test_a_silent_driver_elsewhere_is_followed_after_a_while(files, quick):
    first = Lease(files)
    first._thread = threading.Thread(target=lambda: None)  # it died with its machine
    first.take()
    elsewhere(files)
    started = time.monotonic()
    with leased(files):
        assert 2 <= time.monotonic() - started < 10
        assert json.loads(files.read(LEASE))["driver"] != "x"
    assert not files.exists(LEASE)


def test_of_two_that_follow_only_one_holds_it(files, quick):
    first = Lease(files)
    first._thread = threading.Thread(target=lambda: None)
    first.take()
    elsewhere(files)
    held, refused = [], []

    def follow() -> None:
        mine = Lease(files)
        try:
            mine.take()
            held.append(mine)
        except LeaseTaken as error:
            refused.append(error)

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)
    held[0].release()


def test_a_driver_whose_lease_was_taken_over_stops(files, quick):
    def work() -> None:
        with leased(files):
            elsewhere(files)
            time.sleep(20)

    with pytest.raises(LeaseTaken, match="another raylab driver took over"):
        work()
    assert json.loads(files.read(LEASE))["driver"] == "x"  # the other's is left alone


def test_it_is_renewed_while_requests_fail(s3_server, tmp_path, quick):
    files = Files(f"s3://laboratory/{tmp_path.name}")
    s3_server.disturb(faults=0.2)
    try:
        with leased(files):
            before = json.loads(files.read(LEASE))["beat"]
            time.sleep(3)
            assert json.loads(files.read(LEASE))["beat"] > before
    finally:
        s3_server.disturb()


NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_PROFILE": None}


@pytest.mark.parametrize(
    ("bucket", "change", "words"),
    [
        ("nobodys", {}, "bucket does not exist"),
        ("laboratory", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "3 requests failed"),
        ("laboratory", NO_KEYS, "Unable to locate credentials"),
    ],
)
def test_an_object_storage_that_cannot_be_written_to_is_one_line(
    bucket, change, words, s3_server, tmp_path
):
    changed = os.environ | {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"} | change
    done = subprocess.run(
        [sys.executable, "-c", HOLD, f"s3://{bucket}/x"],
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"raylab.experiment.config.ConfigError: storage s3://{bucket}/x: ")
    assert words in last


def test_an_address_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"pip install 'raylab\[gcs\]'"):
        Files("gs://bucket/lab")
    with pytest.raises(ConfigError, match="no address begins with nokind://"):
        Files("nokind://x")
