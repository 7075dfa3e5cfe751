"""BEIR's 13 sets out of one folder: found by name, and what is missing is named before anything runs."""

import fsspec
import pytest

from raylab.cli.experiment import chosen
from raylab.cli.options import Options
from raylab.data.beir_sets import beir_sets, planned_beir_sets
from raylab.data.registry import BEIR_SETS, held_out_splits
from raylab.experiment.config import ConfigError
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO

GRID = Grid(PICO, "scifact")


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(BEIR_SETS):
        if number % 2:
            (tmp_path / f"{name}.zip").write_bytes(b"")
        else:
            (tmp_path / name).mkdir()
    return tmp_path


def test_sets_are_folders_or_archives(root):
    assert beir_sets(str(root)) == tuple(
        str(root / name) if number % 2 == 0 else str(root / f"{name}.zip")
        for number, name in enumerate(BEIR_SETS)
    )


def test_what_is_missing_is_named_unless_a_part_is_enough(root):
    for name in ("arguana", "nq"):
        (root / name).rmdir() if (root / name).exists() else (root / f"{name}.zip").unlink()
    with pytest.raises(ConfigError, match=r"2 of BEIR's 13 sets are missing.*: arguana, nq$"):
        beir_sets(str(root))
    assert len(beir_sets(str(root), partial=True)) == 11


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="13 of BEIR's 13 sets are missing"):
        beir_sets(str(tmp_path), partial=True)
    with pytest.raises(ConfigError, match="there is no such folder"):
        beir_sets(str(tmp_path / "none"))


def test_a_remote_root_holds_folders():
    fs = fsspec.filesystem("memory")
    for name in BEIR_SETS[1:]:
        fs.pipe_file(f"/beir-sets/{name}/corpus.jsonl", b"{}")
    with pytest.raises(ConfigError, match=r"1 of BEIR's 13 sets are missing.*: arguana$"):
        beir_sets("memory://beir-sets")
    expected = tuple(f"memory://beir-sets/{name}" for name in BEIR_SETS)
    assert beir_sets("memory://beir-sets", partial=True) == expected[1:]
    assert planned_beir_sets("memory://beir-sets") == expected
    with pytest.raises(ConfigError, match="there is no such folder"):
        beir_sets("memory://nothing")


def test_a_plan_does_without_the_sets(root, tmp_path):
    """It names them by where a run will find them; of those that are there the place is used."""
    (root / "arguana").rmdir()
    planned = Options(evaluate="beir", beir_root=str(root), dry_run=True)
    grid, _ = chosen(planned, GRID)
    assert grid.evaluation == (str(root / "arguana"), *beir_sets(str(root), partial=True))
    assert chosen(Options(evaluate="beir", dry_run=True), GRID)[0].evaluation == BEIR_SETS
    nowhere = Options(evaluate="beir", beir_root="/nowhere", dry_run=True)
    assert chosen(nowhere, GRID)[0].evaluation == tuple(f"/nowhere/{name}" for name in BEIR_SETS)
    some = Options(evaluate="beir", beir_root=str(root), partial=True, dry_run=True)
    assert chosen(some, GRID)[0].evaluation == beir_sets(str(root), partial=True)


def test_the_option_names_all_sets_and_others(root, tmp_path):
    (tmp_path / "own").mkdir()
    options = Options(evaluate=f"{tmp_path / 'own'},beir", beir_root=str(root))
    grid, _ = chosen(options, GRID)
    assert grid.evaluation == (str(tmp_path / "own"), *beir_sets(str(root)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"evaluate": "beir"}, "--evaluate beir: it needs --beir-root"),
        (
            {"evaluate": "beir", "beir_root": "/nowhere"},
            "--beir-root /nowhere: there is no such folder",
        ),
        ({"beir_root": "/nowhere"}, "--beir-root and --partial: they need --evaluate beir"),
        ({"partial": True}, "--beir-root and --partial: they need --evaluate beir"),
    ],
)
def test_options_that_lack_another_are_refused(options, words):
    with pytest.raises(ConfigError) as fault:
        chosen(Options(**options), GRID)
    assert str(fault.value).startswith(words)


@pytest.mark.parametrize(
    ("collection", "splits", "measured"),
    [
        ("scifact", ["train", "valid", "test"], ("test",)),
        ("fever", ["train", "dev", "test"], ("test",)),
        ("msmarco", ["train", "dev", "dl19", "dl20"], ("dev", "dl19", "dl20")),
        ("own", ["train", "dev"], ("dev",)),
    ],
)
def test_what_was_trained_elsewhere_is_measured_on_tests(collection, splits, measured):
    assert held_out_splits(collection, splits) == measured
