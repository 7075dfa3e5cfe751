"""The command line of an experiment: what its file says is what runs, and options change what they name."""

import dataclasses

import pytest
from typer.testing import CliRunner

from raylab.cli.experiment import chosen, parse_seeds, read_experiment, run_experiment
from raylab.cli.main import app
from raylab.cli.options import EXECUTION_FIELDS, GRID_FIELDS, Options
from raylab.experiment.config import Backbone, ConfigError, Lora
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid, Ladder, Variant
from raylab.experiment.ladders import LLAMA3, PICO
from raylab.experiment.variants import ablation_variants, budget_variants

RECIPE = dataclasses.replace(
    PICO.recipe, encoding=dataclasses.replace(PICO.recipe.encoding, passage_length=77)
)
LADDER = Ladder("no-builtin-name", PICO.backbones, RECIPE, ("pico-1x96",))
GRID = Grid(LADDER, "scifact", seeds=(4, 5), sizes=("pico-1x192",), epochs=2.0, teacher="t")
EXECUTION = Execution(storage="there", workers=2, max_failures=9, use_gpu=True, no_index=True)


def tunings(grid: Grid):
    return grid.ladder.recipe.fine_tuning.values()


# ---------------------------------------------------------------------------- what a file says


def test_without_options_the_file_is_what_runs():
    """A ladder was once looked up by its name: a changed recipe was the stock one again."""
    assert chosen(Options(), GRID, EXECUTION) == (GRID, EXECUTION)


def test_options_change_what_they_name_and_no_more():
    options = Options(workers=3, gpu=False, storage="here", cells="sparse-*", top_k_query=9)
    grid, execution = chosen(options, GRID, EXECUTION)
    changes = {"workers": 3, "use_gpu": False, "storage": "here"}
    assert execution == dataclasses.replace(EXECUTION, **changes)
    encoding = dataclasses.replace(RECIPE.encoding, top_k_query=9)
    recipe = dataclasses.replace(RECIPE, encoding=encoding)
    ladder = dataclasses.replace(LADDER, recipe=recipe)
    assert grid == dataclasses.replace(GRID, ladder=ladder, cells_filter="sparse-*")


def test_every_option_names_fields_that_are_there():
    assert set(GRID_FIELDS.values()) <= {field.name for field in dataclasses.fields(Grid)}
    assert set(EXECUTION_FIELDS.values()) <= {field.name for field in dataclasses.fields(Execution)}
    options = {field.name for field in dataclasses.fields(Options)}
    assert {*GRID_FIELDS, *EXECUTION_FIELDS} <= options
    assert all(field.default is None for field in dataclasses.fields(Options))


def test_another_ladder_has_sizes_of_its_own():
    assert chosen(Options(ladder="llama3"), GRID)[0].sizes == ()
    assert chosen(Options(ladder="llama3", sizes="3b"), GRID)[0].sizes == ("3b",)
    assert chosen(Options(ladder="pico"), GRID)[0].sizes == GRID.sizes
    assert chosen(Options(ladder="pico"), GRID)[0].ladder == PICO


def test_a_budget_replaces_what_the_file_says():
    grid, _ = chosen(Options(budget="1e12"), GRID)
    assert (grid.budget_flops, grid.epochs) == (1e12, None)
    grid, _ = chosen(Options(budget="epochs"), dataclasses.replace(GRID, epochs=None))
    assert (grid.budget_flops, grid.epochs) == (None, "recipe")


def test_several_budgets_keep_the_stable_phase_of_the_file():
    variants = budget_variants((1e12, 2e12), {"learning_rate": 5e-4})
    grid, _ = chosen(Options(budgets="4e12,3e12"), dataclasses.replace(GRID, variants=variants))
    assert [variant.budget_flops for variant in grid.variants] == [3e12, 4e12]
    assert [variant.name for variant in grid.variants] == ["3e+12", "4e+12"]
    assert all(variant.fine_tuning == {"learning_rate": 5e-4} for variant in grid.variants)
    assert chosen(Options(budgets="3e12"), GRID)[0].variants == budget_variants((3e12,))


