"""What a cell keeps when a part of its supervision is wrong: of its value, and of its gain over untrained.

A head that starts better keeps more of its value even where it has learnt nothing, so both shares are told.

Legend: B draws, Q queries, R runs (a cell and a seed), C cells, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from raylab.report.rows import TRAINED, UNTRAINED, Benchmark
from raylab.report.tables import GridTable, Line
from raylab.scaling.bootstrap import Interval, interval, query_shifts
from raylab.scaling.clusters import draw_noise

_BOTH, _POSITIVES, _SCORES = "positives and teacher scores", "positives", "teacher scores"
KINDS = (_BOTH, _POSITIVES, _SCORES)
_DRAWS = 2000
_NOTHING = Interval(1.0, 1.0, 1.0)

Key = tuple[str | None, str | None, str]
"""Head, objective and size."""
Cell = list[tuple[float, Line]]
"""Lines that differ in the share alone, each with its share, smallest first."""


@dataclass(frozen=True)
class Kept:
    """A line over the first of its cell, which had nothing wrong.

    `of_value`: share of the mean kept; `of_gain`: of what training gained over untrained, None where the
    line without anything wrong gained nothing or no untrained line is known. Intervals are over seeds and
    queries, nan where they are not known; `freedom`: of the noise between seeds, which is pooled over the
    cell; 0: one seed each, so that the intervals are over queries alone.
    """

    share: float
    line: Line
    of_value: Interval
    of_gain: Interval | None
    freedom: int


def corrupted(line: Line) -> tuple[str, float]:
    """What was corrupted (empty: nothing), and the share of it; of two shares the larger one."""
    positives, scores = line.corrupted_positives, line.corrupted_scores
    kind = _BOTH if positives and scores else _POSITIVES if positives else _SCORES if scores else ""
    return kind, max(positives, scores)


def cells_of(table: GridTable, kind: str) -> dict[Key, Cell]:
    """The cell of each (head, objective, size) that has any corrupted in this way; the plain recipe is 0."""
    by_share: dict[Key, dict[float, Line]] = {}
    for line in table.of(TRAINED):
        line_kind, share = corrupted(line)
        if line_kind == kind or not (line_kind or line.variant):
            by_share.setdefault((line.head, line.objective, line.size or ""), {})[share] = line
    return {key: sorted(lines.items()) for key, lines in by_share.items() if any(lines)}


def untrained_of(table: GridTable, key: Key) -> Line | None:
    """The untrained line of a cell's head and size."""
    head, _, size = key
    lines = [line for line in table.of(UNTRAINED) if (line.head, line.size) == (head, size)]
    return lines[0] if lines else None


def kept(
    cell: Cell, untrained: Line | None, per_query: pd.DataFrame | None, benchmark: Benchmark
) -> list[Kept]:
    """A cell's lines over its first, smallest share first; none where no line had nothing wrong.

    Args:
        per_query: values of the benchmark's primary measure, among others; None gives no intervals.
    """
    share, clean = cell[0]
    if share or clean.estimate.value <= 0:
        return []
    lines = [line for _, line in cell]
    means_C = np.array([line.estimate.value for line in lines])
    start = untrained.estimate.value if untrained else math.nan
    moved_BC, moved_B, freedom = _moved(lines, untrained, per_query, benchmark)
    of_value = _ratios(means_C, moved_BC)
    of_gain = _ratios(means_C - start, moved_BC - moved_B[:, None])
    gained = untrained is not None and means_C[0] > start
    return [
        Kept(own_share, line, value, gain if gained else None, freedom)
        for (own_share, line), value, gain in zip(cell, of_value, of_gain, strict=True)
    ]


def _ratios(means_C: np.ndarray, moved_BC: np.ndarray) -> list[Interval]:
    """Each mean over the first with its interval; nan where the first may as well be 0."""
    draws_BC = means_C + moved_BC
    whole_B1 = draws_BC[:, :1]
    ratios_BC = np.where(whole_B1 > 0, draws_BC / np.where(whole_B1 > 0, whole_B1, 1.0), np.inf)
    found = [_NOTHING]
    for mean, ratio_B in zip(means_C[1:], ratios_BC.T[1:], strict=True):
        own = interval(float(mean / means_C[0]), ratio_B) if len(ratio_B) else None
        if own is None or not own.high < np.finfo(float).max / 1e10:
            own = Interval(float(mean / means_C[0]), math.nan, math.nan)
        found.append(own)
    return found


def _moved(
    lines: Sequence[Line],
    untrained: Line | None,
    per_query: pd.DataFrame | None,
    benchmark: Benchmark,
) -> tuple[np.ndarray, np.ndarray, int]:
    """What draws of queries and seeds add to the mean of each line and to untrained, and the degrees of
    freedom of seeds: [B, C], [B]. No draws where values of single queries are not known."""
    values = _runs(lines, untrained, per_query, benchmark)
    if values is None:
        return np.zeros((0, len(lines))), np.zeros(0), 0
    values_RQ, of_R = values
    trained_R = of_R < len(lines)
    means_R = values_RQ.mean(1)
    cells_RC = (of_R[:, None] == np.arange(len(lines))).astype(np.float64)
    freedom = int(trained_R.sum()) - len(lines)
    deviations_RQ = values_RQ - means_R[:, None]
    if freedom:
        own_RC = cells_RC[trained_R]
        residuals_R = means_R[trained_R] - own_RC @ (own_RC.T @ means_R[trained_R] / own_RC.sum(0))
        noise = draw_noise(deviations_RQ[trained_R], residuals_R, own_RC, [], _DRAWS, 0)
        runs_BR = noise.runs_BR
    else:
        runs_BR = np.zeros((_DRAWS, int(trained_R.sum())))
    # The same seed: the same queries for all.
    shifts_BR = query_shifts(deviations_RQ, _DRAWS, np.random.default_rng(0))
    moved_BC = (shifts_BR[:, trained_R] + runs_BR) @ cells_RC[trained_R] / cells_RC.sum(0)
    moved_B = shifts_BR[:, ~trained_R].sum(1)  # of the one untrained run, or of none
    return moved_BC, moved_B, freedom


def _runs(
    lines: Sequence[Line],
    untrained: Line | None,
    per_query: pd.DataFrame | None,
    benchmark: Benchmark,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Values [R, Q] of every run of the lines, and the place of its line; untrained is the last, [R]."""
    if per_query is None:
        return None
    wanted = [line.system for line in (*lines, *([untrained] if untrained else []))]
    own = per_query.query(benchmark.primary_filter)
    own = own.loc[own["system"].isin(wanted)]
    table = own.assign(seed=own["seed"].fillna(-1)).pivot_table(
        index=["system", "seed"], columns="query_id", values="value"
    )
    table = table.dropna(axis=1)
    places = np.array([wanted.index(system) for system in table.index.get_level_values("system")])
    if set(places) != set(range(len(wanted))) or table.shape[1] < 2:
        return None
    return table.to_numpy(np.float64), places
