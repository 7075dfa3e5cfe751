"""Paths that a user typed, as workers in other folders need them: absolute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raylab.experiment.config import ConfigError
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid


def absolute(source: str) -> str:
    """The absolute path of what is there; a hub id and the like as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def with_absolute_paths(grid: Grid, execution: Execution) -> tuple[Grid, Execution]:
    """Models, collections and teachers in folders by their absolute paths.

    Raises:
        ConfigError: the folder of models is not there.
    """
    if execution.models_dir is not None and not Path(execution.models_dir).expanduser().is_dir():
        raise ConfigError(f"--models {execution.models_dir}: there is no such folder")
    backbones = tuple(
        replace(backbone, source=absolute(backbone.source)) for backbone in grid.ladder.backbones
    )
    teacher, models_dir = grid.teacher, execution.models_dir
    grid = replace(
        grid,
        ladder=replace(grid.ladder, backbones=backbones),
        teacher=None if teacher is None else absolute(teacher),
        evaluation=tuple(map(absolute, grid.evaluation)),
    )
    models_dir = None if models_dir is None else absolute(models_dir)
    return grid, replace(execution, models_dir=models_dir)