@pytest.mark.parametrize(
    ("options", "variants", "words"),
    [
        ({"budgets": "1e12"}, ablation_variants(), "budgets: the experiment has variants"),
        ({"budget": "1e12"}, budget_variants((1e11,)), "--budget 1e12: "),
        ({"budget": "1e12", "budgets": "1e12,2e12"}, (Variant(),), "--budget 1e12: "),
        (
            {"settings": ["fine_tuning.learning_rate=1"]},
            budget_variants((1e11,), {"learning_rate": 5e-4}),
            "--set fine_tuning.learning_rate=1: the experiment's variants (1e+11)",
        ),
    ],
)
def test_an_option_that_would_change_nothing_or_lose_something_is_refused(options, variants, words):
    with pytest.raises(ConfigError) as fault:
        chosen(Options(**options), dataclasses.replace(GRID, variants=variants))
    assert str(fault.value).startswith(words)


def test_models_and_teachers_in_folders_are_absolute(tmp_path, monkeypatch):
    """Workers have other folders than the command."""
    for name in ("model", "teacher", "hub"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    ladder = Ladder("mine", (Backbone("a", "model"), Backbone("b", "org/model")), RECIPE)
    options = Options(teacher="teacher", models="./hub")
    grid, execution = chosen(options, dataclasses.replace(GRID, ladder=ladder, sizes=()))
    assert [b.source for b in grid.ladder.backbones] == [str(tmp_path / "model"), "org/model"]
    assert grid.teacher == str(tmp_path / "teacher")
    assert execution.models_dir == str(tmp_path / "hub")


# --------------------------------------------------------------------------------------- --set


def test_set_changes_any_field_of_the_recipe():
    settings = [
        "fine_tuning.learning_rate=2e-4",
        "fine_tuning.lora.rank=8",
        "adaptation.steps=100",
        "adaptation.lora=none",
        "encoding.passage_length = 256",
        "encoding.precision=float32",
        "fine_tuning.schedule=wsd",
        'fine_tuning.lora.targets=["q_proj"]',
        "fine_tuning.warmup_steps=3",
        "fine_tuning.weight_decay=1",
    ]
    grid, _ = chosen(Options(settings=settings), GRID)
    recipe = grid.ladder.recipe
    for before, after in zip(tunings(GRID), tunings(grid), strict=True):
        assert after == dataclasses.replace(
            before,
            learning_rate=2e-4,
            lora=dataclasses.replace(before.lora or Lora(), rank=8, targets=("q_proj",)),
            schedule="wsd",
            warmup_steps=3,
            weight_decay=1.0,
        )
    assert (recipe.adaptation.steps, recipe.adaptation.lora) == (100, None)
    assert (recipe.encoding.passage_length, recipe.encoding.precision) == (256, "float32")


def test_set_empties_a_field_and_fills_it_again():
    settings = ["fine_tuning.lora=none", "fine_tuning.lora.rank=4", "fine_tuning.ramp_steps=none"]
    grid, _ = chosen(Options(settings=settings), GRID)
    assert {tuning.lora for tuning in tunings(grid)} == {Lora(rank=4)}
    assert {tuning.ramp_steps for tuning in tunings(grid)} == {None}
    full, _ = chosen(Options(settings=["fine_tuning.lora=false"]), GRID)
    assert {tuning.lora for tuning in tunings(full)} == {None}


def test_a_batch_that_is_set_holds_for_all_sizes():
    """The paper's batches by size would else come before it, in silence."""
    grid, _ = chosen(Options(settings=["fine_tuning.batch_queries=24"]), Grid(LLAMA3, "c"))
    assert {cell.fine_tuning.batch_queries for cell in grid.cells()} == {24}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("fine_tuning.learning_rate", "it must be PATH=VALUE"),
        ("=3", "it must be PATH=VALUE"),
        ("fine_tuning..x=3", "it must be PATH=VALUE"),
        ("finetuning.negatives=3", "unknown key 'finetuning' (did you mean 'fine_tuning'?)"),
        ("fine_tuning.learningrate=3", "did you mean 'learning_rate'?"),
        ("fine_tuning.lora.alfa=3", "fine_tuning.lora: unknown key 'alfa' (did you mean 'alpha'?)"),
        ("fine_tuning.negatives=many", "fine_tuning.negatives = 'many': it must be int"),
        ("fine_tuning.negatives=1.5", "fine_tuning.negatives = 1.5: it must be int"),
        ("fine_tuning.negatives=none", "fine_tuning.negatives = 'none': it must be int"),
        ("fine_tuning.negatives.x=1", "fine_tuning.negatives = {'x': 1}: it must be int"),
        ("fine_tuning.kd_loss=mse", "it must be 'margin_mse' or 'kl'"),
        ("fine_tuning.lora=3", "fine_tuning.lora = 3: it must be a table, or false for none"),
        ("fine_tuning=3", "fine_tuning = 3: it must be a table"),
        (
            "encoding.passage_length=0",
            "encoding.passage_length = 0: it must be at least 1, or none",
        ),
        ("fine_tuning.learning_rate=nan", "it must be positive"),
        ("budget_flops=1e12", "a budget is given by --budget"),
        ("adaptation.steps=1\nname=2", "adaptation.steps = '1\\nname=2': it must be int"),
    ],
)
def test_a_setting_that_cannot_be_names_itself_and_what_is_right(setting, words):
    with pytest.raises(ConfigError) as fault:
        chosen(Options(settings=[setting]), GRID)
    assert str(fault.value).startswith(f"--set {setting}: ")
    assert words in str(fault.value)


