"""What happens with a faulty record of a collection or a teacher file, as it is asked for."""

from __future__ import annotations

from typing import Any

from raylab.experiment.config import check

# What can be wrong with a record of a collection or a teacher file (`raylab.data.faults.Kind`).
FAULTS = ("encoding", "format", "fields", "empty", "id", "duplicate", "unknown", "grade", "score")


def quarantined_kinds(on_fault: str) -> frozenset[str]:
    """The kinds of fault whose records are set aside; a fault of any other kind ends the reading.

    ``on_fault``: `error` (none), `quarantine` (all), or `quarantine:KIND[,KIND...]`.

    Raises:
        ConfigError: anything else.
    """
    policy, named, names = on_fault.partition(":")
    kinds = frozenset(names.split(",") if named else FAULTS)
    check(
        on_fault == "error" or (policy == "quarantine" and kinds <= set(FAULTS)),
        "on_fault",
        on_fault,
        f"error, quarantine, or quarantine:KIND[,KIND...] of the kinds {', '.join(FAULTS)}",
    )
    return frozenset() if on_fault == "error" else kinds


def fault_identity(on_fault: str) -> dict[str, Any]:
    """The part of an identity that says which faults are left out; nothing where none is."""
    kinds = quarantined_kinds(on_fault)
    return {"quarantined": sorted(kinds)} if kinds else {}
