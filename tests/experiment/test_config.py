"""The run as data: which cells a grid has, what is refused and how, what identifies a computation."""

import dataclasses
import itertools
import json

import pytest

from raylab.experiment.config import (
    Adaptation,
    Backbone,
    ConfigError,
    Encoding,
    FineTuning,
    Lora,
    identity,
)
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell, Grid, Ladder, Recipe, Variant
from raylab.experiment.heads import DENSE, SPARSE, Head, find_head
from raylab.experiment.ladders import PICO
from raylab.experiment.objectives import CL, KD, Objective, find_objective

BACKBONE = Backbone("1b", "somewhere/1b")


def recipe(**changes) -> Recipe:
    tunings = {
        (head, objective): FineTuning(temperature=0.01 if head == "dense" else 1.0)
        for head in ("sparse", "dense")
        for objective in ("cl", "kd", "cl+kd")
    }
    return Recipe(Adaptation(), tunings, Encoding(), 1e9, **changes)


def ladder(*names: str, default: tuple[str, ...] = (), **changes) -> Ladder:
    sizes = tuple(Backbone(name, f"somewhere/{name}") for name in names)
    return Ladder("mine", sizes, recipe(**changes), default)


def names(grid: Grid) -> list[str]:
    return [cell.name for cell in grid.cells()]


# ----------------------------------------------------------------------------------- the grid


def test_the_default_grid_is_the_papers_18_cells():
    grid = Grid(PICO, "scifact")
    expected = {
        f"{head}-{size}-{objective}"
        for head, size, objective in itertools.product(
            ("sparse", "dense"), PICO.default, ("cl", "kd", "cl+kd")
        )
    }
    assert len(grid.cells()) == 18
    assert set(names(grid)) == expected
    assert {cell.seed for cell in grid.cells()} == {0}
    assert len({cell.budget_flops for cell in grid.cells()}) == 1  # the same budget for all


@pytest.mark.parametrize(
    ("cells_filter", "expected"),
    [
        ("sparse-*-cl", {"sparse-1b-cl", "sparse-3b-cl"}),
        ("*-cl", {"sparse-1b-cl", "sparse-3b-cl", "dense-1b-cl", "dense-3b-cl"}),
        ("*-kd", {"sparse-1b-kd", "sparse-3b-kd", "dense-1b-kd", "dense-3b-kd"}),
        ("dense-1b-*", {"dense-1b-cl", "dense-1b-kd", "dense-1b-cl+kd"}),
        ("dense-1b-cl+kd", {"dense-1b-cl+kd"}),
        ("dense-1b-cl, sparse-3b-kd", {"dense-1b-cl", "sparse-3b-kd"}),
    ],
)
def test_filters_choose_whole_names(cells_filter, expected):
    """`*-cl` must not drag `cl+kd` or `kd` in: a CL grid needs no teacher."""
    chosen = names(Grid(ladder("1b", "3b"), "c", cells_filter=cells_filter))
    assert len(chosen) == len(expected)
    assert set(chosen) == expected


def test_a_filter_that_matches_nothing_names_what_exists():
    with pytest.raises(ConfigError) as fault:
        Grid(ladder("1b"), "c", cells_filter="sparse-*-mse").cells()
    message = str(fault.value)
    assert "cells_filter 'sparse-*-mse' matches none of" in message
    for head, objective in itertools.product(("sparse", "dense"), ("cl", "kd", "cl+kd")):
        assert f"{head}-1b-{objective}" in message


def test_an_unknown_size_names_the_ladder_and_its_sizes():
    with pytest.raises(ConfigError, match=r"unknown size '8b': ladder 'mine' has 1b, 3b$"):
        Grid(ladder("1b", "3b"), "c", sizes=("1b", "8b")).cells()


def test_sizes_come_in_ladder_order_and_the_ladder_chooses_by_default():
    own = ladder("1b", "3b", "8b", default=("3b", "1b"))
    assert [b.name for b in own.select()] == ["1b", "3b"]
    assert [b.name for b in own.select(("8b", "1b"))] == ["1b", "8b"]
    assert [b.name for b in ladder("1b", "3b").select()] == ["1b", "3b"]


