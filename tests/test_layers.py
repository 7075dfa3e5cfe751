"""The rooms of the package: who may import whom, who may import Ray, and how large a file may grow."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A room may import from rooms before it in this list, and from itself.
ROOMS = (
    "experiment",
    "storage",
    "data",
    "index",
    "models",
    "planning",
    "evaluation",
    "scaling",
    "report",
    "live",
    "training",
    "stages",
    "jobs",
    "pipeline",
    "cli",
)
# Of rooms that stand side by side, neither imports the other.
APART = {
    ("evaluation", "index"),
    ("evaluation", "models"),
    ("evaluation", "planning"),
    ("scaling", "index"),
    ("scaling", "models"),
    ("training", "evaluation"),
    ("training", "scaling"),
    ("training", "report"),
    ("training", "live"),
    ("stages", "live"),
    ("training", "index"),
    ("stages", "report"),
    ("stages", "scaling"),
    ("jobs", "report"),
    ("jobs", "scaling"),
}
SOURCES = sorted((ROOT / "raylab").rglob("*.py"))
MOST_LINES, MEDIAN_LINES = 400, 150


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


@cache
def imports(path: Path) -> frozenset[str]:
    """Names of modules; of `from package import module` the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return frozenset(found)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "raylab" and len(parts) > 1 else None


def by_path(function):
    return pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))(
        function
    )


def test_nothing_stands_loose():
    loose = {path.name for path in (ROOT / "raylab").iterdir() if path.is_file()}
    assert loose == {"__init__.py", "py.typed"}
    rooms = {path.name for path in (ROOT / "raylab").iterdir() if path.is_dir()}
    assert rooms - {"__pycache__", "assets"} == set(ROOMS)


@by_path
def test_only_jobs_import_ray(path):
    if room_of(module_of(path)) != "jobs":
        rays = {name for name in imports(path) if name.split(".")[0] == "ray"}
        assert not rays, f"{path.relative_to(ROOT)} imports {rays}; only raylab/jobs may"


@by_path
def test_rooms_import_only_from_rooms_before_them(path):
    module = module_of(path)
    room = room_of(module)
    if room is None:
        return
    for imported in imports(path):
        other = room_of(imported)
        if other is not None:
            assert ROOMS.index(other) <= ROOMS.index(room), f"{module} imports {imported}"
            assert (room, other) not in APART, f"{module} imports {imported}"


def test_no_module_imports_itself_through_others():
    graph = {name: imports(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_files_are_short():
    beside = [
        path
        for room in ("tests", "experiments", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ]
    lines = {path: len(path.read_text().splitlines()) for path in [*SOURCES, *beside]}
    long = {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > MOST_LINES}
    assert not long
    assert median(lines[path] for path in SOURCES) <= MEDIAN_LINES
