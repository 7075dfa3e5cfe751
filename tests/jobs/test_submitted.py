"""A job whose input is bad ends once and for all; one that failed is left to be tried again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

WRAPPER = [sys.executable, "-m", "raylab.jobs.submitted", sys.executable, "-c"]


@pytest.mark.parametrize("status", [0, 1, 2, 7])
def test_outside_a_job_the_status_is_the_commands(status):
    code = f"import sys; print('said'); sys.exit({status})"
    done = subprocess.run([*WRAPPER, code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "said\n")


def test_a_signal_is_the_commands_to_answer():
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    code += "print('there', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([*WRAPPER, code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "there\n"
        for one in (process.pid, *psutil.Process(process.pid).children(recursive=True)):
            os.kill(getattr(one, "pid", one), signal.SIGTERM)  # as Ray does
        assert process.wait(30) == 143


@pytest.fixture
def job_server(tmp_path):
    """A cluster with a job server, and the environment of who submits to it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        port, dashboard = one.getsockname()[1], two.getsockname()[1]
    token, session = tmp_path / "token", f"/tmp/raylab-{port}"
    token.write_text("0123456789abcdef" * 2)
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run(
        [
            *ray, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
            f"--temp-dir={session}", "--object-store-memory=100000000", "--disable-usage-stats",
        ],
        env=environment, check=True, capture_output=True, timeout=180,
    )  # fmt: skip
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    yield ray, environment
    for process in psutil.process_iter(["cmdline"]):
        if any(session in word for word in process.info["cmdline"] or ()):
            process.kill()


ENDS = {2: "STOPPED", 1: "FAILED", 0: "SUCCEEDED"}
STATUS = "import sys; from ray.job_submission import JobSubmissionClient as Client\n"
STATUS += "print(Client().get_job_status(sys.argv[1]).value)"


@pytest.mark.slow
def test_bad_input_in_a_job_is_stopped_and_not_failed(job_server):
    """What KubeRay goes by: it starts a job that FAILED again, and no other."""
    ray, environment = job_server
    told = {"env": environment, "capture_output": True, "text": True, "timeout": 180}
    variables = json.dumps({"env_vars": {"PYTHONPATH": os.getcwd()}})
    ended = {}
    for status in ENDS:
        job = f"job-{status}"
        entrypoint = [*WRAPPER, f"import sys; print('told'); sys.exit({status})"]
        submit = [*ray, "job", "submit", "--no-wait", "--submission-id", job]
        submit += ["--runtime-env-json", variables, "--", *entrypoint]
        for _ in range(30):  # the server answers before it can take a job
            said = subprocess.run(submit, **told)
            if said.returncode == 0:
                break
            time.sleep(2)
        assert said.returncode == 0, said.stderr[-2000:]
        # As the operator's submitter waits.
        followed = subprocess.run([*ray, "job", "logs", "--follow", job], **told)
        assert "told" in followed.stdout
        for _ in range(30):
            said = subprocess.run([sys.executable, "-c", STATUS, job], **told)
            if said.stdout.strip() in ("STOPPED", "FAILED", "SUCCEEDED"):
                break
            time.sleep(1)
        ended[status] = said.stdout.strip()
        if ended[status] == "STOPPED":
            assert followed.returncode == 0  # else the submitter's own Job would fail
    assert ended == ENDS