# -------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_budget": float("nan")}, "--total-budget nan: it must be a positive number"),
        ({"total_budget": -1.0}, "--total-budget -1.0: it must be a positive number"),
        ({"total_budget": 0.0}, "--total-budget 0.0: it must be a positive number"),
        ({"total_budget": float("inf")}, "--total-budget inf: it must be a positive number"),
        ({"devices": 0}, "--devices 0: it must be at least 1"),
        ({"gpu_hour_rate": -1.0}, "--gpu-hour-rate -1.0: it must be a number of 0 or more"),
        ({"efficiency": 0.0}, "--efficiency 0.0: it must be above 0 and at most 1"),
        ({"efficiency": 1.1}, "--efficiency 1.1: it must be above 0 and at most 1"),
        ({"efficiency": float("nan")}, "--efficiency nan: it must be above 0 and at most 1"),
        ({"workers": 0}, "--workers 0: it must be at least 1"),
        ({"zero": 4}, "--zero 4: it must be 0, 1, 2 or 3"),
        ({"micro_batch": -1}, "--micro-batch -1: it must be 0 or more"),
        ({"concurrent": -1}, "--concurrent -1: it must be 0 or more"),
        ({"encoders": -1}, "--encoders -1: it must be 0 or more"),
        ({"encoder_cpus": 0.0}, "--encoder-cpus 0.0: it must be a positive number"),
        ({"top_k_query": -1}, "--top-k-query -1: it must be 0 or more"),
        ({"top_k_passage": -1}, "--top-k-passage -1: it must be 0 or more"),
    ],
)
def test_a_number_that_cannot_be_is_named_by_its_option(options, message):
    with pytest.raises(ConfigError) as fault:
        Options(**options)
    assert str(fault.value) == message


def test_seeds():
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("0") == (0,)
    assert parse_seeds("5,7") == (5, 7)
    assert parse_seeds("5,") == (5,)


@pytest.mark.parametrize("text", ["-3,", "-3", "a", "", ",", "1,1", "1.5"])
def test_seeds_that_cannot_be(text):
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


# --------------------------------------------------------------------------- the ways to type it


EXPERIMENT = """
from beside import RECIPE
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid, Ladder
from raylab.experiment.ladders import PICO

GRID = Grid(Ladder("mine", PICO.backbones, RECIPE), "scifact")
EXECUTION = Execution(storage="mine-lab", workers=4)
"""
BESIDE = """
import dataclasses
from raylab.experiment.ladders import PICO
RECIPE = dataclasses.replace(PICO.recipe, budget_flops=3e11)
"""


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "beside.py").write_text(BESIDE)
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENT)
    return path