def test_every_seed_makes_cells_of_its_own():
    cells = Grid(ladder("1b"), "c", seeds=(0, 7), cells_filter="dense-*-cl").cells()
    assert [cell.seed for cell in cells] == [0, 7]
    assert [cell.name for cell in cells] == ["dense-1b-cl"] * 2  # a filter sees no seed
    assert len({cell.run_name for cell in cells}) == 2


def test_a_given_budget_replaces_the_recipes_own():
    assert {c.budget_flops for c in Grid(ladder("1b"), "c").cells()} == {1e9}
    assert {c.budget_flops for c in Grid(ladder("1b"), "c", budget_flops=5.0).cells()} == {5.0}


def test_batches_chosen_by_size_and_objective_change_only_their_cells():
    grid = Grid(ladder("1b", "3b", by_size={("1b", "kd"): {"batch_queries": 1024}}), "c")
    by_name = {cell.name: cell.fine_tuning for cell in grid.cells()}
    assert by_name["sparse-1b-kd"].batch_queries == by_name["dense-1b-kd"].batch_queries == 1024
    others = {n: t for n, t in by_name.items() if n not in ("sparse-1b-kd", "dense-1b-kd")}
    assert {t.batch_queries for t in others.values()} == {FineTuning().batch_queries}
    assert by_name["dense-1b-kd"].temperature == 0.01


# -------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lora(rank=0), "lora.rank = 0: it must be at least 1"),
        (lambda: Lora(dropout=1.0), "lora.dropout = 1.0: it must be in [0, 1)"),
        (lambda: Backbone("a/b", "x"), "backbone.name = 'a/b': it must be a plain name"),
        (lambda: Backbone("", "x"), "backbone.name = '': it must be a plain name"),
        (lambda: Backbone("a", "x", layers=0), "backbone.layers = 0: it must be at least 1"),
        (
            lambda: Backbone("a", "x", start="warm"),  # type: ignore[arg-type]
            "backbone.start = 'warm': it must be pretrained or random",
        ),
        (lambda: Adaptation(steps=-1), "adaptation.steps = -1: it must be 0 (no MNTP) or more"),
        (
            lambda: Adaptation(selected_fraction=1.0),
            "adaptation.selected_fraction = 1.0: it must be in (0, 1)",
        ),
        (
            lambda: FineTuning(batch_queries=0),
            "fine_tuning.batch_queries = 0: it must be at least 1",
        ),
        (lambda: FineTuning(negatives=0), "fine_tuning.negatives = 0: it must be at least 1"),
        (
            lambda: FineTuning(random_fraction=1.5),
            "fine_tuning.random_fraction = 1.5: it must be in [0, 1]",
        ),
        (lambda: FineTuning(temperature=0), "fine_tuning.temperature = 0: it must be positive"),
        (
            lambda: FineTuning(pseudo_fraction=-0.1),
            "fine_tuning.pseudo_fraction = -0.1: it must be in [0, 1]",
        ),
        (
            lambda: FineTuning(learning_rate=0.0),
            "fine_tuning.learning_rate = 0.0: it must be positive",
        ),
        (
            lambda: Encoding(passage_length=0),
            "encoding.passage_length = 0: it must be at least 1, or none for the collection's own",
        ),
        (lambda: find_head("both"), "head 'both': it must be one of sparse, dense"),
        (lambda: find_objective("mse"), "objective 'mse': it must be one of cl, kd, cl+kd"),
        (
            lambda: Head("a b", "module:pool", "dense"),
            "head.name = 'a b': it must be a word without blanks, slashes and commas",
        ),
        (
            lambda: Head("own", "module", "dense"),
            "head.pooling = 'module': it must be of the form package.module:function",
        ),
        (
            lambda: Objective("own", "no module:loss", False, True),
            "objective.loss = 'no module:loss': it must be of the form package.module:function",
        ),
        (
            lambda: Backbone("b", "x", compute_dtype="int8"),  # type: ignore[arg-type]
            "compute_dtype = 'int8': it must be one of ('float32', 'bfloat16', 'float16')",
        ),
        (
            lambda: Cell(BACKBONE, DENSE, CL, FineTuning(), -1.0),
            "budget = -1.0: it must be a positive number of FLOPs",
        ),
        (
            lambda: Cell(BACKBONE, DENSE, CL, FineTuning(), float("nan")),
            "budget = nan: it must be a positive number of FLOPs",
        ),
        (
            lambda: ladder("1b", "1b"),
            "ladder.backbones = ['1b', '1b']: it must be distinct names",
        ),
        (
            lambda: ladder("1b", default=("3b",)),
            "ladder.default = ['3b']: it must be among ['1b']",
        ),
        (lambda: Grid(PICO, "c", seeds=()), "seeds = (): it must be at least one"),
        (lambda: Grid(PICO, "c", seeds=(1, 1)), "seeds = (1, 1): it must be distinct"),
        (lambda: Execution(workers=0), "workers = 0: it must be at least 1"),
        (lambda: Execution(zero_stage=4), "zero = 4: it must be 0, 1, 2 or 3"),
    ],
)
def test_a_refusal_names_field_value_and_what_is_right(make, message):
    with pytest.raises(ConfigError) as fault:
        make()
    assert str(fault.value) == message


