"""One driver a storage: it holds a lease and renews it; a second driver is refused, a dead one's lease taken over.

The lease is one small file at the root. It is written only if it is not there (an object storage's conditional put, a
folder's exclusive link) and renewed every few seconds, each time only if it is still as it was. Whether a driver lives
is seen from its renewals, never by comparing the clocks of two machines: what was not renewed for `EXPIRES_S` may be
taken over. Of a process of this machine it is known at once. Where a storage cannot write conditionally (all but S3),
whoever takes over looks once more a moment later, and a driver that lost its lease stops at its next renewal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylab.experiment.config import ConfigError
from raylab.storage.artifacts import StorageError
from raylab.storage.files import Files

log = logging.getLogger("raylab")

LEASE = "driver.lease"
BEAT_S, EXPIRES_S = 10.0, 60.0
_LONG_DEAD_S = 3_600.0  # by the clocks of two machines, which may differ by minutes
_SETTLE_S = 1.0


class LeaseTaken(ConfigError):
    """Another driver is at work in the storage."""


def _machine() -> str:
    """What tells this machine (and container) from others, until it starts anew."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex  # cannot be compared


def _started(pid: int) -> str | None:
    """When a process of this machine started, in ticks since boot; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


class Lease:
    """The lease of one storage, from `take` to `release`.

    Args:
        alone: no other process of this machine can be the storage's driver (it holds the lock of a local folder).
    """

    def __init__(self, files: Files, alone: bool = False):
        self.files, self.alone = files, alone
        self.lost = False
        self._facts: dict[str, Any] = {
            "driver": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process": _started(os.getpid()),
            "since": time.time(),
            "beat": 0,
        }
        self._written = b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    # ------------------------------------------------------------------------------------ taking

    def take(self) -> None:
        """Hold the lease, or take over a dead driver's.

        Raises:
            LeaseTaken: another driver is at work there.
            StorageError, OSError: the storage cannot be written to.
        """
        while not self._begin():
            found = self._read()
            if found is None:
                continue  # released a moment ago
            if self._is_own(found):
                break  # written by a request whose answer was lost
            if not self._is_dead(found):
                self._watch(found)
            if self._take_over(found):
                log.warning("storage %s: took over from a driver that died", self.files.uri)
                break
        self._thread.start()

    def _begin(self) -> bool:
        self._written = self._text()
        return self.files.create(LEASE, self._written)

    def _watch(self, found: bytes) -> None:
        """Wait until a lease has not been renewed for so long that its driver must be dead.

        Raises:
            LeaseTaken: it is renewed, so its driver lives.
        """
        if self._holder_here(found):
            raise self._taken(found)
        log.warning(
            "storage %s: %s does not end its lease; taken over if it is silent for %.0f s",
            self.files.uri,
            _name(found),
            EXPIRES_S,
        )
        until = time.monotonic() + EXPIRES_S
        while time.monotonic() < until:
            time.sleep(min(BEAT_S / 5, max(0.0, until - time.monotonic())))
            now = self._read()
            if now is None:
                return
            if now != found:
                raise self._taken(now)

    def _is_dead(self, found: bytes) -> bool:
        facts = _read_facts(found)
        if facts is None:
            return True  # no lease of ours
        if facts["machine"] == self._facts["machine"]:
            return self.alone or not self._holder_here(found)
        return time.time() - facts["renewed"] > _LONG_DEAD_S

    def _holder_here(self, found: bytes) -> bool:
        """Whether the holder is a process of this machine that lives."""
        facts = _read_facts(found) or {}
        here = facts.get("machine") == self._facts["machine"]
        return here and facts["process"] is not None and _started(facts["pid"]) == facts["process"]

    def _taken(self, found: bytes) -> LeaseTaken:
        return LeaseTaken(
            f"storage {self.files.uri}: another raylab driver is at work there ({_name(found)}); wait for its end, "
            "stop it, or name another storage"
        )

    # ----------------------------------------------------------------------------------- holding

    def _text(self) -> bytes:
        return json.dumps({**self._facts, "renewed": time.time()}).encode()

    def _read(self) -> bytes | None:
        try:
            return self.files.read(LEASE)
        except FileNotFoundError:
            return None

    def _is_own(self, found: bytes | None) -> bool:
        facts = found and _read_facts(found)
        return bool(facts) and facts["driver"] == self._facts["driver"]

    def _take_over(self, found: bytes) -> bool:
        told = self._swap(found)
        facts = _read_facts(found) or {}
        if told is None and facts.get("machine") != self._facts["machine"]:
            time.sleep(_SETTLE_S)
            return self._is_own(self._read())
        return told is not False

    def _swap(self, found: bytes) -> bool | None:
        """Write it in the place of what was found; as `Files.replace`."""
        text = self._text()
        told = self.files.replace(LEASE, text, found)
        if told is not False:
            self._written = text
        return told

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._facts["beat"] += 1
                if self._swap(self._written) is not False:
                    continue
                now = self._read()
                if now is None and self._begin():
                    continue  # somebody removed the file
                if now is not None and self._is_own(now):
                    self._written = now
                    continue
            except (OSError, StorageError) as error:
                log.warning("storage %s: its lease was not renewed (%s)", self.files.uri, error)
                continue
            self.lost = True
            log.error("storage %s: another driver took its lease over", self.files.uri)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return

    def release(self) -> None:
        """Let the next driver begin at once."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.lost:
            return
        with contextlib.suppress(OSError, StorageError):
            if self._is_own(self._read()):
                self.files.remove(LEASE)


@contextlib.contextmanager
def leased(files: Files, alone: bool = False) -> Iterator[None]:
    """Inside, this process is the storage's driver, and no other is.

    Raises:
        LeaseTaken: another one is, or has become it meanwhile.
        ConfigError: the storage cannot be written to.
    """
    lease = Lease(files, alone)
    try:
        lease.take()
    except ConfigError:
        raise
    except Exception as error:  # a storage's library has errors of its own
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(
            f"storage {files.uri}: it cannot be written to ({reason}); name a folder or an address that can, and set "
            "the credentials and the region that its storage asks for"
        ) from None
    try:
        yield
    except KeyboardInterrupt:
        if lease.lost:
            raise LeaseTaken(
                f"storage {files.uri}: another raylab driver took over, since this one did not renew its lease"
            ) from None
        raise
    finally:
        lease.release()


def _read_facts(found: bytes) -> dict[str, Any] | None:
    try:
        facts = json.loads(found)
        return facts if {"driver", "machine", "pid", "process", "renewed"} <= set(facts) else None
    except (ValueError, TypeError):
        return None


def _name(found: bytes) -> str:
    facts = _read_facts(found) or {}
    return f"process {facts.get('pid')} on {facts.get('host')}"
