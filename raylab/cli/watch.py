"""`raylab watch`: the page of a laboratory; and the same beside a driver, for `--watch`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from raylab.cli.files import open_store
from raylab.cli.shared import Models, Storage
from raylab.experiment.config import ConfigError

if TYPE_CHECKING:
    from raylab.storage.store import Store

PORT = 8600
_TRIED_PORTS = 20
_NICENESS = 10


def watch(
    storage: Storage = "lab",
    port: Annotated[int, typer.Option(help="of the page; 0: any that is free")] = PORT,
    host: Annotated[
        str, typer.Option(help="address to listen on; another than this machine's needs --token")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="RAYLAB_WATCH_TOKEN",
            show_envvar=True,
            help="that a browser must give once, as ?token=TOKEN; 16 characters or more",
        ),
    ] = None,
    gpu_hour_rate: Annotated[
        float | None,
        typer.Option(help="price of one device hour, to show what is spent and to come", min=0.0),
    ] = None,
    models: Models = None,
    until_stdin_ends: Annotated[
        bool, typer.Option("--until-stdin-ends", hidden=True, help="end with who started it")
    ] = False,
) -> None:
    """Show a laboratory in the browser: a running one, a dead one or a finished one. It only reads.

    The page listens on this machine alone. For others, give --host and --token, and put TLS before it.
    """
    from raylab.live.guard import checked_token

    token = checked_token(host, token)
    store = open_store(storage)
    with _bound(host, port) as listening:
        number = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        print(f"watching {store.uri} at http://{shown}:{number}/", flush=True)
        if token is not None:
            print("open it once with ?token=TOKEN", flush=True)
        if until_stdin_ends:
            threading.Thread(target=_end_with_stdin, daemon=True).start()
        _serve(store, host, token, gpu_hour_rate, models, listening)


def follow(address: str, token: str | None) -> None:
    """Print a line whenever a laboratory has changed, until its driver has ended.

    Raises:
        ConfigError: no page there, or another token.
    """
    from raylab.live.client import line_of, states

    shown = None
    for state in states(address, token):
        line = line_of(state)
        if line != shown:
            print(line, flush=True)
        shown = line
        if state["driver"]["state"] in ("ended", "failed", "unknown"):
            return


def _serve(
    store: Store,
    host: str,
    token: str | None,
    hour_price: float | None,
    models_dir: str | None,
    listening: socket.socket,
) -> None:
    from aiohttp import web

    from raylab.live.server import application

    app = application(store, host, token, hour_price, models_dir)
    web.run_app(app, sock=listening, print=None, access_log=None, shutdown_timeout=1.0)


def _end_with_stdin() -> None:
    """The process that started this one has ended, however it did."""
    sys.stdin.buffer.read()
    os._exit(0)  # it only reads: nothing is to be put in order


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address or the port cannot be had.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port {port}: it must be 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise ConfigError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return listening


@contextlib.contextmanager
def beside(storage: str, hour_price: float | None = None) -> Iterator[None]:
    """The page of a storage in a process of its own, of low priority, while the block runs; its address is printed.

    Args:
        hour_price: of one device, where the page is to say a price.

    Raises:
        ConfigError: no port is free.
    """
    port = _free_port()
    command = [sys.executable, "-m", "raylab.cli.main", "watch", "--storage", storage]
    if hour_price is not None:
        command += ["--gpu-hour-rate", str(hour_price)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--until-stdin-ends"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.nice(_NICENESS) and None,
    )
    print(f"watch it at http://127.0.0.1:{port}/", flush=True)
    try:
        yield
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        if process.poll() is None:
            process.kill()
            process.wait()
        print(f"watch it again with: raylab watch --storage {storage}", flush=True)


def _free_port() -> int:
    for port in range(PORT, PORT + _TRIED_PORTS):
        with contextlib.suppress(ConfigError), _bound("127.0.0.1", port):
            return port
    raise ConfigError(f"--watch: no port from {PORT} to {PORT + _TRIED_PORTS - 1} is free")