def test_a_configuration_cannot_be_changed_after_validation():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FineTuning().temperature = 0  # type: ignore[misc]


# ---------------------------------------------------------------------------------- identity


def keys_of(value) -> set[str]:
    """All keys anywhere in a JSON value."""
    if isinstance(value, dict):
        return set(value) | set().union(*map(keys_of, value.values()), set())
    return set().union(*map(keys_of, value), set()) if isinstance(value, list) else set()


def test_identity_survives_json_unchanged_and_holds_every_field():
    """But names, places and what is an input's own."""
    variant = Variant(
        "all",
        {"bidirectional": False},
        {"warmup_steps": 1},
        {"warmup_steps": 1, "ramp_steps": 1, "corrupted_positives": 0.1, "corrupted_scores": 0.1},
    )
    cell = Grid(PICO, "scifact", epochs=2.0, variants=(variant,)).cells()[0]
    form = identity(cell)
    assert json.loads(json.dumps(form)) == form
    elsewhere = {"variant", "varied", "tuned", "adaptation"}
    assert set(form) == {field.name for field in dataclasses.fields(Cell)} - elsewhere
    places = {"name", "source"}
    assert set(form["backbone"]) == {f.name for f in dataclasses.fields(Backbone)} - places
    assert set(form["fine_tuning"]) == {field.name for field in dataclasses.fields(FineTuning)}
    assert set(form["head"]) == {"name", "pooling", "representation", "recipe"}
    assert form["fine_tuning"]["lora"]["targets"] == list(cell.fine_tuning.lora.targets)
    assert identity({"b": (1, 2), "a": Encoding()})["b"] == [1, 2]


def test_identity_differs_with_any_hyper_parameter():
    first = Cell(BACKBONE, DENSE, CL, FineTuning(), 1e9)
    others = [
        dataclasses.replace(first, head=SPARSE),
        dataclasses.replace(first, objective=KD),
        dataclasses.replace(first, budget_flops=2e9),
        dataclasses.replace(first, seed=1),
        dataclasses.replace(first, charged_adaptation=True),
        dataclasses.replace(first, budget_flops=0.0, epochs=1.0),
        dataclasses.replace(first, fine_tuning=FineTuning(lora=Lora(rank=8))),
        dataclasses.replace(first, fine_tuning=FineTuning(lora=None)),
    ]
    forms = [json.dumps(identity(cell)) for cell in (first, *others)]
    assert len(set(forms)) == len(forms)


def test_where_it_runs_is_no_part_of_what_is_computed():
    """No field of `Execution` may reach a fingerprint through any identity dataclass."""
    execution = {field.name for field in dataclasses.fields(Execution)}
    for config in (*Grid(PICO, "scifact").cells(), PICO.recipe.adaptation, PICO.recipe.encoding):
        assert not keys_of(identity(config)) & execution


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_k_query": -1}, "encoding.top_k_query = -1: it must be 0 (no pruning) or more"),
        ({"top_k_passage": -1}, "encoding.top_k_passage = -1"),
        ({"precision": "bfloat16"}, "encoding.precision = 'bfloat16'"),
    ],
)
def test_encodings_that_cannot_be(change, words):
    with pytest.raises(ConfigError) as error:
        Encoding().changed(**change)
    assert words in str(error.value)


def test_options_that_are_not_given_leave_an_encoding_as_it_is():
    own = Encoding(32, 128, 0, 7)
    assert own.changed(top_k_query=None, precision=None) == own
    assert own.changed(top_k_query=5) == Encoding(32, 128, 5, 7)
