"""A model that the hub does not give is one line that says what to do, at once."""

import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from transformers import AutoConfig

from raylab.experiment.config import Backbone, ConfigError
from raylab.models.backbone import load_config

SOURCE = "meta-llama/Llama-3.2-1B"


def gated() -> GatedRepoError:
    response: Any = SimpleNamespace(headers={}, request=None)
    return GatedRepoError("401 Client Error.\nAccess is restricted.", response=response)


@pytest.mark.parametrize(
    ("cause", "said", "words"),
    [
        (
            gated(),
            "You are trying to access a gated repo.\nMake sure ...",
            "set HF_TOKEN to a token",
        ),
        (
            LocalEntryNotFoundError("no file"),
            "We couldn't find it.\nCheck ...",
            "name the folder by --models",
        ),
        (
            None,
            "We couldn't connect to 'https://huggingface.co'\nto load",
            "the hub cannot be reached",
        ),
        (None, "x is not a valid\nmodel identifier", "x is not a valid model identifier"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_one_line(monkeypatch, cause, said, words):
    def refuse(*_, **__):
        raise OSError(said) from cause

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # so that the library is asked
    with pytest.raises(ConfigError) as fault:
        load_config(Backbone("1b", SOURCE), SOURCE)
    text = str(fault.value)
    assert text.startswith(f"size '1b': no model at '{SOURCE}' (")
    assert words in text
    assert "\n" not in text


# ---------------------------------------------------------------------------- a hub that answers


@pytest.fixture(scope="module")
def hub():
    """A hub on this machine: (address, what it answers by repository, the requests that came)."""
    answers: dict[str, tuple[int, str | None]] = {}
    asked: list[tuple[str, str | None]] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            repository = "/".join(self.path.split("/")[1:3])
            if repository in answers:  # not what the library asks of itself
                asked.append((self.path, self.headers.get("Authorization")))
            status, code = answers.get(repository, (404, None))
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers, asked
    server.shutdown()


_ASK = """
import json, os, sys, time
from raylab.experiment.config import Backbone, ConfigError
from raylab.models.backbone import load_config
for source, token in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    started = time.time()
    try:
        load_config(Backbone("1b", source), source)
    except ConfigError as error:
        print(json.dumps([str(error), time.time() - started]))
"""


def ask(endpoint: str, home, *asked: tuple[str, str | None]) -> list[tuple[str, float]]:
    """(what is told, seconds) of each model and token, in a process of its own: the library reads the
    hub's address once."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", _ASK, json.dumps(asked)],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


# Status and code that the hub answers, the token that is set, and what is told.
REFUSALS = {
    "acme/gated": (
        401,
        "GatedRepo",
        None,
        "is gated: accept its licence on its page of the hub, and set HF_TOKEN",
    ),
    "acme/closed": (403, "GatedRepo", "hf_x", "(the token that is set does not open it)"),
    SOURCE: (
        401,
        "RepoNotFound",
        None,
        "has no model meta-llama/Llama-3.2-1B, or gives it only with HF_TOKEN",
    ),
    "acme/late": (
        503,
        None,
        None,
        "the hub answers 503 at present; run the same command again later",
    ),
}


@pytest.fixture(scope="module")
def refusals(hub, tmp_path_factory):
    """By model: what is told, and the requests that came."""
    endpoint, answers, asked = hub
    answers |= {source: (status, code) for source, (status, code, *_) in REFUSALS.items()}
    questions = [(source, token) for source, (_, _, token, _) in REFUSALS.items()]
    told = ask(endpoint, tmp_path_factory.mktemp("hub"), *questions)
    return {
        source: (line, [one for one in asked if one[0].startswith(f"/{source}/")])
        for source, (line, _) in zip(REFUSALS, told, strict=True)
    }


@pytest.mark.parametrize("source", REFUSALS)
def test_a_hub_that_refuses_is_asked_once(refusals, source):
    line, asked = refusals[source]
    _, _, token, words = REFUSALS[source]
    assert line.startswith(f"size '1b': no model at '{source}' (")
    assert words in line
    expected = None if token is None else f"Bearer {token}"
    assert asked == [(f"/{source}/resolve/main/config.json", expected)]


def test_a_hub_that_is_not_there_is_told_without_waiting(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ((line, seconds),) = ask(f"http://127.0.0.1:{port}", tmp_path, (SOURCE, None))
    assert "the hub cannot be reached and nothing of it is in the cache" in line
    assert seconds < 5
