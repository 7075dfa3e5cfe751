"""Recipe files: what was tuned cell by cell, written and read again."""

import pytest

from raylab.experiment.changes import changed_recipe
from raylab.experiment.config import ConfigError
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO
from raylab.experiment.recipe_file import TunedCell, recipe_text
from raylab.experiment.recipes import find_recipe, pico_recipe

CELLS = (
    TunedCell("pico-1x96", "dense", "cl", {"learning_rate": 1.25e-5}, "measured so"),
    TunedCell("pico-1x96", "sparse", "kd", {"learning_rate": 0.25, "batch_queries": 7}),
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(recipe_text("pico", CELLS, "made by a test\nof two lines"))
    return path


def cells_of(path):
    import dataclasses

    ladder = dataclasses.replace(PICO, recipe=find_recipe(str(path)))
    return {
        cell.name: cell for cell in Grid(ladder, "c", sizes=("pico-1x96", "pico-1x192")).cells()
    }


def test_tuned_cells_take_their_own_values_and_all_others_the_recipes(file):
    cells = cells_of(file)
    plain = {c.name: c for c in Grid(PICO, "c", sizes=("pico-1x96", "pico-1x192")).cells()}
    assert cells["dense-pico-1x96-cl"].fine_tuning.learning_rate == 1.25e-5
    assert cells["sparse-pico-1x96-kd"].fine_tuning.learning_rate == 0.25
    assert cells["sparse-pico-1x96-kd"].fine_tuning.batch_queries == 7
    tuned = {"dense-pico-1x96-cl", "sparse-pico-1x96-kd"}
    for name, cell in cells.items():
        assert cell.tuning_origin == ("tuned" if name in tuned else "transferred")
        if name not in tuned:
            assert cell.fine_tuning == plain[name].fine_tuning
        assert plain[name].tuning_origin is None


def test_where_a_recipe_comes_from_is_no_part_of_what_is_computed(file):
    from raylab.experiment.config import identity

    cells = Grid(PICO, "c", sizes=("pico-1x192",)).cells()
    plain = next(cell for cell in cells if cell.name == "dense-pico-1x192-cl")
    assert identity(cells_of(file)["dense-pico-1x192-cl"]) == identity(plain)


def test_a_setting_holds_for_tuned_cells_too(file):
    recipe = changed_recipe(find_recipe(str(file)), {"fine_tuning": {"learning_rate": 3.0}})
    assert recipe.by_cell["pico-1x96", "dense", "cl"] == {}
    assert recipe.by_cell["pico-1x96", "sparse", "kd"] == {"batch_queries": 7}
    assert (("pico-1x96", "dense", "cl")) in recipe.by_cell


def test_comments_tell_how_it_was_made(file):
    text = file.read_text()
    assert "# made by a test\n# of two lines\n" in text
    assert "# measured so\n" in text


def test_names_are_recipes_too():
    assert find_recipe("pico") == pico_recipe()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("recipe = 'none such'", "recipe"),
        ("", "recipe"),
        ("recipe = 'pico'\ncells = 1", "cells"),
        ("recipe = 'pico'\ncell = 1", "cell"),
        ("recipe = 'pico'\n[[cell]]\nsize = 'a'\nhead = 'dense'", "objective"),
        (
            "recipe = 'pico'\n[[cell]]\nsize = 'a'\nhead = 'dense'\nobjective = 'cl'\nrate = 1",
            "rate",
        ),
        (
            "recipe = 'pico'\n[[cell]]\nsize = 'a'\nhead = 'dense'\nobjective = 'cl'\nlearning_rate = -1",
            "learning_rate",
        ),
        ("recipe = 'pico'\n[[cell]]\nsize = 'a'\nhead = 'last'\nobjective = 'cl'", "last"),
        ("recipe = ", "not TOML"),
    ],
)
def test_mistakes_are_named_with_their_file(tmp_path, text, named):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as error:
        find_recipe(str(path))
    assert str(path) in str(error.value)


def test_two_tables_of_a_cell_and_no_file_at_all(tmp_path):
    path = tmp_path / "twice.toml"
    cell = "[[cell]]\nsize = 'a'\nhead = 'dense'\nobjective = 'cl'\n"
    path.write_text("recipe = 'pico'\n" + 2 * cell)
    with pytest.raises(ConfigError, match="two"):
        find_recipe(str(path))
    with pytest.raises(ConfigError, match="or a TOML file"):
        find_recipe(str(tmp_path / "absent.toml"))


def test_what_toml_cannot_hold_is_refused():
    wrong = TunedCell("a", "dense", "cl", {"lora": object()})
    with pytest.raises(ConfigError, match="cannot be written"):
        recipe_text("pico", [wrong], "")
    with pytest.raises(ConfigError, match="rate"):
        recipe_text("pico", [TunedCell("a", "dense", "cl", {"rate": 1.0})], "")
