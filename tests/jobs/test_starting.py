"""What keeps Ray from starting is one line at once; what a submitted job sets itself is left to it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from raylab.experiment.config import ConfigError
from raylab.jobs.starting import check_address
from raylab.storage.store import Store
from raylab.storage.writable import check_writable

ASK = "import sys\nfrom raylab.jobs.starting import check_address\ncheck_address(sys.argv[1])"
TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    others = {name: value for name, value in os.environ.items() if name not in TOKEN}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=others | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_cluster_that_answers_is_taken(ray_cluster):
    check_address(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token, and RAY_AUTH_MODE=token is not set"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}, "refuses the token that is set"),
        ({"RAY_AUTH_MODE": "token", "HOME": "/nowhere"}, "wants a token, and none is set"),
    ],
)
def test_a_cluster_that_wants_a_token_says_so(ray_cluster, environment, words):
    """Ray's own client told of twenty tries, and that nobody answers."""
    done = python(ASK, ray.get_runtime_context().gcs_address, **environment)
    (line,) = [line for line in done.stderr.splitlines() if "ClusterError" in line]
    assert words in line
    assert "RAY_AUTH_TOKEN_PATH" in line
    assert "gcs_client" not in done.stderr


def test_a_port_of_something_else_is_told_at_once():
    """Of the dashboard's port Ray's client said nothing for a quarter of an hour."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = "import socket, sys, threading, time\nimport raylab.jobs.starting as s\ns._ANSWER_S = 2.0\n"
        answer += "s.check_address(sys.argv[1])"
        done = python(answer, f"127.0.0.1:{port}", RAY_AUTH_MODE="disabled")
    assert f"no cluster answers at RAY_ADDRESS=127.0.0.1:{port} (something else" in done.stderr
    assert "not the dashboard's" in done.stderr


CONNECT = """
import os, ray
from raylab.experiment.execution import Execution
from raylab.jobs.cluster import connect
with connect(Execution()):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONPATH")
    print(ray.get(ray.remote(lambda: [os.environ.get(n) for n in names]).remote()))
"""


def test_variables_of_a_jobs_runtime_env_are_the_users(ray_cluster):
    """Ray refuses a name that the job and the driver set both."""
    config = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "3", "PYTHONPATH": "/elsewhere"}}}
    root = str(Path(__file__).resolve().parents[2])
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(config), "OMP_NUM_THREADS": "3"}
    joined = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
    done = python(CONNECT, PYTHONPATH=root, **joined, **job)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["3", "1", root])


def test_a_storage_in_the_jobs_own_package_is_refused(tmp_path):
    package = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"storage lab: in a submitted job .*s3://BUCKET/lab"):
        check_writable(Store(str(package / "lab")))
    assert list(package.iterdir()) == []
