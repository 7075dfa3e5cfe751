"""The plan of a grid before anything runs: steps under the budget, lengths, hours, price, refusals."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from raylab.budget import CellPlan, Device
from raylab.config import ConfigError, Execution, Grid
from raylab.data.faults import CollectionError
from raylab.data.sources import open_collection
from raylab.jobs.command import run_experiment
from raylab.ladders import PICO, find_ladder
from raylab.plan import GridPlan, named_device, plan_grid, plan_rows
from raylab.pretraining import Rung

BUDGET = 1e10  # of the `ladder_file` fixture


@pytest.fixture(scope="module")
def grid(ladder_file, collection_folder) -> Grid:
    return Grid(find_ladder(str(ladder_file)), str(collection_folder))


@pytest.fixture(scope="module")
def source(collection_folder):
    return open_collection(str(collection_folder))


def with_tuning(grid: Grid, **changes) -> Grid:
    """The grid with changed hyper-parameters of all its cells."""
    recipe = grid.ladder.recipe
    tunings = {k: dataclasses.replace(t, **changes) for k, t in recipe.fine_tuning.items()}
    recipe = dataclasses.replace(recipe, fine_tuning=tunings)
    return dataclasses.replace(grid, ladder=dataclasses.replace(grid.ladder, recipe=recipe))


def test_every_cell_spends_its_budget_to_the_last_whole_step(grid, source):
    plan = plan_grid(grid, source, Execution())
    assert [c.cell for c in plan.cells] == [c.run_name for c in grid.cells()]
    for cell in plan.cells:
        assert cell.steps >= 1
        assert cell.flops == pytest.approx(cell.steps * cell.step_flops)
        assert cell.flops <= BUDGET < cell.flops + cell.step_flops
    assert set(plan.adaptation_flops) == {"tiny"}
    assert plan.flops == pytest.approx(
        sum(c.flops for c in plan.cells) + plan.adaptation_flops["tiny"]
    )


def test_sparse_pays_for_its_vocabulary_in_steps(grid, source):
    """One budget for all: what a head costs shows in the number of steps, and in nothing else."""
    same_texts = with_tuning(grid, passage_length=48)
    steps = {c.cell: c.steps for c in plan_grid(same_texts, source, Execution()).cells}
    for objective in ("cl", "kd", "cl+kd"):
        assert steps[f"sparse-tiny-{objective}-seed0"] < steps[f"dense-tiny-{objective}-seed0"]


def naive_padded_lengths(folder, model_folder, queries: int, passages: int) -> tuple[float, float]:
    """Mean longest (query, passage) of random batches of the training texts, by another tokenizer call."""
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))

    def count(text: str) -> int:
        return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(99)

    def longest(lengths: list[int], size: int) -> float:
        return float(np.mean([max(rng.choice(lengths, size)) for _ in range(400)]))

    return (
        longest([count(r["text"]) for r in asked], queries),
        longest([count(f"{r['title']} {r['text']}") for r in rows], passages),
    )


@pytest.mark.parametrize(
    ("objective", "kd_loss", "passages_a_query"),
    [("cl", "kl", 3), ("kd", "margin_mse", 2), ("kd", "kl", 3), ("cl+kd", "margin_mse", 3)],
)
def test_tokens_are_those_of_batches_padded_to_their_longest_text(
    grid, source, collection_folder, model_folder, objective, kd_loss, passages_a_query
):
    """8 queries, each with its positive and 2 negatives (MarginMSE: 1), none longer than the limits."""
    own = with_tuning(grid, query_length=1_000, passage_length=1_000, kd_loss=kd_loss)
    plan = plan_grid(dataclasses.replace(own, objectives=(objective,)), source, Execution())
    listed = 8 * passages_a_query
    query, passage = naive_padded_lengths(collection_folder, model_folder, 8, listed)
    for cell in plan.cells:
        # Both are means over random batches: 32 draws there, 400 here.
        assert cell.tokens / cell.steps == pytest.approx(8 * query + listed * passage, rel=0.02)


def test_kd_pads_to_the_longest_of_the_passages_it_reads(grid, source, tmp_path, collection_folder):
    """MarginMSE reads one negative whatever the recipe lists: its lengths must not be drawn for 16."""
    folder = tmp_path / "skewed"
    shutil.copytree(collection_folder, folder)
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    long = json.loads(lines[0])
    long["text"] = " ".join([long["text"]] * 5)  # one passage in 120 is five times as long
    (folder / "corpus.jsonl").write_text("\n".join([json.dumps(long), *lines[1:]]) + "\n")
    own = with_tuning(
        grid, negatives=64, query_length=1_000, passage_length=1_000, kd_loss="margin_mse"
    )
    kd = dataclasses.replace(own, objectives=("kd",), heads=("dense",))
    one = dataclasses.replace(kd, ladder=with_tuning(kd, negatives=1).ladder)
    skewed = open_collection(str(folder))
    planned, expected = (plan_grid(g, skewed, Execution()).cells[0] for g in (kd, one))
    assert planned.tokens / planned.steps == pytest.approx(expected.tokens / expected.steps)


def test_faulty_records_are_refused_or_passed_over_as_ingest_will(
    grid, collection_folder, tmp_path
):
    folder = shutil.copytree(collection_folder, tmp_path / "faulty")
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    (folder / "corpus.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]) + "\n")
    faulty = open_collection(str(folder))
    with pytest.raises(CollectionError, match=r"corpus\.jsonl:2: not JSON"):
        plan_grid(grid, faulty, Execution())
    lenient = dataclasses.replace(grid, on_fault="quarantine")
    whole = open_collection(str(collection_folder))
    assert plan_grid(lenient, faulty, Execution()) == plan_grid(grid, whole, Execution())
    with pytest.raises(ConfigError, match="on_fault = 'ignore': it must be error, quarantine"):
        dataclasses.replace(grid, on_fault="ignore")


def test_texts_are_cut_to_their_limits(grid, source):
    own = with_tuning(grid, query_length=3, passage_length=5)
    plan = plan_grid(dataclasses.replace(own, objectives=("cl",)), source, Execution())
    for cell in plan.cells:  # every text of the collection is longer
        assert cell.tokens / cell.steps == 8 * 3 + 8 * 3 * 5


def test_a_budget_below_one_step_is_refused_with_what_would_do(grid, source):
    with pytest.raises(ConfigError, match=r"budget 1e\+03 FLOPs is too small for sparse-tiny-cl"):
        plan_grid(dataclasses.replace(grid, budget_flops=1e3), source, Execution())
    cheapest = min(c.step_flops for c in plan_grid(grid, source, Execution()).cells)
    with pytest.raises(ConfigError, match=r"one step costs .* give --budget at least that"):
        plan_grid(dataclasses.replace(grid, budget_flops=cheapest * 0.99), source, Execution())


def test_batches_that_the_workers_cannot_share_are_refused(grid, source):
    with pytest.raises(ConfigError, match=r"--workers 3: fine_tuning.batch_queries = 8"):
        plan_grid(grid, source, Execution(workers=3))
    wide = with_tuning(grid, batch_queries=24)
    with pytest.raises(ConfigError, match=r"--workers 3: adaptation.batch_blocks = 4"):
        plan_grid(wide, source, Execution(workers=3))


def test_workers_change_memory_and_nothing_that_is_computed(grid, source):
    one, four = (plan_grid(grid, source, Execution(workers=w)) for w in (1, 4))
    for a, b in zip(one.cells, four.cells, strict=True):
        assert (a.cell, a.steps, a.tokens, a.flops) == (b.cell, b.steps, b.tokens, b.flops)
        assert b.memory_bytes < a.memory_bytes


def test_rows_hold_the_arithmetic_of_hours_and_price():
    """A device of 1e12 FLOP/s at half efficiency does 1.8e15 FLOPs an hour."""
    device = Device("d", 1e12, memory_bytes=2 * 2**30, efficiency=0.5)
    cells = (
        CellPlan("small", 1_234, 5.0e6, 1.0, 1.8e16, memory_bytes=2**30, parameters=1),
        CellPlan("large", 5, 1.0, 1.0, 3.6e15, memory_bytes=3 * 2**30, parameters=1),
    )
    rows = plan_rows(GridPlan(cells, {"1b": 9e14}), device, price_per_hour=2.5, workers=4)
    assert [r["cell"] for r in rows] == ["small", "large", "mntp-1b"]
    assert [r["steps"] for r in rows] == ["1,234", "5", ""]
    assert rows[0]["tokens"] == "5e+06"
    assert [r["memory a worker"] for r in rows] == ["1.00 GiB", "3.00 GiB (!)", ""]
    assert [float(r["device hours"]) for r in rows] == [10, 2, 0.5]
    assert [float(r["wall hours"]) for r in rows] == [2.5, 0.5, 0.125]
    assert [r["price"] for r in rows] == ["25.00", "5.00", "1.25"]


def test_an_unknown_device_names_those_there_are():
    with pytest.raises(ConfigError) as fault:
        named_device("tpu")
    message = str(fault.value)
    assert message.startswith("--device 'tpu': ")
    assert all(name in message for name in ("cpu-core", "a100-80gb", "h100", "h200"))
    assert named_device("a100-80gb").peak_flops == 312e12  # NVIDIA's data sheet, dense bf16


# --------------------------------------------------------------------------- llama3, offline


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory, model_folder):
    """Folders named and laid out like the paper's three models, each a Llama of a different tiny size."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    torch.manual_seed(0)
    for name, hidden in (("Llama-3.2-1B", 16), ("Llama-3.2-3B", 32), ("Meta-Llama-3-8B", 64)):
        rung = Rung(name, 1, hidden, 2, 2 * hidden)
        LlamaForCausalLM(rung.config(len(tokenizer))).save_pretrained(str(folder / name))
        tokenizer.save_pretrained(str(folder / name))
    return folder


def dry_run(collection, models, *more: str) -> int:
    grid = Grid(PICO, str(collection))
    options = ["--ladder", "llama3", "--models", str(models), "--dry-run", *more]
    return run_experiment("the paper's grid", grid, ["--collection", str(collection), *options])


def test_llama3_is_planned_from_local_folders(
    collection_folder, models_dir, tmp_path, monkeypatch, capsys
):
    """The paper's three models need no network when `--models` holds them, and a plan leaves nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert dry_run(collection_folder, models_dir, "--budget", "1e12", "--gpu-hour-rate", "3") == 0
    output = capsys.readouterr().out
    planned = [line for line in output.splitlines() if "-seed0" in line]
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
    assert "a100-80gb" in output
    assert "3.0 an hour" in output
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_is_one_line(
    collection_folder, models_dir, tmp_path, monkeypatch, capsys
):
    """The libraries explain a missing hub model over several lines; the user gets one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    shutil.copytree(models_dir / "Llama-3.2-1B", tmp_path / "some" / "Llama-3.2-1B")
    assert dry_run(collection_folder, tmp_path / "some") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: size '3b': no model at 'meta-llama/Llama-3.2-3B'")
