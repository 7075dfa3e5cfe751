"""Curves of the trained cells: the points that their runs noted, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raylab.experiment.grid import Cell
from raylab.storage.artifacts import Artifact
from raylab.storage.merging import add_part, merge, parts_of
from raylab.storage.store import Store
from raylab.storage.tables import CURVES, CurvePoint, read_table

_NOTED = (
    *("tokens", "loss", "learning_rate", "gradient_norm"),
    *("held_out", "active_terms", "collapse"),
)


def curve_points(cell: Cell, made: Artifact, trained_on: str) -> Iterator[CurvePoint]:
    """The points of the run that made a cell, in order of their steps."""
    meta = made.meta
    for point in meta.get("history", ()):
        yield CurvePoint(
            fingerprint=made.fingerprint,
            system=cell.name,
            seed=cell.seed,
            size=cell.backbone.name,
            head=cell.head.name,
            objective=cell.objective.name,
            variant=cell.variant,
            varied=cell.varied,
            collection=trained_on,
            parameters=meta["parameters"],
            budget_flops=cell.budget_flops,
            step=int(point["step"]),
            steps=meta["steps"],
            flops=point["spent_flops"],
            **{name: point.get(name) for name in _NOTED},
        )


def add_curves(store: Store, trained: Mapping[Cell, Artifact], trained_on: str) -> None:
    """Add the points of cells that the table of curves does not hold yet."""
    known: set[str] = set()
    if parts_of(store, CURVES):
        known = set(read_table(store, CURVES)["fingerprint"])
    points = [
        point
        for cell, made in trained.items()
        if made.fingerprint not in known
        for point in curve_points(cell, made, trained_on)
    ]
    if points:
        add_part(store, CURVES, points, CurvePoint)
        merge(store, CURVES)
