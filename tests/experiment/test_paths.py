"""Relative paths of a user become absolute where they are read: workers have folders of their own."""

import os
import zipfile
from dataclasses import replace

import pytest

from raylab.data.sources import open_collection
from raylab.experiment.config import Backbone, ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO, find_ladder
from raylab.experiment.paths import with_absolute_paths

LADDER = 'recipe = "pico"\nbudget_flops = 2e10\n[[size]]\nname = "a"\nsource = "{}"\n'


def test_models_teachers_and_folders_of_models(tmp_path, monkeypatch):
    for name in ("model", "teacher", "models"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    backbones = (Backbone("a", "model"), Backbone("b", "org/model"))
    ladder = replace(PICO, backbones=backbones, default=())
    grid, execution = with_absolute_paths(
        Grid(ladder, "scifact", teacher="teacher"), Execution(models_dir="models")
    )
    assert [b.source for b in grid.ladder.backbones] == [str(tmp_path / "model"), "org/model"]
    assert (grid.teacher, execution.models_dir) == (
        str(tmp_path / "teacher"),
        str(tmp_path / "models"),
    )


def test_collections_of_every_address(collection_folder, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for path in collection_folder.rglob("*"):
            archive.write(path, f"own/{path.relative_to(collection_folder)}")
    os.symlink(collection_folder, tmp_path / "coll")
    monkeypatch.chdir(tmp_path)
    for address in ("coll", "./coll/", "own.zip", "zip://own::own.zip"):
        files = open_collection(address).files
        assert files
        for file in files:
            assert os.path.isabs(file.rpartition("::")[2]), file


@pytest.mark.parametrize("source", ["model", "./model", "../beside/model"])
def test_a_ladders_sources_stand_beside_it(tmp_path, monkeypatch, source):
    beside = tmp_path / "beside"
    (beside / "model").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (beside / "mine.toml").write_text(LADDER.format(source))
    monkeypatch.chdir(tmp_path / "elsewhere")
    (backbone,) = find_ladder("../beside/mine.toml").backbones
    assert backbone.source == str(beside / "model")


@pytest.mark.parametrize("source", ["./gone", "../gone", "/gone/model", "~/gone", "a/b/c"])
def test_a_source_that_can_only_be_a_folder_must_be_there(tmp_path, source):
    (tmp_path / "mine.toml").write_text(LADDER.format(source))
    with pytest.raises(ConfigError, match=r"mine\.toml: size 'a': source = .*there is no folder"):
        find_ladder(str(tmp_path / "mine.toml"))
