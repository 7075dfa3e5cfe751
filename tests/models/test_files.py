"""A model's files are looked at before any data are: what is not whole is one line that names the file."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raylab.cli.experiment import run_experiment
from raylab.data.sources import open_collection
from raylab.experiment.config import Backbone, ConfigError, Lora
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import find_ladder
from raylab.models.backbone import add_lora
from raylab.models.hub import load_base, save_weights, state_to_save
from raylab.models.opening import find_retriever
from raylab.models.teachers import check_teacher
from raylab.models.whole import check_model
from raylab.planning.plan import plan_grid

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4000000\n"
WEIGHTS = "model.safetensors"


@pytest.fixture
def copied(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def sharded(model_folder, tmp_path):
    """The tiny model in several files and an index."""
    folder = shutil.copytree(model_folder, tmp_path / "sharded")
    (folder / WEIGHTS).unlink()
    model = AutoModelForCausalLM.from_pretrained(str(model_folder))
    model.save_pretrained(str(folder), max_shard_size="30kB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def pointer(name):
    return lambda folder: (folder / name).write_text(POINTER)


def cut(name, left):
    def change(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:left])

    return change


def longer(folder):
    with open(folder / WEIGHTS, "ab") as file:
        file.write(b"more")


def config(**facts):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return change


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (pointer(WEIGHTS), WEIGHTS, "is a pointer of Git LFS .*git lfs pull"),
        (pointer("tokenizer.json"), "tokenizer.json", "is a pointer of Git LFS"),
        (pointer("config.json"), "config.json", "is a pointer of Git LFS"),
        (cut(WEIGHTS, -7), WEIGHTS, "bytes, and its header tells of .* again"),
        (cut(WEIGHTS, 300), WEIGHTS, "no safetensors file|header .* cannot be read"),
        (cut(WEIGHTS, 4), WEIGHTS, "no safetensors file"),
        (cut(WEIGHTS, 0), WEIGHTS, "no safetensors file"),
        (longer, WEIGHTS, "bytes, and its header tells of"),
        (cut("tokenizer.json", 100), "tokenizer.json", "is no JSON"),
        (config(vocab_size=390), WEIGHTS, "embeddings, and config.json says vocab_size = 390"),
    ],
)
def test_a_file_that_is_not_whole_is_named_by_the_plan(
    change, name, words, copied, ladder_file, collection_folder
):
    change(copied)
    ladder = ladder_file.parent / f"{copied.parent.name}.toml"
    lines = ladder_file.read_text().splitlines()
    own = [f'source = "{copied}"' if line.startswith("source") else line for line in lines]
    ladder.write_text("\n".join(own))
    grid = Grid(find_ladder(str(ladder)), str(collection_folder), cells_filter="dense-*-cl")
    with pytest.raises(ConfigError, match=words) as told:
        plan_grid(grid, open_collection(str(collection_folder)), Execution())
    assert str(told.value).startswith("size 'tiny': ")
    assert str(copied / name) in str(told.value) or "config.json" in str(told.value)
    assert "\n" not in str(told.value)


def test_the_command_ends_before_anything_is_written(
    copied, ladder_file, collection_folder, tmp_path, capsys
):
    pointer(WEIGHTS)(copied)
    ladder = tmp_path / "own.toml"
    lines = ladder_file.read_text().splitlines()
    own = [f'source = "{copied}"' if line.startswith("source") else line for line in lines]
    ladder.write_text("\n".join(own))
    grid = Grid(find_ladder(str(ladder)), str(collection_folder), cells_filter="dense-*-cl")
    lab = tmp_path / "lab"
    assert run_experiment("a grid", grid, ["--plain", "--storage", str(lab)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: size 'tiny': ")
    assert said.count("\n") == 1
    assert not lab.exists()


def test_a_whole_model_passes(copied, sharded, retriever_folders):
    for folder in (copied, sharded):
        check_model(folder, "size 'own'")
    for folder in retriever_folders.values():
        find_retriever(str(folder))


def test_a_random_start_needs_no_weights(copied):
    (copied / WEIGHTS).unlink()
    check_model(copied, "size 'own'", weights=False)
    with pytest.raises(ConfigError, match="holds no weights"):
        check_model(copied, "size 'own'")


def test_a_shard_that_is_missing_cut_or_another_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ConfigError, match=f"lacks {shard.name}, which"):
        check_model(sharded, "size 'own'")
    shard.write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match=f"{shard.name} has .* bytes"):
        check_model(sharded, "size 'own'")
    shard.write_bytes(whole)
    tensors = load_file(shard)
    dropped = next(iter(tensors))
    kept = {name: tensor for name, tensor in tensors.items() if name != dropped}
    save_file(kept, shard, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"{shard.name} lacks the tensor '{dropped}'"):
        check_model(sharded, "size 'own'")


@pytest.fixture
def adapter(model_folder, tmp_path):
    """A folder with an adapter alone."""
    model, _ = load_base(Backbone("own", str(model_folder)), None)
    adapted = add_lora(model, Lora(rank=2))
    save_weights(adapted, state_to_save(adapted), tmp_path / "adapter")
    return tmp_path / "adapter"


def with_base(folder, base):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_an_adapter_whose_base_is_not_there_is_told(adapter, copied, monkeypatch):
    with_base(adapter, str(copied))
    check_model(adapter, "size 'own'")
    pointer(WEIGHTS)(copied)
    with pytest.raises(ConfigError, match=r"base of its adapter: .* is a pointer of Git LFS"):
        check_model(adapter, "size 'own'")
    with_base(adapter, "/nowhere/base")
    with pytest.raises(ConfigError, match="names the base '/nowhere/base', and there is no such"):
        check_model(adapter, "size 'own'")
    monkeypatch.setattr("raylab.data.hub_fault.get_session", lambda: None)  # no hub is reached
    with_base(adapter, "acme/base-of-nobody")
    with pytest.raises(ConfigError, match="names the base 'acme/base-of-nobody': the hub cannot"):
        check_model(adapter, "size 'own'")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="lacks the adapter's weights"):
        check_model(adapter, "size 'own'")


def test_teachers_and_checkpoints_are_looked_at_too(teacher_folder, retriever_folders, tmp_path):
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    check_teacher(str(teacher))
    cut(WEIGHTS, -1)(teacher)
    with pytest.raises(ConfigError, match=r"teacher .*model.safetensors has .* bytes"):
        check_teacher(str(teacher))
    checkpoint = shutil.copytree(retriever_folders["dense"], tmp_path / "checkpoint")
    (weights,) = checkpoint.glob("*.safetensors")
    weights.write_text(POINTER)
    with pytest.raises(ConfigError, match=f"{weights.name} is a pointer of Git LFS"):
        find_retriever(str(checkpoint))


def test_a_folder_of_models_that_is_not_there_is_refused(tmp_path, capsys):
    grid = Grid(find_ladder("pico"), "scifact")
    lab = tmp_path / "lab"
    arguments = ["--plain", "--storage", str(lab), "--models", str(tmp_path / "none")]
    assert run_experiment("a grid", grid, arguments) == 2
    assert capsys.readouterr().err == (
        f"error: --models {tmp_path / 'none'}: there is no such folder\n"
    )
