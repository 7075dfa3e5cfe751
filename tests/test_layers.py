"""The rooms of the architecture: who may import whom (rules 1 and 2)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A room may import from rooms before it in this list, and from itself.
ROOMS = [
    "raylab.config",
    "raylab.grid",
    "raylab.artifacts",
    "raylab.budget",
    "raylab.memory",
    "raylab.memory_fit",
    "raylab.data",
    "raylab.energy",
    "raylab.losses",
    "raylab.distributed",
    "raylab.models",
    "raylab.engine",
    "raylab.training",
    "raylab.mntp",
    "raylab.fine_tuning",
    "raylab.pretraining",
    "raylab.encoding",
    "raylab.index",
    "raylab.evaluation",
    "raylab.results",
    "raylab.scaling",
    "raylab.export",
    "raylab.report",
    "raylab.ladders",
    "raylab.variants",
    "raylab.families",
    "raylab.plan",
    "raylab.plan_table",
    "raylab.contract",
    "raylab.scheduling",
    "raylab.durations",
    "raylab.jobs",
    "raylab.cli_data",
    "raylab.cli_evaluate",
    "raylab.cli_search",
    "raylab.cli_fit",
    "raylab.cli",
]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str | None:
    return next((r for r in ROOMS if module == r or module.startswith(f"{r}.")), None)


SOURCES = sorted((ROOT / "raylab").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_jobs_import_ray(path):
    if "jobs" in path.relative_to(ROOT).parts:
        return
    rays = {m for m in imports(path) if m == "ray" or m.startswith("ray.")}
    assert not rays, (
        f"{path.relative_to(ROOT)} imports {rays}; only raylab/jobs and experiments may"
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_from_rooms_above(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = room(module)
    if own is None:
        assert module == "raylab", f"{module} is in no room; add it to the list"
        return
    for imported in imports(path):
        other = room(imported)
        if other is not None:
            assert ROOMS.index(other) <= ROOMS.index(own), (
                f"{module} imports {imported}, a room below it"
            )
