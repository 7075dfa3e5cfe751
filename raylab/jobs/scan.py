"""Scans on a pool of Ray actors (`raylab.stages.scan` says what one does)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray
import torch

from raylab.experiment.config import Execution
from raylab.jobs.encode import actor_resources
from raylab.jobs.pool import encoders, run_on_actors
from raylab.stages.scan import Piece, Scan, Scanner, join
from raylab.stages.stage import missing
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store


@ray.remote
class ScanActor:
    """A `Scanner`, in a process of its own."""

    def __init__(self, store: Store, execution: Execution):
        torch.set_num_threads(1)
        self.scanner = Scanner(store, execution)

    def ready(self) -> None:
        """Returns once the actor is up."""

    def scan(self, piece: Piece) -> None:
        self.scanner.scan(piece)


def scan_all(
    store: Store,
    execution: Execution,
    scans: Sequence[Scan],
    finished: Callable[[Artifact], None],
) -> None:
    """Commit the hits of every scan, of whose pieces only those are made that are not there.

    Args:
        finished: called on the driver after each scan.

    Raises:
        The first piece's own error, unwrapped.
    """
    resources = actor_resources(execution)
    pieces = {scan.address.path: scan.pieces() for scan in scans}
    absent = missing(store, (piece for of_scan in pieces.values() for piece in of_scan))
    left = {path: {p.address.path for p in left_pieces} for path, left_pieces in pieces.items()}
    lacking = {p.address.path for p in absent}
    for path in left:
        left[path] &= lacking

    def done(scan: Scan) -> None:
        finished(join(store, scan, pieces[scan.address.path]))

    def scanned(piece: Piece, _: None) -> None:
        left_pieces = left[piece.scan.address.path]
        left_pieces.discard(piece.address.path)
        if not left_pieces:
            done(piece.scan)

    for scan in scans:
        if not left[scan.address.path]:
            done(scan)
    run_on_actors(
        lambda: ScanActor.options(**resources).remote(store, execution),
        absent,
        lambda: encoders(execution),
        lambda actor, piece: actor.scan.remote(piece),
        scanned,
        _next_piece,
    )


def _next_piece(last: Piece | None, queue: list[Piece]) -> Piece:
    """The first of the same system, whose model the actor has loaded, else the first of all."""
    same = (i for i, p in enumerate(queue) if last and p.system == last.system)
    return queue.pop(next(same, 0))
