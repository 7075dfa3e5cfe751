"""cluster/Dockerfile: linted, its parts there, and its pip step resolved."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.cluster.files import CLUSTER, ROOT

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_it_is_linted():
    program = shutil.which("hadolint") or shutil.which(
        "hadolint", path=str(Path(sys.executable).parent)
    )
    if program is None:
        pytest.skip("hadolint is not here: the Dockerfile was NOT linted")
    done = subprocess.run([program, str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_its_base_is_the_ray_and_the_python_of_the_package():
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    ray = next(one for one in PACKAGE["dependencies"] if one.startswith("ray["))
    assert base == f"rayproject/ray:{ray.partition('==')[2]}-py311-gpu"
    assert PACKAGE["requires-python"] == ">=3.11"
    assert f"raylab:{PACKAGE['version']}" in DOCKERFILE


def test_it_does_not_run_as_root():
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users[-1] == "1000"  # a number, which Kubernetes asks for
    assert all(
        "--chown=ray:users" in line for line in DOCKERFILE.splitlines() if line.startswith("COPY")
    )


def copied() -> list[str]:
    lines = [line.split() for line in DOCKERFILE.splitlines() if line.startswith("COPY")]
    return [word for line in lines for word in line[2:-1]]


def test_what_it_copies_is_there_and_is_sent():
    sent = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for name in copied():
        assert (ROOT / name).exists()
        assert name in sent
    assert set(sent) == set(copied())


def test_nothing_else_is_sent():
    """By Docker's rules: the last line that fits a path counts."""
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and line[0] != "#"
    ]
    for path in (
        ".git/config",
        ".venv/bin/python",
        "lab/results.parquet",
        "secrets.env",
        "tests/a.py",
    ):
        left_out = False
        for rule in rules:
            pattern = rule.removeprefix("!")
            if fnmatch.fnmatch(path, pattern) or path.startswith(pattern.rstrip("/") + "/"):
                left_out = not rule.startswith("!")
        assert left_out, path


def pip_step() -> str:
    (what,) = re.findall(r'pip install --no-cache-dir "(\.\[[\w,]+\])"', DOCKERFILE)
    return what


def test_its_extras_are_the_packages():
    extras = pip_step()[2:-1].split(",")
    assert set(extras) <= set(PACKAGE["optional-dependencies"])
    assert {"s3", "gcs"} <= set(extras)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1_800)
def test_its_pip_step_resolves_in_a_fresh_environment(tmp_path):
    """From what is sent to the builder alone."""
    context = tmp_path / "context"
    context.mkdir()
    for name in copied():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, context / name)
    venv.create(tmp_path / "venv", with_pip=True)
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "install", "--dry-run", "--quiet",
            "--report", str(report), pip_step(),
        ],
        cwd=context, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    chosen = {
        one["metadata"]["name"]: one["metadata"]["version"]
        for one in json.loads(report.read_text())["install"]
    }
    assert chosen["ray"] == "2.60.0"
    assert chosen["torch"].startswith("2.13.0")
    assert {"s3fs", "gcsfs", "raylab"} <= set(chosen)
    assert int(chosen["s3fs"].split(".")[0]) >= 2026  # not one of years ago
