"""An S3 server on this machine (moto's), with a wait before each request, faults, and counts of what was asked.

    python benchmarks/s3_server.py --wait 0.03 --faults 0.05      # prints its address; ends with its standard input

A fault is, by turns, a 503 before anything is done, a 500 after it was done, and a body that is cut short. What was
asked since the last time is read at ADDRESS/_asked as JSON; ADDRESS/_set?wait=0&faults=0 changes what it does.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUCKET = "laboratory"
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_BROKEN = b"<Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>"


class Disturbed:
    """A WSGI application behind waits and faults."""

    def __init__(self, application: Callable, wait_s: float, faults: float):
        self.application, self.wait_s, self.faults = application, wait_s, faults
        self.asked: Counter[str] = Counter()
        self.lock, self.random, self.kind = threading.Lock(), random.Random(0), 0

    def __call__(self, environ: dict[str, Any], start: Callable) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/_"):
            return self._settings(environ, start)
        time.sleep(self.wait_s)
        method = environ["REQUEST_METHOD"]
        listing = method == "GET" and "list-type" in environ.get("QUERY_STRING", "")
        with self.lock:
            self.asked["LIST" if listing else method] += 1
            self.asked["bytes sent"] += int(environ.get("CONTENT_LENGTH") or 0)
            fault = None
            if self.random.random() < self.faults:
                fault, self.kind = self.kind % 3, self.kind + 1
                self.asked["faults"] += 1
        if fault == 0:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _answer(start, "503 Slow Down", _BUSY)
        told: list[Any] = []
        body = b"".join(self.application(environ, lambda *facts: told.append(facts)))
        if fault == 1:
            return _answer(start, "500 Internal Server Error", _BROKEN)
        with self.lock:
            self.asked["bytes fetched"] += len(body)
        start(*told[0][:2])
        return [body[: len(body) // 2] if fault == 2 else body]

    def _settings(self, environ: dict[str, Any], start: Callable) -> Iterable[bytes]:
        given = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
        with self.lock:
            if environ["PATH_INFO"] == "/_set":
                self.wait_s = float(given["wait"][0])
                self.faults = float(given["faults"][0])
            asked, self.asked = self.asked, Counter()
        return _answer(start, "200 OK", json.dumps(asked).encode())


def _answer(start: Callable, status: str, body: bytes) -> Iterable[bytes]:
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@dataclass(frozen=True)
class Server:
    """A server that runs in a process of its own."""

    address: str

    def asked(self) -> dict[str, int]:
        """Requests by kind, faults, bytes sent and fetched since the last call."""
        with urllib.request.urlopen(f"{self.address}/_asked") as answer:
            return Counter(json.loads(answer.read()))

    def disturb(self, wait_s: float = 0.0, faults: float = 0.0) -> None:
        """What it does from now on."""
        urllib.request.urlopen(f"{self.address}/_set?wait={wait_s}&faults={faults}").close()

    @property
    def environment(self) -> dict[str, str]:
        """What a process must find in its environment for `s3://laboratory` to be there."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "laboratory",
            "AWS_SECRET_ACCESS_KEY": "laboratory",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def serving(wait_s: float = 0.0, faults: float = 0.0, *more: str) -> Iterator[Server]:
    """A server with an empty bucket, until the block ends.

    Args:
        more: arguments of this file's command.
    """
    command = [sys.executable, __file__, "--wait", str(wait_s), "--faults", str(faults), *more]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise RuntimeError("the S3 server did not start")
            yield Server(address)
        finally:
            process.stdin.close()
            process.terminate()


def serve(wait_s: float, faults: float, objects: Path | None = None) -> None:
    """Serve until standard input ends.

    Args:
        objects: a file of JSON lines, objects that the bucket has at the start: `key`, `content` (base64) or a `size`
            that is listed and cannot be read, and, if it is not to be computed, the ETag (`tag`).
    """
    os.environ.setdefault("MOTO_S3_CUSTOM_ENDPOINTS", "")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    bucket = s3_backends["123456789012"]["aws"].create_bucket(BUCKET, "us-east-1")
    if objects is not None:
        with open(objects) as lines:
            for line in lines:
                _put(bucket, json.loads(line))
    application = Disturbed(DomainDispatcherApplication(create_backend_app), wait_s, faults)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
    server.shutdown()


def _put(bucket: Any, facts: dict[str, Any]) -> None:
    from moto.s3.models import FakeKey

    content = base64.b64decode(facts.get("content", ""))
    key: Any = FakeKey(facts["key"], content, "123456789012", "us-east-1", etag=facts.get("tag"))
    key.bucket_name = bucket.name
    key.contentsize = facts.get("size", len(content))
    bucket.keys[facts["key"]] = key


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wait", type=float, default=0.0, help="seconds before each request")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--fill", type=Path, help="objects at the start, a JSON a line")
    options = parser.parse_args()
    serve(options.wait, options.faults, options.fill)


if __name__ == "__main__":
    main()
