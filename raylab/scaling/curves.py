"""Laws from held-out curves: many points a run, which share the run's noise.

Every point of a curve, from the end of its warm-up on, is a run of that many FLOPs to a law of N and D
(`curve_series`); `raylab.scaling.clusters` draws what points of one curve share together. The envelope is Chinchilla's
first approach (2203.15556): at each number of FLOPs the size whose curve is lowest, and the exponent of that size in
FLOPs. A point on the way is of a model whose learning rate has not fallen yet: a run of that budget alone would end
lower.

Legend: S sizes, K curves, C numbers of FLOPs, B draws.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raylab.experiment.config import ConfigError
from raylab.scaling.bootstrap import Interval, interval
from raylab.scaling.points import Series, of_variants, rows_with

SPLIT, MEASURE = "held-out", "CE"
_BUDGETS = 40  # numbers of FLOPs, along the envelope
_FEWEST_SIZES = 3
_FEWEST_POINTS = 3  # of a curve


def curve_series(
    curves: pd.DataFrame,
    *,
    head: str | None = None,
    objective: str | None = None,
    collection: str | None = None,
    variant: str | None = None,
) -> list[Series]:
    """The held-out points of `curves.parquet`, a series each head, objective and collection.

    Args:
        variant: a glob that variants' names must match; None keeps the plain recipe and budgets.
    """
    rows = of_variants(curves.loc[curves["held_out"].notna()], variant)
    rows = rows_with(rows, head=head, objective=objective, collection=collection)
    rows = rows.loc[_past_warm_up(rows) & (rows["held_out"] > 0)]
    keys = ["head", "objective", "collection"]
    return [_series(of_series, *map(str, key)) for key, of_series in rows.groupby(keys, sort=True)]


def _past_warm_up(rows: pd.DataFrame) -> Any:
    """Points at which the learning rate has been at its highest: before, no run could end."""
    rate = rows.groupby("fingerprint")["learning_rate"]
    highest = rows["step"].where(rows["learning_rate"] == rate.transform("max"))
    return rows["step"] >= highest.groupby(rows["fingerprint"]).transform("min")


def _series(rows: pd.DataFrame, head: str, objective: str, collection: str) -> Series:
    rows = rows.sort_values(["parameters", "budget_flops", "system", "seed", "step"], kind="stable")
    nothing = np.full(len(rows), np.nan)
    parameters = rows["parameters"].to_numpy(np.float64)
    return Series(
        head=head,
        objective=objective,
        collection=collection,
        split=SPLIT,
        measure=MEASURE,
        systems=tuple(rows["system"]),
        sizes=tuple(rows["size"]),
        variants=tuple(rows["variant"]),
        seeds=tuple(map(int, rows["seed"])),
        numbers={
            "parameters": parameters,
            "with_head": parameters,
            "tokens": rows["tokens"].to_numpy(np.float64),
            "spent_flops": rows["flops"].to_numpy(np.float64),
            "budget_flops": _nominal_flops(rows),
            **dict.fromkeys(("examples", "retrieval_flops", "index_bytes"), nothing),
        },
        query_ids=("all",),
        losses_RQ=rows["held_out"].to_numpy(np.float64)[:, None],
    )


def _nominal_flops(rows: pd.DataFrame) -> np.ndarray:
    """The share of the budget that a point is, the same for all seeds; of a budget in epochs what was spent."""
    budget = rows["budget_flops"].to_numpy(np.float64)
    share = rows["step"].to_numpy(np.float64) / rows["steps"].to_numpy(np.float64)
    return np.where(budget > 0, budget * share, rows["flops"].to_numpy(np.float64))


def with_ends_of_largest(series: Series) -> Series:
    """All points of the smaller sizes, and of each run of the largest size its last point: what a forecast is about."""
    n_R, c_R = series.covariate("N"), series.covariate("C")
    runs = list(zip(series.systems, series.variants, series.seeds, strict=True))
    last: dict[tuple, float] = defaultdict(float)
    for run, flops in zip(runs, c_R, strict=True):
        last[run] = max(last[run], flops)
    ends_R = np.array([flops == last[run] for run, flops in zip(runs, c_R, strict=True)], bool)
    return series.keep((n_R < n_R.max()) | ends_R)


@dataclass(frozen=True)
class Envelope:
    """The lowest of the curves at each number of FLOPs.

    `flops_C`, `sizes_C` (names), `parameters_C`, `loss_C` along it; `exponent`: of N in C, with the interval of
    `degrees_of_freedom` (nan without one: no size with two seeds). `open_ends`: whether the lowest curve is that of the
    smallest or of the largest size somewhere, so that a size beyond might be lower.
    """

    series: Series
    flops_C: np.ndarray
    sizes_C: tuple[str, ...]
    parameters_C: np.ndarray
    loss_C: np.ndarray
    exponent: Interval
    degrees_of_freedom: int
    open_ends: bool


def envelope(
    series: Series, draws: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Envelope:
    """Chinchilla's first approach on a series of `curve_series`.

    The interval is of the noise that whole curves have: how seeds of a size differ, drawn with as many degrees of
    freedom as there are seeds beside the first of each size. Points of one curve move together.

    Raises:
        ConfigError: fewer than three sizes with curves over a common range of FLOPs.
    """
    by_size = _curves_by_size(series)
    grid_C, sizes, mean_SC, curves_KC, size_K = _on_a_grid(series, by_size)
    log_n_S = np.log([by_size[size][0][2] for size in sizes])
    best_C = mean_SC.argmin(0)
    exponent = _slope(grid_C, log_n_S[best_C])
    counts_S = np.bincount(size_K, minlength=len(sizes))
    freedom = int((counts_S - 1).sum())
    low = high = math.nan
    if freedom:
        rng = np.random.default_rng(seed)
        shift_K = (curves_KC - mean_SC[size_K]).mean(1)
        variance_B = (shift_K**2).sum() / rng.chisquare(freedom, draws)
        scale_BS = np.sqrt(variance_B[:, None] / counts_S)
        moved_BSC = mean_SC + (scale_BS * rng.normal(size=scale_BS.shape))[:, :, None]
        best_BC = moved_BSC.argmin(1)
        own = interval(exponent, _slope(grid_C, log_n_S[best_BC]), confidence)
        low, high = own.low, own.high
    return Envelope(
        series,
        np.exp(grid_C),
        tuple(sizes[place] for place in best_C),
        np.exp(log_n_S[best_C]),
        np.exp(mean_SC.min(0)),
        Interval(float(exponent), low, high),
        freedom,
        bool(np.isin(best_C, [log_n_S.argmin(), log_n_S.argmax()]).any()),
    )


_Curve = tuple[np.ndarray, np.ndarray, float]  # log FLOPs, log loss, N


def _curves_by_size(series: Series) -> dict[str, list[_Curve]]:
    """The curves of each size."""
    places = defaultdict(list)
    named = zip(series.systems, series.variants, series.seeds, series.sizes, strict=True)
    for place, run in enumerate(named):
        places[run].append(place)
    log_c, log_loss = np.log(series.covariate("C")), np.log(series.losses_R)
    by_size: dict[str, list[_Curve]] = defaultdict(list)
    for (_, _, _, size), own in places.items():
        if len(own) >= _FEWEST_POINTS:
            parameters = float(series.covariate("N")[own[0]])
            by_size[size].append((log_c[own], log_loss[own], parameters))
    return by_size


def _on_a_grid(
    series: Series, by_size: dict[str, list[_Curve]]
) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray, np.ndarray]:
    """(log FLOPs [C], sizes, their mean log losses [S, C], those of the curves [K, C], sizes of curves [K])."""
    curves = [curve for of_size in by_size.values() for curve in of_size]
    if len(by_size) < _FEWEST_SIZES:
        raise ConfigError(
            f"{series.name}: {len(by_size)} size(s) with curves of {_FEWEST_POINTS} points or more; an envelope needs "
            f"{_FEWEST_SIZES}"
        )
    first, last = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
    if first >= last:
        raise ConfigError(f"{series.name}: the curves have no range of FLOPs in common")
    grid_C = np.linspace(first, last, _BUDGETS)
    curves_KC = np.array([np.interp(grid_C, log_c, log_loss) for log_c, log_loss, _ in curves])
    size_K = np.repeat(range(len(by_size)), [len(own) for own in by_size.values()])
    mean_SC = np.array([curves_KC[size_K == place].mean(0) for place in range(len(by_size))])
    return grid_C, list(by_size), mean_SC, curves_KC, size_K


def _slope(x_C: np.ndarray, y_BC: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row."""
    centred_C = x_C - x_C.mean()
    return y_BC @ centred_C / (centred_C @ centred_C)


def envelopes(every: Sequence[Series], draws: int, seed: int) -> tuple[list[Envelope], list[str]]:
    """Of every series that has one, and why the others have none."""
    made, refused = [], []
    for one in every:
        try:
            made.append(envelope(one, draws, seed))
        except ConfigError as error:
            refused.append(str(error))
    return made, refused
