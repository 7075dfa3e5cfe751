"""A model on a hub and its local copy are one identity, and weights that change there are another.

The hub is a server on this machine that speaks the part of its protocol that the library uses.
"""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raylab.experiment.config import Backbone
from raylab.models.identity import weights_fingerprint

REPOSITORY = "acme/tiny"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub:
    """One repository: its files, those of 10 kB and more kept apart by their sha256, as weights are on a hub."""

    def __init__(self, folder: Path):
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.asked: list[str] = []

    @property
    def revision(self) -> str:
        return sha256(repr(sorted(self.files.items())).encode())[:40]

    def large(self, name: str) -> bool:
        return len(self.files[name]) >= 10_000 and name.endswith(".safetensors")

    def tree(self) -> list[dict]:
        rows = []
        for name, data in self.files.items():
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            row: dict = {"type": "file", "path": name, "size": len(data), "oid": oid}
            if self.large(name):
                row["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
            rows.append(row)
        return rows

    def about(self) -> dict:
        siblings = []
        for name, data in self.files.items():
            facts: dict = {"rfilename": name, "size": len(data)}
            if self.large(name):
                facts["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append(facts)
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": self.revision, "siblings": siblings}


@pytest.fixture
def hub(model_folder):
    content = Hub(model_folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = self.path.partition("?")[0]
            content.asked.append(f"{self.command} {path}")
            name = path.rpartition("/")[2]
            if "/tree/" in path:
                self.send(json.dumps(content.tree()).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                self.send(
                    json.dumps(content.about()).encode(), {"Content-Type": "application/json"}
                )
            elif path.startswith(f"/{REPOSITORY}/resolve/") and name in content.files:
                data = content.files[name]
                etag = f'"{sha256(data)}"'
                self.send(data, {"ETag": etag, "X-Repo-Commit": content.revision})
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def send(self, data: bytes, headers: dict[str, str]):
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    content.address = f"http://127.0.0.1:{server.server_port}"
    yield content
    server.shutdown()


def fingerprint_on(hub: Hub, home: Path) -> str:
    """Of the repository, in a process of its own with an empty cache: the address is read at import."""
    code = (
        "from raylab.experiment.config import Backbone\n"
        "from raylab.models.identity import weights_fingerprint\n"
        f"print(weights_fingerprint(Backbone('tiny', '{REPOSITORY}'), None))"
    )
    environment = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "RAYLAB_CACHE": str(home / "sums"),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_a_hub_id_is_the_identity_of_its_copy_and_its_weights_are_not_fetched(
    hub, model_folder, tmp_path
):
    here = weights_fingerprint(Backbone("tiny", str(model_folder)), None)
    assert hub.large("model.safetensors")
    assert fingerprint_on(hub, tmp_path / "one") == here
    assert "GET /acme/tiny/resolve/" in " ".join(hub.asked)
    assert not [ask for ask in hub.asked if ask.startswith("GET") and "safetensors" in ask]
    changed = bytearray(hub.files["model.safetensors"])
    changed[-1] ^= 1
    hub.files["model.safetensors"] = bytes(changed)
    assert fingerprint_on(hub, tmp_path / "two") != here


def test_what_is_in_the_cache_is_read_there(hub, model_folder, tmp_path):
    """A whole copy in the cache is the model, whatever the hub holds by now."""
    here = weights_fingerprint(Backbone("tiny", str(model_folder)), None)
    code = f"from huggingface_hub import snapshot_download; snapshot_download('{REPOSITORY}')"
    environment = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    environment["PATH"] = "/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    hub.files["model.safetensors"] = b"x" * 20_000
    hub.asked.clear()
    assert fingerprint_on(hub, tmp_path) == here
    assert not hub.asked
