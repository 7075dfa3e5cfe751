"""Stages that run as Ray tasks: index, search and evaluate, profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from raylab.jobs.cluster import unwrapped
from raylab.stages import profile, scan, search
from raylab.stages.search import Evaluation
from raylab.stages.stage import missing
from raylab.storage.store import Store

_task: Any = ray.remote(num_cpus=1, max_retries=5)
build_index = _task(search.build_index)
_search_piece = _task(search.search_piece)
_search_and_evaluate = _task(search.search_and_evaluate)
profile_system = _task(profile.make_profile)
scanned_profile = _task(scan.make_scanned_profile)


def evaluate_all(
    store: Store,
    evaluations: Sequence[Evaluation],
    at_once: int,
    gpu: bool,
    finished: Callable[[], None],
) -> None:
    """Commit the runs and measures of all: first the pieces of their searches that are not there.

    Args:
        at_once: tasks in flight. gpu: dense products on one, which each task of a dense search holds.
        finished: called on the driver after each evaluation.

    Raises:
        The first task's own error, unwrapped.
    """
    found = store.find_all(one.run_address for one in evaluations)
    searches = [one for one, run in zip(evaluations, found, strict=True) if run is None]
    pieces = missing(store, (piece for one in searches for piece in one.pieces()))
    calls = [_call(_search_piece, store, piece, piece.evaluation, gpu) for piece in pieces]
    run_all(calls, at_once, lambda: None)
    calls = [_call(_search_and_evaluate, store, e, e, gpu and not e.pieces()) for e in evaluations]
    run_all(calls, at_once, finished)


def _call(function: Any, store: Store, task: Any, of: Evaluation, gpu: bool) -> tuple[Any, tuple]:
    dense = bool(of.shards) and of.shards[0].meta["representation"] == "dense"
    if gpu and dense:
        return function.options(num_gpus=1), (store, task, "cuda")
    return function, (store, task)


def run_all(calls: Sequence[tuple[Any, tuple]], limit: int, finished: Callable[[], None]) -> None:
    """Run remote functions, at most `limit` at a time.

    Raises:
        The first one's own error, unwrapped.
    """
    queue, running = list(calls), []
    while queue or running:
        while queue and len(running) < limit:
            function, arguments = queue.pop(0)
            running.append(function.remote(*arguments))
        (ready,), running = ray.wait(running, num_returns=1)
        unwrapped(ray.get, ready)
        finished()
