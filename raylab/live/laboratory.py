"""What a server knows of its storage: facts and tables, read again when somebody asks and they are old."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import threading
import time
import uuid
from typing import Any

import pyarrow.parquet as pq

from raylab.live.reading import LiveFacts
from raylab.live.results import Results
from raylab.live.state import driver_of, state_of
from raylab.live.timeline import timeline
from raylab.live.views import State
from raylab.storage.merging import read_current
from raylab.storage.store import Store
from raylab.storage.tables import PER_QUERY

REFRESH_S = 2.0
MOST_VALUES = 5_000_000  # per query, that laws are fitted to: some hundred MiB
NO_LAWS: dict[str, Any] = {"title": "", "spec": None, "forecasts": [], "refused": [], "more": []}
_MOST_OF_TIME = 0.1  # that reading may take


class Laboratory:
    """What is known of a storage; read again, on request, when it is older than two seconds.

    Where reading takes long, it is read less often.

    Args:
        hour_price: of one device, where the page is to say a price.
    """

    def __init__(self, store: Store, hour_price: float | None = None):
        self.store, self.hour_price = store, hour_price
        self.facts, self.results = LiveFacts(store), Results(store)
        self.boot = uuid.uuid4().hex[:8]
        self.version, self.text = "", "{}"
        self.storage, self.collection = store.uri, ""
        self._next_at = 0.0
        self._lock = asyncio.Lock()
        self._fitting = threading.Lock()
        self._laws: tuple[Any, dict[str, Any] | None] = (None, None)

    async def fresh(self) -> tuple[str, str]:
        """(version, state as JSON text)."""
        async with self._lock:
            began = time.monotonic()
            if began >= self._next_at:
                await asyncio.to_thread(self._refresh)
                ended = time.monotonic()
                self._next_at = ended + max(REFRESH_S, (ended - began) / _MOST_OF_TIME)
        return self.version, self.text

    def _refresh(self) -> None:
        fault = ""
        for part in (self.facts, self.results):
            try:
                part.refresh()
            except Exception as error:  # what was read before is still shown, with the reason
                fault = " ".join(str(error).split())[:300]
        state = self._state()
        self.collection = state.collection
        self.text = json.dumps(dataclasses.asdict(state) | {"fault": fault}, allow_nan=False)
        self.version = f"{self.boot}-{hashlib.sha256(self.text.encode()).hexdigest()[:16]}"

    def _state(self) -> State:
        report = "index.html" in self.store.files.names("report")
        results = self.results
        return state_of(
            self.facts,
            time.time(),
            self.store.uri,
            results.measured,
            len(results.rows),
            results.version,
            report,
            self.hour_price,
        )

    def timeline(self) -> dict[str, Any]:
        """`raylab.live.views.Timeline` as a JSON object."""
        now = time.time()
        with self.facts.lock:
            alive = driver_of(self.facts, now).state == "running"
            return dataclasses.asdict(timeline(self.facts, now, alive))

    def laws(self) -> dict[str, Any] | None:
        """The laws fitted so far (`raylab.live.laws`); None before values per query are there.

        They are fitted again when the results or the plan have changed, one after the other.
        """
        from raylab.live.laws import laws  # imports Altair: only who asks for it waits

        with self._fitting:
            plan, results = self.facts.plan, self.results
            key = results.version, plan.session if plan else ""
            if results.version is None or not results.rows:
                return None
            if key != self._laws[0]:
                try:
                    values = self._values_per_query()
                    per_query = (
                        None if values > MOST_VALUES else read_current(self.store, PER_QUERY)
                    )
                except FileNotFoundError:
                    return None
                if per_query is None:
                    note = f"{values:,} values per query are too many to fit beside a page: raylab fit does it."
                    self._laws = key, NO_LAWS | {"note": note}
                else:
                    self._laws = key, laws(results.rows, results.table, per_query, plan)
            return self._laws[1]

    def _values_per_query(self) -> int:
        with self.store.fs.open(self.store.files.full(PER_QUERY), "rb") as file:
            return pq.ParquetFile(file).metadata.num_rows

    def points(self, run: str, after: int) -> dict[str, Any] | None:
        """Points of a run's curve whose number is above `after`; None: no such run."""
        with self.facts.lock:
            curve = self.facts.curve(run)
            if curve is None:
                return None
            sessions = len(curve.sessions)
            return {"run": run, "sessions": sessions, "points": curve.rows(after)}
