"""A cluster with a job server that asks for a token, as one is deployed, and what a user does with it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_STATUS = "import sys; from ray.job_submission import JobSubmissionClient as Client\n"
_STATUS += "print(Client().get_job_status(sys.argv[1]).value)"
_ENDED = ("STOPPED", "FAILED", "SUCCEEDED")


class JobServer:
    """The commands of who submits, with the environment that this takes."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment

    def ray(self, *arguments: str, timeout_s: float = 180) -> subprocess.CompletedProcess:
        """`ray ARGUMENTS`; what it says, and how it ends."""
        return self._run([*_RAY, *arguments], timeout_s)

    def submit(self, job: str, entrypoint: Sequence[str], **environment: str) -> None:
        """`ray job submit --no-wait`, once the server takes jobs."""
        variables = {"env_vars": {"PYTHONPATH": str(ROOT), **environment}}
        arguments = ["job", "submit", "--no-wait", "--submission-id", job]
        arguments += ["--runtime-env-json", json.dumps(variables), "--", *entrypoint]
        for _ in range(30):  # it answers before it can take one
            said = self.ray(*arguments)
            if said.returncode == 0:
                return
            time.sleep(2)
        raise AssertionError(said.stderr[-2000:])

    def status(self, job: str) -> str:
        """Of a job, now."""
        return self._run([sys.executable, "-c", _STATUS, job], 180).stdout.strip()

    def end(self, job: str, within_s: float = 60) -> str:
        """The status that a job ends with."""
        deadline = time.monotonic() + within_s
        while (status := self.status(job)) not in _ENDED and time.monotonic() < deadline:
            time.sleep(1)
        return status

    def _run(self, command: list[str], timeout_s: float) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )


@contextmanager
def job_server(folder: Path) -> Iterator[JobServer]:
    """One of two CPUs, while the block runs."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        port, dashboard = one.getsockname()[1], two.getsockname()[1]
    token, session = folder / "token", f"/tmp/raylab-{port}"
    token.write_text("0123456789abcdef" * 2)
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    subprocess.run(
        [
            *_RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
            f"--temp-dir={session}", "--object-store-memory=100000000", "--disable-usage-stats",
        ],
        env=environment, check=True, capture_output=True, timeout=180,
    )  # fmt: skip
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        yield JobServer(environment)
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if any(session in word for word in process.info["cmdline"] or ()):
                process.kill()
