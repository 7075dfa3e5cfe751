"""Every command of a grid that a YAML or a page shows is given to the real program, which plans it."""

import importlib.util
import io
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from ray.scripts.scripts import cli as ray_cli

from raylab.cli.experiment import run_experiment
from raylab.cli.main import app
from tests.cluster.files import CLUSTER, KUBERAY, ROOT, documents, raylab_commands
from tests.docs.test_docs import OWN_OPTIONS

pytestmark = pytest.mark.long

HISTORY = ROOT / "docs" / "log.md"  # its commands are those of its days
PAGES = [
    ROOT / "README.md",
    ROOT / "cluster" / "README.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if page != HISTORY and "report" not in page.parts
    ),
]
# Files that a page tells to write, or that a package brings which is not installed here.
ABSENT = ("FILE.py", "my/experiment.py", "mine.toml", "smollm2")


def entrypoints() -> list[str]:
    """Of the job as it stands, and as the names put it."""
    (job,) = documents(KUBERAY / "rayjob" / "rayjob.yaml")
    (names,) = documents(KUBERAY / "names" / "kustomization.yaml")
    patches = [line for patch in names["patches"] for line in patch["patch"].split("- op: ")]
    (patch,) = [part for part in patches if "/spec/entrypoint" in part]
    named = " ".join(patch.partition(">-")[2].split())
    return [job["spec"]["entrypoint"], named]


def fenced(page: Path) -> str:
    """The lines of a page's blocks, and its short commands in a line of text."""
    text = page.read_text()
    parts = text.split("```")
    short = [code for part in parts[::2] for code in part.split("`")[1::2]]
    return "\n".join([*parts[1::2], *short])


def grids() -> dict[str, list[str]]:
    """Commands that run or plan a grid, by how they are typed."""
    slurm = (CLUSTER / "slurm.sbatch").read_text()
    found = [command for text in [*entrypoints(), slurm] for command in raylab_commands(text)]
    for page in PAGES:
        found += raylab_commands(fenced(page))
    found = [words for words in found if words[1:2] in (["run"], ["plan"]) or words[0] != "raylab"]
    found = [words for words in found if words[0] not in OWN_OPTIONS]  # tests/docs parses them
    return {shlex.join(words): words for words in found if not set(words) & set(ABSENT)}


GRIDS = grids()
NEEDS_TEACHER = "a run needs --teacher"


def test_the_names_repeat_the_jobs_entrypoint():
    first, named = entrypoints()
    assert named == " ".join(first.split())


def test_commands_are_found():
    typed = " ".join(GRIDS)
    assert len(GRIDS) > 25
    assert "/data/msmarco" in typed
    assert "$SHARED/msmarco" in typed
    assert "experiments/grid.py" in typed
    assert "raylab plan" in typed


@pytest.fixture(scope="module")
def places(tmp_path_factory, collection_folder) -> Path:
    """Small collections, and teacher scores of their queries, under the names that pages use."""
    home = tmp_path_factory.mktemp("places")
    for name in ("msmarco", "own", "nfcorpus"):
        shutil.copytree(collection_folder, home / name)
    rows = [(f"q{n:03d}", f"p{p:03d}", float(p == n)) for n in range(60) for p in (n, n + 1, n + 2)]
    scores = pd.DataFrame(rows, columns=["query_id", "passage_id", "score"])
    scores.to_parquet(home / "scores.parquet")
    return home


def with_places(words: list[str], home: Path, lab: Path) -> list[str]:
    """A command's words with what is here in the place of what it names."""
    swaps = {
        "s3://BUCKET/lab": str(lab),
        "gs://BUCKET/lab": str(lab),
        "/data/teacher-scores.parquet": str(home / "scores.parquet"),
        "/scratch/teacher-scores.parquet": str(home / "scores.parquet"),
        "$SHARED/teacher-scores.parquet": str(home / "scores.parquet"),
        "$SHARED/msmarco": "msmarco",
        "$SHARED/lab": str(lab),
        "$SHARED/models": str(home),
        "SCORES": str(home / "scores.parquet"),
        "s3://BUCKET/beir": str(home),
        "s3://BUCKET/msmarco": "msmarco",
        "gs://BUCKET/msmarco": "msmarco",
        "/data/msmarco": "msmarco",
    }
    done = [swaps.get(word, word) for word in words]
    return [
        ",".join(part.replace("DIR", str(home), 1) for part in word.split(",")) for word in done
    ]


def planned(words: list[str]) -> tuple[int, str]:
    """Status and output of a command that only plans."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            if words[0] == "raylab":
                app([*words[1:], *(["--dry-run"] if words[1] == "run" else [])], prog_name="raylab")
            else:
                status = _experiment(words)
                return status, output.getvalue()
        except SystemExit as end:
            return end.code or 0, output.getvalue()
    return 0, output.getvalue()


def _experiment(words: list[str]) -> int:
    path = ROOT / words[0]
    spec = importlib.util.spec_from_file_location(f"shown_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "argv", words):
        spec.loader.exec_module(module)
        execution = getattr(module, "EXECUTION", None)
        return run_experiment(module.__doc__, module.GRID, [*words[1:], "--dry-run"], execution)


@pytest.mark.parametrize("typed", GRIDS)
def test_a_command_that_is_shown_is_planned(typed, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = with_places(GRIDS[typed], places, tmp_path / "lab")
    if words[0] == "raylab" and len(words) > 2 and words[2].startswith("experiments/"):
        words[2] = str(ROOT / words[2])
    status, output = planned(words)
    if "pip install" in output or "ir_datasets" in output:
        pytest.skip(f"NOT planned here: {output.strip().splitlines()[-1]}")
    assert status == 0, output[-2000:]
    assert "FLOPs" in output
    if words[:2] != ["raylab", "plan"]:
        assert NEEDS_TEACHER not in output
    assert not (tmp_path / "lab").exists()


def test_a_job_that_cannot_run_would_be_found(places, tmp_path):
    """The job that was shipped before: its cells distil, and nobody scores."""
    words = shlex.split("raylab run --plain --ladder llama3 --collection msmarco --storage lab")
    status, output = planned(words)
    assert status == 0
    assert NEEDS_TEACHER in output


def ray_commands() -> dict[str, list[str]]:
    """`ray ...` as pages show it, by how it is typed."""
    found = {}
    for page in PAGES:
        for line in fenced(page).replace("\\\n", " ").splitlines():
            words = (
                shlex.split(line, comments=True)
                if " ray " in f" {line}" and "`" not in line
                else []
            )
            while words and "=" in words[0] and words[0].split("=")[0].isupper():
                words.pop(0)
            if words[:1] == ["ray"]:
                found[line.strip()] = words[1:]
    return found


RAY = ray_commands()


@pytest.mark.parametrize("typed", RAY)
def test_ray_knows_its_commands_that_are_shown(typed, tmp_path, monkeypatch):
    group, words = ray_cli, list(RAY[typed])
    words = [word.replace("cluster/", f"{ROOT}/cluster/") for word in words]
    while hasattr(group, "commands"):
        assert words, typed
        name = words.pop(0)
        assert name in group.commands, f"there is no {name} in {typed}"
        group = group.commands[name]
    if words:  # else it is only named
        group.make_context(typed, words)


def test_commands_of_ray_are_found():
    assert any(words[:2] == ["job", "submit"] for words in RAY.values())
