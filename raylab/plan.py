"""The plan of a grid, before anything runs: steps, tokens, FLOPs, memory, hours and price of every cell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylab.budget import (
    DEVICES,
    CellPlan,
    Device,
    Shape,
    adaptation_flops,
    device_hours,
    passages_per_query,
    plan_cell,
)
from raylab.config import Cell, ConfigError, Execution, Grid, quarantined_kinds
from raylab.data.collections import read_passages, read_queries
from raylab.data.faults import Fault, OnFault, refuse
from raylab.data.sources import Source
from raylab.models.backbone import load_config, resolve_source
from raylab.models.hub import load_tokenizer

_SAMPLE_TEXTS = 1_000
_DRAWS = 32


@dataclass(frozen=True)
class GridPlan:
    """What a grid will take."""

    cells: tuple[CellPlan, ...]
    adaptation_flops: dict[str, float]  # by size

    @property
    def flops(self) -> float:
        return sum(c.flops for c in self.cells) + sum(self.adaptation_flops.values())


def plan_grid(grid: Grid, source: Source, execution: Execution) -> GridPlan:
    """Plan every cell from padded lengths sampled from the collection's own texts.

    The run itself solves steps from the lengths of its real batches; the two differ by sampling.

    Raises:
        ConfigError: an unknown model, a budget too small for one step, or a batch that the workers
            cannot share.
    """
    plans, adaptations = [], {}
    samples: dict[Any, tuple[list[int], list[int]]] = {}
    for cell in grid.cells():
        backbone = cell.backbone
        shape = Shape.of(load_config(backbone, resolve_source(backbone, execution.models_dir)))
        check_workers(cell, grid, execution)
        tokenizer = load_tokenizer(backbone, execution.models_dir)
        key = tokenizer.fingerprint, tokenizer.tokenization
        if key not in samples:
            on_fault = _pass_over if quarantined_kinds(grid.on_fault) else refuse
            samples[key] = _sample_lengths(tokenizer, source, on_fault)
        lengths = _padded_lengths(cell, *samples[key])
        plans.append(
            plan_cell(
                cell,
                shape,
                *lengths,
                execution.workers,
                execution.zero_stage,
                2 if execution.use_gpu else 4,
                execution.micro_batch_texts,
            )
        )
        adaptations[backbone.name] = adaptation_flops(shape, grid.ladder.recipe.adaptation)
    return GridPlan(tuple(plans), adaptations)


def check_workers(cell: Cell, grid: Grid, execution: Execution) -> None:
    """Batches are shared evenly, so that results do not depend on the number of workers."""
    for name, count in (
        ("fine_tuning.batch_queries", cell.fine_tuning.batch_queries),
        ("adaptation.batch_blocks", grid.ladder.recipe.adaptation.batch_blocks),
    ):
        if count % execution.workers:
            raise ConfigError(
                f"--workers {execution.workers}: {name} = {count} cannot be shared evenly"
            )


def _pass_over(fault: Fault) -> None:
    """Ingest puts it into the quarantine; a plan needs sound records only."""


def _sample_lengths(tokenizer, source: Source, on_fault: OnFault) -> tuple[list[int], list[int]]:
    """Token counts of the first training queries and passages."""
    split = "train" if "train" in source.queries else next(iter(source.queries))
    queries = [
        q.text
        for q in itertools.islice(
            read_queries(source.queries[split], on_fault).values(), _SAMPLE_TEXTS
        )
    ]
    path = source.train_passages or source.passages
    first = itertools.islice(read_passages(path, on_fault), _SAMPLE_TEXTS)
    passages = [f"{p.title} {p.text}" for p in first]
    around_q, around_p = tokenizer.overhead("query"), tokenizer.overhead("passage")
    return (
        [len(t) + around_q for t in tokenizer.encode(queries)],
        [len(t) + around_p for t in tokenizer.encode(passages)],
    )


def _padded_lengths(
    cell: Cell, queries: Sequence[int], passages: Sequence[int]
) -> tuple[float, float]:
    """Mean length of the longest text of a batch: what a batch is padded to."""
    tuning = cell.fine_tuning
    rng = np.random.default_rng(0)
    listed = tuning.batch_queries * passages_per_query(cell)

    def longest(lengths: Sequence[int], count: int, limit: int) -> float:
        cut = np.minimum(lengths, limit)
        return float(np.mean([rng.choice(cut, count).max() for _ in range(_DRAWS)]))

    return (
        longest(queries, tuning.batch_queries, tuning.query_length),
        longest(passages, listed, tuning.passage_length),
    )


def plan_rows(
    plan: GridPlan, device: Device, price_per_hour: float, workers: int
) -> list[dict[str, str]]:
    """The plan as rows of text: what `--dry-run` prints."""
    rows = []
    for cell in plan.cells:
        hours = device_hours(cell.flops, device)
        rows.append(
            {
                "cell": cell.cell,
                "steps": f"{cell.steps:,}",
                "tokens": f"{cell.tokens:.3g}",
                "FLOPs": f"{cell.flops:.3g}",
                "memory a worker": f"{cell.memory_bytes / 2**30:.2f} GiB"
                + (" (!)" if cell.memory_bytes > device.memory_bytes else ""),
                "device hours": f"{hours:.3g}",
                "wall hours": f"{hours / workers:.3g}",
                "price": f"{hours * price_per_hour:,.2f}",
            }
        )
    for size, flops in plan.adaptation_flops.items():
        hours = device_hours(flops, device)
        rows.append(
            {
                "cell": f"mntp-{size}",
                "steps": "",
                "tokens": "",
                "FLOPs": f"{flops:.3g}",
                "memory a worker": "",
                "device hours": f"{hours:.3g}",
                "wall hours": f"{hours / workers:.3g}",
                "price": f"{hours * price_per_hour:,.2f}",
            }
        )
    return rows


def named_device(name: str) -> Device:
    """A device to plan for.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in DEVICES:
        raise ConfigError(f"--device {name!r}: it must be one of {', '.join(DEVICES)}")
    return DEVICES[name]