def test_a_file_gives_its_grid_and_its_execution(experiment):
    grid, execution = read_experiment(experiment)
    assert (grid.ladder.name, grid.ladder.recipe.budget_flops) == ("mine", 3e11)
    assert execution == Execution(storage="mine-lab", workers=4)
    grid, execution = read_experiment(None)
    assert (grid, execution) == (Grid(PICO, "scifact"), Execution())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "it must be a Python file that defines GRID"),
        ("GRD = 1", "GRID must be a raylab.experiment.grid.Grid"),
        ("GRID = 1", "GRID must be a raylab.experiment.grid.Grid"),
        (
            EXPERIMENT + "EXECUTION = {}",
            "EXECUTION must be a raylab.experiment.execution.Execution",
        ),
    ],
)
def test_a_file_that_is_no_experiment(experiment, text, words):
    experiment.unlink()
    if text is not None:
        experiment.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_experiment(experiment)


@pytest.fixture
def executed(monkeypatch):
    """What the commands hand over to be run or planned."""
    handed = []
    monkeypatch.setattr("raylab.cli.experiment.execute", lambda *given: handed.append(given))
    return handed


@pytest.mark.parametrize(("typed", "points"), [("off", 0), ("0", 0), ("30", 30)])
def test_validate_is_a_number_of_points_or_off(experiment, executed, typed, points):
    done = CliRunner().invoke(app, ["run", str(experiment), "--validate", typed])
    assert done.exit_code == 0, done.output
    (options,) = [one for one in executed[-1] if isinstance(one, Options)]
    assert chosen(options, GRID, EXECUTION)[1].validate == points


def test_run_plan_and_the_file_itself_have_the_same_options(executed, experiment):
    typed = ["--workers", "2", "--set", "adaptation.steps=3", "--set", "adaptation.lora=none"]
    typed += ["--no-index", "--mntp", "charged"]
    options = Options(
        workers=2,
        settings=["adaptation.steps=3", "adaptation.lora=none"],
        no_index=True,
        mntp="charged",
    )
    for arguments in (["run", *typed], ["run", str(experiment), *typed]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["plan", str(experiment), *typed])
    assert done.exit_code == 0, done.output
    assert run_experiment("mine", GRID, typed, EXECUTION) == 0
    default, named, planned, itself = executed
    assert default[:3] == (Grid(PICO, "scifact"), Execution(), options)
    assert named[:3] == (*read_experiment(experiment), options)
    assert planned[:3] == (*named[:2], dataclasses.replace(options, dry_run=True))
    assert itself[:3] == (GRID, EXECUTION, options)


def test_the_help_shows_what_the_file_says(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run_experiment("What it is about.", GRID, ["--help"], EXECUTION) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("What it is about.", "(no-builtin-name)", "(4,5)", "(there)", "(pico-1x192)"):
        assert words in text


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds=-3,"], "--seeds"),
        (["--total-budget", "nan"], "--total-budget nan"),
        (["--devices", "0"], "--devices 0"),
        (["--gpu-hour-rate", "-1"], "--gpu-hour-rate -1.0"),
        (["--efficiency", "0"], "--efficiency 0.0"),
        (["--device", "abacus"], "--device 'abacus'"),
        (["--ladder", "none.toml"], "--ladder 'none.toml'"),
        (["none.py"], "none.py: it must be a Python file"),
        (["--storage", "nokind://lab"], "--storage nokind://lab"),
        (["--teacher", "none.parquet"], "--teacher none.parquet: no such file"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(
    command, arguments, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [command, *arguments])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: {words}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_fewer_devices_than_workers_is_one_line(capsys):
    arguments = ["--dry-run", "--workers", "2", "--devices", "1"]
    assert run_experiment("mine", Grid(PICO, "scifact"), arguments) == 2
    assert "--devices 1: it must be at least the 2 workers" in capsys.readouterr().err
