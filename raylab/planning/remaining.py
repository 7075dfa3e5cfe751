"""How long the runs that are left will take: the plan's durations, corrected by what was measured.

A prediction is corrected by the ratio of measured to predicted seconds, of the same part of the work. The ratio is
drawn towards 1 by a prior worth `PRIOR_S` seconds of measuring, so that the first seconds of the first run say little:

    corrected(prior ratio, measured, predicted) = (PRIOR_S * prior ratio + measured) / (PRIOR_S + predicted)

A run's own ratio starts from that of its kind (MNTP or fine-tuning), and a kind's from that of all runs. What is left
is then put through the queue again, as the driver would start it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raylab.planning.scheduling import Item, simulate

PRIOR_S = 5.0


@dataclass(frozen=True)
class Standing:
    """Where a run stands; one that is not told of waits.

    Args:
        elapsed_s: seconds since it started, in all.
        share: of its steps that are taken, 0 to 1.
        ended: it is done, or has failed: nothing of it is left.
    """

    elapsed_s: float
    share: float = 0.0
    ended: bool = False


@dataclass(frozen=True)
class Remaining:
    """Seconds that are left: until the last run ends, and of each run's own work."""

    total_s: float
    runs: dict[str, float]


def remaining(
    items: Sequence[Item], standing: Mapping[str, Standing], devices: int, overhead_s: float = 0.0
) -> Remaining:
    """What is left of a grid's training.

    Args:
        items: all of it, with predicted seconds.
        standing: by name of an item.
        devices: that runs may hold at once.
        overhead_s: of every item's predicted seconds, those before its first step.
    """
    measured: dict[str, tuple[float, float]] = {}
    by_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item in items:
        if item.name in standing:
            pair = _measured(item, standing[item.name], overhead_s)
            measured[item.name] = pair
            by_kind[item.kind].append(pair)
    overall = _corrected(1.0, [pair for pairs in by_kind.values() for pair in pairs])
    of_kind = {item.kind: _corrected(overall, by_kind[item.kind]) for item in items}
    runs = {}
    for item in items:
        stands = standing.get(item.name)
        if stands is None:
            runs[item.name] = item.seconds * of_kind[item.kind]
        elif stands.ended:
            runs[item.name] = 0.0
        else:
            ratio = _corrected(of_kind[item.kind], [measured[item.name]])
            runs[item.name] = ratio * (item.seconds - measured[item.name][1])
    left = [
        replace(item, seconds=runs[item.name], after=tuple(a for a in item.after if runs.get(a)))
        for item in items
        if runs[item.name] > 0
    ]
    if not left:
        return Remaining(0.0, runs)
    running = {item.name for item in left if item.name in standing}
    held = sum(item.devices for item in left if item.name in running)
    most = max(devices, held, *(item.devices for item in left))
    return Remaining(simulate(left, most, running).makespan_s, runs)


def _measured(item: Item, stands: Standing, overhead_s: float) -> tuple[float, float]:
    """(seconds it took, seconds predicted for the same part) of a run."""
    if stands.ended:
        return stands.elapsed_s, item.seconds
    overhead_s = min(overhead_s, item.seconds)
    if not stands.share:  # before the first step: what the prediction has for it, and no more
        return stands.elapsed_s, min(stands.elapsed_s, overhead_s)
    return stands.elapsed_s, overhead_s + stands.share * (item.seconds - overhead_s)


def _corrected(prior: float, pairs: Sequence[tuple[float, float]]) -> float:
    took = sum(pair[0] for pair in pairs)
    predicted = sum(pair[1] for pair in pairs)
    return (PRIOR_S * prior + took) / (PRIOR_S + predicted)
