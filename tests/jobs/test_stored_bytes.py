"""What a plan says is stored is what finished runs have stored, stage by stage, with and without indexes."""

import shutil
import sys
from pathlib import Path

import pytest

from raylab.data.sources import open_collection
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO, find_ladder
from raylab.planning.plan import plan_grid
from raylab.planning.storage_bytes import StoragePlan
from raylab.storage.store import Store
from tests.jobs.commands import ROOT, run_here
from tests.jobs.conftest import CELLS

_FOLDERS = {"embedding-part": "embeddings"}  # the parts of an artifact of embeddings, and itself
_LARGE = (
    20_000  # bytes: below it the few words of the tiny collection are packed as no real text is
)
_MANIFEST = 1_500  # bytes of a manifest that may differ, an artifact


def stored(lab: Path) -> dict[str, tuple[int, int]]:
    """(bytes, artifacts) of every stage: what manifests name, and the manifests; no attempt that none names."""
    sizes: dict[str, tuple[int, int]] = {}
    for artifact in Store(str(lab)).artifacts():
        stage = artifact.manifest["stage"]
        stage = _FOLDERS.get(stage, stage)
        size, count = sizes.get(stage, (0, 0))
        own = artifact.size_bytes + (lab / artifact.path / "manifest.json").stat().st_size
        sizes[stage] = size + own, count + 1
    sizes["tables"] = (lab / "per_query.parquet").stat().st_size, 2
    return sizes


def agree(planned: dict[str, float], lab: Path, share: float) -> None:
    """Every stage within a share of what is there, and what its manifests may differ by."""
    measured = stored(lab)
    for stage, size in planned.items():
        actual, artifacts = measured.get(stage, (0, 0))
        assert abs(size - actual) <= share * actual + _MANIFEST * artifacts, (stage, size, actual)


def plan_of(grid: Grid, collection: str) -> StoragePlan:
    storage = plan_grid(grid, open_collection(collection), Execution()).storage
    assert storage is not None
    return storage


def test_a_tiny_grid(finished_grid, collection_folder, ladder_file, teacher_folder):
    """Mostly manifests and headers: the large stages count, checkpoints and representations."""
    grid = Grid(
        find_ladder(str(ladder_file)),
        str(collection_folder),
        cells_filter=",".join(CELLS),
        teacher=str(teacher_folder),
    )
    storage = plan_of(grid, str(collection_folder))
    planned = {stage.stage: stage.stored for stage in storage.stages}
    agree({s: size for s, size in planned.items() if size > _LARGE}, finished_grid.lab, 0.15)
    everything = sum(
        size for stage, (size, _) in stored(finished_grid.lab).items() if stage in planned
    )
    assert storage.stored == pytest.approx(everything, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--index", "--no-index"])
def test_a_grid_on_scifact(ray_cluster, tmp_path, option):
    """Two cells of the smallest pico size, trained for seconds: every stage within 10 %."""
    cells, size, budget = "dense-*-cl,sparse-*-kd", "pico-1x96", "1e10"
    lab = tmp_path / "lab"
    typed = f"--collection scifact --plain --sizes {size} --cells {cells} --budget {budget} --storage {lab} {option}"
    run_here([sys.executable, str(ROOT / "experiments" / "grid.py"), *typed.split()])
    grid = Grid(PICO, "scifact", sizes=(size,), cells_filter=cells, budget_flops=float(budget))
    storage = plan_of(grid, "scifact")
    whole = option == "--index"
    planned = {s.stage: s.stored if whole else s.without_index for s in storage.stages}
    agree(planned, lab, 0.10)
    shutil.rmtree(lab)
