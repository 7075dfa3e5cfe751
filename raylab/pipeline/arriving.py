"""Results as they come: what is measured is added to the tables while the rest of the grid runs.

The rows are interim parts of the tables (`raylab.storage.merging`). At the end `raylab.pipeline.collect` puts the same
rows in the grid's own order in their place, so that the tables do not depend on what was measured first.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

from raylab.experiment.execution import Execution
from raylab.experiment.grid import Cell
from raylab.pipeline.collect import Measured, query_values, rows_of
from raylab.pipeline.measuring import PairWork
from raylab.pipeline.stages import GridStages
from raylab.storage.merging import add_part, merge
from raylab.storage.store import Store
from raylab.storage.tables import PER_QUERY, RESULTS, QueryValue, Result

log = logging.getLogger("raylab")
_EVERY_S = 5.0
_SHARE = 0.1  # of the time, that may go into writing tables


class Arrivals:
    """What was measured and added since the grid began."""

    def __init__(self, stages: GridStages, execution: Execution, store: Store):
        self.stages, self.execution, self.store = stages, execution, store
        self.waiting: queue.SimpleQueue[PairWork | None] = queue.SimpleQueue()
        self.parts: dict[str, list[str]] = defaultdict(list)
        self.systems = {s.name: (s, cell) for s, cell in stages.systems(stages.cells)}

    def add(self, pair: PairWork) -> None:
        """Any thread may call it."""
        self.waiting.put(pair)

    @contextlib.contextmanager
    def adding(self) -> Iterator[None]:
        """While the block runs, a thread of its own adds what has come."""
        thread = threading.Thread(target=self._serve, name="arrivals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.waiting.put(None)
            thread.join()

    def _serve(self) -> None:
        earliest = time.monotonic()  # of the next write
        while (pair := self.waiting.get()) is not None:
            pairs = [pair]
            while (wait_s := earliest - time.monotonic()) > 0 or not self.waiting.empty():
                try:
                    more = self.waiting.get(timeout=max(wait_s, 0.0))
                except queue.Empty:
                    break
                if more is None:
                    return  # what is left comes with the rest
                pairs.append(more)
            started = time.monotonic()
            try:
                self._write(pairs)
            except Exception as fault:
                log.warning("results come at the end: %s", fault)
                return
            took_s = time.monotonic() - started
            earliest = time.monotonic() + max(_EVERY_S, took_s / _SHARE)

    def _write(self, pairs: list[PairWork]) -> None:
        rows, of_queries = rows_of(self.store, self._measured(pairs), self.execution)
        values = query_values(of_queries)
        self.parts[PER_QUERY].append(add_part(self.store, PER_QUERY, values, QueryValue))
        merge(self.store, PER_QUERY)
        self.parts[RESULTS].append(add_part(self.store, RESULTS, rows, Result))
        merge(self.store, RESULTS)

    def _measured(self, pairs: list[PairWork]) -> Measured:
        store, stages = self.store, self.stages
        evaluations, profiles, trained = {}, {}, {}
        for pair in pairs:
            for split, one in pair.searches.items():
                run, measures = store.all_committed([one.run_address, one.address])
                evaluations[*pair.name, split] = run, measures
            for profile in pair.profile():
                profiles[pair.name] = store.committed(profile.address)
        named = {pair.name[1] for pair in pairs}
        systems = [self.systems[name] for name in named if name in self.systems]
        cells: list[Cell] = [cell for _, cell in systems if cell is not None]
        for cell in cells:
            trained[cell] = store.committed(stages.retrievers[cell])
        trained_on = stages.collection.meta["name"]
        return Measured(trained_on, systems, trained, evaluations, profiles, ())
