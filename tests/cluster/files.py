"""The files of cluster/, read as who uses them does."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
VARIANTS = ("rayjob", "raycluster", "kueue")


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def built(variant: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k cluster/kuberay/VARIANT` sends."""
    program = shutil.which("kubectl") or shutil.which("kustomize")
    if program is None:
        pytest.skip("neither kubectl nor kustomize is here: what they build was NOT checked")
    verb = "kustomize" if Path(program).name == "kubectl" else "build"
    done = subprocess.run(
        [program, verb, str(KUBERAY / variant)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (one,) = [document for document in found if document["kind"] == kind]
    return one


def raylab_commands(text: str) -> list[list[str]]:
    """The words after each `raylab` or `experiments/FILE.py` that a text of shell runs."""
    found = []
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if not re.search(r"(^|\s)(raylab|experiments/\w+\.py)\s", line):
            continue
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word == "raylab" or word.startswith("experiments/"):
                found.append(words[place:])
                break
    return found
