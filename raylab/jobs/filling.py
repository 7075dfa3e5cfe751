"""Encoding of what is trained on devices that training leaves free; what is left is encoded afterwards."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator

from raylab.experiment.config import Execution
from raylab.jobs.encode import encode_all
from raylab.jobs.pool import Feed, encoders
from raylab.stages.encode import EncodeTask
from raylab.storage.store import Store

log = logging.getLogger("raylab")
Add = Callable[[Iterable[EncodeTask]], None]


@contextlib.contextmanager
def filling(
    store: Store,
    execution: Execution,
    free: Callable[[], int],
    finished: Callable[[EncodeTask, str | None], None],
) -> Iterator[Add]:
    """While the block runs, encode what is added, on as many actors as there are free devices.

    A task that fails is told of and left to the stage that encodes what is missing: it meets the same
    fault where it can be dealt with.
    """
    feed: Feed[EncodeTask] = Feed()

    def limit() -> int:
        return min(free(), encoders(execution))

    def work() -> None:
        try:
            encode_all(store, execution, feed, finished, limit)
        except Exception as fault:
            log.warning("encoding beside training ended, and is left for later: %s", fault)

    thread = threading.Thread(target=work, name="filling", daemon=True)
    thread.start()
    try:
        yield feed.add
    finally:
        feed.close()
        thread.join()
