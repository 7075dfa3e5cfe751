"""A job whose input is bad ends once and for all; one that failed is left to be tried again."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.jobs.job_server import job_server

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


ENDS = {2: "STOPPED", 1: "FAILED", 0: "SUCCEEDED"}


@pytest.mark.slow
def test_bad_input_in_a_job_is_stopped_and_not_failed(tmp_path):
    """What KubeRay goes by: it starts a job that FAILED again, and no other."""
    ended = {}
    with job_server(tmp_path) as server:
        for status in ENDS:
            job = f"job-{status}"
            server.submit(job, [*WRAPPER, f"import sys; print('told'); sys.exit({status})"])
            followed = server.ray(
                "job", "logs", "--follow", job
            )  # as the operator's submitter waits
            assert "told" in followed.stdout
            ended[status] = server.end(job)
            if ended[status] == "STOPPED":
                assert followed.returncode == 0  # else the submitter's own Job would fail
    assert ended == ENDS
