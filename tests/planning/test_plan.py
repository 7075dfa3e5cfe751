"""The plan of a grid before anything runs: steps under the budget, lengths, hours, price, refusals."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from raylab.data.collections import is_validation, read_topics
from raylab.data.faults import CollectionError
from raylab.data.sources import open_collection
from raylab.data.supervision.length_groups import length_groups
from raylab.experiment.config import Adaptation, ConfigError, Lora
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.heads import DENSE, HEADS
from raylab.experiment.ladders import PICO, find_ladder
from raylab.experiment.objectives import CL, KD, OBJECTIVES
from raylab.planning.devices import Device
from raylab.planning.flops import Rows, Shape, encode_flops
from raylab.planning.memory import Load
from raylab.planning.memory_fit import USABLE
from raylab.planning.plan import (
    AdaptationPlan,
    CellPlan,
    EvaluationPlan,
    GridPlan,
    check_plan,
    named_device,
    plan_grid,
)
from raylab.planning.plan_table import plan_rows
from tests.planning.shapes import LLAMA_1B

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


def test_every_cell_spends_its_budget_to_the_nearest_step(grid, source):
    plan = plan_grid(grid, source, Execution())
    assert [c.cell for c in plan.cells] == [c.run_name for c in grid.cells()]
    for cell in plan.cells:
        assert cell.steps >= 1
        assert cell.flops == pytest.approx(cell.steps * cell.step_flops)
        assert abs(cell.flops - BUDGET) <= cell.step_flops / 2
    (mntp,) = plan.adaptations
    assert mntp.name == "tiny"
    evaluation = sum(e.encode_flops + e.search_flops for e in plan.evaluations)
    assert plan.flops == pytest.approx(sum(c.flops for c in plan.cells) + mntp.flops + evaluation)
    # A run's own check reads no more of the collection than a sample.
    assert plan_grid(grid, source, Execution(), evaluation=False) == dataclasses.replace(
        plan, evaluations=(), storage=None, node=None
    )


def test_epochs_are_steps_over_the_training_queries(grid, source, collection_folder):
    """Training queries are those of the train split that are not carved out for validation."""
    judged = (collection_folder / "qrels" / "train.tsv").read_text().splitlines()[1:]
    training = {q for q in (line.split()[0] for line in judged) if not is_validation(q)}
    plan = plan_grid(dataclasses.replace(grid, budget_flops=None, epochs=3), source, Execution())
    for own, cell in zip(plan.cells, grid.cells(), strict=True):
        tuning = cell.fine_tuning
        titles = round(tuning.batch_queries * tuning.pseudo_fraction)  # are no training queries
        assert own.steps == round(3 * len(training) / (tuning.batch_queries - titles))
        assert own.flops == pytest.approx(own.steps * own.step_flops)


def test_mntp_that_is_charged_is_part_of_a_cells_account(grid, source):
    """Each cell pays in full, and the grid does the work once."""
    recipe = grid.ladder.recipe
    recipe = dataclasses.replace(
        recipe, adaptation=dataclasses.replace(recipe.adaptation, steps=40)
    )
    grid = dataclasses.replace(grid, ladder=dataclasses.replace(grid.ladder, recipe=recipe))
    shared = plan_grid(grid, source, Execution(), evaluation=False)
    charged = plan_grid(
        dataclasses.replace(grid, adaptation_charge="charged"),
        source,
        Execution(),
        evaluation=False,
    )
    (mntp,) = [own.flops for own in shared.adaptations if own.name == "tiny"]
    for own, other in zip(charged.cells, shared.cells, strict=True):
        assert own.steps < other.steps
        assert own.flops == pytest.approx(own.steps * own.step_flops + mntp)
        assert abs(own.flops - BUDGET) <= own.step_flops / 2
    assert charged.flops == pytest.approx(sum(c.executed_flops for c in charged.cells) + mntp)


def test_encoding_and_search_are_those_of_the_whole_collection(
    grid, source, collection_folder, model_folder
):
    """Every cell, and the backbone untrained, encodes each passage and each query but the training ones."""
    plan = plan_grid(grid, source, Execution())
    passages = [
        f"{r['title']} {r['text']}"
        for r in map(json.loads, (collection_folder / "corpus.jsonl").read_text().splitlines())
    ]
    topics = read_topics(source)
    queries = [t for split, own in topics.items() if split != "train" for t in own.queries.values()]
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder)).backend_tokenizer
    encoding = grid.ladder.recipe.encoding
    shape = Shape.of(AutoConfig.from_pretrained(str(model_folder)))

    def lengths(texts: list[str], limit: int) -> list[int]:
        return [min(len(e.ids), limit) for e in tokenizer.encode_batch(texts, False)]

    assert [(e.name, e.systems) for e in plan.evaluations] == [
        ("sparse-tiny", 4),
        ("dense-tiny", 4),
    ]
    depths = {"sparse": encoding.top_k_query, "dense": shape.hidden}
    for own, (head, depth) in zip(plan.evaluations, depths.items(), strict=True):
        one_by_one = sum(
            encode_flops(shape, Rows(1, length), HEADS[head])
            for length in lengths(passages, encoding.passage_limit)
        )
        # Queries are a sample of the training ones here: of passages alone the sum is exact.
        ours = own.encode_flops / 4 - one_by_one
        asked = sum(
            encode_flops(shape, Rows(1, n), HEADS[head])
            for n in lengths(queries, encoding.query_limit)
        )
        assert ours == pytest.approx(asked, rel=0.25)
        assert own.search_flops == 4 * 2 * len(queries) * len(passages) * depth


def test_sparse_pays_for_its_vocabulary_in_steps(grid, source):
    """One budget for all: what a head costs shows in the number of steps, and in nothing else."""
    same_texts = with_tuning(grid, passage_length=48)
    steps = {c.cell: c.steps for c in plan_grid(same_texts, source, Execution()).cells}
    for objective in ("cl", "kd", "cl+kd"):
        assert steps[f"sparse-tiny-{objective}-seed0"] < steps[f"dense-tiny-{objective}-seed0"]


def text_lengths(folder, model_folder) -> tuple[list[int], list[int]]:
    """Tokens of every query and passage, by another tokenizer call."""
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))

    def count(text: str) -> int:
        return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    return [count(r["text"]) for r in asked], [count(f"{r['title']} {r['text']}") for r in rows]


def naive_lengths(folder, model_folder, *limits: int) -> list[float]:
    """Mean (query, passage) lengths, cut to their limits."""
    both = text_lengths(folder, model_folder)
    return [
        float(np.minimum(lengths, limit).mean())
        for lengths, limit in zip(both, limits, strict=True)
    ]


def naive_padded_tokens(folder, model_folder, queries: int, passages: int) -> float:
    """Mean tokens of random batches of the training texts, each group of them as wide as its longest."""
    rng = np.random.default_rng(99)
    both = text_lengths(folder, model_folder)
    tokens = 0
    for _ in range(400):
        drawn = np.concatenate([rng.choice(both[0], queries), rng.choice(both[1], passages)])
        groups = np.split(np.sort(drawn), length_groups(drawn, queries).ends_G[:-1])
        tokens += sum(len(group) * group.max() for group in groups)
    return tokens / 400


@pytest.mark.parametrize(
    ("objective", "kd_loss", "passages_a_query"),
    [("cl", "kl", 3), ("kd", "margin_mse", 2), ("kd", "kl", 3), ("cl+kd", "margin_mse", 3)],
)
def test_tokens_are_those_of_batches_padded_group_by_group(
    grid, source, collection_folder, model_folder, objective, kd_loss, passages_a_query
):
    """8 queries, each with its positive and 2 negatives (MarginMSE: 1), none longer than the limits."""
    own = with_tuning(grid, query_length=1_000, passage_length=1_000, kd_loss=kd_loss)
    plan = plan_grid(
        dataclasses.replace(own, objectives=(OBJECTIVES[objective],)), source, Execution()
    )
    listed = 8 * passages_a_query
    expected = naive_padded_tokens(collection_folder, model_folder, 8, listed)
    for cell in plan.cells:
        # Both are means over random batches: 32 draws there, 400 here.
        assert cell.tokens / cell.steps == pytest.approx(expected, rel=0.02)
        assert cell.real_tokens < cell.tokens


def test_real_tokens_are_the_texts_own(grid, source, collection_folder, model_folder):
    """Cut to their limits: mean length times texts, as 32 draws know it."""
    own = with_tuning(grid, query_length=6, passage_length=40)
    plan = plan_grid(dataclasses.replace(own, objectives=(CL,)), source, Execution())
    query, passage = naive_lengths(collection_folder, model_folder, 6, 40)
    for cell in plan.cells:
        assert cell.real_tokens / cell.steps == pytest.approx(8 * query + 24 * passage, rel=0.01)


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
    kd = dataclasses.replace(own, objectives=(KD,), heads=(DENSE,))
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
    plan = plan_grid(dataclasses.replace(own, objectives=(CL,)), source, Execution())
    for cell in plan.cells:  # every text of the collection is longer
        assert cell.real_tokens / cell.steps == 8 * 3 + 8 * 3 * 5
        assert (
            cell.tokens / cell.steps == 8 * 4 * 5
        )  # what a group for the queries saves is no pass worth


def test_a_budget_below_one_step_is_refused_with_what_would_do(grid, source):
    with pytest.raises(ConfigError, match=r"budget 1e\+03 FLOPs is too small for sparse-tiny-cl"):
        plan_grid(dataclasses.replace(grid, budget_flops=1e3), source, Execution())
    cheapest = min(c.step_flops for c in plan_grid(grid, source, Execution()).cells)
    with pytest.raises(ConfigError, match=r"one step costs .* the budget must be at least that"):
        plan_grid(dataclasses.replace(grid, budget_flops=cheapest * 0.49), source, Execution())


def test_batches_that_the_workers_cannot_share_are_refused(grid, source):
    with pytest.raises(ConfigError, match=r"workers 3: fine_tuning.batch_queries = 8"):
        plan_grid(grid, source, Execution(workers=3))
    wide = with_tuning(grid, batch_queries=24)
    with pytest.raises(ConfigError, match=r"workers 3: adaptation.batch_blocks = 4"):
        plan_grid(wide, source, Execution(workers=3))


def test_workers_change_memory_and_nothing_that_is_computed(grid, source):
    one, four = (plan_grid(grid, source, Execution(workers=w)) for w in (1, 4))
    for a, b in zip(one.cells, four.cells, strict=True):
        assert (a.cell, a.steps, a.tokens, a.flops) == (b.cell, b.steps, b.tokens, b.flops)
        assert b.memory_bytes < a.memory_bytes


def test_micro_batches_take_device_time_and_no_budget(grid, source):
    """One more forward pass is executed, and is no part of the account."""
    whole, parts = (
        plan_grid(grid, source, Execution(micro_batch_texts=m), evaluation=False).cells
        for m in (0, 4)
    )
    for a, b in zip(whole, parts, strict=True):
        assert (a.steps, a.flops, a.tokens) == (b.steps, b.flops, b.tokens)
        assert a.executed_flops == a.flops < b.executed_flops < 1.5 * b.flops
        assert b.memory_bytes <= a.memory_bytes


def load(texts: int, **changes) -> Load:
    return Load(LLAMA_1B, DENSE, Lora(), True, (Rows(texts, 128),), **changes)


def test_rows_hold_the_arithmetic_of_hours_and_price():
    """A device of 1e12 FLOP/s at half efficiency does 1.8e15 FLOPs an hour."""
    small, large = load(8), load(2_048)
    device = Device("d", 1e12, memory_bytes=small.memory().total * 1.5, efficiency=0.5)
    cells = (
        CellPlan("small", 1_234, 5.0e6, 4.0e6, 1.0, 1.8e16, 1.8e16, parameters=1, load=small),
        # Micro-batches: a third more is executed than is accounted for.
        CellPlan("large", 5, 1.0, 1.0, 1.0, 3.6e15, 4.8e15, parameters=1, load=large),
    )
    mntp = AdaptationPlan("1b", 100, 2e6, 9e14, small, (PICO.backbones[0], Adaptation()))
    evaluation = EvaluationPlan("dense-1b", 3, 1000, 7e6, 3.6e15, 1.8e12)
    plan = GridPlan(cells, (mntp,), (evaluation,))
    rows = plan_rows(plan, device, price_per_hour=2.5, workers=4, encoders=8)
    assert [r["cell"] for r in rows] == [
        "small",
        "large",
        "mntp-1b",
        "encode dense-1b x 3",
        "search dense-1b x 3",
    ]
    assert [r["steps"] for r in rows] == ["1,234", "5", "100", "", ""]
    assert (rows[0]["tokens"], rows[0]["real tokens"]) == ("5e+06", "4e+06")
    assert [r["FLOPs"] for r in rows] == ["1.8e+16", "3.6e+15", "9e+14", "3.6e+15", "1.8e+12"]
    assert rows[0]["memory a worker"] == f"{small.memory().total / 2**30:.2f} GiB"
    assert [float(r["device hours"]) for r in rows] == [10, 2.67, 0.5, 2, 0.001]
    assert [float(r["wall hours"]) for r in rows] == [2.5, 0.667, 0.125, 0.25, 0.000125]
    assert [r["price"] for r in rows] == ["25.00", "6.67", "1.25", "5.00", "0.00"]
    # Every row has every column, as a table needs it.
    assert len({tuple(r) for r in rows}) == 1


def test_rows_say_what_fits_and_what_would():
    small, large = load(8), load(2_048)
    device = Device("d", 1e12, memory_bytes=small.memory().total * 1.5)
    cells = [
        CellPlan(name, 1, 1.0, 1.0, 1.0, 1.0, 1.0, parameters=1, load=own)
        for name, own in (("small", small), ("large", large))
    ]
    fits = [r["fits"] for r in plan_rows(GridPlan(tuple(cells)), device, 1.0, 1)]
    assert fits[0] == "yes"
    texts = int(fits[1].removeprefix("no: --micro-batch "))
    limit = USABLE * device.memory_bytes
    assert load(2_048, micro_batch=texts).memory().total <= limit
    assert load(2_048, micro_batch=2 * texts).memory().total > limit
    # A step is planned in the precision that it computes in: in fp32 it takes more.
    wide = [dataclasses.replace(c, load=dataclasses.replace(c.load, weight_bytes=4)) for c in cells]
    rows = plan_rows(GridPlan(tuple(wide)), device, 1.0, 1)
    assert float(rows[0]["memory a worker"].split()[0]) > small.memory().total / 2**30 * 1.5


def test_an_unknown_device_names_those_there_are():
    with pytest.raises(ConfigError) as fault:
        named_device("tpu")
    message = str(fault.value)
    assert message.startswith("device 'tpu': ")
    assert all(name in message for name in ("cpu-core", "a100-80gb", "h100", "h200"))
    assert named_device("a100-80gb").peak_flops == 312e12  # NVIDIA's data sheet, dense bf16


def test_a_device_may_be_planned_at_another_efficiency():
    assert named_device("h100").efficiency == 0.4
    assert named_device("h100", 0.55).efficiency == 0.55
    for wrong in (0.0, -1.0, 1.01):
        with pytest.raises(ConfigError, match=r"efficiency = .*: it must be above 0 and at most 1"):
            named_device("h100", wrong)


# --------------------------------------------------------------------------- what does not fit


def test_a_grid_that_does_not_fit_is_refused_with_what_would(grid, source):
    """Before a run: cells and MNTP alike, by the device's memory."""
    plan = plan_grid(grid, source, Execution(), evaluation=False)
    check_plan(plan, 2**30)
    needed = min(own.memory_bytes for own in plan.cells)
    with pytest.raises(ConfigError, match=r"needs .* GiB a worker.*(--micro-batch|no micro-batch)"):
        check_plan(plan, needed * 0.9)
    mntp = dataclasses.replace(plan, cells=())
    with pytest.raises(ConfigError, match="mntp-tiny needs"):
        check_plan(mntp, 1_000.0)
